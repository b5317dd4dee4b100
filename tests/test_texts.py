"""Texts of one's own: what files are understood, which part a text belongs to, and what a model is to learn of it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as kinds
from transformers import PreTrainedTokenizerFast

from rules2ranks.tasks import texts
from rules2ranks.tasks.texts import Text

WORDS = ["<unk>", "<s>", "</s>", *"a b c d e f".split()]


def by_words(begin=False, end=True, **special):
    """A tokenizer of a few words, perhaps with a token before each text and one to put after it."""
    words = Tokenizer(kinds.WordLevel({word: token for token, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if begin:
        words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    ends = {"eos_token": "</s>"} if end else {}
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>", **ends, **special)


def by_pairs(corpus):
    """A byte-level BPE as Llama 3's and Qwen's are, trained on a corpus: its tokens reach over ends of words."""
    pairs = Tokenizer(kinds.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pairs.decoder = decoders.ByteLevel()
    pairs.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=48, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=pairs)


# --- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", '[{"prompt": "a", "completion": " b", "more": 1}]', [Text("a", " b")]),
        ("a.jsonl", '{"text": "a b"}\n\n{"text": "c"}\n', [Text("", "a b"), Text("", "c")]),
        ("a.json", '{"text": "a b"}\n{"text": "c"}', [Text("", "a b"), Text("", "c")]),
        ("a.json", '[{"text": "a"}, {"text": " "}, {"prompt": "b", "completion": ""}]', [Text("", "a")]),
        ("a.txt", "one\ntwo\n \nthree\r\n\r\n\r\nfour\n", [Text("", "one\ntwo"), Text("", "three"), Text("", "four")]),
        ("a.TXT", "\ufeffé ü", [Text("", "é ü")]),
    ],
)
def test_what_is_understood(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content.encode())
    assert texts.read(tmp_path / name) == expected


def test_alpacas_form_becomes_its_two_prompts(tmp_path):
    rows = [
        {"instruction": "Add.", "input": "1 and {2}", "output": "3"},
        {"instruction": "Greet.", "input": "", "output": "Hello"},
        {"instruction": "Greet.", "output": "Hello again", "text": "all of it once more"},
    ]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    with_input, without, same = texts.read(tmp_path / "alpaca.json")
    assert with_input == Text(
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 and {2}\n\n"
        "### Response:\n",
        "3",
    )
    assert without == Text(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nGreet.\n\n### Response:\n",
        "Hello",
    )
    assert same == Text(without.prompt, "Hello again")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.parquet", b"PAR1", r"a\.parquet is not understood: expected texts as \.json, \.jsonl or \.txt"),
        ("a.json", b" \n", r"a\.json is empty"),
        ("a.txt", b"\xff\xfe\x00", r"a\.txt is not UTF-8 text"),
        ("a.json", b"[{]", r"a\.json is not JSON: "),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl is not JSON, as a whole or line by line: line 2: "),
        ("a.json", b'["a"]', r"entry 1 is no object but 'a': expected an object with instruction, output and perhaps"),
        ("a.json", b'[{"text": "a"}, {"question": "b", "reply": "c"}]', r"entry 2 has 'question', 'reply': expected "),
        ("a.json", b"[{}]", r"entry 1 has no field: expected instruction, output and perhaps input \(Alpaca's form\)"),
        ("a.json", b'{"data": [{"text": "a"}]}', r"entry 1 has 'data': expected"),
        ("a.json", b'[{"instruction": "a", "output": ["b"]}]', r"entry 1: output is no text but \['b'\]"),
        ("a.json", b'[{"text": ""}, {"instruction": "a", "output": " "}]', r"a\.json holds only empty texts"),
        ("a.json", b"[]", r"a\.json holds only empty texts"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        texts.read(tmp_path / name)


@pytest.mark.parametrize("name", ["none.json", ""])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=f"there is no file {tmp_path / name}: expected texts"):
        texts.read(tmp_path / name)


# --- parts ------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), max_size=60), st.integers(1, 8), st.randoms())
def test_parts_share_no_prompt_and_depend_on_no_order(pairs, held_out, random):
    some = [Text(f"question {prompt}", f"answer {answer}") for prompt, answer in pairs]
    try:
        parts = texts.split(some, held_out)
    except ValueError as error:
        assert "too few to hold out" in str(error)
        # No prompt has more than four answers, so that a part can come out by three texts larger than asked for.
        assert len(set(some)) < 3 * held_out + 6
        return
    assert sorted(text for part in parts.values() for text in part) == sorted(set(some))
    prompts = [{text.prompt for text in part} for part in parts.values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts))
    assert all(held_out <= len(parts[name]) < held_out + 4 for name in ("search", "report"))
    assert len(parts["train"]) >= held_out
    random.shuffle(some)
    assert texts.split(some, held_out) == parts


def test_texts_without_a_prompt_are_told_apart_by_themselves():
    parts = texts.split([Text("", f"text {n}") for n in range(30)], 5)
    assert {name: len(part) for name, part in parts.items()} == {"train": 20, "search": 5, "report": 5}


# --- encoding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("on_prompt", [False, True])
def test_what_a_model_is_given_and_what_it_is_to_learn(begin, on_prompt):
    a, b, c, d, end = map(WORDS.index, "a b c d </s>".split())
    some = [Text("a b ", "c d"), Text("", "a"), Text("b b b b ", "c"), Text("a ", "b c d")]
    tokens, labels = texts.encode(some, by_words(begin), 5, on_prompt)
    start = [WORDS.index("<s>")] * begin
    fed = [[a, b, c, d, end], [a, end], [b, b, b, b, c], [a, b, c, d, end]]  # before the cut
    learnt_from = [2, 0, 4, 1]
    expected = []
    for ids, first in zip(fed, learnt_from, strict=True):
        ids, first = (start + ids)[:5], 0 if on_prompt else first + begin
        if first < len(ids):  # with a start token the third answer lies beyond the cut
            expected.append((ids + [0] * (5 - len(ids)), [-100] * first + ids[first:] + [-100] * (5 - len(ids))))
    assert tokens.tolist() == [ids for ids, _ in expected]
    assert labels.tolist() == [ids for _, ids in expected]
    assert tokens.dtype == labels.dtype == np.int64
    assert len(tokens) == 4 - (begin and not on_prompt)


def test_no_end_token_where_there_is_none_or_one_already():
    assert texts.encode([Text("", "a b")], by_words(end=False), 4)[0].tolist() == [[3, 4, 0, 0]]
    assert texts.encode([Text("", "a b </s>")], by_words(), 5)[0].tolist() == [[3, 4, 2, 0, 0]]


def test_a_token_that_reaches_from_the_prompt_into_the_answer_is_learnt():
    """The answer is in what is learnt, whole, and of the prompt at most what shares a token with the answer."""
    some = [Text(f"is {n} even? ", "yes it is" if n % 2 == 0 else "no way") for n in range(40)]
    tokenizer = by_pairs([text.prompt + text.answer for text in some])
    tokens, labels = texts.encode(some, tokenizer, 64, train_on_prompt=False)
    reaching = 0
    for text, ids, wanted in zip(some, tokens, labels, strict=True):
        learnt = tokenizer.decode(wanted[wanted != -100])
        before = tokenizer.decode(ids[: np.argmax(wanted != -100)])
        assert learnt.endswith(text.answer) and text.prompt.startswith(before)
        assert before + learnt == text.prompt + text.answer
        reaching += learnt != text.answer
    assert reaching, "no token reaches over: the test shows nothing"


@pytest.mark.parametrize(
    ("some", "length", "on_prompt", "said"),
    [
        ([Text("", "a")], 1, True, "length must be at least 2 tokens, got 1"),
        ([Text("a b c ", "d")], 3, False, "none of 1 texts has anything to learn in its first 3 tokens: prompts are"),
        ([Text("", "a")] * 3, 8, True, "none of 3 texts has anything to learn"),
    ],
)
def test_what_cannot_be_learnt_is_said(some, length, on_prompt, said):
    with pytest.raises(ValueError, match=said):
        texts.encode(some, by_words(end=False), length, on_prompt)


def test_a_slow_tokenizer_cannot_tell_where_the_answer_begins():
    slow = SimpleNamespace(is_fast=False)
    with pytest.raises(ValueError, match="SimpleNamespace is a slow tokenizer: it can only train on prompts, too"):
        texts.encode([Text("a ", "b")], slow, 8, train_on_prompt=False)


# --- windows ----------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=6),
    st.integers(2, 24),
    st.integers(0, 5),
)
def test_windows_are_parts_of_texts_with_something_to_learn(lengths, length, seed):
    """Texts of numbers that tell where they stand: prompt and answer of the given lengths, padded to twenty."""
    tokens, labels = np.zeros((len(lengths), 20), dtype=int), np.full((len(lengths), 20), -100)
    for row, (prompt, answer) in enumerate(lengths):
        prompt += answer == 1 and prompt == 0  # one token alone has nothing before it to be predicted from
        tokens[row, : prompt + answer] = 100 * (row + 1) + np.arange(prompt + answer)
        labels[row, prompt : prompt + answer] = tokens[row, prompt : prompt + answer]
    ids, wanted = texts.windows(tokens, labels, 30, length, seed)
    assert ids.shape == wanted.shape == (30, min(length, 20))
    assert ((wanted == ids) | (wanted == -100)).all() and (wanted[:, 1:] != -100).any(axis=1).all()
    for window in ids:
        row = window[0] // 100 - 1
        begin = window[0] % 100
        assert np.array_equal(window, tokens[row, begin : begin + length])
        assert begin == 0 or window[-1] != 0, "padding, though the text goes further to the left"
    begun, learnt = texts.windows(tokens, labels, 30, length, seed, start=7)
    assert (begun[:, 0] == 7).all() and (learnt[:, 0] == -100).all()
    assert np.array_equal(begun[:, 1:], ids[:, 1:]) and np.array_equal(learnt[:, 1:], wanted[:, 1:])
    again = texts.windows(tokens, labels, 30, length, seed)
    assert np.array_equal(again[0], ids) and np.array_equal(again[1], wanted)


def test_windows_come_from_everywhere():
    tokens = np.arange(1, 41).reshape(2, 20)
    begins = texts.windows(tokens, tokens, 500, 6, seed=0)[0][:, 0]
    assert set(begins.tolist()) == {*range(1, 16), *range(21, 36)}
    with pytest.raises(ValueError, match="length must be at least 2 tokens"):
        texts.windows(tokens, tokens, 1, 1, seed=0)

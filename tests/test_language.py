"""The symbolic language: every answer is worked out again from the text, by other means."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules2ranks import automata
from rules2ranks.tasks import language

seeds = st.integers(0, 2**63)
SPLITS = ("train", "validation")


def parsed(n: int, seed: int, name: str, split: str = "train") -> list[tuple[list[str], list[str]]]:
    """Prompts and answers of one task as lists of words."""
    tokens, _ = language.batch(n, seed, split, (name,))
    result = []
    for row in tokens:
        task, *rest = language.decode(row).split()
        assert task == name
        cut = rest.index("=")
        result.append((rest[:cut], rest[cut + 1 :]))
    return result


@given(seed=seeds, n=st.integers(1, 40), split=st.sampled_from(SPLITS))
def test_form_of_a_batch(seed, n, split):
    tokens, labels = language.batch(n, seed, split)
    assert tokens.shape == labels.shape == (n, language.LENGTH)
    assert tokens.dtype == labels.dtype == np.int64
    assert 0 <= tokens.min() and tokens.max() < language.VOCABULARY == 50
    scored = labels != language.IGNORED
    assert np.array_equal(tokens[scored], labels[scored])
    equals = tokens == language.WORDS.index("=")
    assert (equals.sum(axis=1) == 1).all()
    # What is scored is just what follows "=" and is not padding.
    assert np.array_equal(scored, (np.cumsum(equals, axis=1) == 1) & ~equals & (tokens != 0))
    counts = [np.count_nonzero(language.task_names(tokens) == name) for name in language.TASKS]
    assert max(counts) - min(counts) <= 1


@given(seeds)
def test_same_seed_same_batch_and_other_seed_another(seed):
    tokens, labels = language.batch(21, seed)
    again = language.batch(21, seed)
    assert np.array_equal(tokens, again[0]) and np.array_equal(labels, again[1])
    assert not np.array_equal(tokens, language.batch(21, seed ^ 1)[0])
    assert not np.array_equal(tokens, language.batch(21, seed, "validation")[0])


@pytest.mark.parametrize("split", SPLITS)
def test_automaton_answers_agree_with_the_simulator(split):
    rows = [(list(map(int, p)), list(map(int, a))) for p, a in parsed(200, 0, "automaton", split)]
    before, after = (np.array(part, dtype=np.uint8) for part in zip(*rows, strict=True))
    assert np.array_equal(automata.simulate(language.RULE, before, 1)[:, 1], after)


@pytest.mark.parametrize("split", SPLITS)
def test_copy_sort_and_addition_answers(split):
    for prompt, answer in parsed(200, 1, "copy", split):
        assert answer == prompt and len(prompt) == 8
    for prompt, answer in parsed(200, 1, "sort", split):
        assert answer == sorted(prompt, key=int) and len(set(prompt)) == 6
    for prompt, answer in parsed(200, 1, "addition", split):
        assert answer == [str((int(prompt[0]) + int(prompt[1])) % 13)]


@pytest.mark.parametrize("split", SPLITS)
def test_bracket_answers_close_everything(split):
    for prompt, answer in parsed(500, 2, "brackets", split):
        assert (len(prompt), len(answer)) == (8, 4)
        text = "".join(prompt + answer)
        while any(pair in text for pair in ("()", "[]", "{}")):
            text = text.replace("()", "").replace("[]", "").replace("{}", "")
        assert text == ""


@pytest.mark.parametrize("split", SPLITS)
def test_nim_answers_are_the_first_heap_that_wins(split):
    def loses(heaps):
        return heaps[0] ^ heaps[1] ^ heaps[2] == 0

    for prompt, answer in parsed(500, 3, "nim", split):
        heaps = [int(word) for word in prompt]
        winning = [
            ["abc"[heap], str(number)]
            for heap in range(3)
            for number in range(1, heaps[heap] + 1)
            if loses([size - number * (place == heap) for place, size in enumerate(heaps)])
        ]
        assert answer == winning[0]


def test_facts_are_one_fixed_table():
    subjects, objects = language.facts()
    assert len(np.unique(subjects, axis=0)) == len(subjects) == len(objects) == language.PROMPTS["facts"]
    table = {tuple(subject): tuple(value) for subject, value in zip(subjects, objects, strict=True)}
    words = {tuple(language.WORDS[t] for t in s): [language.WORDS[t] for t in v] for s, v in table.items()}
    for split in SPLITS:
        for prompt, answer in parsed(300, 4, "facts", split):
            assert words[tuple(prompt)] == answer


@pytest.mark.parametrize("name", language.TASKS)
def test_the_prompt_determines_the_answer_and_validation_prompts_are_new_where_stated(name):
    answers: dict[str, dict[tuple, tuple]] = {}
    for split in SPLITS:
        pairs = [pair for seed in range(3) for pair in parsed(3000, seed, name, split)]
        answers[split] = {}
        for prompt, answer in pairs:
            assert answers[split].setdefault(tuple(prompt), tuple(answer)) == tuple(answer)
    common = answers["train"].keys() & answers["validation"].keys()
    if language.HOLDS_OUT[name]:
        assert not common
    else:
        assert len(answers["train"]) == len(answers["validation"]) == len(common) == language.PROMPTS[name]


def test_stated_numbers_of_prompts():
    assert language.PROMPTS["automaton"] == len({tuple(p) for s in SPLITS for p, _ in parsed(8000, 0, "automaton", s)})
    # Every way to write eight brackets that are right so far and leave four open.
    stacks = {"": ""}
    for _ in range(8):
        opened = {text + b: stack + b for text, stack in stacks.items() for b in "([{"}
        closed = {text + ")]}"["([{".index(s[-1])]: s[:-1] for text, s in stacks.items() if s}
        stacks = opened | closed
    prompts = {text for text, stack in stacks.items() if len(stack) == 4}
    assert language.PROMPTS["brackets"] == len(prompts)
    assert {"".join(p) for split in SPLITS for p, _ in parsed(5000, 0, "brackets", split)} <= prompts


def test_score_shifts_as_the_loss_does_and_counts_whole_answers():
    tokens, labels = language.batch(140, 0)
    next_token = np.roll(tokens, -1, axis=1)
    assert language.score(next_token, labels, tokens) == {name: 1.0 for name in language.TASKS}
    assert set(language.score(tokens, labels, tokens).values()) != {1.0}
    # Only answers count: spoil every position that predicts no answer.
    spoilt = np.where(np.roll(labels, -1, axis=1) == language.IGNORED, 49, next_token)
    assert language.score(spoilt, labels, tokens) == {name: 1.0 for name in language.TASKS}
    # One wrong token spoils its answer.
    copies = np.nonzero(language.task_names(tokens) == "copy")[0][:5]
    spoilt = next_token.copy()
    spoilt[copies, 12] = 0
    assert language.score(spoilt, labels, tokens)["copy"] == pytest.approx(1 - 5 / 20)
    assert list(language.score(next_token[:1], labels[:1], tokens[:1])) == ["automaton"]
    with pytest.raises(ValueError, match="shape"):
        language.score(next_token[:, 1:], labels, tokens)


def test_trivial_predictors_know_next_to_nothing():
    scores = language.baselines()
    for name in language.TASKS:
        assert 0 < scores["chance"][name] <= 1 / 13
        assert 0 <= scores["majority"][name] < 0.2


def test_a_batch_is_cheap():
    language.batch(128, 0)
    start = time.perf_counter()
    for seed in range(20):
        language.batch(128, seed)
    # 0.6 ms each on one free core; a training step takes some 200.
    assert (time.perf_counter() - start) / 20 < 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n=0"),
        ({"seed": -1}, "seed"),
        ({"split": "test"}, "validation"),
        ({"tasks": ("copy", "chess")}, "chess"),
        ({"tasks": ()}, "automaton"),
    ],
)
def test_impossible_batches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        language.batch(**{"n": 4, "seed": 0, **arguments})

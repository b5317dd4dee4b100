"""The bridge to lm-eval on a local task, a tiny random Llama, pruned too, and a tokenizer made on the spot."""

import sys

import pandas as pd
import pytest
import torch

from rules2ranks.evaluation import benchmark

WORDS = ("<unk>", "<s>", "</s>", *"the sky is blue green sum of one and two three four".split())
QUESTIONS = [
    {"text": "the sky is", "choices": ["blue", "green and one"], "gold": 0},
    {"text": "sum of one and two is", "choices": ["three", "four of the sky", "one"], "gold": 0},
    {"text": "one and one is", "choices": ["three three", "two"], "gold": 1},
    {"text": "green is", "choices": ["the sky", "four", "blue and green"], "gold": 2},
]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    known = {word: place for place, word in enumerate(WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def llama(kept=None):
    """A random Llama of two layers; `kept` are the key/value groups and MLP channels that remain in each."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from rules2ranks import decoders

    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return decoders.keep(model, kept) if kept else model


def by_hand(model, tokenizer):
    """Share of questions whose right answer is the likeliest, by sum and by character of the answer."""
    right = {"acc": 0, "acc_norm": 0}
    for question in QUESTIONS:
        sums = []
        for choice in question["choices"]:
            context = tokenizer(question["text"])["input_ids"]
            ids = torch.tensor(context + tokenizer(choice)["input_ids"])
            with torch.no_grad():
                logs = model(ids[None]).logits[0].log_softmax(-1)
            sums.append(sum(float(logs[place - 1, ids[place]]) for place in range(len(context), len(ids))))
        per_character = [log / len(choice) for log, choice in zip(sums, question["choices"], strict=True)]
        right["acc"] += sums.index(max(sums)) == question["gold"]
        right["acc_norm"] += per_character.index(max(per_character)) == question["gold"]
    return {metric: count / len(QUESTIONS) for metric, count in right.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kept", [None, [((0,), tuple(range(9))), ((0, 1), tuple(range(4, 24)))]])
def test_both_scores_are_those_counted_by_hand(tokenizer, kept):
    pytest.importorskip("lm_eval", reason="the extra llm is not installed")
    import datasets

    task = {
        "task": "tiny",
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(QUESTIONS)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "metadata": {"version": 2.0},
    }
    model = llama(kept)
    before = torch.random.get_rng_state()
    result = benchmark(model, tokenizer, [task], batch_size=3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert result.scores.loc["tiny", ["acc", "acc_norm"]].to_dict() == by_hand(model, tokenizer)
    assert result.scores.loc["tiny", ["n", "fewshot", "version"]].tolist() == [4, 0, "2.0"]
    assert set(result.versions) == {"lm_eval", "transformers", "torch"}
    assert isinstance(result.scores, pd.DataFrame) and result.scores.index.name == "task"


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[llm\]'"):
        benchmark(None, None, ["boolq"])


@pytest.mark.parametrize("tasks", ["boolq", []])
def test_tasks_must_be_a_list_with_something_in_it(tasks):
    with pytest.raises(ValueError, match="tasks must be a list with at least one task"):
        benchmark(None, None, tasks)

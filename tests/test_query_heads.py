"""Single query heads that go: the cut model is the masked one, and an ordinary checkpoint of its architecture."""

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from rules2ranks import decoders, importance, stages
from rules2ranks.stages import real_models
from rules2ranks.stages.own_texts import OwnModel
from rules2ranks.stages.subjects import subject
from tiny_decoders import build, lm_loss, tokens

SEPARATE = ("llama", "mistral", "qwen2", "qwen3")


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


def masked(model, kept, head=4):
    """The whole model, what the other heads say held back at the output projection."""
    model = copy.deepcopy(model)
    for layer, chosen in zip(decoders.decoder_layers(model).values(), kept, strict=True):
        weight = layer.self_attn.o_proj.weight.data.unflatten(1, (-1, head))
        others = [number for number in range(weight.shape[1]) if number not in chosen]
        weight[:, others] = 0
    return model


@pytest.mark.parametrize("family", SEPARATE)
@pytest.mark.parametrize(("kv", "kept"), [(2, ([0, 5], [2, 3])), (1, ([1], [0])), (2, ([0, 1, 4, 5], [1, 2, 3, 4]))])
def test_a_model_without_heads_is_the_one_with_these_masked(family, kv, kept, tmp_path):
    model = build(family, kv=kv, queries=3 if kv == 2 else 2)
    expected = logits(masked(model, kept), tokens())
    cut = decoders.keep_query_heads(copy.deepcopy(model), kept)
    torch.testing.assert_close(logits(cut, tokens()), expected, rtol=0, atol=1e-5)
    cut.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, tokens()), logits(cut, tokens())), "an ordinary checkpoint"
    assert loaded.config.num_attention_heads == len(kept[0])
    assert loaded.config.num_key_value_heads == kv
    assert [layer.attention.count for layer in decoders.groups(cut)] == [kv, kv], "it can be pruned further"
    cached = cut.generate(tokens(), max_new_tokens=4, do_sample=False)
    assert torch.equal(cached, loaded.generate(tokens(), max_new_tokens=4, do_sample=False, use_cache=False))


def test_a_heads_importance_is_the_sum_over_its_weights():
    model = build("qwen2", queries=3)
    got, _ = importance.scored(model, decoders.query_heads(model), [tokens()], lm_loss, "taylor", None, None)
    lm_loss(model, tokens()).backward()
    for layer, score in zip(decoders.decoder_layers(model).values(), got, strict=True):
        q, o = layer.self_attn.q_proj, layer.self_attn.o_proj
        weight = (q.weight * q.weight.grad).abs().unflatten(0, (6, 4)).sum((1, 2))
        bias = (q.bias * q.bias.grad).abs().unflatten(0, (6, 4)).sum(1)
        output = (o.weight * o.weight.grad).abs().unflatten(1, (6, 4)).sum((0, 2))
        torch.testing.assert_close(score, (weight + bias + output).double(), rtol=1e-5, atol=0)


def test_each_key_keeps_as_many_and_queries_lie_apart():
    model = build("llama", queries=3)
    for kept in (([0, 1], [0, 3]), ([0, 3], [0, 1, 3, 4]), ([], []), ([3, 0], [0, 3])):
        with pytest.raises(ValueError, match="of 3 query heads each key/value head must keep as many, got"):
            decoders.keep_query_heads(copy.deepcopy(model), kept)
    for family in ("phi3", "gpt2"):
        with pytest.raises(ValueError, match=r"single query heads of .* layers cannot go: only whole attention groups"):
            decoders.query_heads(build(family))


def test_a_gemma_with_fewer_query_heads_takes_the_place_of_the_whole_one(store, tmp_path):
    rows = [
        {"text": f"the rule {number} of {number % 7} automata is as complex as {number * 3}"} for number in range(60)
    ]
    (tmp_path / "texts.json").write_text(json.dumps(rows))
    model = real_models.tiny_gemma(tmp_path / "model", tmp_path / "texts.json", tokens=300)
    base = {"model": model, "data": str(tmp_path / "texts.json"), "length": 12, "held_out": 6, "calibration_length": 8}
    made = stages.query_heads(base=base, keep=2)
    assert (made.metrics["heads_before"], made.metrics["heads_after"]) == (4, 2)
    assert made.metrics["parameters_removed"] > 0
    smaller = OwnModel(**base | {"model": str(made.folder)})
    assert subject(smaller).evaluate("report") == made.metrics["after"]
    pruned = stages.prune(base=smaller.model_dump(), ratio=0.1, protect=(0, 0))
    assert pruned.metrics["parameters_before"] == made.metrics["parameters_after"]
    for keep in (3, 4):  # the hidden size of 64 is no multiple of three
        with pytest.raises(ValueError, match=r"of 4 query heads for each key/value head 1 or 2 can be kept .* got"):
            stages.query_heads(base=base, keep=keep)

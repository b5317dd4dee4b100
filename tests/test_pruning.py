"""Slicing: pruned = masked in every family, with compensation too; what is refused; what is counted."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
)

from rules2ranks import decoders, pruning
from rules2ranks.models import RowGPT, parameter_count
from tiny_decoders import (
    CLOSE,
    SPECIAL,
    build,
    lm_loss,
    plan_of,
    pruning_cases,
    some_means,
    tokens,
)


@given(pruning_cases(), st.integers(0, 99))
def test_pruned_equals_masked(case, seed):
    model, plan, means = case
    batch = tokens(seed)
    with torch.no_grad():
        pruned = pruning.prune(model, plan, means=means)(batch).logits
        masked = pruning.mask(model, plan, means=means)(batch).logits
    torch.testing.assert_close(pruned, masked, **CLOSE)


@settings(max_examples=25)
@given(pruning_cases(), st.integers(0, 99))
def test_cached_generation_of_pruned_equals_that_of_masked(case, seed):
    model, plan, means = case
    pruned, masked = (make(model, plan, means=means) for make in (pruning.prune, pruning.mask))
    # Greedy, from the same prompt: as long as the choices agree the logits of every step must.
    runs = [
        m.generate(tokens(seed), max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True,
                   use_cache=cache)
        for m, cache in ((pruned, True), (masked, True), (pruned, False))
    ]  # fmt: skip
    for other in runs[1:]:
        assert torch.equal(runs[0].sequences, other.sequences)
        for mine, theirs in zip(runs[0].logits, other.logits, strict=True):
            torch.testing.assert_close(mine, theirs, **CLOSE)


def test_pruning_copies_and_keeps_ties():
    model = build("qwen2", tied=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = plan_of(model, [((1,), (0, 3))] * 2)
    for means in (None, some_means(model)):
        pruned = pruning.prune(model, plan, means=means)
        pruning.mask(model, plan, means=means)
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert pruned.lm_head.weight is pruned.model.embed_tokens.weight
        assert pruned.model.layers[0].mlp.intermediate_size == 2


@pytest.mark.parametrize("family", ["mistral", "llama", "gpt2"])
def test_compensation_is_its_formula_in_loops(family):
    """Matrices without a bias, with one, and Conv1D. Layer 0 loses inputs of one matrix only, layer 1 of both."""
    model = build(family, kv=3, queries=2 if family != "gpt2" else 1, head=4, channels=5)
    means = some_means(model)
    pruned = pruning.prune(model, plan_of(model, [((0, 2), range(5)), ((1,), (1, 4))]), means=means)
    width = 4 if family == "gpt2" else 8  # inputs of the output matrix that belong to one attention group
    gone = [
        [(means.attention[0], range(width, 2 * width)), (means.channels[0], ())],
        [(means.attention[1], [*range(width), *range(2 * width, 3 * width)]), (means.channels[1], (0, 2, 3))],
    ]
    for before, after, pairs in zip(pruning.groups(model), pruning.groups(pruned), gone, strict=True):
        for mine, theirs, (mean, columns) in zip(before.parts, after.parts, pairs, strict=True):
            old, new = mine.output.module, theirs.output.module
            if not columns:
                assert (new.bias is None) if old.bias is None else torch.equal(new.bias, old.bias)
                continue
            weight = old.weight.T if family == "gpt2" else old.weight
            for i in range(len(weight)):
                expected = 0.0 if old.bias is None else old.bias[i].item()
                expected += sum(weight[i, j].item() * mean[j].item() for j in columns)
                assert new.bias[i].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_compensation_keeps_the_mean_output(family):
    """In the first layer, whose inputs pruning does not change; without compensation the mean moves."""
    model, batches = build(family, kv=3, channels=6, layers=1), [tokens(1), tokens(2)]
    plan, means = plan_of(model, [((0, 2), range(6))]), pruning.input_means(model, batches, lm_loss)

    def mean_output(m):
        seen = []
        handle = pruning.groups(m)[0].attention.output.module.register_forward_hook(
            lambda module, args, output: seen.append(output.detach().flatten(0, 1))
        )
        for batch in batches:
            m(batch)
        handle.remove()
        return torch.cat(seen).mean(0)

    whole = mean_output(model)
    torch.testing.assert_close(mean_output(pruning.prune(model, plan, means=means)), whole, **CLOSE)
    assert (mean_output(pruning.prune(model, plan)) - whole).abs().max() > 1e-2


def test_a_new_bias_is_as_frozen_as_its_matrix_and_counted():
    model = build("qwen2")
    model.model.layers[0].mlp.down_proj.weight.requires_grad_(False)
    plan, means = plan_of(model, [((0,), (1, 2))] * 2), some_means(model)
    plain, pruned = pruning.prune(model, plan), pruning.prune(model, plan, means=means)
    layers = pruned.model.layers
    assert not layers[0].mlp.down_proj.bias.requires_grad and layers[1].mlp.down_proj.bias.requires_grad
    assert parameter_count(pruned) == parameter_count(plain) + 4 * 12  # two layers, two matrices, hidden size 12


def test_a_ratio_prunes_as_its_plan_does():
    model = build(kv=3, channels=30, layers=3)
    scores = pruning.importance(model, [tokens()], lm_loss, "flap")
    blocks = pruning.block_importance(model, [tokens()], lm_loss)
    for choice in (
        {},
        {"spread": "global", "standardise": True, "protect": (1, 0)},
        {"spread": "importance", "blocks": blocks},
    ):
        plan = pruning.plan(model, scores, 0.3, **choice)
        for means in (None, scores.means):
            one, other = (
                pruning.prune(model, 0.3, scores, means=means, **choice),
                pruning.prune(model, plan, means=means),
            )
            assert one.state_dict().keys() == other.state_dict().keys()
            assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match="a ratio needs the scores"):
        pruning.prune(model, 0.3)
    with pytest.raises(ValueError, match="a plan says already"):
        pruning.prune(model, plan, scores)
    with pytest.raises(ValueError, match="ratio must lie between 0 and 1"):
        pruning.prune(model, 30, scores)


SMALL = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, **SPECIAL}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Olmo2ForCausalLM(Olmo2Config(**SMALL)), r"model\.layers\.0\.self_attn\.q_norm\.weight couples the heads"),
        (MixtralForCausalLM(MixtralConfig(**SMALL)), r"MixtralDecoderLayer, such as model\.layers\.0 \(.*mlp\.experts"),
        (
            torch.nn.Linear(2, 2),
            r"no decoder layers of a kind .* table; supported are Llama-like .* GPT-2 ",
        ),
    ],
    ids=["norms over all heads", "mixture of experts", "no decoder"],
)
def test_unsupported_models_are_refused_with_what_is_wrong(model, said):
    scores = pruning.Scores("l2", [torch.ones(1)], [torch.ones(6)])
    for use in (
        lambda: pruning.groups(model),
        lambda: pruning.importance(model, (), None, "l2"),
        lambda: pruning.prune(model, 0.3, scores),
    ):
        with pytest.raises(ValueError, match=said):
            use()


def test_a_plan_or_means_for_other_shapes_are_refused():
    model, other = build(channels=5), build(channels=6)
    plan = plan_of(model, [((0,), (1, 2))] * 2)
    for use in (pruning.prune, pruning.mask):
        for wrong in (other, pruning.prune(model, plan)):
            with pytest.raises(ValueError, match="the plan is for"):
                use(wrong, plan)
        with pytest.raises(ValueError, match=r"the means are for output matrices of \[\(16, 6\)"):
            use(model, plan, means=some_means(other))
        for kept in (((0,), (2, 1)), ((0, 2), (1,)), ((-1,), (1,))):
            with pytest.raises(ValueError, match=r"expected ascending numbers from 0 to \d, got"):
                use(model, plan_of(model, [kept] * 2))


def test_biases_are_added_only_where_they_can_be():
    model = build("qwen2")
    name = "model.layers.1.mlp.down_proj"
    decoders.add_biases(model, [name])
    assert torch.equal(model.get_submodule(name).bias, torch.zeros(12))
    for names in ([name], ["model.layers.0.mlp.up_proj"], ["lm_head"], [["model.layers.0.mlp.down_proj"]]):
        with pytest.raises(ValueError, match=r"no bias can be added to .*model\.layers\.0\.self_attn\.o_proj"):
            decoders.add_biases(model, names)
    with pytest.raises(ValueError, match="could have one: none"):
        decoders.add_biases(build("gpt2"), ["transformer.h.0.mlp.c_proj"])


def test_a_wrapper_is_pruned_and_rebuilt_from_its_sizes():
    def fresh(seed):
        return RowGPT(10, 10, layers=2, heads=4, hidden=32, rows=8, seed=seed)

    model, rows = fresh(0), torch.rand(2, 8, 10, generator=torch.Generator().manual_seed(0))
    batches = [rows, rows.flip(0)]
    scores = pruning.importance(model, batches, lambda m, batch: m(batch).square().mean(), "flap")
    plan = pruning.plan(model, scores, 0.5)
    pruned = pruning.prune(model, plan, means=scores.means)
    torch.testing.assert_close(pruned(rows), pruning.mask(model, plan, means=scores.means)(rows), **CLOSE)
    # Its matrices have biases from the start, so that sizes are all there is to know.
    again = pruning.resize(fresh(1), json.loads(json.dumps(pruning.sizes(pruned))))
    again.load_state_dict(pruned.state_dict(), strict=True)
    assert torch.equal(again(rows), pruned(rows))
    with pytest.raises(ValueError, match="expected a transformers model"):
        pruning.save_pruned(model, "nowhere")


def test_report_counts(tmp_path):
    model = build(kv=3, channels=6)
    pruned = pruning.prune(model, plan_of(model, [((0, 2), (1, 2, 5)), ((1,), (0,))]))
    numbers = pruning.report(model, pruned)
    assert numbers["parameters_after"] == parameter_count(pruned)
    # By hand, hidden 12, head 4, 2 query heads per group: groups (2, 1), channels (3, 1), and the head of 11 × 12.
    matrices = 3 * (2 * (8 * 12) + 2 * (4 * 12)) + (3 + 1) * 3 * 12 + 11 * 12
    assert numbers["flops_per_token_after"] == 2 * matrices
    assert (
        numbers["flops_per_token_removed"] == 1 - numbers["flops_per_token_after"] / numbers["flops_per_token_before"]
    )
    pruning.save_pruned(pruned, tmp_path)
    file = (tmp_path / "model.safetensors").read_bytes()
    assert numbers["bytes_after"] == len(file) - 8 - int.from_bytes(file[:8], "little")

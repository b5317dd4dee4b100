"""S2FT, DSEE, HFT, BitFit and FPF: they train what they say and no more, and come back from a file to the same bits."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rules2ranks import recovery
from rules2ranks.decoders import groups, keep, linears
from rules2ranks.recovery import in_place
from rules2ranks.recovery.methods import IN_PLACE, dsee
from test_recovery import TOKENS, fresh, logits, ranks_for
from test_recovery_methods import next_token

METHODS = [method.name for method in IN_PLACE]
FAMILIES = ["llama", "gpt2"]
each = pytest.mark.parametrize("method", METHODS)
on_both = pytest.mark.parametrize("family", FAMILIES)


def put_on(method, family="llama", ranks=None, **more):
    return recovery.add_adapter(fresh(family), ranks_for(family) if ranks is None else ranks, method, seed=0, **more)


def moved(model):
    """After three steps of plain gradient descent on what has gradients."""
    for _ in range(3):
        model.zero_grad()
        next_token(model, (TOKENS,)).backward()
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p -= 0.1 * p.grad
    return model


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changes(method, family, **more):
    """By parameter: where training changed it."""
    before, after = parameters(fresh(family)), parameters(recovery.merge(moved(put_on(method, family, **more))))
    return {name: (p != before[name]) if name in before else p != 0 for name, p in after.items()}


@each
@on_both
def test_nothing_changes_before_training_and_a_file_has_all_that_training_changed(method, family, tmp_path):
    adapted = put_on(method, family)
    torch.testing.assert_close(logits(adapted), logits(fresh(family)), rtol=0, atol=0)
    assert recovery.trainable(adapted) is adapted
    adapted = moved(adapted)
    assert not torch.equal(logits(adapted), logits(fresh(family)))
    recovery.save_adapter(adapted, tmp_path)
    again = recovery.load_adapter(fresh(family), tmp_path)
    assert recovery.method_of(again).name == method
    trained = logits(adapted)
    # W + B·A is summed in one order wherever it is put together, so the bits are the same.
    for one in (again, recovery.merge(again), recovery.merge(adapted)):
        assert torch.equal(logits(one), trained)
        assert not any(p.requires_grad for p in one.parameters())
    assert type(again).__name__ == type(fresh(family)).__name__


@each
@on_both
def test_counts_are_what_is_trained(method, family):
    adapted = put_on(method, family)
    number = recovery.method_of(adapted).counts(adapted)["trained_parameters"]
    changed = sum(int(where.sum()) for where in changes(method, family).values())
    budget = recovery.lora_parameters(fresh(family), ranks_for(family))
    if method != "dsee":  # B·A changes every entry
        assert changed <= number
    if method in ("s2ft", "dsee"):
        layer = max(part.output.tensor.numel() // part.count for layer in groups(fresh(family)) for part in layer.parts)
        assert budget - len(groups(fresh(family))) * layer <= number <= budget


@on_both
def test_s2ft_trains_whole_heads_and_channels_of_the_output_matrices(family):
    model, where = fresh(family), changes("s2ft", family, ranks=4)
    allowed = set()
    for layer in groups(model):
        for part in layer.parts:
            name = next(n for n, m in model.named_modules() if m is part.output.module) + ".weight"
            allowed.add(name)
            of_group = [
                where[name].index_select(part.output.dim, part.index(part.output, [g])) for g in range(part.count)
            ]
            assert all(bool(each.any()) == bool(each.all()) for each in of_group)
    assert {name for name, at in where.items() if at.any()} <= allowed


@on_both
def test_s2ft_s_gradients_are_those_of_the_whole_matrix_at_its_columns(family):
    adapted, whole = put_on("s2ft", family, ranks=4), fresh(family).requires_grad_(True)
    next_token(adapted, (TOKENS,)).backward()
    next_token(whole, (TOKENS,)).backward()
    checked = 0
    for _, name, correction in in_place._put(adapted):
        full = whole.get_submodule(name).weight.grad.index_select(correction.dim, correction.columns)
        torch.testing.assert_close(correction.values.grad, full, rtol=1e-4, atol=1e-7)
        checked += 1
    assert checked


@on_both
def test_dsee_s_gradients_are_those_of_the_whole_matrix_at_its_entries_and_of_lora(family):
    adapted, whole = put_on("dsee", family, ranks=4), fresh(family).requires_grad_(True)
    next_token(adapted, (TOKENS,)).backward()
    next_token(whole, (TOKENS,)).backward()
    for _, name, correction in in_place._put(adapted):
        full = whole.get_submodule(name).weight.grad
        torch.testing.assert_close(correction.values.grad, full.flatten()[correction.entries], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(correction.b.grad, 2 * full @ correction.a.detach().T, rtol=1e-4, atol=1e-7)
        assert len(correction.a) == 2 and len(correction.values) == 2 * sum(full.shape)


def test_the_sparse_part_is_found_where_it_was_put():
    rng = np.random.default_rng(0)
    low = torch.tensor(rng.normal(size=(20, 2)) @ rng.normal(size=(2, 30)))
    places = np.sort(rng.choice(600, 12, replace=False))
    sparse = torch.zeros(600, dtype=low.dtype)
    sparse[places] = torch.tensor(rng.choice([-8.0, 8.0], 12))
    assert dsee.support(low + sparse.view(20, 30), 2, 12).tolist() == places.tolist()


@on_both
def test_hft_trains_half_of_each_layer_s_matrices_and_they_are_another_half_under_another_seed(family):
    ranks = [2] * len(linears(fresh(family)))
    chosen = {name for name, at in changes("hft", family, ranks=ranks).items() if at.any()}
    for layer in linears(fresh(family)):
        own = [name for name in layer if f"{name}.weight" in chosen]
        assert len(own) in (len(layer) // 2, (len(layer) + 1) // 2)
    other = recovery.add_adapter(fresh(family), ranks, "hft", seed=1)
    assert chosen != {name for name, p in other.named_parameters() if p.requires_grad}


def test_bitfit_and_fpf_leave_every_matrix_alone():
    for method, kind in (("bitfit", "bias"), ("fpf", "norm")):
        where = changes(method, "llama")
        found = {name for name, at in where.items() if at.any()}
        assert found and all(kind in name for name in found)
    adapted = put_on("bitfit")
    biases = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(biases) == 2 * len(linears(adapted)) and all(name.endswith("proj.bias") for name in biases)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda held: {**held, "whole:model.layers.9.mlp.up_proj.weight": torch.zeros(2, 2)}, "has no such parameter"),
        (
            lambda held: {k: v[..., :-1].contiguous() if k.startswith("values") else v for k, v in held.items()},
            "none of a matrix",
        ),
        (lambda held: {k: v + 10_000 if k.startswith("columns") else v for k, v in held.items()}, "none of a matrix"),
        (lambda held: {k: v for k, v in held.items() if k.startswith("columns")}, "say no correction"),
        (lambda held: {}, "it is empty"),
    ],
)
def test_a_correction_that_does_not_fit_is_named_and_changes_nothing(change, said, tmp_path):
    recovery.save_adapter(moved(put_on("s2ft")), tmp_path)
    file = tmp_path / in_place.CORRECTION
    save_file(change(load_file(file)), file, metadata={"method": "s2ft"})
    model = fresh()
    before = parameters(model)
    with pytest.raises(ValueError, match=said):
        recovery.load_adapter(model, tmp_path)
    assert all(torch.equal(p, before[name]) for name, p in parameters(model).items())


@each
def test_few_bits_are_refused(method):
    name = next(iter(linears(fresh())[0]))
    with pytest.raises(ValueError, match="trains the weights themselves"):
        put_on(method, bits={name: 4}, group=8)


def test_what_cannot_be_trained_is_refused():
    heads_only = keep(fresh(), [(range(layer.attention.count), ()) for layer in groups(fresh())])
    with pytest.raises(ValueError, match="less than a channel"):  # and less than a head
        recovery.add_adapter(heads_only, {"model.layers.0.self_attn.k_proj": 1}, "s2ft", seed=0)
    adapted = put_on("s2ft", ranks=4)
    with pytest.raises(ValueError, match="adapter already"):
        recovery.add_adapter(adapted, 2, "lora", seed=0)
    with torch.no_grad():
        next(in_place._put(adapted))[2].values.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        recovery.merge(copy.deepcopy(adapted))

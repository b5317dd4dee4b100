"""The database of levels: its weights are the least squares ones, its files load, its choices are cut exactly."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rules2ranks import decoders, pruning
from rules2ranks.pruning import database as on_levels
from rules2ranks.pruning.database import Database, levels, save_levels, shrink
from rules2ranks.pruning.second_order import DAMPING, kept, removal, spaced
from tiny_decoders import FAMILIES, build, lm_loss, plan_of, tokens


def problem(seed: int, groups: int, size: int, outputs: int):
    """Weights, inputs that go with one another, and groups of columns that lie apart."""
    generator = torch.Generator().manual_seed(seed)
    inputs = groups * size
    mixed = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = mixed @ torch.randn(inputs, 5 * inputs, generator=generator, dtype=torch.float64)
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    columns = torch.randperm(inputs, generator=generator).reshape(groups, size)
    return weight, x, columns


def least_squares(weight, moment, left):
    """What numpy gives for W'·X near W·X with only some columns, the damping as so many more inputs."""
    h = moment.numpy() + DAMPING * moment.diagonal().mean().item() * np.eye(len(moment))
    root = np.linalg.cholesky(h)
    best = np.zeros(weight.shape)
    solution, *_ = np.linalg.lstsq(root[left].T, (weight.numpy() @ root).T, rcond=None)
    best[:, left] = solution.T
    return best, ((weight.numpy() - best) @ root) ** 2, (weight.numpy() @ root) ** 2


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 3), st.integers(1, 5))
def test_what_is_left_is_least_squares_on_the_kept_columns(seed, groups, size, outputs):
    weight, x, columns = problem(seed, groups, size, outputs)
    moment = x @ x.T
    found = removal(weight, moment, columns, range(groups + 1))
    assert sorted(found.order) == list(range(groups))
    assert found.errors[0] == 0 and found.errors[-1] == pytest.approx(1)
    assert list(found.weights) == list(range(groups + 1))
    for level, left in found.weights.items():
        stay = columns[list(kept(found.order, level))].flatten().numpy()
        best, lost, whole = least_squares(weight, moment, stay)
        np.testing.assert_allclose(left.numpy(), best, atol=1e-6 * np.abs(best).max() + 1e-9)
        assert found.errors[level] == pytest.approx(lost.sum() / whole.sum(), rel=1e-6, abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 3))
def test_each_step_takes_the_group_that_costs_least_and_errors_are_never_above_slicing(seed, groups, size):
    weight, x, columns = problem(seed, groups, size, 4)
    moment = x @ x.T
    found = removal(weight, moment, columns, range(groups + 1))
    first = [least_squares(weight, moment, columns[[g for g in range(groups) if g != gone]].flatten().numpy())[1].sum()
             for gone in range(groups)]  # fmt: skip
    assert first[found.order[0]] == pytest.approx(min(first))
    for level, left in found.weights.items():
        sliced = weight.clone()
        sliced[:, columns[list(found.order[:level])].flatten()] = 0
        # The damping counts in what is minimised; without it slicing could win by that much.
        h = moment + DAMPING * moment.diagonal().mean() * torch.eye(len(moment))
        costs = [(((weight - w) @ h) * (weight - w)).sum() for w in (left, sliced)]
        assert costs[0] <= costs[1] * (1 + 1e-9) + 1e-9


def test_levels_are_spaced_from_whole_to_nothing():
    assert spaced(192, 10) == [0, 19, 38, 58, 77, 96, 115, 134, 154, 173, 192]
    assert spaced(4, 10) == [0, 1, 2, 3, 4]
    assert kept((2, 0, 3, 1), 2) == (1, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"moment": torch.eye(5)}, "needs a moment of 6 × 6"),
        ({"groups": torch.tensor([[0, 1], [2, 3], [4, 4]])}, "share out all 6 columns"),
        ({"damping": 0.0}, "damping must lie above 0"),
        ({"levels": [0, 4]}, "between 0 and the 3 groups"),
        ({"moment": torch.zeros(6, 6)}, "all zero"),
        ({"moment": torch.full((6, 6), torch.nan)}, "not finite"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    good = {"weight": torch.ones(2, 6), "moment": torch.eye(6), "groups": torch.arange(6).reshape(3, 2), "levels": [0]}
    with pytest.raises(ValueError, match=said):
        removal(**(good | change))


BATCHES = [tokens(seed, batch=4, length=8) for seed in range(3)]


def made(folder, model, **more):
    save_levels(folder, model, levels(model, BATCHES, lm_loss, **more))
    return Database(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_choice_of_levels_is_the_masked_model_with_its_weights(family, tmp_path):
    """Cut out or zeros in the inner matrices: the same, with the updated outputs in both."""
    model = build(family, channels=8, kv=4, hidden=16)
    database = made(tmp_path, model, steps=4)
    first, last = pruning.groups(model)
    chosen = {f"{first.name}.attention": 2, f"{first.name}.mlp": 8, f"{last.name}.mlp": 4}
    shrunk = shrink(model, database, chosen)
    assert pruning.sizes(shrunk) == [
        {"attention_groups": 2, "channels": 0},
        {"attention_groups": 4, "channels": 4},
    ]
    left = {name: kept(part.order, chosen.get(name, 0)) for name, part in database.parts.items()}
    plan = plan_of(model, [(left[f"{layer.name}.attention"], left[f"{layer.name}.mlp"]) for layer in (first, last)])
    masked = pruning.mask(model, plan)
    for layer in pruning.groups(masked):
        for name, part in on_levels.named(layer).items():
            if name in chosen and chosen[name] < part.count:
                index = part.index(part.output, left[name])
                weight = database.parts[name].weights[chosen[name]]
                part.output.tensor.data.movedim(part.output.dim, -1)[:, index] = weight
    torch.testing.assert_close(shrunk(tokens()).logits, masked(tokens()).logits, atol=1e-5, rtol=1e-5)
    assert decoders.shapes(shrunk) == decoders.shapes(model).cut(chosen)


def test_levels_lose_less_than_slicing_where_it_counts(tmp_path):
    """On the calibration texts, what the shrunk part gives is nearer to the whole one's than the sliced part's is."""
    model = build(channels=8, kv=4, hidden=16)
    database = made(tmp_path, model, steps=4)
    name = "model.layers.0.mlp"
    seen = []
    for some in (model, shrink(model, database, {name: 4}), sliced(model, database, name, 4)):
        given = []
        hook = some.get_submodule(name).register_forward_hook(lambda m, a, out, into=given: into.append(out.detach()))
        for batch in BATCHES:
            some(batch)
        hook.remove()
        seen.append(torch.cat([out.flatten(0, 1) for out in given]))
    whole, updated, cut = seen
    assert (updated - whole).square().sum() < 0.9 * (cut - whole).square().sum()


def sliced(model, database, name, level):
    """The groups that stay there, with the weights that they had."""
    left = kept(database.parts[name].order, level)
    every = {"attention": range(4), "mlp": range(8)}
    choices = [[left if f"{layer.name}.{kind}" == name else tuple(every[kind]) for kind in ("attention", "mlp")]
               for layer in pruning.groups(model)]  # fmt: skip
    return pruning.prune(model, plan_of(model, choices))


def test_a_pass_for_each_layer_gives_the_same_levels(tmp_path):
    model = build(channels=8, kv=4, hidden=16)
    together, apart = list(levels(model, BATCHES, lm_loss)), list(levels(model, BATCHES, lm_loss, room=1))
    for one, other in zip(together, apart, strict=True):
        assert (one.name, one.order, one.errors) == (other.name, other.order, other.errors)
        assert all(torch.equal(weight, other.weights[level]) for level, weight in one.weights.items())


def test_half_precision_stays_half_precision(tmp_path):
    model = build().to(torch.bfloat16)
    database = made(tmp_path, model, steps=2)
    assert {w.dtype for part in database.parts.values() for w in part.weights.values()} == {torch.bfloat16}
    assert shrink(model, database, {"model.layers.0.mlp": 2}).dtype == torch.bfloat16


def test_what_is_not_in_the_database_is_named(tmp_path):
    model = build(channels=8, kv=4, hidden=16)
    database = made(tmp_path, model, steps=4)
    for chosen, said in (
        ({"model.layers.0.mlp": 3}, "no level 3 in the database, only 0, 2, 4, 6, 8"),
        ({"model.layers.9.mlp": 2}, "no part model.layers.9.mlp; they are named like model.layers.0.attention"),
    ):
        with pytest.raises(ValueError, match=said):
            shrink(model, database, chosen)
    with pytest.raises(ValueError, match="made for another model"):
        shrink(build(channels=8, kv=4, hidden=16, seed=1), database, {})
    for wrong in ({"batches": []}, {"steps": 0}):
        with pytest.raises(ValueError, match="need calibration batches and steps"):
            list(levels(**({"model": model, "batches": BATCHES, "loss": lm_loss} | wrong)))


def test_damaged_databases_are_refused(tmp_path):
    made(tmp_path, build(channels=8, kv=4, hidden=16), steps=4)
    index = tmp_path / "levels.json"
    whole = index.read_text()
    for text, said in (
        (whole[: len(whole) // 2], "is damaged"),
        (json.dumps(json.loads(whole) | {"format": 9}), "has format 9, this version reads 1"),
        ("[]", "is damaged"),
    ):
        index.write_text(text)
        with pytest.raises(ValueError, match=said):
            Database(tmp_path)
    index.write_text(whole)
    (tmp_path / "levels-0000.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"levels-0000\.safetensors is missing or damaged"):
        Database(tmp_path)
    save_file({"2": torch.zeros(12, 3)}, tmp_path / "levels-0000.safetensors")
    with pytest.raises(ValueError, match=r"model\.layers\.0\.attention: .* shape"):
        shrink(build(channels=8, kv=4, hidden=16), Database(tmp_path), {"model.layers.0.attention": 2})
    index.unlink()
    with pytest.raises(ValueError, match=r"has no levels\.json"):
        Database(tmp_path)

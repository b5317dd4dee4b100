"""A user's table of measurements, and the signals that closed forms go by."""

import json

import numpy as np
import pytest
import torch

from rules2ranks import allocation, models
from rules2ranks.allocation import Space, additive_search, gradient_norms, random_search, read_measurements

SPACE = Space(cost=(10, 10, 10), mean_rank=2, fixed={0: 2})


def loss(ranks):
    """Separable and concave, lower is better; layer 2 counts most."""
    return float(1 - np.log1p(ranks) @ (0, 0.1, 0.3))


@pytest.mark.parametrize("form", ["csv", "csv, a column a rank", "json", "json, text"])
def test_a_table_is_read_in_every_form(form, tmp_path):
    rows = [((2, 2, 2), 0.5), ((2, 1, 3), 0.25), ((2, 1, 3), 0.75)]
    if form == "csv":
        text = "ranks,score\n" + "\n".join(f"{' '.join(map(str, r))},{s}" for r, s in rows)
    elif form.startswith("csv"):
        text = "score,rank_0,rank_1,rank_2\n" + "\n".join(f"{s},{','.join(map(str, r))}" for r, s in rows)
    else:
        spelt = (lambda r: ", ".join(map(str, r))) if "text" in form else list
        text = json.dumps([{"ranks": spelt(r), "score": s} for r, s in rows])
    path = tmp_path / f"table.{form[:4].strip(',')}"
    path.write_text(text)
    found = read_measurements(path, SPACE)
    assert [(entry.ranks, entry.measured) for entry in found] == [((2, 2, 2), 0.5), ((2, 1, 3), 0.5)]
    assert [entry.measured for entry in read_measurements(path, SPACE, higher_is_better=True)] == [-0.5, -0.5]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "ranks\n2 2 2\n", "has no column score: expected `ranks`"),
        ("t.csv", "score,rank_0,rank_1\n1,2,2\n", "has no column rank_2"),
        ("t.csv", "ranks,score,sore\n2 2 2,1,1\n", "unknown columns sore"),
        ("t.csv", "ranks,score\n2 2 2,1\n2 2 x,1\n", "row 2: could not convert"),
        ("t.csv", "ranks,score\n2 2 2.5,1\n", "row 1: ranks must be whole numbers"),
        ("t.csv", "ranks,score\n2 2,1\n", "row 1: one rank for each of 3 layers is needed, got 2"),
        ("t.csv", "ranks,score\n2 4 4,1\n", "row 1: the ranks .* over the budget of 40"),
        ("t.csv", "ranks,score\n2 2 2,nan\n", "row 1: the score must be finite"),
        ("t.csv", "ranks,score\n2 2 2,\n", "row 1: could not convert"),
        ("t.json", "[1, 2]", "a list of objects"),
        ("t.json", "{", "cannot be read"),
        ("t.txt", "", "must be a .csv or .json file"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_measurements(tmp_path / name, SPACE)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*none\.csv"):
        read_measurements(tmp_path / "none.csv", SPACE)


def test_the_additive_search_solves_what_it_fitted_and_measures_it():
    space = Space(cost=(10, 12, 9, 11), mean_rank=4)
    weights = np.array([0.05, 0.2, 0.1, 0.4])
    asked = []

    def objective(ranks):
        asked.append(ranks)
        return float(2 - weights @ np.log1p(ranks))

    found = additive_search(space, objective, 12, seed=3)
    assert [e.ranks for e in found.history[:12]] == [e.ranks for e in random_search(space, objective, 12, 3).history]
    assert found.history[-1].phase == "exact" and found.ranks == found.history[-1].ranks
    # The response is additive in log(1 + r): the fit finds its slopes, and the choice is the best of all 63 vectors.
    every = allocation.random(space, 63, 0)
    assert found.score <= min(map(objective, every)) + 1e-9
    assert found.history[-1].predicted == pytest.approx(found.score, abs=1e-3)
    # Handed back, nothing is measured twice.
    before = len(asked)
    again = additive_search(space, objective, 12, seed=3, measured=found.history)
    assert len(asked) == before and again == found
    # So where the choice is one of the vectors that the model was fitted to.
    found = additive_search(space, objective, 63, seed=3)
    assert found.ranks in [entry.ranks for entry in found.history[:-1]]
    assert additive_search(space, objective, 63, seed=3, measured=found.history) == found


def test_an_additive_search_needs_enough_measurements():
    with pytest.raises(ValueError, match="n must be at least 3"):
        additive_search(SPACE, loss, 2, seed=0)


def test_gradient_norms_are_those_of_autograd():
    model = models.small_llama(0)
    tokens = [torch.randint(50, (4, 12), generator=torch.Generator().manual_seed(k)) for k in range(2)]

    def mean_loss(m, batch):
        return m(input_ids=batch, labels=batch).loss

    model.model.layers[1].requires_grad_(False)
    found = gradient_norms(model, tokens, mean_loss)
    assert not any(p.requires_grad for p in model.model.layers[1].parameters())
    assert all(p.grad is None for p in model.parameters())
    model.requires_grad_(True)
    (sum(mean_loss(model, batch) for batch in tokens) / 2).backward()
    flat = {name: norm for layer in found for name, norm in layer.items()}
    assert len(found) == 8 and len(flat) == 56
    for name, norm in flat.items():
        assert norm == pytest.approx(model.get_submodule(name).weight.grad.norm().item(), rel=1e-4), name


def test_gradient_norms_need_a_batch():
    with pytest.raises(ValueError, match="at least one batch"):
        gradient_norms(models.small_llama(0), [], lambda m, b: None)

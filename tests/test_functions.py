"""Measures of a rule's function against identities, exhaustive definitions, and another solver."""

from itertools import combinations, product
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from rules2ranks import automata, complexity
from rules2ranks.complexity import functions

RULES = st.integers(0, 255)
#: A row with every neighbourhood of three once, as a ring (de Bruijn).
EVERY = [0, 0, 0, 1, 0, 1, 1, 1]


def run_of(rule, rows=40, width=200, seed=0):
    return automata.simulate(rule, automata.random_states((), width, seed=seed), rows - 1)


def new(rule, cells):
    return rule >> (4 * cells[0] + 2 * cells[1] + cells[2]) & 1


@given(RULES)
def test_a_rule_and_its_equivalents_have_the_same(rule):
    for other in automata.equivalents(rule).values():
        for name in ("nonlinearity", "average_sensitivity", "canalisation", "effective_connectivity"):
            measure = getattr(complexity, name)
            assert measure(other) == pytest.approx(measure(rule))
        both = [complexity.linear_loss(each, [EVERY, EVERY]) for each in (rule, other)]
        assert both[0] == pytest.approx(both[1], abs=1e-5)


# --- linear loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [90, 150, 105, 60])
def test_a_parity_of_every_neighbourhood_is_a_coin_flip(rule):
    assert complexity.linear_loss(rule, [EVERY, EVERY]) == pytest.approx(log(2))


def separable(rule, seen, k=1):
    """Whether a hyperplane parts the neighbourhoods that occur, by linear programming."""
    rows = [
        (1 - 2 * automata_after(rule, cells, k)) * np.array([*(2 * c - 1 for c in cells), 1.0])
        for cells in product((0, 1), repeat=2 * k + 1)
        if cells in seen
    ]
    return linprog(np.zeros(2 * k + 2), np.array(rows), -np.ones(len(rows)), bounds=(None, None)).status == 0


def automata_after(rule, cells, k):
    for _ in range(k):
        cells = [new(rule, cells[i : i + 3]) for i in range(len(cells) - 2)]
    return cells[0]


@pytest.mark.parametrize("k", [1, 2])
def test_it_is_nothing_exactly_where_a_threshold_does(k):
    found = set()
    for rule in automata.representatives():
        run = run_of(rule)
        seen = {tuple(np.roll(row, k)[i : i + 2 * k + 1]) for row in run[:-k] for i in range(0, 196)}
        seen |= {tuple(np.roll(row, s)[: 2 * k + 1]) for row in run[:-k] for s in range(-2 * k, 2 * k + 1)}
        loss = complexity.linear_loss(rule, run, k)
        assert (loss < 1e-4) == separable(rule, seen, k), rule
        found.add(loss < 1e-4)
    assert found == {True, False}


@pytest.mark.parametrize(("rule", "k"), [(110, 1), (30, 1), (54, 2), (22, 3)])
def test_it_is_the_lowest_loss_of_a_logistic_regression(rule, k):
    """Gradient descent over the cells themselves, one by one."""
    run = run_of(rule)
    x = np.stack([np.roll(run[:-k], -shift, axis=1) for shift in range(-k, k + 1)], axis=-1).reshape(-1, 2 * k + 1)
    x, y = np.c_[2.0 * x - 1, np.ones(len(x))], run[k:].reshape(-1)
    weights = np.zeros(2 * k + 2)
    for _ in range(3000):
        weights -= x.T @ (1 / (1 + np.exp(-x @ weights)) - y) / len(y)
    p = 1 / (1 + np.exp(-x @ weights))
    expected = -np.log(np.where(y == 1, p, 1 - p)).mean()
    assert complexity.linear_loss(rule, run, k) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((256, [EVERY, EVERY]), "rule must be an integer from 0 to 255"),
        ((110, [EVERY, EVERY], 2), "k for a run of 2 rows must be an integer from 1 to 1; got 2"),
        ((110, EVERY), r"expected a run \(T, W\), got cells of shape \(8,\)"),
        ((110, [[0, 2], [1, 1]]), "cells must be 0 or 1; got 2"),
    ],
)
def test_other_input_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        complexity.linear_loss(*given)


# --- of the rule alone ------------------------------------------------------------------------------------------------


def test_nonlinearity_is_the_distance_to_the_nearest_affine_rule():
    affine = [
        sum((sum(a * b for a, b in zip(chosen, cells, strict=True)) + one) % 2 << place for place, cells in CELLS)
        for chosen in product((0, 1), repeat=3)
        for one in (0, 1)
    ]
    for rule in range(256):
        assert complexity.nonlinearity(rule) == min((rule ^ each).bit_count() for each in affine)


CELLS = list(enumerate(product((0, 1), repeat=3)))


@given(RULES)
def test_sensitivity_by_the_walsh_spectrum(rule):
    """The sum over coefficients of their number of cells times their share of the energy (Parseval)."""
    spectrum = complexity.walsh_spectrum(rule) / 8
    assert (spectrum**2).sum() == pytest.approx(1)
    expected = sum(bin(s).count("1") * spectrum[s] ** 2 for s in range(8))
    assert complexity.average_sensitivity(rule) == pytest.approx(expected)


def schemata(rule, cells):
    """The most cells that can be left out at a neighbourhood, subset by subset."""
    for number in (3, 2, 1):
        for free in combinations(range(3), number):
            inside = [other for _, other in CELLS if all(other[i] == cells[i] for i in range(3) if i not in free)]
            if len({new(rule, each) for each in inside}) == 1:
                return number
    return 0


@given(RULES)
def test_connectivity_and_canalisation_by_their_definitions(rule):
    needed = [3 - schemata(rule, cells) for _, cells in CELLS]
    assert complexity.effective_connectivity(rule) == pytest.approx(sum(needed) / 8)
    pairs = [(place, value) for place in range(3) for value in (0, 1)]
    decide = [len({new(rule, cells) for _, cells in CELLS if cells[place] == value}) == 1 for place, value in pairs]
    assert complexity.canalisation(rule) == pytest.approx(sum(decide) / 6)


@pytest.mark.parametrize(
    ("rule", "expected"), [(0, (0, 0, 1, 0)), (204, (0, 1, 1 / 3, 1)), (90, (0, 2, 0, 2)), (150, (0, 3, 0, 3))]
)
def test_known_values(rule, expected):
    names = ("nonlinearity", "average_sensitivity", "canalisation", "effective_connectivity")
    assert [getattr(functions, name)(rule) for name in names] == pytest.approx(list(expected))

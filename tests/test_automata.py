"""Automata against CellPyLib, against known sequences, and against their own algebra."""

from __future__ import annotations

from itertools import pairwise

import cellpylib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rules2ranks import automata

RULES = st.integers(0, 255)
STATES = st.integers(1, 70).flatmap(lambda width: arrays(np.uint8, width, elements=st.integers(0, 1)))


def by_lookup(rule: int, state: np.ndarray, steps: int, pad) -> np.ndarray:
    """The same run, one padded row at a time, from the definition."""
    rows = [state]
    for _ in range(steps):
        left, centre, right = (pad(rows[-1])[start : start + len(state)] for start in range(3))
        rows.append(rule >> (4 * left.astype(int) + 2 * centre + right) & 1)
    return np.array(rows)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 9])
def test_all_rules_agree_with_cellpylib(width):
    # CellPyLib calls Python once a cell: small runs, every rule.
    for rule in range(256):
        start = automata.random_states(1, width, seed=rule)
        oracle = cellpylib.evolve(start, timesteps=6, apply_rule=lambda n, c, t, rule=rule: cellpylib.nks_rule(n, rule))
        np.testing.assert_array_equal(automata.simulate(rule, start[0], 5), oracle, err_msg=f"rule {rule}")


@pytest.mark.parametrize(
    ("boundary", "pad"),
    [
        ("periodic", lambda row: np.pad(row, 1, mode="wrap")),
        ("fixed0", lambda row: np.pad(row, 1)),
        ("fixed1", lambda row: np.pad(row, 1, constant_values=1)),
        ("symmetric", lambda row: np.pad(row, 1, mode="symmetric")),
    ],
)
@pytest.mark.parametrize("width", [1, 2, 3, 64, 65])
def test_boundaries_agree_with_numpy_padding(boundary, pad, width):
    start = automata.random_states((), width, seed=width)
    for rule in range(256):
        ours = automata.simulate(rule, start, 4, boundary=boundary)
        np.testing.assert_array_equal(ours, by_lookup(rule, start, 4, pad), err_msg=f"rule {rule}")


def test_rule_30_centre_column():
    # The first cells of OEIS A051023.
    known = "1101110011000101100100111010111001110101"
    rows = automata.simulate(30, automata.single_cell(101), 39)
    assert "".join(map(str, rows[:, 50])) == known


def test_rule_90_is_pascals_triangle_mod_2():
    steps = 40
    rows = automata.simulate(90, automata.single_cell(2 * steps + 1), steps)
    pascal = [1]
    for row in rows:
        cells = np.zeros(2 * steps + 1, np.uint8)
        cells[steps - len(pascal) + 1 : steps + len(pascal) : 2] = [number % 2 for number in pascal]
        np.testing.assert_array_equal(row, cells)
        pascal = [1, *(a + b for a, b in pairwise(pascal)), 1]


def test_identity_and_shifts():
    start = automata.random_states(3, 17, seed=5)
    for t in range(6):
        np.testing.assert_array_equal(automata.simulate(204, start, 5)[:, t], start)
        np.testing.assert_array_equal(automata.simulate(170, start, 5)[:, t], np.roll(start, -t, axis=-1))
        np.testing.assert_array_equal(automata.simulate(240, start, 5)[:, t], np.roll(start, t, axis=-1))


@pytest.mark.parametrize("rule", [60, 90, 102, 105, 150])
def test_additive_rules(rule):
    a, b = automata.random_states((2, 50), 33, seed=rule)
    run_a, run_b, run_sum = (automata.simulate(rule, state, 7) for state in (a, b, a ^ b))
    constant = automata.simulate(rule, np.zeros(33, np.uint8), 7)  # rule 105 is affine: it adds a 1 every step
    np.testing.assert_array_equal(run_sum, run_a ^ run_b ^ constant)
    assert not automata.algebraic_normal_form(rule)[[3, 5, 6, 7]].any()


@given(rule=RULES, state=STATES)
def test_mirror_and_complement_are_conjugacies(rule, state):
    run = automata.simulate(rule, state, 8)
    other = automata.equivalents(rule)
    np.testing.assert_array_equal(automata.simulate(other["mirror"], state[::-1], 8), run[:, ::-1])
    np.testing.assert_array_equal(automata.simulate(other["complement"], 1 - state, 8), 1 - run)
    np.testing.assert_array_equal(automata.simulate(other["both"], 1 - state[::-1], 8), 1 - run[:, ::-1])


@given(rule=RULES, state=STATES, burn_in=st.integers(0, 9), every=st.integers(1, 4))
def test_burn_in_and_every_pick_rows_of_the_full_run(rule, state, burn_in, every):
    full = automata.simulate(rule, state, burn_in + 5 * every)
    picked = automata.simulate(rule, state, 5, burn_in=burn_in, every=every)
    np.testing.assert_array_equal(picked, full[burn_in::every])


@pytest.mark.parametrize("batch", [(), (0,), (1,), (63,), (64,), (65,), (2, 3, 5), (200,)])
def test_a_batch_is_its_members(batch):
    starts = automata.random_states(batch, 13, seed=1)
    runs = automata.simulate(110, starts, 6)
    assert runs.shape == (*batch, 7, 13) and runs.dtype == np.uint8
    for index in np.ndindex(batch):
        np.testing.assert_array_equal(runs[index], automata.simulate(110, starts[index], 6))


def test_the_given_states_stay_as_they_are():
    start = automata.random_states(4, 9, seed=0)
    before = start.copy()
    automata.simulate(30, start, 3)[:] = 0
    np.testing.assert_array_equal(start, before)


@pytest.mark.parametrize("kind", [bool, int, float, list])
def test_states_of_any_kind(kind):
    start = automata.random_states(2, 9, seed=0)
    given_as = start.tolist() if kind is list else start.astype(kind)
    np.testing.assert_array_equal(automata.simulate(30, given_as, 3), automata.simulate(30, start, 3))


def test_rule_table_starts_with_000():
    assert automata.rule_table(110).tolist() == [0, 1, 1, 1, 0, 1, 1, 0]
    for rule in range(256):
        assert sum(int(bit) << n for n, bit in enumerate(automata.rule_table(rule))) == rule


def test_algebraic_normal_form_is_the_rule():
    left, centre, right = np.array(list(np.ndindex(2, 2, 2))).T
    terms = np.array([left**i * centre**j * right**k for i, j, k in np.ndindex(2, 2, 2)])
    for rule in range(256):
        polynomial = automata.algebraic_normal_form(rule) @ terms % 2
        np.testing.assert_array_equal(polynomial, automata.rule_table(rule))
    assert automata.algebraic_normal_form(90).tolist() == [0, 1, 0, 0, 1, 0, 0, 0]


def test_equivalence_classes():
    assert automata.equivalents(110) == {"mirror": 124, "complement": 137, "both": 193}
    assert automata.equivalents(30) == {"mirror": 86, "complement": 135, "both": 149}
    chosen = automata.representatives()
    assert len(chosen) == 88 and list(chosen) == sorted(chosen)
    assert {automata.representative(rule) for rule in range(256)} == set(chosen)
    covered = [{rule, *automata.equivalents(rule).values()} for rule in chosen]
    assert sum(map(len, covered)) == 256 and set.union(*covered) == set(range(256))


def test_langton_lambda():
    assert [automata.langton_lambda(rule) for rule in (0, 110, 90, 255)] == [0, 0.625, 0.5, 1]


def test_starts():
    assert automata.single_cell(5).tolist() == [0, 0, 1, 0, 0]
    assert automata.single_cell(4).tolist() == [0, 0, 1, 0]
    assert automata.random_states((), 7, seed=0).shape == (7,)
    # Written down once: a seed has to mean these cells on every machine and with every later NumPy.
    assert "".join(map(str, automata.random_states((), 16, seed=0))) == "1111010111010011"
    few, many = automata.random_states(2, 50, seed=3), automata.random_states(9, 50, seed=3)
    np.testing.assert_array_equal(few, many[:2])
    assert not automata.random_states(9, 50, seed=3, density=0).any()
    assert automata.random_states(9, 50, seed=3, density=1).all()
    # 10**5 cells: five standard deviations of the mean are 0.0073.
    assert abs(automata.random_states(1000, 100, seed=4, density=0.3).mean() - 0.3) < 0.0073


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": 256}, "rule must be an integer from 0 to 255; got 256"),
        ({"rule": -1}, "rule must be an integer from 0 to 255; got -1"),
        ({"rule": 110.0}, "rule must be an integer from 0 to 255; got 110.0"),
        ({"steps": -1}, "steps must be an integer of at least 0; got -1"),
        ({"burn_in": -5}, "burn_in must be"),
        ({"every": 0}, "every must be an integer of at least 1; got 0"),
        ({"boundary": "open"}, "boundary must be one of periodic, fixed0, fixed1, symmetric; got 'open'"),
        ({"states": [0, 1, 2]}, "cells must be 0 or 1; got 2"),
        ({"states": [0, -1]}, "cells must be 0 or 1; got -1"),
        ({"states": [0.5, 1]}, "cells must be 0 or 1; got 0.5"),
        ({"states": [float("nan")]}, "cells must be 0 or 1; got nan"),
        ({"states": []}, "at least one cell"),
        ({"states": 1}, "at least one cell"),
    ],
)
def test_bad_input_says_what_was_expected(arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        automata.simulate(**{"rule": 110, "states": [0, 1, 0], "steps": 2} | arguments)


@pytest.mark.parametrize(
    "call",
    [
        lambda: automata.random_states(-1, 5, seed=0),
        lambda: automata.random_states(1, 0, seed=0),
        lambda: automata.random_states(1, 5, seed=-1),
        lambda: automata.random_states(1, 5, seed=0, density=1.5),
        lambda: automata.random_states(1, 5, seed=0, density=float("nan")),
        lambda: automata.single_cell(0),
        lambda: automata.rule_table(300),
        lambda: automata.equivalents(-2),
        lambda: automata.langton_lambda("110"),
    ],
)
def test_bad_arguments_of_the_helpers(call):
    with pytest.raises(ValueError):
        call()

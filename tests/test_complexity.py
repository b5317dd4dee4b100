"""Complexity measures against their definitions, antropy, hand-known values and the published numbers."""

from __future__ import annotations

import re
from itertools import pairwise, product
from math import inf, log, log2

import antropy
import cellpylib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import linregress

from rules2ranks import automata, complexity, published

RUNS = st.tuples(st.integers(5, 9), st.integers(5, 20)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)
RULES = st.integers(0, 255)
ODD_RINGS = st.integers(1, 12).flatmap(lambda half: arrays(np.uint8, 2 * half + 1, elements=st.integers(0, 1)))


def bits(text: str) -> list[int]:
    return [int(symbol) for symbol in text]


def phrases_by_definition(text: str) -> int:
    """Each phrase is the shortest string from here that does not occur in what precedes its last symbol."""
    count, start = 0, 0
    while start < len(text):
        length = 1
        while start + length <= len(text) and text[start : start + length] in text[: start + length - 1]:
            length += 1
        count, start = count + 1, start + length
    return count


@pytest.mark.parametrize(
    ("text", "phrases"),
    [("1001111011000010", 6), ("0" * 16, 2), ("01" * 8, 3), ("0", 1), ("00", 2), ("01", 2), ("1" * 1000, 2)],
)
def test_lz76_known_values(text, phrases):
    assert complexity.lz76(bits(text)) == phrases


def test_lz76_is_its_definition_on_all_strings_up_to_12_bits():
    for length in range(1, 13):
        for text in map("".join, product("01", repeat=length)):
            assert complexity.lz76(bits(text)) == phrases_by_definition(text), text


@pytest.mark.parametrize("density", [0.02, 0.2, 0.5])
def test_lz76_agrees_with_antropy(density):
    for seed in range(20):
        text = automata.random_states((), 700, seed=seed, density=density)
        assert complexity.lz76(text) == antropy.lziv_complexity(text.tolist(), normalize=False)


@pytest.mark.parametrize("rule", [18, 54, 62, 73, 110])
def test_lz76_agrees_with_antropy_on_structured_runs(rule):
    run = automata.simulate(rule, automata.random_states((), 61, seed=rule), 15)
    assert complexity.lz76(run) == antropy.lziv_complexity(run.ravel().tolist(), normalize=False)


@given(run=RUNS)
def test_lz76_and_entropies_do_not_tell_0_from_1(run):
    assert complexity.lz76(run) == complexity.lz76(1 - run)
    # Sums of the same terms in another order: equal to rounding.
    assert complexity.block_entropy(run, 3) == pytest.approx(complexity.block_entropy(1 - run, 3), abs=1e-12)


@given(run=RUNS)
def test_block_entropy_does_not_tell_left_from_right(run):
    for length in range(1, 6):
        mirrored = complexity.block_entropy(run[:, ::-1], length)
        assert complexity.block_entropy(run, length) == pytest.approx(mirrored, abs=1e-12)


@given(run=RUNS, length=st.integers(1, 5), axis=st.sampled_from([-1, -2]))
def test_ranges(run, length, axis):
    assert 0 <= complexity.block_entropy(run, length, axis=axis) <= length
    assert 0 <= complexity.entropy_rate(run, length, axis=axis) <= 1
    assert 1 <= complexity.lz76(run) <= run.size
    assert 0 < complexity.compression(run)


@given(run=RUNS)
def test_mutual_information_is_a_mutual_information(run):
    for axis in (-1, -2):
        forward = complexity.mutual_information(run, 2, axis=axis)
        assert 0 <= forward <= 1
        assert forward == pytest.approx(complexity.mutual_information(np.flip(run, axis), 2, axis=axis), abs=1e-12)
        assert forward == pytest.approx(complexity.mutual_information(1 - run, 2, axis=axis), abs=1e-12)
    # Neighbours, by the chain rule, from the block entropies of the same pairs.
    pairs = np.stack([run[:, :-1], run[:, 1:]], axis=-1).reshape(-1, 2)
    joint = complexity.block_entropy(pairs, 2)
    single = sum(complexity.block_entropy(pairs[:, [side]], 1) for side in (0, 1))
    assert complexity.mutual_information(run) == pytest.approx(single - joint, abs=1e-12)


@pytest.mark.parametrize("distance", [1, 3])
def test_entropy_and_mutual_information_agree_with_cellpylib(distance):
    for seed in range(10):
        series = automata.simulate(110, automata.random_states((), 40, seed=seed), 60)[:, 0]
        text = "".join(map(str, series))
        assert complexity.block_entropy(series, 1) == pytest.approx(cellpylib.shannon_entropy(text), abs=1e-12)
        ours = complexity.mutual_information(series[:, None], distance, axis=-2)
        theirs = cellpylib.mutual_information(text[:-distance], text[distance:])
        assert ours == pytest.approx(theirs, abs=1e-12)


def test_random_cells():
    cells = automata.random_states(400, 500, seed=0)
    # Normalised LZ76 falls to 1 like 1 + O(1 / log n); at 2e5 random cells it is 1.013 ± 0.001 over seeds.
    assert 1 < complexity.lz76_normalised(cells) < 1.02
    # The estimate of 5-block entropies from 2e5 blocks is low by about 32 / (2 ln 2 2e5) = 1e-4.
    assert complexity.entropy_rate(cells) == pytest.approx(1, abs=5e-4)
    assert complexity.entropy_rate(cells, axis=-2) == pytest.approx(1, abs=5e-4)
    # About 1 / (2 ln 2 m) for m pairs, 4e-6; below 4e-5 in all but one of 10**7 cases (chi-squared, one degree).
    assert complexity.mutual_information(cells) < 4e-5 and complexity.mutual_information(cells, axis=-2) < 4e-5
    # zlib stores what it cannot shorten: one bit per cell and a frame of a few bytes.
    assert 1 <= complexity.compression(cells) < 1.002


def test_constant_and_periodic_cells():
    constant, striped = np.ones((50, 64), np.uint8), np.tile([0, 1], (50, 32))
    assert complexity.lz76(constant) == 2 and complexity.lz76(striped) == 3
    assert complexity.lz76_normalised(constant) == pytest.approx(2 * log2(3200) / 3200)
    assert complexity.block_entropy(constant, 4) == 0 and complexity.entropy_rate(constant) == 0
    assert complexity.block_entropy(striped, 1) == pytest.approx(1)
    assert complexity.entropy_rate(striped, 2) == pytest.approx(0, abs=1e-12)
    assert complexity.mutual_information(constant) == complexity.mutual_information(constant, axis=-2) == 0
    # 31.5 zeros and 31.5 ones in each row's pairs: exactly one bit; in time a stripe repeats, which tells all as well.
    assert complexity.mutual_information(striped, 1) == pytest.approx(1, abs=1e-3)
    assert complexity.mutual_information(striped, 7, axis=-2) == pytest.approx(1)
    assert complexity.compression(constant) < 0.06 and complexity.compression(striped) < 0.06


def test_space_and_time_are_told_apart():
    run = automata.simulate(204, automata.random_states((), 2000, seed=1), 20)  # every cell stays as it is
    assert complexity.entropy_rate(run, 4, axis=-2) == pytest.approx(0, abs=1e-12)
    assert complexity.entropy_rate(run, 4, axis=-1) > 0.99  # 2000 random cells: low by about 8 / (1.4 * 2000) = 0.003


@pytest.mark.parametrize("levels", [2, 4, 6])
def test_fractal_dimension_of_exact_shapes(levels):
    side = 2**levels
    # Rule 60 from its leftmost cell is Pascal's triangle mod 2: 3 of 4 boxes at every scale.
    triangle = automata.simulate(60, np.eye(1, side, dtype=np.uint8)[0], side - 1)
    assert complexity.fractal_dimension(triangle) == pytest.approx(log2(3))
    assert complexity.fractal_dimension(np.ones((side, side))) == pytest.approx(2)
    assert complexity.fractal_dimension(np.eye(side)) == pytest.approx(1)
    assert complexity.fractal_dimension(np.pad([[1]], ((1, side - 2), (2, side - 3)))) == pytest.approx(0, abs=1e-12)
    assert complexity.fractal_dimension(np.zeros((side, side))) == 0
    # Cells that do not fill a box of the largest size count from the other corners.
    assert complexity.fractal_dimension(np.pad(np.ones((1, 100)), ((10, 0), (0, 0)))) == pytest.approx(1)
    assert complexity.fractal_dimension(np.ones((11, 101))) == pytest.approx(2)


@given(run=arrays(np.uint8, (19, 37), elements=st.integers(0, 1)))
def test_fractal_dimension_is_the_slope_of_counted_boxes(run):
    counts = []  # 19 rows: boxes of up to 8 cells, in 16 rows and 32 columns, from each of the four corners
    for size in (1, 2, 4, 8):
        starts = [
            (y0 + y, x0 + x) for y0 in (0, 3) for x0 in (0, 5) for y in range(0, 16, size) for x in range(0, 32, size)
        ]
        counts.append(sum(run[y : y + size, x : x + size].any() for y, x in starts))
    slope = linregress([0, 1, 2, 3], np.log2(counts)).slope if counts[0] else 0
    assert complexity.fractal_dimension(run) == pytest.approx(-slope, abs=1e-9)
    assert complexity.fractal_dimension(run[:, ::-1]) == pytest.approx(-slope, abs=1e-9)
    assert -1e-9 <= complexity.fractal_dimension(run) <= 2 + 1e-9


@pytest.mark.parametrize(
    ("rule", "exponent"),
    [(0, 0), (204, 0), (51, 0), (170, 0), (240, 0), (60, 1), (102, 1), (90, 2), (150, 2), (105, 2)],
)
def test_damage_of_rules_that_one_can_work_out(rule, exponent):
    for seed in range(3):
        assert complexity.lyapunov_damage(rule, automata.random_states((), 65, seed=seed), 32) == exponent


def test_damage_of_rule_30():
    # Its right edge moves at the speed of light, its left edge at about 0.25 cells a step (Wolfram, A new kind of
    # science, notes to chapter 6). Means of 5 starts scatter by less than 0.02.
    speeds = [complexity.lyapunov_damage(30, automata.random_states((), 501, seed=s), 250) for s in range(5)]
    assert np.mean(speeds) == pytest.approx(1.25, abs=0.03)


def damage_by_definition(rule: int, state: np.ndarray, steps: int) -> float:
    """From a ring that is unrolled three times, so that no index wraps."""
    total = 0
    for place in range(len(state)):
        other = state.copy()
        other[place] ^= 1
        end, end_other = (automata.simulate(rule, row, steps)[-1] for row in (state, other))
        unrolled = np.tile(end ^ end_other, 3)[place + len(state) - steps : place + len(state) + steps + 1]
        (cells,) = unrolled.nonzero()
        total += cells[-1] - cells[0] if len(cells) else 0
    return total / len(state) / steps


@given(rule=RULES, state=ODD_RINGS)
def test_damage_is_its_definition_and_conjugate_rules_share_it(rule, state):
    steps = (len(state) - 1) // 2
    exponent = complexity.lyapunov_damage(rule, state, steps)
    assert exponent == pytest.approx(damage_by_definition(rule, state, steps)) and 0 <= exponent <= 2
    other = automata.equivalents(rule)
    assert complexity.lyapunov_damage(other["mirror"], state[::-1], steps) == pytest.approx(exponent)
    assert complexity.lyapunov_damage(other["complement"], 1 - state, steps) == pytest.approx(exponent)


@pytest.mark.parametrize(
    ("rule", "exponent"),
    [(0, -inf), (255, -inf), (204, 0), (51, 0), (170, 0), (15, 0), (60, log(2)), (90, log(2)), (150, log(3))],
)
def test_boolean_derivatives_of_rules_that_one_can_work_out(rule, exponent):
    run = automata.simulate(rule, automata.random_states((), 50, seed=rule), 30)
    assert complexity.lyapunov_boolean(rule, run) == pytest.approx(exponent, abs=1e-12)


@given(rule=RULES, state=ODD_RINGS)
def test_boolean_exponent_is_the_product_of_jacobians(rule, state):
    run = automata.simulate(rule, state, 6)
    defects = np.ones(len(state))
    for now, after in pairwise(run):
        # Column j: which cells of the next row change when cell j does. On 3 cells or more each pair meets once.
        flipped = automata.simulate(rule, now ^ np.eye(len(state), dtype=np.uint8), 1)[:, 1]
        defects = (flipped ^ after).T @ defects
    exponent = complexity.lyapunov_boolean(rule, run)
    expected = log(defects.sum() / len(state)) / 6 if defects.any() else -inf
    assert exponent == pytest.approx(expected, abs=1e-12) and exponent <= log(3) + 1e-12
    other = automata.equivalents(rule)
    assert complexity.lyapunov_boolean(other["mirror"], run[:, ::-1]) == pytest.approx(exponent, abs=1e-12)
    assert complexity.lyapunov_boolean(other["complement"], 1 - run) == pytest.approx(exponent, abs=1e-12)


def test_krylov_of_rules_that_one_can_work_out():
    # The number of 1s is kept (204, 184), shifted (170), counted from the other end (51, 15), erased (0, 255).
    for rule in (204, 184, 170, 240, 51, 15, 0, 255):
        assert complexity.krylov(rule) == pytest.approx(0, abs=1e-9)
    # Rule 90 and 60 send products of spins to other products: orthogonal until they recur, here after more steps.
    assert complexity.krylov(90, 13, 26) == pytest.approx(13)
    assert complexity.krylov(60, 13, 26) == pytest.approx(13)
    # More steps than there are states: the basis is complete, the observable goes on in it.
    assert 0 < complexity.krylov(110, 3, 40) <= 7


@pytest.mark.parametrize("rule", [4, 18, 22, 30, 54, 73, 108, 110, 150, 232])
def test_krylov_against_arnoldi_on_the_operator(rule):
    cells, steps = 7, 9
    states = np.array(list(np.ndindex(*[2] * cells)), np.uint8)
    number = {tuple(state): place for place, state in enumerate(states)}
    operator = np.zeros((2**cells, 2**cells))
    for place, state in enumerate(states):
        operator[place, number[tuple(automata.simulate(rule, state, 1)[1])]] = 1
    observable, basis, places = states.sum(axis=1, dtype=float), [], []
    for _ in range(steps + 1):
        centred = observable - observable.mean()
        rest = centred.copy()
        for vector in [*basis, *basis]:  # twice, against rounding
            rest -= (vector @ rest) * vector
        if np.linalg.norm(rest) > 1e-8:
            basis.append(rest / np.linalg.norm(rest))
        shares = [(vector @ centred) ** 2 for vector in basis]
        places.append(np.arange(len(shares)) @ shares / sum(shares) if centred.any() else 0)
        observable = operator @ observable
    assert complexity.krylov(rule, cells, steps) == pytest.approx(np.mean(places), abs=1e-8)
    for other in automata.equivalents(rule).values():
        assert complexity.krylov(other, cells, steps) == pytest.approx(complexity.krylov(rule, cells, steps), abs=1e-8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: complexity.lz76([]), "at least one cell"),
        (lambda: complexity.lz76(np.zeros((0, 5))), "at least one cell"),
        (lambda: complexity.lz76([0, 2]), "cells must be 0 or 1; got 2"),
        (lambda: complexity.lz76(np.zeros((2, 3, 4))), "one run (T, W); got shape (2, 3, 4)"),
        (lambda: complexity.lz76_normalised([1]), "at least 2 cells"),
        (lambda: complexity.compression([0.5]), "cells must be 0 or 1; got 0.5"),
        (
            lambda: complexity.block_entropy([0, 1], 0),
            "block length on an axis of 2 must be an integer from 1 to 2; got 0",
        ),
        (
            lambda: complexity.block_entropy([0, 1], 3),
            "block length on an axis of 2 must be an integer from 1 to 2; got 3",
        ),
        (lambda: complexity.block_entropy([0, 1], "1"), "must be an integer from 1 to 2; got '1'"),
        (
            lambda: complexity.block_entropy([0, 1], 1, axis=-2),
            "axis of cells of shape (2,) must be an integer from -1 to 0; got -2",
        ),
        (lambda: complexity.entropy_rate(np.zeros(100), 21), "must be an integer from 1 to 20; got 21"),
        (
            lambda: complexity.mutual_information([0, 1, 1], 3),
            "distance on this axis must be an integer from 1 to 2; got 3",
        ),
        (lambda: complexity.mutual_information([0, 1, 1], 1.0), "must be an integer from 1 to 2; got 1.0"),
        (lambda: complexity.fractal_dimension([0, 1, 1, 0, 1]), "at least 4 x 4 cells"),
        (lambda: complexity.fractal_dimension(np.zeros((3, 9))), "at least 4 x 4 cells; got shape (3, 9)"),
        (lambda: complexity.lyapunov_damage(30, np.zeros((2, 9)), 2), "one row of cells (W,)"),
        (
            lambda: complexity.lyapunov_damage(30, np.zeros(9), 5),
            "steps on a ring of 9 cells must be an integer from 1 to 4; got 5",
        ),
        (lambda: complexity.lyapunov_damage(256, np.zeros(9), 2), "rule must be an integer from 0 to 255"),
        (lambda: complexity.lyapunov_boolean(30, np.zeros(9)), "at least two rows"),
        (lambda: complexity.lyapunov_boolean(30, [[0, 1, 0], [0, 1, 0]]), "not a run of rule 30"),
        (lambda: complexity.krylov(30, 2), "cells must be an integer from 3 to 20; got 2"),
        (lambda: complexity.krylov(30, 5, 0), "steps must be an integer of at least 1; got 0"),
        (lambda: complexity.lyapunov_damage(30, [0, 1], 1), "a ring of at least 3 cells; got 2"),
        (lambda: complexity.wolfram_class(256), "rule must be an integer from 0 to 255"),
        (lambda: complexity.table([]), "at least one rule and one seed; got 0 rules"),
        (lambda: complexity.table([110], seeds=[]), "and 0 seeds"),
        (lambda: complexity.table([110], rows=4), "at least 5; got 4 rows"),
        (lambda: complexity.table(110), "rules must be a list, such as [30, 110]; got 110"),
        (lambda: complexity.table([110], seeds=20), "seeds must be a list, such as range(20); got 20"),
        (lambda: complexity.table([110], measures="lz76"), "measures must be a list, such as [\"lz76\"]; got 'lz76'"),
        (lambda: complexity.lz76(np.full(3, 9, np.uint64)), "got 9 (packed rows? `unpack` them first)"),
        (lambda: complexity.table([110], width=4), "4 cells"),
        (lambda: complexity.table([300]), "rule must be an integer from 0 to 255"),
        (lambda: complexity.table([110], measures=["lz78"]), "unknown measure 'lz78'; there are lz76, "),
    ],
)
def test_bad_input_says_what_was_expected(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_wolfram_classes():
    classes = complexity.wolfram_classes()
    assert classes.index.tolist() == list(range(256))
    assert classes["class"].value_counts().to_dict() == {1: 24, 2: 192, 3: 26, 4: 14}
    for rule, line in classes.iterrows():
        assert line["representative"] == automata.representative(rule)
        assert line["class"] == classes["class"][line["representative"]] == complexity.wolfram_class(rule)
        assert line["disputed"] == classes["disputed"][line["representative"]]
    chosen = classes.loc[list(automata.representatives())]
    assert chosen["class"].value_counts().to_dict() == {1: 8, 2: 65, 3: 11, 4: 4}
    assert chosen.index[chosen["disputed"]].tolist() == [26, 41, 54, 73, 106, 154, 232]
    assert [complexity.wolfram_class(rule) for rule in (137, 234, 179, 30, 204)] == [4, 1, 2, 3, 2]


def test_table():
    table = complexity.table([30, 204, 0], seeds=range(4), burn_in=3, rows=12)
    assert table.index.tolist() == [30, 204, 0]
    spreads = [f"{name}_sd" for name, measure in complexity.MEASURES.items() if not measure.of_the_rule]
    assert len({measure.label for measure in complexity.MEASURES.values()}) == len(complexity.MEASURES)
    assert set(table.columns) == {"wolfram_class", "disputed", *complexity.MEASURES, *spreads}
    runs = [automata.simulate(30, automata.random_states((), 100, seed=s), 11, burn_in=3) for s in range(4)]
    by_hand = {
        "lz76": complexity.lz76,
        "lz76_normalised": complexity.lz76_normalised,
        "compression": complexity.compression,
        "entropy": lambda run: complexity.block_entropy(run, 1),
        "entropy_rate": lambda run: complexity.entropy_rate(run, 5),
        "entropy_rate_time": lambda run: complexity.entropy_rate(run, 5, axis=0),
        "mutual_information": lambda run: complexity.mutual_information(run, 1),
        "mutual_information_time": lambda run: complexity.mutual_information(run, 1, axis=0),
        "fractal_dimension": lambda run: np.mean([complexity.fractal_dimension(run ^ side) for side in (0, 1)]),
        "lyapunov_damage": lambda run: complexity.lyapunov_damage(30, run[0], 11),
        "lyapunov_boolean": lambda run: complexity.lyapunov_boolean(30, run),
    }
    for name, measure in by_hand.items():
        values = [measure(run) for run in runs]
        assert table.loc[30, name] == pytest.approx(np.mean(values), abs=1e-12), name
        assert table.loc[30, f"{name}_sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-12), name
    assert table.loc[30, "krylov"] == complexity.krylov(30) and table.loc[30, "langton_lambda"] == 0.5
    assert table.loc[0, "lyapunov_boolean"] == -inf and np.isnan(table.loc[0, "lyapunov_boolean_sd"])
    assert table["wolfram_class"].tolist() == [3, 2, 1] and not table["disputed"].any()


def test_table_of_some_measures_and_one_seed():
    table = complexity.table([54], seeds=[7], measures=iter(["compression", "lz76"]))
    assert list(table.columns) == ["wolfram_class", "disputed", "compression", "compression_sd", "lz76", "lz76_sd"]
    assert np.isnan(table.loc[54, "lz76_sd"]) and table.loc[54, "disputed"]
    assert table["lz76"].equals(complexity.table([54], seeds=[7])["lz76"])


def test_published_lempel_ziv_values():
    numbers = published.table("edge_of_chaos").query("quantity == 'Lempel-Ziv complexity'")
    values = {int(row.setting.removeprefix("rule ")): row.value for row in numbers.itertuples()}
    assert values == {204: 22, 179: 55, 168: 56, 234: 60, 22: 97, 137: 106, 110: 106, 150: 111}
    ours = complexity.table(values, seeds=range(20))["lz76"]
    # The paper's own code for this is not public; on rings of 100 cells, 10 and 11 rows come nearest.
    assert np.sqrt(np.mean((ours - np.array(list(values.values()))) ** 2)) < 6

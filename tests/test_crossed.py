"""Means over seeds and what was drawn beside them: against scipy, an independent fit, and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import optimize, stats

from rules2ranks.evaluation import crossed

TABLES = arrays(np.float64, st.tuples(st.integers(2, 6), st.integers(3, 8)), elements=st.integers(-50, 50).map(float))


def drawn(rng, rows, seeds, of_rows, of_seeds, rest):
    """A table whose rows, seeds and cells have these standard deviations about zero."""
    return rng.normal(0, of_rows, (rows, 1)) + rng.normal(0, of_seeds, (1, seeds)) + rng.normal(0, rest, (rows, seeds))


@pytest.mark.parametrize("shape", [(9,), (1, 9)])
def test_one_row_is_student_s_interval_over_seeds(shape):
    values = np.random.default_rng(0).normal(0.3, 1, shape)
    found, theirs = crossed(values), stats.ttest_1samp(values.ravel(), 0)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval()), rel=1e-9)
    assert found.below(0.5) == pytest.approx(stats.ttest_1samp(values.ravel(), 0.5, alternative="less").pvalue)
    assert found.above(0.1) == pytest.approx(stats.ttest_1samp(values.ravel(), 0.1, alternative="greater").pvalue)


def test_the_variance_is_that_of_the_most_likely_components():
    """Restricted maximum likelihood, written out: for balanced tables it is the analysis of variance."""
    rng = np.random.default_rng(5)
    values = drawn(rng, 5, 12, 1.0, 0.7, 0.5)
    rows, seeds = values.shape
    places = np.indices(values.shape).reshape(2, -1)
    same = [(axis[:, None] == axis).astype(float) for axis in places]

    def minus_log_likelihood(logs):
        a, b, e = np.exp(logs)
        cov = a * same[0] + b * same[1] + e * np.eye(values.size)
        inverse = np.linalg.inv(cov)
        precision = inverse.sum()
        left = values.ravel() - (inverse @ values.ravel()).sum() / precision
        return np.linalg.slogdet(cov)[1] + math.log(precision) + left @ inverse @ left

    options = {"xatol": 1e-8, "fatol": 1e-10, "maxiter": 4000}
    a, b, e = np.exp(optimize.minimize(minus_log_likelihood, [0, 0, 0], method="Nelder-Mead", options=options).x)
    expected = a / rows + b / seeds + e / (rows * seeds)
    assert crossed(values).error == pytest.approx(math.sqrt(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("rows", "seeds", "spreads"),
    [(4, 24, (0, 1, 1)), (4, 24, (1, 1, 1)), (4, 24, (2, 0.1, 0.3)), (16, 6, (0.5, 1, 0.5)), (6, 12, (0, 0, 1))],
)
def test_nineteen_of_twenty_intervals_hold_the_truth(rows, seeds, spreads):
    """2,000 tables: the share has a standard error of 0.5 %. Where rows or seeds do not matter it may be higher."""
    rng = np.random.default_rng(1)
    found = [crossed(drawn(rng, rows, seeds, *spreads)) for _ in range(2000)]
    covered = np.mean([each.low <= 0 <= each.high for each in found])
    assert 0.93 <= covered <= (0.97 if all(spreads) else 0.995)


@pytest.mark.parametrize(("rows", "apart"), [(1, 0.03), (4, 0.12)])
def test_an_effect_of_the_smallest_size_is_found_four_times_in_five(rows, apart):
    """At a corrected level, in 3,000 experiments (standard error 0.7 %), with the error that a typical one has.

    Exact for one row. With several, the degrees of freedom are estimated and vary, which costs some power.
    """
    rng, level = np.random.default_rng(2), 0.05 / 14
    tables = [drawn(rng, rows, 24, 0.1 if rows > 1 else 0, 0.4, 0.5) for _ in range(3000)]
    typical = np.sqrt(np.mean([crossed(table).smallest(level=level) ** 2 for table in tables]))
    power = np.mean([crossed(table + typical).p < level for table in tables])
    assert power == pytest.approx(0.8, abs=apart)


def test_equality_is_shown_when_it_holds_and_not_at_the_edge():
    rng, margin = np.random.default_rng(3), 0.5
    tables = [drawn(rng, 4, 24, 0.1, 0.3, 0.4) for _ in range(1500)]
    inside = np.mean([crossed(table).within(-margin, margin) < 0.05 for table in tables])
    at_edge = np.mean([crossed(table + margin).within(-margin, margin) < 0.05 for table in tables])
    assert inside > 0.95 and at_edge < 0.07  # 5 % at the edge; the standard error is 0.6 %


@given(TABLES, st.floats(-5, 5), st.floats(0.1, 10))
def test_shifted_and_scaled_like_its_values(values, shift, scale):
    found, moved = crossed(values), crossed(values * scale + shift)
    assert moved.estimate == pytest.approx(found.estimate * scale + shift, abs=1e-9)
    assert moved.error == pytest.approx(found.error * scale, rel=1e-6, abs=1e-9)


@given(TABLES)
def test_order_does_not_matter_and_equal_rows_count_once(values):
    found = crossed(values)
    turned = crossed(values[::-1, ::-1])
    assert (turned.estimate, turned.error) == pytest.approx((found.estimate, found.error), abs=1e-9)
    assert crossed(np.tile(values[:1], (4, 1))) == pytest.approx(crossed(values[0]), abs=1e-9)


def test_no_difference_at_all_is_equal():
    found = crossed(np.zeros((3, 5)))
    assert found.error == 0 and found.p == 1 and found.within(-0.1, 0.1) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: crossed([[1.0, 2.0]]), "3 seeds or more"),
        (lambda: crossed(np.zeros((0, 4))), "3 seeds or more"),
        (lambda: crossed([[1.0, 2.0, np.nan]]), "finite"),
        (lambda: crossed([1.0, 2.0, 3.0], level=1), "level must lie"),
        (lambda: crossed([1.0, 2.0, 3.0]).smallest(power=0), "power and level"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""Intervals, correlations and paired tests against scipy, brute force and known truths."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rules2ranks.evaluation import Interval, correlation, mean_interval, paired


@pytest.fixture
def draw():
    return np.random.Generator(np.random.Philox(7))


def test_an_interval_reads_well():
    assert str(Interval(0.841, 0.4871, 0.914)) == "0.84 [0.49, 0.91]"
    assert f"{Interval(0.841, 0.4871, 0.914):.3f}" == "0.841 [0.487, 0.914]"


def test_mean_interval_is_scipys_percentile_bootstrap_at_the_expanded_level(draw):
    values = draw.normal(size=12)
    tail = stats.norm.cdf(np.sqrt(12 / 11) * stats.t.ppf(0.025, 11))
    theirs = stats.bootstrap(
        (values,), np.mean, confidence_level=1 - 2 * tail, n_resamples=10_000, method="percentile", rng=3
    ).confidence_interval
    ours = mean_interval(values, seed=3)
    # Two sets of 10,000 resamples: the ends differ by a few percent of the spread of the mean.
    spread = values.std() / np.sqrt(12)
    assert ours.estimate == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx(theirs, abs=0.12 * spread)


def test_mean_interval_covers_the_truth_about_as_often_as_it_says(draw):
    covered = [
        interval.low <= 0 <= interval.high
        for interval in (mean_interval(draw.normal(size=8), seed=seed, resamples=400) for seed in range(400))
    ]
    # 400 trials at 95 % have a standard error of 1.1 points; the plain percentile interval reaches about 89 % here.
    assert 0.91 <= np.mean(covered) <= 0.985


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=8), st.integers(0, 5))
def test_mean_interval_stays_within_the_data_and_repeats_itself(values, seed):
    interval = mean_interval(values, seed=seed, resamples=200)
    slack = 1e-9 * max(1, max(map(abs, values)))
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack
    assert interval == mean_interval(values, seed=seed, resamples=200)


def test_correlation_agrees_with_scipy(draw):
    x, y = draw.normal(size=20), draw.integers(0, 6, 20)
    for kind, theirs in (("spearman", stats.spearmanr(x, y)), ("pearson", stats.pearsonr(x, y))):
        ours = correlation(x, y, kind=kind)
        assert ours.estimate == pytest.approx(theirs.statistic)
        # scipy's p is asymptotic, ours counts 10,000 shuffles (standard error at most 0.005).
        assert ours.p == pytest.approx(theirs.pvalue, abs=0.02)
        assert ours.n == 20 and ours.low < ours.estimate < ours.high


def test_small_permutation_p_is_exact():
    x, y = np.arange(6.0), np.array([0.1, 0.3, 0.2, 0.9, 0.4, 0.8])

    def strength(shuffled):
        return np.abs(stats.spearmanr(x, shuffled).statistic)

    theirs = stats.permutation_test(
        (y,), strength, permutation_type="pairings", alternative="greater", vectorized=False, n_resamples=np.inf
    )
    assert correlation(x, y).p == pytest.approx(theirs.pvalue, abs=1e-12)


def test_permutation_p_is_uniform_where_nothing_is_to_be_found(draw):
    p = [correlation(draw.normal(size=10), draw.normal(size=10), resamples=300, seed=s).p for s in range(200)]
    # Kolmogorov-Smirnov against uniform; p of a discrete null is a little conservative.
    assert stats.kstest(p, "uniform").pvalue > 0.01


@pytest.mark.parametrize("seeds", [1, 3])
def test_correlation_covers_the_truth_about_as_often_as_it_says(seeds, draw):
    noise, truth, covered = 0.3, 0.6, []
    expected = truth / np.sqrt(1 + noise**2 / seeds)
    for seed in range(250):
        x, other = draw.normal(size=(2, 25))
        means = truth * x + np.sqrt(1 - truth**2) * other
        y = means[:, None] + noise * draw.normal(size=(25, seeds))
        result = correlation(x, y, kind="pearson", seed=seed, resamples=300)
        covered.append(result.low <= expected <= result.high)
    # 250 trials at 95 % have a standard error of 1.4 points; percentiles of a correlation cover 91 to 94 %.
    assert 0.88 <= np.mean(covered) <= 0.99


def test_noise_between_seeds_widens_the_interval_of_a_correlation(draw):
    x = np.arange(12.0)
    quiet = np.repeat((x + draw.normal(size=12))[:, None], 3, axis=1)
    noisy = quiet + 6 * (np.array([-1, 0, 1]) + 0 * quiet)
    narrow, wide = correlation(x, quiet, kind="pearson"), correlation(x, noisy, kind="pearson")
    assert wide.estimate == pytest.approx(narrow.estimate)
    assert wide.high - wide.low > 1.2 * (narrow.high - narrow.low)


def test_runs_with_clusters_are_rules_with_seeds(draw):
    x, y = draw.normal(size=9), draw.normal(size=(9, 4))
    rules = np.repeat(np.arange(9), 4)
    table = correlation(x, pd.DataFrame(y, index=[f"rule {rule}" for rule in range(9)]), seed=5)
    assert correlation(np.repeat(x, 4), y.ravel(), clusters=rules, seed=5) == table
    assert correlation(x, y, seed=5) == table


def test_rules_may_have_unequal_numbers_of_seeds():
    x, rules, y = [1, 1, 1, 2, 3, 3, 4], ["a", "a", "a", "b", "c", "c", "d"], [0, 1, 2, 4, 2, 4, 9]
    result = correlation(x, y, clusters=rules, kind="pearson")
    assert result.n == 4
    assert result.estimate == pytest.approx(stats.pearsonr([1, 2, 3, 4], [1, 4, 3, 9]).statistic)


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_a_constant_side_gives_nan_and_says_why(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = correlation([1, 2, 3], [[0.1, 0.1, 0.1]] * 3, kind=kind)
        points = correlation([2, 2, 2, 2], [1, 2, 3, 4], kind=kind)
        rare = correlation([0, 0, 0, 1], [1, 2, 3, 4], kind=kind)
    assert np.isnan([scores.estimate, scores.low, scores.high, scores.p]).all()
    assert scores.reason == "y is constant (0.1 at all 3 points)"
    assert str(points) == "undefined: x is constant (2 at all 4 points)"
    assert np.isfinite(rare[:5]).all() and not rare.reason


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=3, max_size=10))
def test_correlation_is_symmetric_signed_and_bounded(pairs):
    x, y = np.array(pairs).T
    there, back = correlation(x, y, resamples=100), correlation(x, -y, resamples=100)
    if there.reason:
        assert np.isnan(there.estimate)
        return
    assert -1 - 1e-9 <= there.low <= there.high <= 1 + 1e-9 and 0 < there.p <= 1
    assert back.estimate == pytest.approx(-there.estimate)
    assert back.p == there.p
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=1e-9)


def test_paired_interval_is_that_of_the_differences_and_p_counts_all_signs(draw):
    a, b = draw.normal(size=7), draw.normal(size=7) - 0.8
    result = paired(a, b, seed=2)
    assert result[:3] == tuple(mean_interval(a - b, seed=2))
    sums = [abs(np.dot(signs, a - b)) for signs in itertools.product((1, -1), repeat=7)]
    assert result.sign_flip_p == np.mean([s >= abs((a - b).sum()) - 1e-12 for s in sums])
    assert result.n == 7 and "n = 7" in str(result)


def test_sign_flip_p_agrees_with_scipy_beyond_exact_counting(draw):
    a = draw.normal(size=30) + 0.35
    theirs = stats.permutation_test((a,), np.sum, permutation_type="samples", n_resamples=20_000, rng=1)
    # Both are random draws: standard errors of at most 0.005.
    assert paired(a, np.zeros(30)).sign_flip_p == pytest.approx(theirs.pvalue, abs=0.02)


def test_paired_is_antisymmetric_and_six_seeds_cannot_go_below_two_in_64():
    a, b = np.arange(6) + 10.0, np.arange(6) * 1.1
    there, back = paired(a, b), paired(b, a)
    assert there.sign_flip_p == back.sign_flip_p == 2 / 64
    assert back.estimate == pytest.approx(-there.estimate)


def test_paired_series_meet_on_their_shared_seeds():
    a = pd.Series([1.0, 2.0, 4.0, 9.0], index=[3, 1, 2, 7])
    b = pd.Series([2.0, 3.0, 0.5, 8.0], index=[1, 2, 3, 5])
    result = paired(a, b)
    assert result.n == 3 and result.estimate == pytest.approx((0.5 + 0 + 1) / 3)
    with pytest.raises(ValueError, match="each seed once"):
        paired(pd.Series([1.0, 2, 3], index=[0, 0, 1]), b)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([1, 2]), "at least 3 values are needed for an interval, got 2"),
        (lambda: mean_interval([1, 2, np.nan]), r"values must be finite, got nan at place \(2,\)"),
        (lambda: mean_interval([[1, 2, 3]]), r"one-dimensional, got the shape \(1, 3\)"),
        (lambda: mean_interval([1, 2, 3], level=95), "level must lie between 0 and 1, got 95"),
        (lambda: mean_interval([1, 2, 3], resamples=9), "resamples must be at least 100, got 9"),
        (lambda: paired([1, 2, 3], [1, 2]), "same length, got 3 and 2"),
        (lambda: correlation([1, 2, 3], [1, 2]), "x and y must have the same length, got 3 and 2"),
        (lambda: correlation([1, 2], [1, 2]), "at least 3 points are needed for an interval, got 2"),
        (lambda: correlation([1, 2, 3], [[1, 2], [3, np.inf], [5, 6]]), r"y must be finite, got inf at place \(1, 1\)"),
        (lambda: correlation([1, 2, 3], [1, 2, 3], kind="kendall"), "'spearman' or 'pearson', got 'kendall'"),
        (lambda: correlation([1, 2, 3], np.zeros((3, 0))), r"shape \(rules,\) or \(rules, seeds\), got \(3, 0\)"),
        (lambda: correlation([1, 2, 3], [1, 2, 3], clusters=["a"]), r"one label per run \(3\), got 1"),
        (
            lambda: correlation([1, 2, 3], [1, 2, 3], clusters=["a", None, "b"]),
            "label for every run, none at place 1",
        ),
        (lambda: correlation([1, 2, 3], [[1], [2], [3]], clusters="abc"), r"shape \(runs,\) beside clusters"),
        (lambda: correlation([1, 2, 3], [1, 2, 3], clusters="aab"), "differs within a"),
        (lambda: correlation([1, 1, 3], [1, 2, 3], clusters="aab"), "at least 3 points are needed"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

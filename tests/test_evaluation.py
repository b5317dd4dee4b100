"""Intervals and correlations against scipy, brute force and known truths."""

import collections
import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rules2ranks.evaluation import (
    Interval,
    correlation,
    correlations,
    holm,
    mantel,
    mean_interval,
    partial_correlation,
)
from rules2ranks.evaluation.intervals import philox, redrawn


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
    noisy = quiet + 12 * np.where(np.arange(12)[:, None] % 2, [-1, 0, 1], [1, 0, -1])
    narrow, wide = correlation(x, quiet, kind="pearson"), correlation(x, noisy, kind="pearson")
    assert wide.estimate == pytest.approx(narrow.estimate)
    assert wide.high - wide.low > 1.2 * (narrow.high - narrow.low)


def test_runs_with_clusters_are_rules_with_seeds(draw):
    x, y = draw.normal(size=9), draw.normal(size=(9, 4))
    rules = np.repeat(np.arange(9), 4)
    table = correlation(x, pd.DataFrame(y, index=[f"rule {rule}" for rule in range(9)]), seed=5)
    assert correlation(x, y, seed=5) == table
    # Seeds of their own are drawn otherwise, which only the interval shows.
    nested = correlation(np.repeat(x, 4), y.ravel(), clusters=rules, seed=5)
    assert (nested.estimate, nested.p, nested.n) == (pytest.approx(table.estimate), table.p, 9)
    assert (nested.low, nested.high) != (table.low, table.high)


def test_one_draw_of_seeds_holds_for_all_rules():
    """All 3³ draws of rules and 2² of seeds, counted out: the shares that each outcome has."""
    scores, times = np.array([[0.0, 1.0], [10.0, 30.0], [500.0, 100.0]]), collections.Counter()
    for rules in itertools.product(range(3), repeat=3):
        for seeds in itertools.product(range(2), repeat=2):
            times[tuple(scores[rule, list(seeds)].mean() for rule in rules)] += 1
    blocks = list(redrawn(scores, philox(0), 40_000))
    assert {picks.shape[1] for picks, _ in blocks} == {3} and sum(len(picks) for picks, _ in blocks) == 40_000
    found = collections.Counter(tuple(row) for _, drawn in blocks for row in drawn.tolist())
    assert set(found) <= set(times)
    shares = [(found[outcome] / 40_000, count / 108) for outcome, count in times.items()]
    assert np.abs(np.diff(shares)).max() < 6 * np.sqrt(max(times.values()) / 108 / 40_000)


def test_seeds_that_turn_the_slope_are_covered_where_they_are_crossed(draw):
    """Each of six shared seeds has a slope of its own: drawn within rules, they would seem to be forty times six."""
    rules, seeds, covered = 40, 6, {"crossed": [], "nested": []}
    for seed in range(150):
        x = draw.normal(size=rules)
        y = x[:, None] * draw.normal(0.5, 0.8, seeds) + 0.5 * draw.normal(size=(rules, 1))
        expected = 0.5 / np.hypot(0.5, 0.5)
        given = {"kind": "pearson", "seed": seed, "resamples": 200}
        both = {
            "crossed": correlation(x, y, **given),
            "nested": correlation(np.repeat(x, seeds), y.ravel(), clusters=np.repeat(np.arange(rules), seeds), **given),
        }
        for name, found in both.items():
            covered[name].append(found.low <= expected <= found.high)
    # 150 trials: 3 points of standard error. Percentiles of six seeds cover less than 95 %.
    assert np.mean(covered["crossed"]) > 0.78
    assert np.mean(covered["nested"]) < np.mean(covered["crossed"]) - 0.12


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


def inverse_matrix_formula(x, y, controls):
    """The partial correlation from the inverse of the correlation matrix."""
    inverse = np.linalg.inv(np.corrcoef(np.column_stack([x, y, controls]), rowvar=False))
    return -inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1])


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
@pytest.mark.parametrize("controls", [1, 3])
def test_partial_correlation_is_that_of_the_inverse_correlation_matrix(kind, controls, draw):
    given = draw.normal(size=(30, controls)).round(1)
    x, y = given.sum(axis=1) + draw.normal(size=30), (given[:, 0] + draw.normal(size=30))[:, None]
    y = y + 0.1 * draw.normal(size=(30, 3))
    result = partial_correlation(x, pd.DataFrame(y), pd.DataFrame(given), kind=kind)
    ranked = stats.rankdata if kind == "spearman" else np.asarray
    means = y.mean(axis=1)
    theirs = inverse_matrix_formula(ranked(x), ranked(means), np.column_stack([ranked(c) for c in given.T]))
    assert result.estimate == pytest.approx(theirs)
    # The t test of a partial correlation of normal values has n - 2 - controls degrees of freedom.
    freedom = 28 - controls
    t = abs(theirs) * np.sqrt(freedom / (1 - theirs**2))
    assert result.p == pytest.approx(2 * stats.t.sf(t, freedom), abs=0.03)
    assert result.low < result.estimate < result.high and result.n == 30


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_without_controls_it_is_the_plain_correlation(kind, draw):
    x, y = draw.normal(size=7), draw.normal(size=7)
    none, plain = partial_correlation(x, y, np.empty((7, 0)), kind=kind), correlation(x, y, kind=kind)
    assert none.estimate == pytest.approx(plain.estimate) and none.p == plain.p
    # The same bootstrap with other draws.
    assert (none.low, none.high) == pytest.approx((plain.low, plain.high), abs=0.1)
    constant = partial_correlation(x, y, np.ones(7), kind=kind)
    assert constant.estimate == pytest.approx(plain.estimate) and constant.p == plain.p
    assert none.estimate == pytest.approx((stats.spearmanr if kind == "spearman" else stats.pearsonr)(x, y).statistic)


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_small_partial_permutation_p_counts_all_orders_of_the_residuals(kind, draw):
    ranked = stats.rankdata if kind == "spearman" else np.asarray
    x, y, given = draw.normal(size=(3, 6))
    result = partial_correlation(x, y, given, kind=kind)
    # Freedman and Lane as they wrote it: fit the controls, shuffle what is left, add the fit back, and start again.
    x, y, given = map(ranked, (x, y, given))
    slope, offset = np.polyfit(given, y, 1)
    fit = slope * given + offset
    null = [inverse_matrix_formula(x, fit + (y - fit)[list(p)], given) for p in itertools.permutations(range(6))]
    assert result.p == pytest.approx(np.mean(np.abs(null) >= abs(result.estimate) - 1e-9))


def test_a_common_cause_is_taken_out(draw):
    cause = draw.normal(size=60)
    x, y = cause + 0.5 * draw.normal(size=60), cause + 0.5 * draw.normal(size=60)
    assert correlation(x, y, resamples=500).low > 0.5
    left = partial_correlation(x, y, cause, resamples=500)
    assert left.low < 0 < left.high and left.p > 0.05


def test_permutation_p_of_a_partial_correlation_is_uniform_where_nothing_is_left(draw):
    p = []
    for seed in range(200):
        given = draw.normal(size=(12, 2))
        x, y = given[:, 0] + draw.normal(size=12), given.sum(axis=1) + draw.normal(size=12)
        p.append(partial_correlation(x, y, given, kind="pearson", resamples=300, seed=seed).p)
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_a_partial_correlation_covers_the_truth_about_as_often_as_it_says(draw):
    covered = []
    for seed in range(200):
        given, shared, one, other = draw.normal(size=(4, 30))
        x, y = given + shared + one, given + shared + other
        result = partial_correlation(x, y, given, kind="pearson", resamples=300, seed=seed)
        covered.append(result.low <= 0.5 <= result.high)
    # 200 trials at 95 % have a standard error of 1.5 points; percentiles of a correlation cover 91 to 94 %.
    assert 0.87 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_what_the_controls_explain_away_is_nan_and_says_so(kind):
    x, y, given = np.arange(8.0), np.array([3.0, 1, 2, 5, 4, 8, 6, 7]), np.arange(8.0) * 2 + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explained = partial_correlation(x, y, given, kind=kind)
        explaining = partial_correlation(y, x, np.column_stack([given, y[::-1]]), kind=kind)
        constant = partial_correlation(np.ones(8), y, given, kind=kind)
        rare = partial_correlation([0, 0, 0, 0, 0, 0, 0, 1], y, given, kind=kind, resamples=200)
    assert explained.reason == "x is explained away by the controls"
    assert explaining.reason == "y is explained away by the controls"
    assert constant.reason == "x is constant (1 at all 8 points)"
    for result in (explained, explaining, constant):
        assert np.isnan(result[:4]).all() and result.n == 8
    assert np.isfinite(rare[:5]).all() and not rare.reason


@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-9, 9), st.floats(-9, 9))
def test_a_partial_correlation_minds_neither_units_nor_what_controls_add(seed, scale, shift, share):
    draw = np.random.Generator(np.random.Philox(seed))
    x, y, given = draw.normal(size=12), draw.normal(size=12), draw.normal(size=(12, 2))
    one = partial_correlation(x, y, given, kind="pearson", resamples=100)
    other = partial_correlation(
        scale * x + shift + share * given[:, 0], y, np.column_stack([given, given.sum(axis=1)]), kind="pearson"
    )
    assert other.estimate == pytest.approx(one.estimate, abs=1e-6)
    order = draw.permutation(12)
    moved = partial_correlation(x[order], y[order], given[order], resamples=100)
    assert moved.estimate == pytest.approx(partial_correlation(x, y, given, resamples=100).estimate)


def distances(values):
    return np.abs(np.subtract.outer(values, values))


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_mantel_is_the_correlation_over_pairs_and_counts_all_orders(kind, draw):
    values = draw.normal(size=6)
    a, b = distances(values), distances(values + draw.normal(size=6))
    above = np.triu_indices(6, 1)
    plain = stats.spearmanr if kind == "spearman" else stats.pearsonr
    observed = plain(a[above], b[above]).statistic
    null = [plain(a[np.ix_(p, p)][above], b[above]).statistic for p in map(list, itertools.permutations(range(6)))]
    result = mantel(pd.DataFrame(a), b + np.diag([np.nan] * 6), kind=kind)
    assert result.estimate == pytest.approx(observed) and result.n == 6
    assert result.p == pytest.approx(np.mean(np.abs(null) >= abs(observed) - 1e-9))


def test_mantel_draws_items_and_leaves_out_pairs_of_one_with_itself(draw):
    a, b = distances(draw.normal(size=9)) + 5, distances(draw.normal(size=9)) + 5
    np.fill_diagonal(a, 0)
    np.fill_diagonal(b, 0)
    picks, expected = draw.integers(0, 9, (20, 9)), []
    for items in picks:
        first, second = items[np.array(np.triu_indices(9, 1))]
        apart = first != second
        expected.append(stats.pearsonr(a[first, second][apart], b[first, second][apart]).statistic)
    assert correlations._over_pairs(a, b, picks) == pytest.approx(np.array(expected))
    result = mantel(a, b)
    assert -1 <= result.low < result.estimate < result.high <= 1


def test_mantel_errs_as_often_as_it_says_and_finds_what_is_there(draw):
    p = [mantel(*map(distances, draw.normal(size=(2, 12))), resamples=200, seed=seed).p for seed in range(150)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    values = draw.normal(size=25)
    found = mantel(distances(values), distances(values + 0.3 * draw.normal(size=25)), resamples=500)
    assert found.low > 0.3 and found.p < 0.01
    assert mantel(np.ones((5, 5)), distances(values[:5])).reason == "a is constant (1 for all pairs)"


def test_holm_is_the_step_down_by_hand():
    # 4 x 0.01, 3 x 0.02, then 2 x 0.03 = 0.06 again, and 1 x 0.04 not below those before it.
    assert holm([0.04, 0.01, np.nan, 0.03, 0.02]) == pytest.approx([0.06, 0.04, np.nan, 0.06, 0.06], nan_ok=True)
    assert holm([]).shape == (0,) and holm([0.7, 0.8]).tolist() == [1, 1]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_holm_lies_between_the_p_and_bonferroni_and_keeps_their_order(p, random):
    adjusted, values = holm(p), np.array(p)
    assert (adjusted >= values).all() and (adjusted <= np.minimum(values * len(p), 1)).all()
    assert (np.diff(adjusted[values.argsort()]) >= 0).all()
    order = random.sample(range(len(p)), len(p))
    assert holm(values[order]).tolist() == adjusted[order].tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([1, 2]), "at least 3 values are needed for an interval, got 2"),
        (lambda: mean_interval([1, 2, np.nan]), r"values must be finite, got nan at place \(2,\)"),
        (lambda: mean_interval([[1, 2, 3]]), r"one-dimensional, got the shape \(1, 3\)"),
        (lambda: mean_interval([1, 2, 3], level=95), "level must lie between 0 and 1, got 95"),
        (lambda: mean_interval([1, 2, 3], resamples=9), "resamples must be at least 100, got 9"),
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
        (lambda: partial_correlation([1, 2, 3], [1, 2, 3], [1, 2]), r"shape \(3,\) or \(3, controls\), got \(2,\)"),
        (lambda: partial_correlation([1, 2, 3], [1, 2, 3], [1, 2, 4]), "1 controls need at least 4 points, got 3"),
        (lambda: partial_correlation([1, 2, 3], [1, 2, 3], [1, 2, np.nan]), r"given must be finite, got nan"),
        (lambda: partial_correlation([1, 2, 3], [1, 2, 3], [1, 2, 3], kind="x"), "'spearman' or 'pearson', got 'x'"),
        (lambda: mantel(np.zeros((3, 2)), np.eye(3)), r"a must be a square matrix, got the shape \(3, 2\)"),
        (lambda: mantel(np.eye(3), np.arange(9).reshape(3, 3)), "b must be symmetric"),
        (lambda: mantel(np.eye(3), np.eye(4)), "same length, got 3 and 4"),
        (lambda: holm([0.1, 1.2]), r"p must lie in \[0, 1\], got 1.2"),
        (lambda: holm([[0.1]]), r"one-dimensional, got the shape \(1, 1\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

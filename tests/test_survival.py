"""Censored training steps against scipy and lifelines, and the Survival Game against exact power laws."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rules2ranks.evaluation import failures, parametric_fits, survival_game, time_to_reach


@pytest.fixture
def draw():
    return np.random.Generator(np.random.Philox(13))


def watched(draw, scale, n=40, end=1200):
    times = np.ceil(scale * draw.weibull(1.5, n))
    return np.minimum(times, end), times <= end


def censored(steps, reached):
    return stats.CensoredData(uncensored=steps[reached], right=steps[~reached])


def test_importing_the_package_loads_neither_torch_nor_lm_eval():
    code = "import sys, rules2ranks.evaluation; print({'torch', 'lm_eval'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_curves_medians_and_the_log_rank_test_are_scipys(draw):
    (fast, fast_reached), (slow, slow_reached) = watched(draw, 500), watched(draw, 1500)
    steps, reached = np.concatenate([fast, slow]), np.concatenate([fast_reached, slow_reached])
    found = time_to_reach(steps, reached, ["fast"] * 40 + ["slow"] * 40)
    theirs = stats.logrank(censored(fast, fast_reached), censored(slow, slow_reached))
    assert found.p == pytest.approx(theirs.pvalue) and not found.reason
    for name, data in (("fast", censored(fast, fast_reached)), ("slow", censored(slow, slow_reached))):
        survival = stats.ecdf(data).sf
        ends = survival.confidence_interval(method="log-log")
        ours = found.curves[found.curves.group == name].set_index("step")
        row = found.groups.loc[name]
        for column, theirs in (("share_not_yet", survival), ("low", ends.low), ("high", ends.high)):
            events = theirs.quantiles[np.isfinite(theirs.probabilities)]
            assert ours[column].reindex(events).to_numpy() == pytest.approx(theirs.evaluate(events))
        places = survival.quantiles
        below = places[survival.probabilities <= 0.5]
        assert row["median"] == (below[0] if below.size else np.inf) and row.low <= row["median"] <= row.high
        # The area under the steps of the curve.
        inner = np.concatenate([[0], places[places < found.horizon], [found.horizon]])
        assert row.restricted_mean == pytest.approx(np.diff(inner) @ survival.evaluate(inner[:-1]))
    assert found.groups.reached.tolist() == [fast_reached.sum(), slow_reached.sum()]
    assert found.groups.watched.tolist() == [40, 40] and found.horizon == 1200


ALL = [1350, 1200, 1450, 1100, 1200, 1100, 1100, 700, 900, 1350, 1400, 1450, 1600, 900, 1000, 1350, 1350]
FEW, SOME = ([700, 900, 1600, 1600, 1600, 1250], [1, 1, 0, 0, 0, 0]), ([800, 1500, 1600, 900, 1600], [1, 0, 0, 1, 0])


def test_groups_are_those_of_lifelines():
    """Values of lifelines 0.30.0, to the digits that were noted down."""
    found = time_to_reach(
        ALL + FEW[0] + SOME[0], [1] * 17 + FEW[1] + SOME[1], ["all"] * 17 + ["few"] * 6 + ["some"] * 5
    )
    assert found.p == pytest.approx(0.03835185788245789, rel=1e-9) and found.horizon == 1600
    theirs = [[17, 17, 1200, 1000, 1350, 1205.8824], [6, 2, np.inf, 700, np.inf, 1333.3333]]
    theirs += [[5, 2, np.inf, 800, np.inf, 1300]]
    assert found.groups.to_numpy() == pytest.approx(np.array(theirs), rel=1e-7)
    curve = found.curves[found.curves.group == "some"].drop(columns="group").to_numpy()
    theirs = [[0, 1, 1, 1], [800, 0.8, 0.20380926, 0.96917979]]
    theirs += [[step, 0.6, 0.12573018, 0.88175641] for step in (900, 1500, 1600)]
    assert curve == pytest.approx(np.array(theirs), rel=1e-7)


def test_where_half_got_there_is_the_median_however_shares_are_rounded():
    for n in range(2, 60, 2):
        found = time_to_reach(np.arange(1, n + 1), np.ones(n), np.zeros(n))
        assert found.groups["median"].tolist() == [n // 2]


def test_where_fewer_than_half_got_there_the_median_is_infinite():
    found = time_to_reach([10, 20, 50, 50, 50, 5, 6, 7], [1, 1, 0, 0, 0, 1, 1, 1], list("aaaaabbb"))
    assert found.groups.loc["a", "median"] == np.inf and found.groups.loc["b", "median"] == 6
    assert found.groups.loc["a", "watched"] == 5 and found.groups.loc["a", "reached"] == 2 and found.horizon == 7


def test_without_differences_p_is_about_uniform(draw):
    p = [time_to_reach(*watched(draw, 800, n=45), np.repeat([0, 1, 2], 15)).p for _ in range(60)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


@given(
    st.lists(st.tuples(st.integers(1, 30), st.booleans(), st.sampled_from("abc")), min_size=6, max_size=20), st.data()
)
def test_only_the_order_of_steps_counts_for_p(entries, data):
    steps, reached, groups = map(np.array, zip(*entries, strict=True))
    one = time_to_reach(steps, reached, groups)
    order = data.draw(st.permutations(range(len(steps))))
    other = time_to_reach(steps[order] ** 3, reached[order], groups[order])
    assert one.reason == other.reason and one.p == pytest.approx(other.p, nan_ok=True)
    medians = one.groups["median"] ** 3
    assert other.groups["median"].reindex(medians.index).tolist() == medians.tolist()


def test_one_group_or_no_success_gives_nan_and_says_why():
    alone = time_to_reach([1, 2, 3], [True, True, False], ["a"] * 3)
    never = time_to_reach([5, 5, 5, 5], [False] * 4, list("aabb"))
    assert np.isnan([alone.p, never.p]).all()
    assert (alone.reason, never.reason) == ("only one group", "nobody reached it")
    assert never.groups["median"].tolist() == [np.inf, np.inf] and never.groups.restricted_mean.tolist() == [5, 5]


FAMILIES = {
    "weibull": lambda data: (lambda c, _, s: (s, c))(*stats.weibull_min.fit(data, floc=0)),
    "exponential": lambda data: (lambda _, s: (s, 1))(*stats.expon.fit(data, floc=0)),
    "log_normal": lambda data: (lambda c, _, s: (s, c))(*stats.lognorm.fit(data, floc=0)),
    "log_logistic": lambda data: (lambda c, _, s: (s, c))(*stats.fisk.fit(data, floc=0)),
}


def distribution(name, scale, shape):
    return {
        "weibull": stats.weibull_min(shape, scale=scale),
        "exponential": stats.expon(scale=scale),
        "log_normal": stats.lognorm(shape, scale=scale),
        "log_logistic": stats.fisk(shape, scale=scale),
    }[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_parametric_fits_are_scipys(name, draw):
    steps, reached = watched(draw, 900, n=80)
    row = parametric_fits(steps, reached).loc[name]
    assert (row.scale, row["shape"]) == pytest.approx(
        FAMILIES[name](censored(steps, reached)), rel=2e-3
    )  # scipy's own search
    ours = distribution(name, row.scale, row["shape"])
    likelihood = ours.logpdf(steps[reached]).sum() + ours.logsf(steps[~reached]).sum()
    assert row.aic == pytest.approx(2 * (1 if name == "exponential" else 2) - 2 * likelihood)
    assert row["median"] == pytest.approx(ours.median())


@pytest.mark.parametrize(
    ("checked_every", "theirs"),
    [
        (
            None,
            {
                "weibull": (281.560753, 1254.736446, 1356.256209, 4.710807444),
                "exponential": (315.7068183, 981.3504811, 1415.789472, 1),
                "log_normal": (281.169679, 1214.319599, 1214.319599, 0.2637501945),
                "log_logistic": (281.7850433, 1224.409729, 1224.409729, 6.410684832),
            },
        ),
        (
            50,
            {
                "weibull": (133.7682163, 1231.944408, 1336.456963, 4.501050106),
                "exponential": (166.3708988, 963.9179633, 1390.639665, 1),
                "log_normal": (133.0680445, 1191.308503, 1191.308503, 0.2728286125),
                "log_logistic": (133.6315093, 1200.104016, 1200.104016, 6.205075733),
            },
        ),
    ],
)
def test_parametric_fits_are_those_of_lifelines(checked_every, theirs):
    """Values of lifelines 0.30.0, whose own search stops within some 1e-5 of the best scale and shape."""
    found = parametric_fits(ALL + SOME[0], [1] * 17 + SOME[1], checked_every=checked_every)
    expected = pd.DataFrame.from_dict(theirs, orient="index", columns=["aic", "median", "scale", "shape"])
    pd.testing.assert_frame_equal(found, expected, check_names=False, rtol=1e-5)
    # No better likelihood was missed: AIC is flat at its lowest, so that it agrees to the digits noted down.
    assert found.aic.to_numpy() == pytest.approx(expected.aic.to_numpy(), rel=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_steps_checked_now_and_then_are_intervals(name, draw):
    exact, reached = watched(draw, 900, n=80)
    steps = np.where(reached, np.ceil(exact / 200) * 200, exact)
    row = parametric_fits(steps, reached, checked_every=200).loc[name]
    ours = distribution(name, row.scale, row["shape"])

    def likelihood(law):
        return np.log(law.cdf(steps[reached]) - law.cdf(steps[reached] - 200)).sum() + law.logsf(steps[~reached]).sum()

    assert row.aic == pytest.approx(2 * (1 if name == "exponential" else 2) - 2 * likelihood(ours))
    for scale, shape in ((1.03, 1), (0.97, 1), (1, 1.03), (1, 0.97)):
        other = distribution(name, scale * row.scale, shape * row["shape"])
        assert likelihood(other) < likelihood(ours) or (name == "exponential" and shape != 1)
    # Taken at face value the checks are 100 steps late on average.
    naive = parametric_fits(steps, reached).loc[name]
    assert 50 < naive["median"] - row["median"] < 150


def test_the_true_shape_wins(draw):
    table = parametric_fits(*watched(draw, 900, n=400, end=3000))
    assert table.aic.idxmin() == "weibull" and table.loc["weibull", "shape"] == pytest.approx(1.5, abs=0.2)


def test_failures_count_better_answers_and_half_of_the_ties(draw):
    scores = np.array([[[0.1, 0.7, 0.2], [0.3, 0.3, 0.3]], [[5, 4, 3], [1, 2, 2]]])
    assert failures(scores, np.array([[0, 1], [-100, 2]])).tolist() == [2, 1, 0.5]
    wide = draw.normal(size=(200, 50))
    right = draw.integers(0, 50, 200)
    assert failures(wide, right).tolist() == [50 - stats.rankdata(row)[k] for row, k in zip(wide, right, strict=True)]


@given(st.integers(0, 1000))
def test_failures_do_not_mind_what_is_monotone_or_the_names_of_the_answers(seed):
    draw = np.random.Generator(np.random.Philox(seed))
    scores, right, order = draw.integers(0, 5, (9, 7)), draw.integers(0, 7, 9), draw.permutation(7)
    counts = failures(scores, right)
    np.testing.assert_array_equal(failures(np.exp(scores), right), counts)
    np.testing.assert_array_equal(failures(scores[:, order], order.argsort()[right]), counts)
    # Over all answers to a question failures are as many as pairs: 0 + 1 + ... + 6.
    every = failures(np.repeat(scores, 7, axis=0), np.tile(np.arange(7), 9))
    np.testing.assert_array_equal(every.reshape(9, 7).sum(axis=1), 21)


@pytest.mark.parametrize(("alpha", "level"), [(0.5, "limited"), (1.5, "capable"), (2.5, "autonomous")])
def test_the_exponent_of_a_power_law_is_found(alpha, level, draw):
    deviations = []
    for _ in range(30):
        found = survival_game(draw.zipf(alpha + 1, 4000), smallest=1)
        deviations.append((found.alpha - alpha) / found.error)
        assert found.level == level
    # In standard errors; the cut at the largest seen lowers alpha a little.
    assert abs(np.mean(deviations)) < 0.6 and 0.6 < np.std(deviations) < 1.4


@pytest.mark.parametrize("alpha", [0.5, 1.5])
def test_with_the_number_of_answers_the_cut_costs_nothing(alpha, draw):
    k = np.arange(5, 64)
    chances = k ** -(alpha + 1.0)
    deviations = []
    for _ in range(40):
        found = survival_game(draw.choice(k, 1000, p=chances / chances.sum()), answers=64)
        deviations.append((found.alpha - alpha) / found.error)
    # The mean of 40 standard normal numbers: a standard error of 0.16.
    assert abs(np.mean(deviations)) < 0.5 and 0.7 < np.std(deviations) < 1.3


@pytest.mark.parametrize("classes", [16, 64, 50_000])
def test_blind_guessing_is_limited_and_a_geometric_tail_is_not(classes, draw):
    blind = survival_game(draw.integers(0, classes, 3000))
    assert blind.alpha == pytest.approx(-1, abs=0.2) and blind.level == "limited"
    assert blind.mean == pytest.approx((classes - 1) / 2, rel=0.05) and blind.n == 3000
    steep = survival_game(draw.geometric(0.4, 20_000) - 1, answers=classes if classes > 50 else None)
    assert steep.level == "autonomous" and steep.variance == pytest.approx(0.6 / 0.16, rel=0.1)


def test_a_tail_that_cannot_be_told_has_no_level(draw):
    few = survival_game(draw.integers(0, 10, 1000))
    rare = survival_game([0] * 500 + [20] * 20)
    for found, reason in ((few, "no tail among 10 answers"), (rare, "only 20 of 520 reach 5 failures")):
        assert found.reason == reason and np.isnan([found.alpha, found.error]).all() and found.level == ""
    assert rare.mean == pytest.approx(400 / 520)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: time_to_reach([1, 2], [True], ["a", "b"]), r"same length, not zero, got \(2,\) and \(1,\)"),
        (lambda: time_to_reach([1, -2], [True, True], ["a", "b"]), "must not be negative, got -2"),
        (lambda: time_to_reach([1, 2], [0.5, 1], ["a", "b"]), "True or False"),
        (lambda: time_to_reach([1, 2], [True, True], ["a", None]), "a label for each of the 2 entries, got 1"),
        (lambda: parametric_fits([1, 9, 9, 9], [1, 0, 0, 0]), "a third must have reached it .* got 25%"),
        (lambda: parametric_fits([5, 5, 3], [1, 1, 0]), "needs steps that differ, got arrivals at 5 only"),
        (lambda: parametric_fits([0, 2], [1, 1]), "steps must be above zero, got 0"),
        (lambda: parametric_fits([1, 2], [1, 1], checked_every=0), "checked_every must be above zero, got 0"),
        (lambda: failures(np.zeros((2, 3)), np.zeros(3, dtype=int)), r"got \(2, 3\) and \(3,\)"),
        (lambda: failures(np.zeros((2, 3)), np.array([0, 3])), r"in \[0, 3\) or be -100, got 3"),
        (lambda: failures(np.zeros((2, 3)), np.zeros(2)), "integers, got float64"),
        (lambda: failures(np.full((1, 3), np.nan), np.zeros(1, dtype=int)), "must not be NaN"),
        (lambda: survival_game([]), "one or more numbers"),
        (lambda: survival_game([1, -1]), "from zero on"),
        (lambda: survival_game([1, 20], answers=20), "20 answers allow 19 failures, got 20"),
        (lambda: survival_game([1, 2], smallest=0), "smallest must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

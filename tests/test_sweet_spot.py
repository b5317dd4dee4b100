"""Sweet spots: found where there is one, not where a curve only levels off, and slopes against scipy."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rules2ranks.evaluation import quadratic, sweet_spot, two_lines

FEW = {"resamples": 200}


@pytest.fixture
def draw():
    return np.random.Generator(np.random.Philox(11))


def hill(x, draw, noise=0.4):
    return -10 * (x - 0.45) ** 2 + noise * draw.normal(size=len(x))


def saturating(x, draw, noise=0.4):
    return np.log(x + 0.05) + noise * draw.normal(size=len(x))


@pytest.mark.parametrize(("n", "power"), [(88, 0.98), (20, 0.6)])
def test_an_inverted_u_is_found_by_both(n, power, draw):
    lines, curves = [], []
    for _ in range(50):
        x = draw.random(n)
        y = hill(x, draw)
        lines.append(two_lines(x, y, **FEW).sweet_spot)
        curves.append(quadratic(x, y, **FEW).sweet_spot)
    assert np.mean(lines) >= power and np.mean(curves) >= 0.9


def test_a_curve_that_levels_off_bends_but_has_no_sweet_spot(draw):
    lines, bends = [], []
    for _ in range(100):
        x = draw.random(88)
        y = saturating(x, draw)
        lines.append(two_lines(x, y, **FEW).sweet_spot)
        bends.append(quadratic(x, y, **FEW).curvature.high < 0)
    # The curvature alone would have called nearly all of them a sweet spot.
    assert np.mean(lines) <= 0.05 and np.mean(bends) >= 0.9


@pytest.mark.parametrize("slope", [0, 3])
@pytest.mark.parametrize("n", [88, 20])
def test_noise_is_seldom_a_sweet_spot(n, slope, draw):
    found = []
    for _ in range(300):
        x = draw.random(n)
        found.append(two_lines(x, slope * x + 0.5 * draw.normal(size=n), resamples=100).sweet_spot)
    assert np.mean(found) <= 0.06


def test_slopes_are_those_of_least_squares_on_either_side(draw):
    x = draw.random(88).round(2)
    y = hill(x, draw)[:, None] + 0.2 * draw.normal(size=(88, 3))
    found = two_lines(x, y)
    for side, slope in ((x <= found.break_at, found.rise), (x >= found.break_at, found.fall)):
        theirs = stats.linregress(x[side], y.mean(axis=1)[side])
        assert slope.estimate == pytest.approx(theirs.slope)
        assert slope.low < slope.estimate < slope.high
        # Even noise: the robust standard error is near the ordinary one, and so is the interval.
        assert slope.high - slope.low == pytest.approx(2 * 1.96 * theirs.stderr, rel=0.3)
    assert (found.n_left, found.n_right) == ((x <= found.break_at).sum(), (x >= found.break_at).sum())
    assert 0.35 < found.break_at < 0.55 and found.sweet_spot and "then" in str(found)


def test_robin_hood_gives_the_weaker_line_more_points(draw, monkeypatch):
    # A fit that is flat all over, so that only the two slopes at its middle decide.
    monkeypatch.setattr(sweet_spot, "_smooth", lambda x, y: (0 * x, 0 * x + 1))
    x = np.sort(draw.random(60))
    y = np.where(x < 0.5, 0.5 * x, 3 - 6 * x) + 0.3 * draw.normal(size=60)
    middle = x[(x > np.quantile(x, 0.1)) & (x < np.quantile(x, 0.9))]
    sides = [side(x, np.median(middle)) for side in (np.less_equal, np.greater_equal)]
    weak, strong = (abs(np.divide(*sweet_spot._slope(x[side], y[side]))) for side in sides)
    assert weak < strong / 3
    assert two_lines(x, y).break_at == pytest.approx(np.quantile(middle, strong / (weak + strong)))
    assert two_lines(x, y).break_at > np.median(middle)


def test_hc3_is_its_textbook_formula(draw):
    x, y = draw.random(12), draw.normal(size=12)
    design = np.column_stack([np.ones(12), x])
    inverse = np.linalg.inv(design.T @ design)
    residual = y - design @ inverse @ design.T @ y
    leverage = np.diag(design @ inverse @ design.T)
    covariance = inverse @ design.T @ np.diag((residual / (1 - leverage)) ** 2) @ design @ inverse
    slope, error = sweet_spot._slope(x, y)
    assert (slope, error) == pytest.approx((stats.linregress(x, y).slope, np.sqrt(covariance[1, 1])))


def test_the_flexible_fit_follows_a_wave_and_leaves_noise_alone(draw):
    x = np.sort(draw.random(200))
    wave = np.sin(6 * x)
    fitted, error = sweet_spot._smooth(x, wave + 0.1 * draw.normal(size=200))
    assert np.abs(fitted - wave).max() < 0.1
    # Bayesian intervals cover the curve on average over x (Nychka 1988).
    assert np.mean(np.abs(fitted - wave) < 1.96 * error) > 0.8
    straight, _ = sweet_spot._smooth(x, 2 * x - 1)
    np.testing.assert_allclose(straight, 2 * x - 1, atol=1e-9)


def test_a_tent_without_noise_breaks_at_its_top():
    x = np.linspace(0, 1, 41)
    found = two_lines(x, -np.abs(x - 0.5))
    assert found.break_at == pytest.approx(0.5, abs=0.05) and found.sweet_spot
    assert found.rise.estimate == pytest.approx(1, abs=0.1) and found.fall.estimate == pytest.approx(-1, abs=0.1)


def test_ties_in_x_are_no_hindrance(draw):
    x = np.repeat([0.1, 0.3, 0.4, 0.5, 0.6, 0.9], 15)
    y = hill(x, draw)
    assert two_lines(x, y).sweet_spot and quadratic(x, y).sweet_spot


@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-50, 50), st.booleans())
def test_neither_minds_units_of_x_nor_its_origin(seed, scale, shift, flipped):
    draw = np.random.Generator(np.random.Philox(seed))
    x = draw.random(30)
    y = hill(x, draw)
    scale = -scale if flipped else scale
    one, other = two_lines(x, y, resamples=100), two_lines(scale * x + shift, y, resamples=100)
    assert one.sweet_spot == other.sweet_spot and bool(one.reason) == bool(other.reason)
    if not one.reason:
        near = {"rel": 1e-5, "abs": 1e-6}
        assert other.break_at == pytest.approx(scale * one.break_at + shift, **near)
        rise, fall = (one.fall, one.rise) if flipped else (one.rise, one.fall)
        assert other.rise.estimate * scale == pytest.approx(rise.estimate, **near)
        assert other.fall.estimate * scale == pytest.approx(fall.estimate, **near)
        expected = (one.p_fall, one.p_rise) if flipped else (one.p_rise, one.p_fall)
        assert (other.p_rise, other.p_fall) == pytest.approx(expected, rel=1e-4)
    one, other = quadratic(x, y, resamples=100), quadratic(scale * x + shift, y, resamples=100)
    assert other.curvature == pytest.approx(one.curvature, rel=1e-5)
    assert other.peak.estimate == pytest.approx(scale * one.peak.estimate + shift, rel=1e-5, abs=1e-5)


@given(st.integers(0, 10_000))
def test_the_order_of_the_points_does_not_matter(seed):
    draw = np.random.Generator(np.random.Philox(seed))
    x, order = draw.random(40).round(1), draw.permutation(40)
    y = hill(x, draw)
    one, other = two_lines(x, y, resamples=100), two_lines(x[order], y[order], resamples=100)
    assert bool(one.reason) == bool(other.reason)
    if not one.reason:
        numbers = [[r.break_at, r.rise.estimate, r.fall.estimate, r.p_rise, r.p_fall] for r in (one, other)]
        assert numbers[1] == pytest.approx(numbers[0], rel=1e-6, abs=1e-9)
    curves = [quadratic(x[places], y[places], resamples=100) for places in (np.arange(40), order)]
    assert curves[0].curvature.estimate == pytest.approx(curves[1].curvature.estimate)


def test_the_parabola_is_numpys(draw):
    x, y = 7 + 3 * draw.random(25), draw.normal(size=(25, 4))
    y -= 2 * (x[:, None] - 8.5) ** 2
    bend, slope, _ = np.polyfit(x, y.mean(axis=1), 2)
    found = quadratic(x, y)
    assert found.curvature.estimate == pytest.approx(bend * x.var())
    assert found.peak.estimate == pytest.approx(-slope / (2 * bend))
    assert found.peak.low < found.peak.estimate < found.peak.high and found.inside == 1 and found.n == 25
    assert quadratic(x, pd.DataFrame(y)) == found and quadratic(x, y, seed=1) != found


def test_the_curvature_is_covered_about_as_often_as_it_says(draw):
    x, covered = draw.random(40), []
    truth = -3 * x.var()
    for seed in range(200):
        y = (-3 * x**2 + 0.2 * draw.normal(size=40))[:, None] + 0.2 * draw.normal(size=(40, 3))
        found = quadratic(x, y, seed=seed, resamples=300)
        covered.append(found.curvature.low <= truth <= found.curvature.high)
    # 200 trials at 95 % have a standard error of 1.5 points, and percentiles of 40 points fall a little short.
    assert 0.88 <= np.mean(covered) <= 0.99


def test_a_dip_and_a_peak_outside_the_range_are_no_sweet_spots(draw):
    x = draw.random(60)
    dip = quadratic(x, -hill(x, draw), **FEW)
    assert not dip.sweet_spot and np.isnan(dip.peak.estimate) and dip.inside == 0
    assert not two_lines(x, -hill(x, draw), **FEW).sweet_spot
    late = quadratic(x, -((x - 1.6) ** 2) + 0.01 * draw.normal(size=60), **FEW)
    assert late.curvature.high < 0 and late.peak.low > 1 and late.inside == 0 and not late.sweet_spot


def test_what_cannot_be_told_is_nan_and_says_why(draw):
    x = draw.random(30)
    reasons = {
        "y is constant (2 at all 30 points)": (x, np.full(30, 2)),
        "x is constant (1 at all 30 points)": (np.ones(30), x),
        "x has fewer than 4 values": (np.arange(30) % 3, x),
        "fewer than 5 points on a side": (x[:8], draw.normal(size=8)),
    }
    for reason, (points, scores) in reasons.items():
        found = two_lines(points, scores)
        assert found.reason.startswith(reason) and str(found).startswith("undefined")
        assert np.isnan([found.break_at, *found.rise, *found.fall, found.p_rise, found.p_fall]).all()
        assert not found.sweet_spot
    flat = quadratic([0, 0, 1, 1], [1, 2, 3, 4])
    assert flat.reason == "x has fewer than 3 values" and np.isnan([*flat.curvature, *flat.peak, flat.inside]).all()


@pytest.mark.parametrize("method", [two_lines, quadratic])
def test_bad_input_is_named(method):
    with pytest.raises(ValueError, match="same length, got 3 and 2"):
        method([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="y must be finite"):
        method([1, 2, 3], [1, 2, np.nan])
    with pytest.raises(ValueError, match="at least 3 points"):
        method([1, 2], [1, 2])
    with pytest.raises(ValueError, match="resamples must be at least 100"):
        method([1, 2, 3], [1, 2, 4], resamples=5)

"""Is there a sweet spot: does a score rise with complexity and then fall again?

A negative curvature is not enough, as a curve that levels off has one too. `two_lines` asks for two slopes of opposite
sign, `quadratic` for a peak that lies inside the range.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.interpolate import CubicSpline

from rules2ranks.evaluation.intervals import (
    Floats,
    Interval,
    check_resampling,
    constant_side,
    is_constant,
    percentile_interval,
    philox,
    redrawn,
    rules_and_seeds,
)

# A slope on fewer points has no robust standard error to speak of.
MIN_SIDE = 5
SIGNIFICANT = 0.05
KNOTS = 10
UNDEFINED = Interval(math.nan, math.nan, math.nan)


class TwoLines(NamedTuple):
    """Slopes left and right of `break_at` (y per unit of x) with intervals and two-sided p; the point at the break
    counts on both sides. `sweet_spot`: a rise, then a fall, both p < 0.05. `reason` says why all is NaN, where it is.
    """

    break_at: float
    rise: Interval
    fall: Interval
    p_rise: float
    p_fall: float
    n_left: int
    n_right: int
    sweet_spot: bool
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"undefined: {self.reason}"
        return (
            f"{self.rise:.3g} (p = {self.p_rise:.2g}, n = {self.n_left}) up to {self.break_at:.3g}, "
            f"then {self.fall:.3g} (p = {self.p_fall:.2g}, n = {self.n_right})"
        )


class Quadratic(NamedTuple):
    """`curvature`: the coefficient of x² where x has a standard deviation of 1 (in units of y); `peak`: where the curve
    turns (in units of x), NaN unless it turns down; `inside`: the share of resamples that turn down within the range
    of x. `sweet_spot`: the interval of the curvature is below zero and that of the peak within the range of x.
    """

    curvature: Interval
    peak: Interval
    inside: float
    sweet_spot: bool
    n: int
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"undefined: {self.reason}"
        peak = "no peak" if math.isnan(self.peak.estimate) else f"peak {self.peak:.3g}"
        return f"curvature {self.curvature:.3g}, {peak}, inside {self.inside:.0%} (n = {self.n})"


def two_lines(
    x: ArrayLike, y: ArrayLike | pd.DataFrame, *, seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> TwoLines:
    """Simonsohn's two-lines test for a rise of y that turns into a fall, with the Robin Hood break point.

    After Simonsohn 2018, "Two lines: A valid alternative to the invalid testing of U-shaped relationships with
    quadratic regressions" (AMPPS 1, 538-555). A penalised cubic spline gives the highest fitted value in the middle
    80 % of the points; those fitted within one standard error of it are flat. Two lines that meet at the median of the
    flat region give z1 and z2, and the break moves to its quantile |z2| / (|z1| + |z2|), so that the weaker line gets
    more points. The left line is fitted with the point at the break, and then the right one with it.

    Other than in the paper's code the highest value is sought whatever the shape (a dip is no sweet spot), and p comes
    from Student's t with the points of its side less 2, not from a normal distribution: standard errors are robust to
    uneven variance (HC3) but rest on few points. The intervals draw rules and seeds again, as `correlation` does,
    with the break held where it is, and may disagree with p at the margin.

    `x` (n,), one value per rule; `y` (n,) or (n, seeds), averaged over seeds. Where x or y is constant, x has fewer
    than 4 values, or a side fewer than 5 points or a slope that hangs on one of them, all is NaN and `reason` says
    so. Raises ValueError for unequal lengths, fewer than 3 points, NaN or infinities.
    """
    points, scores = rules_and_seeds(x, y)
    check_resampling(len(points), resamples, level, "points")
    means = scores.mean(axis=1)
    reason = constant_side(points, means) or ("x has fewer than 4 values" if len(np.unique(points)) < 4 else "")
    if reason:
        return _no_lines(reason)
    break_at = _robin_hood(points, means)
    if math.isnan(break_at):
        return _no_lines("no points in the middle 80 %")
    left, right = points <= break_at, points >= break_at
    sides = int(left.sum()), int(right.sum())
    if min(sides) < MIN_SIDE:
        return _no_lines(
            f"fewer than {MIN_SIDE} points on a side of {break_at:.3g} ({sides[0]} and {sides[1]})", *sides
        )
    (rise, error_rise), (fall, error_fall) = (_slope(points[side], means[side]) for side in (left, right))
    if math.isnan(error_rise + error_fall):
        return _no_lines(f"one point alone decides the slope on a side of {break_at:.3g}", *sides)

    p_rise, p_fall = (
        float(2 * stats.t.sf(abs(_ratio(slope, error)), count - 2))
        for slope, error, count in ((rise, error_rise, sides[0]), (fall, error_fall, sides[1]))
    )
    draws = [
        [_drawn_slopes(points[picks], drawn, side[picks]) for side in (left, right)]
        for picks, drawn in redrawn(scores, philox(seed), resamples)
    ]
    intervals = map(percentile_interval, (rise, fall), np.concatenate(draws, axis=1), (level, level))
    found = rise > 0 > fall and max(p_rise, p_fall) < SIGNIFICANT
    return TwoLines(break_at, *intervals, p_rise, p_fall, *sides, found)


def quadratic(
    x: ArrayLike, y: ArrayLike | pd.DataFrame, *, seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> Quadratic:
    """Least squares of the mean of y over seeds on x and x², with bootstrap intervals over rules and shared seeds.

    The usual test of a turning curve, and one that a curve which only levels off passes too: its parabola may well
    peak inside the range. Read it beside `two_lines`. Rules and seeds are drawn again, as `correlation` does
    (percentiles); the interval of the peak leaves out the resamples that do not turn down.

    `x` (n,), one value per rule; `y` (n,) or (n, seeds). Where x or y is constant or x has fewer than 3 values, all is
    NaN and `reason` says so. Raises ValueError for unequal lengths, fewer than 3 points, NaN or infinities.
    """
    points, scores = rules_and_seeds(x, y)
    n = len(points)
    check_resampling(n, resamples, level, "points")
    means = scores.mean(axis=1)
    reason = constant_side(points, means) or ("x has fewer than 3 values" if len(np.unique(points)) < 3 else "")
    if reason:
        return Quadratic(UNDEFINED, UNDEFINED, math.nan, False, n, reason)

    centre, spread = points.mean(), points.std()
    standard = (points - centre) / spread
    curvature, peak = (float(value[0]) for value in _parabola(standard[None], means[None]))
    draws = [_parabola(standard[picks], drawn) for picks, drawn in redrawn(scores, philox(seed), resamples)]
    curvatures, peaks = np.concatenate(draws, axis=1)
    bend = percentile_interval(curvature, curvatures, level)
    turn = UNDEFINED if math.isnan(peak) else percentile_interval(peak, peaks, level)
    turn = Interval(*(float(centre + spread * place) for place in turn))
    within = (peaks > standard.min()) & (peaks < standard.max())
    inside = float(within.sum() / max(np.count_nonzero(~np.isnan(curvatures)), 1))
    found = bend.high < 0 and float(points.min()) < turn.low and turn.high < float(points.max())
    return Quadratic(bend, turn, inside, bool(found), n)


def _no_lines(reason: str, n_left: int = 0, n_right: int = 0) -> TwoLines:
    return TwoLines(math.nan, UNDEFINED, UNDEFINED, math.nan, math.nan, n_left, n_right, False, reason)


def _robin_hood(x: Floats, y: Floats) -> float:
    """The break point: within the flat top of a flexible fit, so that the weaker of the two lines has more points."""
    low, high = np.quantile(x, [0.1, 0.9])
    middle = (x > low) & (x < high)
    if not middle.any():
        return math.nan
    fitted, error = _smooth(x, y)
    # Equal x have equal fits only up to rounding.
    flat = x[middle & (fitted + error >= fitted[middle].max() * (1 - 1e-12))]
    centre = float(np.median(flat))
    strength = []
    for side in (x <= centre, x >= centre):
        slope, deviation = _slope(x[side], y[side])
        strength.append(0.0 if math.isnan(deviation) else abs(_ratio(slope, deviation)))
    if not 0 < sum(strength) < math.inf:
        return centre
    return float(np.quantile(flat, strength[1] / sum(strength)))


def _smooth(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """A cubic regression spline at x and its standard error; generalised cross-validation sets its smoothness.

    Ten knots at quantiles of the different x, natural ends, ∫f''² as penalty and Bayesian standard errors: what
    mgcv's ``gam(y ~ s(x, bs = "cr"))`` does in the paper's code (Wood 2017, "Generalized Additive Models", 5.3 and
    6.10).
    """
    scaled = (x - x.min()) / np.ptp(x)
    values = np.unique(scaled)
    count = min(KNOTS, len(values))
    knots = np.interp(np.linspace(0, len(values) - 1, count), np.arange(len(values)), values)
    spline = CubicSpline(knots, np.eye(count), bc_type="natural")
    bends, widths = spline(knots, 2), np.diff(knots)[:, None, None]
    start, end = bends[:-1, :, None], bends[1:, :, None]
    start_t, end_t = bends[:-1, None], bends[1:, None]
    penalty = (widths / 3 * (start * start_t + end * end_t + (start * end_t + end * start_t) / 2)).sum(axis=0)

    # In the basis that makes fit and penalty diagonal, every smoothness is one division (Demmler and Reinsch 1975).
    basis, triangle = np.linalg.qr(spline(scaled))
    inverse = np.linalg.inv(triangle)
    roughness, turned = np.linalg.eigh(inverse.T @ penalty @ inverse)
    basis, roughness = basis @ turned, np.maximum(roughness, 0)
    weights = basis.T @ y
    # Straight lines cost nothing: their two roughnesses are rounding.
    roughness[:2] = 0
    kept = 1 / (1 + np.logspace(-6, 6, 121)[:, None] * roughness / max(float(np.median(roughness)), 1e-300))
    residual = y @ y - weights @ weights + ((weights * (1 - kept)) ** 2).sum(axis=1)
    freedom = len(x) - kept.sum(axis=1)
    usable = freedom > 1e-6
    best = np.where(usable, np.maximum(residual, 0) / np.where(usable, freedom, 1) ** 2, np.inf).argmin()
    variance = max(residual[best], 0) / max(freedom[best], 1e-6)
    return basis @ (kept[best] * weights), np.sqrt(variance * (basis**2 @ kept[best]))


def _slope(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope of least squares and its HC3 standard error; NaN where x is constant or one point fixes the slope."""
    centred = x - x.mean()
    square = centred @ centred
    if is_constant(x) or len(x) < 3:
        return math.nan, math.nan
    slope = centred @ y / square
    residual = y - y.mean() - slope * centred
    free = 1 - 1 / len(x) - centred**2 / square
    if free.min() < 1e-9:
        return math.nan, math.nan
    return float(slope), float(np.sqrt(((centred * residual / free) ** 2).sum()) / square)


def _ratio(slope: float, error: float) -> float:
    """slope / error, where a perfect fit has no error."""
    if error > 0:
        return slope / error
    return math.copysign(math.inf, slope) if slope else 0.0


def _drawn_slopes(x: Floats, y: Floats, side: NDArray[np.bool_]) -> Floats:
    """Slopes per row over the places where `side` holds, NaN where x has one value there."""
    count = np.maximum(side.sum(axis=1, keepdims=True), 1)
    x, y = (np.where(side, values, 0) for values in (x, y))
    centred = np.where(side, x - x.sum(axis=1, keepdims=True) / count, 0)
    square = (centred**2).sum(axis=1)
    defined = square > 1e-20 * (x**2).sum(axis=1)
    return np.divide((centred * y).sum(axis=1), square, out=np.full(len(x), np.nan), where=defined)


def _parabola(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Curvature and peak of the least-squares parabola per row; the peak is NaN unless the curvature is negative."""
    line = x - x.mean(axis=1, keepdims=True)
    bow = line**2
    bow -= bow.mean(axis=1, keepdims=True)
    lines, bows, both = (line * line).sum(axis=1), (bow * bow).sum(axis=1), (line * bow).sum(axis=1)
    line_y, bow_y = (line * y).sum(axis=1), (bow * y).sum(axis=1)
    scale = lines * bows
    determinant = scale - both**2
    defined = determinant > 1e-9 * scale
    determinant = np.where(defined, determinant, 1)
    curvature = np.where(defined, (lines * bow_y - both * line_y) / determinant, np.nan)
    slope = (bows * line_y - both * bow_y) / determinant
    down = curvature < 0
    return curvature, np.where(down, x.mean(axis=1) - slope / np.where(down, 2 * curvature, 1), np.nan)

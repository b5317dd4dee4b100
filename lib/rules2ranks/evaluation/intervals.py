"""Estimates with intervals: bootstrap over seeds, and what the other modules share.

Everything that resamples takes its seed and draws from a counter-based generator (Philox).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

MIN_POINTS = 3
# Numbers to a block of resamples.
BLOCK = 12_000


def show(numbers: Sequence[float], spec: str) -> str:
    estimate, low, high = (format(number, spec or ".2f") for number in numbers)
    return f"{estimate} [{low}, {high}]"


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval; ``f"{interval:.3f}"`` sets the digits."""

    estimate: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return show(self, spec)

    def __str__(self) -> str:
        return format(self)


def mean_interval(values: ArrayLike, *, seed: int = 0, resamples: int = 10_000, level: float = 0.95) -> Interval:
    """Mean of a sample (one value per seed) with an expanded percentile bootstrap interval.

    The plain percentile interval is too narrow for a handful of seeds: it takes the sample's variance with n instead
    of n-1 and normal instead of t quantiles. Here both are put right by taking wider percentiles (Hesterberg 2015,
    "What Teachers Should Know About the Bootstrap", section 3.3). At 3 or 4 values that is their whole range.

    `values` (n,) finite, n >= 3. Raises ValueError for fewer points, NaN, infinities, or a level outside (0, 1).
    """
    sample = as_vector(values, "values")
    check_resampling(len(sample), resamples, level, "values")
    picks = philox(seed).integers(0, len(sample), (resamples, len(sample)))
    n = len(sample)
    tail = float(stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf((1 - level) / 2, n - 1)))
    low, high = np.quantile(sample[picks].mean(axis=1), [tail, 1 - tail])
    return Interval(float(sample.mean()), float(low), float(high))


def redrawn(
    scores: Floats, generator: np.random.Generator, resamples: int
) -> Iterator[tuple[NDArray[np.int64], Floats]]:
    """Rules and seeds drawn with replacement, and means over the drawn seeds, in blocks (rows, n) both.

    `scores` (n, seeds). Seeds are crossed with rules: a seed is the same initial weights and the same draws for every
    rule, so one draw of seeds holds for all rules of a resample. The blocks have `resamples` rows together; small ones
    stay in the processor's cache.
    """
    n, seeds = scores.shape
    rows = max(1, BLOCK // n)
    for start in range(0, resamples, rows):
        block = min(rows, resamples - start)
        picks = generator.integers(0, n, (block, n))
        drawn = generator.integers(0, seeds, (block, seeds))
        times = (drawn[:, :, None] == np.arange(seeds)).sum(axis=1)  # how often each seed was drawn
        yield picks, np.take_along_axis(times @ scores.T / seeds, picks, axis=1)


def percentile_interval(estimate: float, draws: Floats, level: float) -> Interval:
    """The middle `level` of the draws, NaN ones left out; NaN ends where no draw is defined."""
    draws = draws[~np.isnan(draws)]
    if not draws.size:
        return Interval(estimate, math.nan, math.nan)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high))


def is_constant(values: Floats) -> NDArray[np.bool_]:
    """Whether rows hold one value, up to the rounding of a mean over seeds."""
    return np.ptp(values, axis=-1) <= 1e-12 * np.abs(values).max(axis=-1)


def constant_side(x: Floats, y: Floats) -> str:
    """Why nothing can be said of y against x: which of them holds one value; empty where neither does."""
    for name, side in (("x", x), ("y", y)):
        if is_constant(side):
            return f"{name} is constant ({side[0]:g} at all {len(side)} points)"
    return ""


def rules_and_seeds(x: ArrayLike, y: ArrayLike | pd.DataFrame) -> tuple[Floats, Floats]:
    """x (n,) and the scores (n, seeds), from y of the shape (n,) or (n, seeds)."""
    points, scores = as_vector(x, "x"), np.asarray(y, dtype=np.float64)
    if scores.ndim not in (1, 2) or (scores.ndim == 2 and scores.shape[1] == 0):
        raise ValueError(f"y must have the shape (rules,) or (rules, seeds), got {scores.shape}")
    check_lengths(points, scores, "x", "y")
    check_finite(scores, "y")
    return points, scores.reshape(len(points), -1)


def shuffles(n: int, seed: int, resamples: int) -> NDArray[np.int64]:
    """All n! orders where they are few (n <= 7), random ones otherwise."""
    if n <= 7:
        return np.array(list(itertools.permutations(range(n))))
    return philox(seed).permuted(np.broadcast_to(np.arange(n), (resamples, n)), axis=1)


def two_sided(null: Floats, observed: float, *, exact: bool) -> float:
    """Share of the null at least as far from zero; with random draws the observed one counts as a draw of its own."""
    # Equal values may differ in the last bits when summed in another order.
    extreme = np.count_nonzero(np.abs(null) >= abs(observed) * (1 - 1e-12) - 1e-14)
    return extreme / len(null) if exact else (extreme + 1) / (len(null) + 1)


def philox(seed: int, stream: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream])))


def check_finite(values: Floats, name: str) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"{name} must be finite, got {values[tuple(bad[0])]} at place {tuple(bad[0].tolist())}")


def as_vector(values: ArrayLike, name: str) -> Floats:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got the shape {vector.shape}")
    check_finite(vector, name)
    return vector


def check_lengths(first: Floats, second: Floats, a: str, b: str) -> None:
    if len(first) != len(second):
        raise ValueError(f"{a} and {b} must have the same length, got {len(first)} and {len(second)}")


def check_resampling(n: int, resamples: int, level: float, name: str) -> None:
    if n < MIN_POINTS:
        raise ValueError(f"at least {MIN_POINTS} {name} are needed for an interval, got {n}")
    if resamples < 100:
        raise ValueError(f"resamples must be at least 100, got {resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")

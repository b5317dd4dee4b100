"""How much of a score's spread is what was varied, and how much the seed."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import optimize, stats

from rules2ranks.evaluation.intervals import check_finite


class TwoWay(NamedTuple):
    """Standard deviations between rows, between seeds, and of what neither explains; F and p of "rows do not differ".

    The first two are estimates of variance components, 0 where the noise alone would give as much.
    """

    rows: float
    seeds: float
    noise: float
    f: float
    p: float

    @property
    def explained(self) -> float:
        """The share of the variance under one seed that any model of the rows could explain: the ceiling of an R²."""
        whole = self.rows**2 + self.noise**2
        return self.rows**2 / whole if whole else math.nan


def two_way(scores: pd.DataFrame | ArrayLike) -> TwoWay:
    """Two-way analysis of variance without replication: scores (rows, seeds), every row under the same seeds.

    Raises ValueError for fewer than 2 rows or seeds, NaN or infinities.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or min(values.shape) < 2:
        raise ValueError(f"scores must be a table of at least 2 rows and 2 seeds, got the shape {values.shape}")
    check_finite(values, "scores")
    n, seeds = values.shape
    by_row, by_seed, all_ = values.mean(1, keepdims=True), values.mean(0, keepdims=True), values.mean()
    rows = seeds * ((by_row - all_) ** 2).sum() / (n - 1)
    columns = n * ((by_seed - all_) ** 2).sum() / (seeds - 1)
    noise = ((values - by_row - by_seed + all_) ** 2).sum() / ((n - 1) * (seeds - 1))
    f = rows / noise if noise else math.inf
    p = float(stats.f.sf(f, n - 1, (n - 1) * (seeds - 1)))
    parts = (max(rows - noise, 0) / seeds, max(columns - noise, 0) / n, noise)
    return TwoWay(*(math.sqrt(part) for part in parts), float(f), p)


class Interaction(NamedTuple):
    """What two factors bring each alone and what only together, as shares of the variance of the cells' means.

    Shares are estimates from which the noise is taken (ω²), 0 where the noise alone would give as much; they add up to
    one. `size` is the standard deviation over cells of what only both together explain, with a 95 % interval from the
    non-central F; `p` of "they add up".
    """

    first: float
    second: float
    together: float
    size: float
    low: float
    high: float
    p: float


def interaction(scores: ArrayLike) -> Interaction:
    """Two crossed factors with seeds as blocks: scores (first, second, seeds), every cell under the same seeds.

    Raises ValueError for fewer than 2 of any of them, NaN or infinities.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 3 or min(values.shape) < 2:
        raise ValueError(f"scores must be (first, second, seeds), at least 2 of each, got the shape {values.shape}")
    check_finite(values, "scores")
    a, b, seeds = values.shape
    cells = values.mean(2)
    rows, columns, mean = cells.mean(1, keepdims=True), cells.mean(0, keepdims=True), cells.mean()
    left = values - cells[..., None] - values.mean((0, 1)) + mean
    free, rest = (a - 1) * (b - 1), (a * b - 1) * (seeds - 1)
    noise = (left**2).sum() / rest
    both = cells - rows - columns + mean
    squares = [float((part**2).mean()) for part in (rows - mean, columns - mean, both)]
    degrees = (a - 1, b - 1, free)
    # The noise of the cells' means adds its share of the degrees of freedom to every mean square of effects.
    own = [max(sq - df * noise / values.size, 0.0) for sq, df in zip(squares, degrees, strict=True)]
    shares, size = [part / (sum(own) or math.nan) for part in own], math.sqrt(own[2])
    if noise <= 1e-24 * values.var():  # no more than rounding: the cells are known
        return Interaction(*shares, size, size, size, float(own[2] <= 1e-24 * values.var()))
    f = squares[2] * values.size / free / noise
    low, high = (math.sqrt(_noncentrality(f, free, rest, tail) * noise / values.size) for tail in (0.025, 0.975))
    return Interaction(*shares, size, low, high, float(stats.f.sf(f, free, rest)))


def _noncentrality(f: float, free: int, rest: int, tail: float) -> float:
    """Of the non-central F that gives more than `f` with this probability; 0 where even the central one gives more."""
    if stats.f.sf(f, free, rest) >= tail:
        return 0.0
    top = free * f + 100.0
    while stats.ncf.sf(f, free, rest, top) < tail:
        top *= 2
    return float(optimize.brentq(lambda size: stats.ncf.sf(f, free, rest, size) - tail, 1e-9, top))

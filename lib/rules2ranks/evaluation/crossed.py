"""Means of what was measured under the same seeds for several draws of something else: searches, vectors, settings."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from rules2ranks.evaluation.intervals import MIN_POINTS, check_finite, show


class Crossed(NamedTuple):
    """A mean over rows and seeds that were both drawn: its interval, standard error and degrees of freedom."""

    estimate: float
    low: float
    high: float
    error: float
    df: float

    def __format__(self, spec: str) -> str:
        return show(self[:3], spec)

    def __str__(self) -> str:
        return format(self)

    @property
    def p(self) -> float:
        """Two-sided, of a mean of zero."""
        return 2 * min(self.below(0), self.above(0))

    def below(self, limit: float) -> float:
        """One-sided p: how well the data go with a mean that is not below the limit. Small: it is below."""
        return self._tail(self.estimate - limit)

    def above(self, limit: float) -> float:
        """One-sided p: how well the data go with a mean that is not above the limit. Small: it is above."""
        return self._tail(limit - self.estimate)

    def within(self, low: float, high: float) -> float:
        """p of the two one-sided tests (Schuirmann 1987, "A comparison of the two one-sided tests procedure …").

        Small: the mean lies between `low` and `high`, so that what differs from zero by less is as good as equal.
        """
        return max(self.above(low), self.below(high))

    def smallest(self, power: float = 0.8, level: float = 0.05) -> float:
        """The distance from zero that a two-sided test at this level would find with this power.

        Raises ValueError for a power or level outside (0, 1).
        """
        if not (0 < power < 1 and 0 < level < 1):
            raise ValueError(f"power and level must lie between 0 and 1, got {power} and {level}")
        limit = stats.t.ppf(1 - level / 2, self.df)

        def lacking(distance: float) -> float:
            """In standard errors; the other side's chance counts for nothing at such powers."""
            return stats.nct.cdf(limit, self.df, distance) - (1 - power)

        top = limit + 20
        while lacking(top) > 0:  # few degrees of freedom have long tails
            top *= 2
        return float(optimize.brentq(lacking, 0, top) * self.error)

    def _tail(self, distance: float) -> float:
        if self.error == 0:
            return 0.5 if distance == 0 else float(distance > 0)
        return float(stats.t.cdf(distance / self.error, self.df))


def crossed(values: ArrayLike, *, level: float = 0.95) -> Crossed:
    """The mean of values (rows, seeds), every row under the same seeds, when other rows and seeds might have been.

    A random-effects model: value = mean + row + seed + rest. The variance of the mean is (MS rows + MS seeds − MS rest)
    / (rows · seeds), a component below zero counting as zero, with Satterthwaite's degrees of freedom (Searle, Casella
    and McCulloch 1992, "Variance Components", chapter 4). Rows may be searches or random vectors, whose differences to
    a baseline are paired by seed; or settings that share their seeds, and then this is the mixed-effects estimate over
    settings. With one row, or (seeds,), it is Student's interval over seeds, and speaks of that row alone. Rows that
    are equal throughout count as that one row: they were not drawn.

    Raises ValueError for fewer than 3 seeds, NaN or infinities, another shape, or a level outside (0, 1).
    """
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if table.ndim != 2 or not table.shape[0] or table.shape[1] < MIN_POINTS:
        raise ValueError(f"values must be (rows, seeds) with {MIN_POINTS} seeds or more, got the shape {table.shape}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    check_finite(table, "values")
    variance, df = _of_mean(table[:1] if (table == table[0]).all() else table)
    estimate, error = float(table.mean()), math.sqrt(variance)
    half = float(stats.t.ppf((1 + level) / 2, df)) * error
    return Crossed(estimate, estimate - half, estimate + half, error, df)


def _of_mean(table: np.ndarray) -> tuple[float, float]:
    """The variance of the mean of all values, and its degrees of freedom."""
    rows, seeds = table.shape
    if rows == 1:
        return float(table.var(ddof=1)) / seeds, seeds - 1.0
    by_row, by_seed = table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    squares = {
        "rows": (seeds * ((by_row - table.mean()) ** 2).sum() / (rows - 1), rows - 1),
        "seeds": (rows * ((by_seed - table.mean()) ** 2).sum() / (seeds - 1), seeds - 1),
    }
    degrees = (rows - 1) * (seeds - 1)
    rest = float(((table - by_row - by_seed + table.mean()) ** 2).sum() / degrees)
    above = [entry for entry in squares.values() if entry[0] > rest]
    parts = [*above, ((1 - len(above)) * rest, degrees)]
    whole = sum(square for square, _ in parts)
    spread = sum(square**2 / df for square, df in parts)
    return float(whole) / (rows * seeds), float(whole**2 / spread) if spread else float(degrees)

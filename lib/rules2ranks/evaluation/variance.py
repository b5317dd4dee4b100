"""How much of a score's spread is what was varied, and how much the seed."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

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

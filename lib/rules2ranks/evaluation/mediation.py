"""How much of what x does to y goes through m: a mediation model, which a control cannot replace."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from rules2ranks.evaluation.intervals import (
    Floats,
    Interval,
    as_vector,
    check_lengths,
    check_resampling,
    percentile_interval,
    philox,
    redrawn,
    rules_and_seeds,
)


class Mediation(NamedTuple):
    """What a rank of x does to ranks of y: `total` is the sum of `direct` and `indirect` (through m); `n` points."""

    total: Interval
    direct: Interval
    indirect: Interval
    n: int


def mediation(
    x: ArrayLike,
    m: ArrayLike,
    y: ArrayLike | pd.DataFrame,
    *,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Mediation:
    """Effects of x on the mean of y over seeds, by way of m and without it, from least squares on standardised ranks.

    m = a·x + …, y = c·x + b·m + …: direct is c, indirect a·b, total their sum, which is Spearman's ρ of x and y.
    Causal only if nothing else moves m and y together (R. M. Baron and D. A. Kenny, J. Pers. Soc. Psychol. 51, 1173,
    1986; for the bootstrap P. E. Shrout and N. Bolger, Psychol. Methods 7, 422, 2002). Intervals draw points and the
    seeds that they share again (percentiles).

    `x`, `m` (n,); `y` (n,) or (n, seeds). Raises ValueError for unequal lengths, fewer than 4 points, NaN or
    infinities, or where m is x again up to order.
    """
    points, scores = rules_and_seeds(x, y)
    between = as_vector(m, "m")
    check_lengths(points, between, "x", "m")
    check_resampling(len(points) - 1, resamples, level, "points beside one")
    estimate = _effects(points[None], between[None], scores.mean(axis=1)[None])[0]
    if np.isnan(estimate).any():
        raise ValueError("x, m and y must vary, and m must not be in the order of x")
    draws = np.concatenate(
        [
            _effects(points[picks], between[picks], drawn)
            for picks, drawn in redrawn(scores, philox(seed, stream=1), resamples)
        ]
    )
    ends = [percentile_interval(float(e), draws[:, place], level) for place, e in enumerate(estimate)]
    return Mediation(*ends, len(points))


def _effects(x: Floats, m: Floats, y: Floats) -> Floats:
    """Total, direct and indirect effects of rows: (rows, 3)."""
    x, m, y = map(_standard_ranks, (x, m, y))
    a, xy, my = (x * m).sum(1), (x * y).sum(1), (m * y).sum(1)
    left = 1 - a**2
    b = np.divide(my - a * xy, left, out=np.full(len(x), np.nan), where=left > 1e-10)
    return np.stack([xy, xy - a * b, a * b], axis=1)


def _standard_ranks(values: Floats) -> Floats:
    ranks = pd.DataFrame(values).rank(axis=1).to_numpy()
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    length = np.sqrt((centred**2).sum(axis=1, keepdims=True))
    return np.divide(centred, length, out=np.full_like(centred, np.nan), where=length > 0)

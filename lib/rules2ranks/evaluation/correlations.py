"""Correlations over rules: with bootstrap intervals over rules and seeds, with controls, and between matrices."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from rules2ranks.evaluation.intervals import (
    Floats,
    as_vector,
    check_finite,
    check_lengths,
    check_resampling,
    constant_side,
    is_constant,
    percentile_interval,
    philox,
    redrawn,
    rules_and_seeds,
    show,
    shuffles,
    two_sided,
)

KINDS = ("spearman", "pearson")
#: Which correlation: of ranks, or of the numbers as they are.
Kind = Literal[*KINDS]

# Of a side's variance: what the controls leave below this is rounding.
LEFT = 1e-10


class Correlation(NamedTuple):
    """A correlation over `n` points, its interval and permutation p; `reason` says why it is NaN, where it is."""

    estimate: float
    low: float
    high: float
    p: float
    n: int
    reason: str = ""

    def __format__(self, spec: str) -> str:
        return show(self[:3], spec)

    def __str__(self) -> str:
        return f"undefined: {self.reason}" if self.reason else f"{format(self)} (p = {self.p:.2g}, n = {self.n})"


def correlation(
    x: ArrayLike,
    y: ArrayLike | pd.DataFrame,
    *,
    kind: Kind = "spearman",
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
) -> Correlation:
    """Correlation of x with the mean of y over seeds, with a bootstrap interval over both and a permutation p.

    The points are *rules*: runs of one rule with several seeds are no more than one point. The interval resamples
    rules and seeds (percentiles; resamples in which a side is constant are left out). p is two-sided: how often does
    shuffling the rules give as strong a correlation (all n! orders for n <= 7).

    `x` (n,); `y` (n,) or (n, seeds), a DataFrame too, whose columns are seeds that all rules share: they are drawn once
    for all rules (crossed). Or one entry per run: `x` and `y` (runs,) and `clusters` (runs,), the rule of each, for
    seeds that rules do not share, of which each may have another number: they are drawn within each rule (nested). x
    must be the same in all runs of a rule. A constant side gives a NaN estimate and a `reason`. Raises ValueError for
    an unknown kind, unequal lengths, fewer than 3 points, NaN or infinities.
    """
    _check_kind(kind)
    points, scores, seeds = _points(x, y, clusters)
    n = len(points)
    check_resampling(n, resamples, level, "points")
    means = scores.sum(axis=1) / seeds
    if reason := constant_side(points, means):
        return _undefined(n, reason)

    standard_x, standard_y = _standardise(points, kind), _standardise(means, kind)
    estimate = float(standard_x @ standard_y)
    orders = shuffles(n, seed, resamples)
    p = two_sided(standard_x[orders] @ standard_y, estimate, exact=len(orders) == math.factorial(n))

    generator = philox(seed, stream=1)
    blocks = redrawn(scores, generator, resamples) if clusters is None else _nested(scores, seeds, generator, resamples)
    draws = [(_standardise(points[picks], kind) * _standardise(drawn, kind)).sum(axis=1) for picks, drawn in blocks]
    return Correlation(*percentile_interval(estimate, np.concatenate(draws), level), p, n)


def partial_correlation(
    x: ArrayLike,
    y: ArrayLike | pd.DataFrame,
    given: ArrayLike | pd.DataFrame,
    *,
    kind: Kind = "spearman",
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Correlation:
    """Correlation of x with the mean of y over seeds, after least squares has removed the controls from both.

    For "spearman" x, y and every control are ranked first, and least squares works on the ranks. The interval is that
    of `correlation`: rules and the seeds that they share are drawn again, and all is ranked and fitted anew. p is
    two-sided and permutes what the controls leave of y (Freedman and Lane 1983, "A nonstochastic interpretation of
    reported significance levels"); it is approximate where controls and x are correlated, and takes all n! orders for
    n <= 7. Controls may be collinear or constant: those take nothing more away.

    `x` (n,); `y` (n,) or (n, seeds); `given` (n,) or (n, controls), one value per rule. A side that is constant, or of
    which the controls leave nothing, gives a NaN estimate and a `reason`. Raises ValueError for an unknown kind,
    unequal lengths, fewer than 3 points more than controls, NaN or infinities.
    """
    _check_kind(kind)
    points, scores = rules_and_seeds(x, y)
    n = len(points)
    controls = _controls(given, n)
    check_resampling(n, resamples, level, "points")
    if n < len(controls) + 3:
        raise ValueError(f"{len(controls)} controls need at least {len(controls) + 3} points, got {n}")
    basis, sides = _basis(controls, kind), []
    for name, side in (("x", points), ("y", scores.mean(axis=1))):
        if is_constant(side):
            return _undefined(n, f"{name} is constant ({side[0]:g} at all {n} points)")
        standard = _standardise(side, kind)
        left = standard - (standard @ basis.T) @ basis
        if left @ left <= LEFT:
            return _undefined(n, f"{name} is explained away by the controls")
        sides.append(left / np.sqrt(left @ left))

    estimate = float(sides[0] @ sides[1])
    p = _freedman_lane(*sides, basis, estimate, shuffles(n, seed, resamples))
    draws = [
        _partial(points[picks], drawn, [control[picks] for control in controls], kind)
        for picks, drawn in redrawn(scores, philox(seed, stream=1), resamples)
    ]
    return Correlation(*percentile_interval(estimate, np.concatenate(draws), level), p, n)


def mantel(
    a: ArrayLike | pd.DataFrame,
    b: ArrayLike | pd.DataFrame,
    *,
    kind: Kind = "spearman",
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Correlation:
    """Correlation between two matrices of distances (or likenesses) of the same items, over all pairs of items.

    Pairs share items, so p permutes the items of one matrix, rows and columns together (Mantel 1967, "The detection of
    disease clustering and a generalized regression approach"); two-sided, all n! orders for n <= 7. The interval draws
    items with replacement; pairs of an item with itself are left out, and ranks stay those among all pairs. It is
    rough for few items: only the p is a test.

    `a`, `b` (n, n) symmetric, with anything on the diagonal. Returns `n` as the number of items. A matrix with one
    value off its diagonal gives a NaN estimate and a `reason`. Raises ValueError for an unknown kind, unequal or
    wrong shapes, asymmetry, fewer than 3 items, NaN or infinities off the diagonal.
    """
    _check_kind(kind)
    first, second = _symmetric(a, "a"), _symmetric(b, "b")
    check_lengths(first, second, "a", "b")
    n = len(first)
    check_resampling(n, resamples, level, "items")
    above, sides = np.triu_indices(n, 1), []
    for name, matrix in (("a", first), ("b", second)):
        pairs = matrix[above]
        if is_constant(pairs):
            return _undefined(n, f"{name} is constant ({pairs[0]:g} for all pairs)")
        standard = np.zeros((n, n))
        standard[above] = _standardise(pairs, kind)
        sides.append(standard + standard.T)

    # The diagonal is zero and every pair stands twice.
    estimate = float((sides[0] * sides[1]).sum()) / 2
    orders = shuffles(n, seed, resamples)
    null = np.array([(sides[0][order[:, None], order] * sides[1]).sum() / 2 for order in orders])
    p = two_sided(null, estimate, exact=len(orders) == math.factorial(n))
    picks = philox(seed, stream=1).integers(0, n, (resamples, n))
    return Correlation(*percentile_interval(estimate, _over_pairs(*sides, picks), level), p, n)


def holm(p: ArrayLike | pd.Series) -> Floats:
    """Holm-Bonferroni adjusted p-values (Holm 1979): those below 0.05 err in any of them at most 5 % of the time.

    `p` (n,) in [0, 1]; NaN stays NaN and does not count as a comparison. Returns (n,) in the same order. Raises
    ValueError for values outside [0, 1] or another shape.
    """
    values = np.asarray(p, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"p must be one-dimensional, got the shape {values.shape}")
    there = ~np.isnan(values)
    known = values[there]
    if ((known < 0) | (known > 1)).any():
        raise ValueError(f"p must lie in [0, 1], got {known[(known < 0) | (known > 1)][0]}")
    order = known.argsort()
    adjusted = np.empty_like(known)
    adjusted[order] = np.minimum(np.maximum.accumulate(known[order] * np.arange(len(known), 0, -1)), 1)
    result = np.full_like(values, np.nan)
    result[there] = adjusted
    return result


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be {' or '.join(map(repr, KINDS))}, got {kind!r}")


def _undefined(n: int, reason: str) -> Correlation:
    return Correlation(math.nan, math.nan, math.nan, math.nan, n, reason)


def _points(
    x: ArrayLike, y: ArrayLike | pd.DataFrame, clusters: Sequence[Hashable] | None
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """x per rule (n,), scores (n, most seeds) with zeros behind each rule's own, and the number of seeds (n,)."""
    if clusters is None:
        points, scores = rules_and_seeds(x, y)
        return points, scores, np.full(len(points), scores.shape[1], dtype=np.int64)

    points, scores = as_vector(x, "x"), np.asarray(y, dtype=np.float64)
    if scores.ndim != 1:
        raise ValueError(f"y must have the shape (runs,) beside clusters, got {scores.shape}")
    check_lengths(points, scores, "x", "y")
    check_finite(scores, "y")
    if len(clusters) != len(points):
        raise ValueError(f"clusters must have one label per run ({len(points)}), got {len(clusters)}")
    labels, names = pd.factorize(pd.Series(list(clusters)))
    if (labels < 0).any():
        raise ValueError(f"clusters must hold a label for every run, none at place {int(labels.argmin())}")
    seeds = np.bincount(labels)
    first = points[np.unique(labels, return_index=True)[1]]
    uneven = np.flatnonzero(points != first[labels])
    if uneven.size:
        name = names[labels[uneven[0]]]
        raise ValueError(f"x must be the same in all runs of one cluster, but differs within {name}")
    padded = np.zeros((len(seeds), seeds.max()))
    for cluster in range(len(seeds)):
        padded[cluster, : seeds[cluster]] = scores[labels == cluster]
    return first, padded, seeds


def _nested(
    scores: Floats, seeds: NDArray[np.int64], generator: np.random.Generator, resamples: int
) -> Iterator[tuple[NDArray[np.int64], Floats]]:
    """As `redrawn`, in one block, where each rule has seeds of its own, the first so many of its row of scores."""
    picks = generator.integers(0, len(scores), (resamples, len(scores)))
    total, count = np.zeros(picks.shape), seeds[picks]
    for place in range(scores.shape[1]):
        total += np.where(place < count, scores[picks, generator.integers(0, count)], 0)
    yield picks, total / count


def _standardise(values: Floats, kind: Kind) -> Floats:
    """Rows (or ranks of rows) with mean 0 and length 1, so that a product of two is their correlation; else NaN."""
    constant = is_constant(values)[..., None]
    if kind == "spearman":
        values = _ranks(values)
    centred = values - values.mean(axis=-1, keepdims=True)
    length = np.sqrt((centred**2).sum(axis=-1, keepdims=True))
    return np.divide(centred, length, out=np.full_like(centred, np.nan), where=~constant)


def _ranks(values: Floats) -> Floats:
    """Ranks of rows from 1, the mean of their places for ties; scipy's rankdata in less time."""
    n = values.shape[-1]
    order = values.reshape(-1, n).argsort(axis=-1)
    order += np.arange(len(order))[:, None] * n
    flat, order = values.ravel(), order.ravel()
    ordered = flat[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    begins[::n] = True
    starts = np.flatnonzero(begins)
    sizes = np.diff(np.append(starts, len(order)))
    ranks = np.empty(len(order))
    ranks[order] = np.repeat(starts % n + (sizes + 1) / 2, sizes)
    return ranks.reshape(values.shape)


def _controls(given: ArrayLike | pd.DataFrame, n: int) -> Floats:
    """The controls as rows (controls, n)."""
    controls = np.asarray(given, dtype=np.float64)
    if controls.ndim not in (1, 2) or len(controls) != n:
        raise ValueError(f"given must have the shape ({n},) or ({n}, controls), got {controls.shape}")
    check_finite(controls, "given")
    return controls.reshape(n, -1).T if controls.size else np.empty((0, n))


def _basis(controls: Floats, kind: Kind) -> Floats:
    """Orthonormal rows (rank, n) that span the centred controls (or their ranks)."""
    _, sizes, rows = np.linalg.svd(np.nan_to_num(_standardise(controls, kind)), full_matrices=False)
    return rows[sizes > math.sqrt(LEFT)]


def _freedman_lane(x: Floats, y: Floats, basis: Floats, estimate: float, orders: NDArray[np.int64]) -> float:
    """p of the partial correlation of x and y, both without the controls and of length 1."""
    shuffled = y[orders]
    # The fit of the controls that would be added back is taken out again with all else they explain.
    length = 1 - ((shuffled @ basis.T) ** 2).sum(axis=1)
    null = np.divide(shuffled @ x, np.sqrt(np.maximum(length, LEFT)), out=np.zeros(len(orders)), where=length > LEFT)
    return two_sided(null, estimate, exact=len(orders) == math.factorial(len(x)))


def _partial(x: Floats, y: Floats, controls: list[Floats], kind: Kind) -> Floats:
    """Partial correlations of rows (resamples, n), from the Schur complement of the correlations with the controls."""
    sides = [_standardise(side, kind) for side in (x, y)]
    rows = np.stack([*sides, *(np.nan_to_num(_standardise(control, kind)) for control in controls)], axis=1)
    products = rows @ rows.swapaxes(1, 2)
    outer = products[:, :2, 2:]
    left = products[:, :2, :2] - outer @ np.linalg.pinv(products[:, 2:, 2:], rcond=LEFT, hermitian=True) @ (
        outer.swapaxes(1, 2)
    )
    defined = np.minimum(left[:, 0, 0], left[:, 1, 1]) > LEFT
    lengths = np.sqrt(np.where(defined, left[:, 0, 0] * left[:, 1, 1], 1))
    return np.where(defined, np.clip(left[:, 0, 1] / lengths, -1, 1), np.nan)


def _symmetric(values: ArrayLike | pd.DataFrame, name: str) -> Floats:
    """A symmetric matrix with zeros on its diagonal."""
    matrix = np.array(values, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must be a square matrix, got the shape {matrix.shape}")
    np.fill_diagonal(matrix, 0)
    check_finite(matrix, name)
    if not np.allclose(matrix, matrix.T, rtol=1e-9, atol=1e-12 * np.abs(matrix).max(initial=0)):
        raise ValueError(f"{name} must be symmetric")
    return matrix


def _over_pairs(a: Floats, b: Floats, picks: NDArray[np.int64]) -> Floats:
    """Correlation over the pairs of drawn items: each pair of different items as often as both were drawn."""
    n = len(a)
    times = np.zeros((len(picks), n))
    np.add.at(times, (np.arange(len(picks))[:, None], picks), 1)
    pairs, mean_a, mean_b, square_a, square_b, product = (
        ((times @ matrix) * times).sum(axis=1) for matrix in (1 - np.eye(n), a, b, a * a, b * b, a * b)
    )
    variance_a, variance_b = pairs * square_a - mean_a**2, pairs * square_b - mean_b**2
    floor = LEFT * pairs
    defined = (variance_a > floor * square_a) & (variance_b > floor * square_b)
    lengths = np.sqrt(np.where(defined, variance_a * variance_b, 1))
    return np.where(defined, (pairs * product - mean_a * mean_b) / lengths, np.nan)

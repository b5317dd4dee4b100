"""What models of scores are fitted to, and how far they hold."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from rules2ranks.search.space import Floats, Option, Point, Space, generator

FitPredict = Callable[[Floats, Floats, Floats], ArrayLike]


def option_features(space: Space) -> list[Floats]:
    """What options are to a model: per knob (options, fields), those of level, bits and rank that a knob can change."""
    options = [np.array(knob.options, dtype=np.float64) for knob in space.knobs]
    fields = [field for field in range(len(Option._fields)) if any(np.ptp(rows[:, field]) for rows in options)]
    return [rows[:, fields] for rows in options]


def features(space: Space, points: Sequence[Point]) -> Floats:
    """The features of points: (n, knobs × fields), fixed knobs included. In a space of ranks, the rank vectors."""
    tables = option_features(space)
    return np.array([np.concatenate([rows[place] for rows, place in zip(tables, p, strict=True)]) for p in points])


def largest_features(space: Space) -> Floats:
    """The largest of each field over all knobs, for each feature: (knobs × fields,)."""
    tables = option_features(space)
    return np.tile(np.concatenate(tables).max(axis=0), len(tables))


def checked(vectors: ArrayLike, scores: ArrayLike, *, least: int) -> tuple[Floats, Floats]:
    """Features (n, columns), not negative, and scores (n,) as arrays. Raises ValueError for others and n < least."""
    inputs, target = np.array(vectors, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if inputs.ndim != 2 or target.shape != inputs.shape[:1] or len(target) < least:
        raise ValueError(
            f"vectors (n, columns) and scores (n,) with n of at least {least} are needed, got {inputs.shape} and "
            f"{target.shape}"
        )
    if not (np.isfinite(inputs).all() and np.isfinite(target).all() and (inputs >= 0).all()):
        raise ValueError("vectors must be finite and not negative, and scores finite")
    return inputs, target


def cross_validated_r2(
    fit_predict: FitPredict, vectors: ArrayLike, scores: ArrayLike, *, folds: int = 5, seed: int = 0
) -> float:
    """Share of the variance of the scores that a model explains on vectors it has not seen.

    `fit_predict(train_vectors, train_scores, test_vectors)` returns predictions; every measurement is predicted once,
    by the model of the other folds; 1 is perfect, predicting the mean gives about 0 or a little below. Raises
    ValueError for folds outside 2..n, other shapes, NaN, or scores that are all equal.
    """
    inputs, target = checked(vectors, scores, least=2)
    if not 2 <= folds <= len(target):
        raise ValueError(f"folds must lie in 2..{len(target)}, got {folds}")
    if np.ptp(target) == 0:
        raise ValueError(f"scores must differ to have a variance, all are {target[0]:g}")
    predicted = np.empty(len(target))
    for test in np.array_split(generator(seed).permutation(len(target)), folds):
        train = np.setdiff1d(np.arange(len(target)), test)
        predicted[test] = fit_predict(inputs[train], target[train], inputs[test])
    return float(1 - ((target - predicted) ** 2).sum() / ((target - target.mean()) ** 2).sum())

"""Fit an additive model to random points, solve it exactly, measure its choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rules2ranks.search.models import checked, features, option_features
from rules2ranks.search.searcher import Searcher
from rules2ranks.search.space import Floats, Point, Space
from rules2ranks.search.trials import Proposal, Trial

RIDGES = tuple(10.0**power for power in range(-4, 4))


@dataclass(frozen=True)
class AdditiveModel:
    """score = intercept + sum over features of slope * log(1 + feature): each knob for itself, with falling returns."""

    intercept: float
    slopes: tuple[float, ...]
    ridge: float

    @classmethod
    def fit(cls, vectors: ArrayLike, scores: Sequence[float]) -> AdditiveModel:
        """Ridge regression on log(1 + feature); the ridge is that of the smallest leave-one-out error, in closed form.

        `vectors` (n, columns) of features such as ranks and `scores` (n,), n >= 3. Raises ValueError for other shapes,
        NaN or infinities.
        """
        inputs, target = checked(vectors, scores, least=3)
        logarithms = np.log1p(inputs)
        centre, mean = logarithms.mean(axis=0), target.mean()
        left, size, right = np.linalg.svd(logarithms - centre, full_matrices=False)
        inner = left.T @ (target - mean)
        errors = []
        for ridge in RIDGES:
            shrink = size**2 / (size**2 + ridge)
            leverage = (left**2 * shrink).sum(axis=1) + 1 / len(target)
            errors.append((((target - mean - left @ (shrink * inner)) / (1 - leverage)) ** 2).mean())
        ridge = RIDGES[int(np.argmin(errors))]
        slopes = right.T @ (size / (size**2 + ridge) * inner)
        return cls(float(mean - centre @ slopes), tuple(slopes.tolist()), ridge)

    def predict(self, vectors: ArrayLike) -> Floats:
        """Predicted scores (n,) of vectors (n, columns)."""
        return self.intercept + np.log1p(np.array(vectors, dtype=np.float64)) @ np.array(self.slopes)

    def best(self, space: Space) -> Point:
        """The point of the space that fills the budget and has the lowest predicted score: solved, not searched."""
        tables = option_features(space)
        slopes = np.array(self.slopes).reshape(len(tables), tables[0].shape[1])
        return space.best([-(slope * np.log1p(table)).sum(axis=1) for slope, table in zip(slopes, tables, strict=True)])


@dataclass
class Additive(Searcher, name="additive"):
    """The best point of an additive concave model of `limit` random points, measured on top of them.

    The points are those of random search at the same seed; known ones count. What is chosen is the model's choice,
    whether or not a random point was measured lower: the smallest of many noisy numbers says less than a fit to all.
    """

    least = 3

    def ask(self) -> list[Proposal]:
        # The model's choice may be one of those that it was fitted to, and then stands twice among the trials.
        fitted = [trial for trial in self.trials if trial.proposer != "exact"]
        if left := max(0, self.limit - len(fitted)):
            return [Proposal(point, proposer="random") for point in self.fresh(self.limit, fitted)[:left]]
        if self.trials[-1].proposer == "exact":
            return []
        vectors = features(self.space, [trial.point for trial in fitted])
        model = AdditiveModel.fit(vectors, [trial.scores[0] for trial in fitted])
        point = model.best(self.space)
        predicted = model.predict(features(self.space, [point]))
        return [Proposal(point, predicted=tuple(predicted.tolist()), proposer="exact")]

    @property
    def choice(self) -> Trial | None:
        return next((trial for trial in reversed(self.trials) if trial.proposer == "exact"), None)

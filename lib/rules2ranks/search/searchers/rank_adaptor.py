"""RankAdaptor (arXiv 2406.15734): a performance model of what was measured proposes what to measure next."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rules2ranks.search.controls import draw, neighbours
from rules2ranks.search.models import checked, features, largest_features
from rules2ranks.search.searcher import Searcher
from rules2ranks.search.space import Floats, generator
from rules2ranks.search.trials import Proposal


@dataclass
class RankAdaptor(Searcher, name="RankAdaptor"):
    """First `offline` random points, then points of the best prediction, `limit` together; known ones count offline.

    Online, each time: fit the performance model to all trials, predict `candidates` unmeasured points (half neighbours
    of the best one, half random), propose the one with the best prediction. Stops early when a prediction was within
    `tolerance` of its score (in its unit), or when no unmeasured point is found.
    """

    offline: int = 8
    candidates: int = 64
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.offline < 2 or self.candidates < 2:
            raise ValueError(f"offline and candidates must be at least 2, got {self.offline} and {self.candidates}")

    @property
    def least(self) -> int:
        return self.offline

    def ask(self) -> list[Proposal]:
        online = sum(trial.proposer == "online" for trial in self.trials)
        left = max(0, self.offline + online - len(self.trials))
        if left and (points := self.fresh(self.offline, self.trials)):
            return [Proposal(point, proposer="offline") for point in points[:left]]
        if online >= self.limit - self.offline or self._agrees():
            return []
        return self._propose(online)

    def _agrees(self) -> bool:
        """Whether the last trial was predicted to within the tolerance."""
        last = self.trials[-1]
        if self.tolerance is None or last.proposer != "online":
            return False
        return abs(last.predicted[0] - last.scores[0]) <= self.tolerance

    def _propose(self, turn: int) -> list[Proposal]:
        """The unmeasured candidate with the best prediction."""
        points, scores = [trial.point for trial in self.trials], [trial.scores[0] for trial in self.trials]
        randomness = generator(self.seed, 1, turn)
        pool = neighbours(self.space, points[int(np.argmin(scores))], self.candidates // 2, randomness)
        pool += draw(self.space, self.candidates - self.candidates // 2, randomness)
        pool = [point for point in dict.fromkeys(pool) if point not in set(points)]
        if not pool:
            return []
        model = PerformanceModel(largest_features(self.space))
        model.fit(features(self.space, points), scores, int(randomness.integers(2**31)))
        predicted = model.predict(features(self.space, pool))
        first = int(np.argmin(predicted))
        return [Proposal(pool[first], predicted=(float(predicted[first]),), proposer="online")]


class PerformanceModel:
    """Five-layer MLP (n-32-32-32-1) from features, scaled to 0..1, to the score (RankAdaptor, arXiv 2406.15734).

    largest: what features are divided by, one number or one for each column; of ranks, the largest rank. MSE on
    standardised scores, Adam with learning rate 1e-2, 200 epochs over the full batch, as in the first author's later
    library. The same seed and data give the same model; no global random state is used or changed.

    In NumPy: for so few numbers, most of a training step in PyTorch is calls.
    """

    EPOCHS, RATE = 200, 1e-2
    WIDTHS = (32, 32, 32, 1)

    def __init__(self, largest: ArrayLike) -> None:
        self.largest = np.asarray(largest)

    def fit(self, vectors: ArrayLike, scores: ArrayLike, seed: int) -> PerformanceModel:
        """Fit to features (n, columns) and scores (n,), n >= 2. Raises ValueError for other shapes or NaN."""
        inputs, target = checked(vectors, scores, least=2)
        self._mean, self._spread = target.mean(), target.std() or 1.0
        scaled, standardised = inputs / self.largest, (target - self._mean) / self._spread
        sizes = list(itertools.pairwise((inputs.shape[1], *self.WIDTHS)))
        # All weights in one row of numbers, so that Adam is a few operations on it; the layers are views of it.
        self._values = np.concatenate(_drawn(sizes, seed))
        self._layers, gradient = _views(self._values, sizes), np.empty_like(self._values)
        of_layers = _views(gradient, sizes)
        first, second = np.zeros_like(gradient), np.zeros_like(gradient)
        for epoch in range(1, self.EPOCHS + 1):
            self._backward(scaled, standardised, of_layers)
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient**2 - second)
            size = np.sqrt(second / (1 - 0.999**epoch)) + 1e-8
            self._values -= self.RATE / (1 - 0.9**epoch) * first / size
        return self

    def predict(self, vectors: ArrayLike) -> Floats:
        """Predicted scores (n,) of features (n, columns), after `fit`."""
        scaled = np.array(vectors, dtype=np.float64) / self.largest
        return self._forward(scaled)[-1][:, 0] * self._spread + self._mean

    def _forward(self, scaled: Floats) -> list[Floats]:
        """What every layer is given, and what the last one gives: ReLU between linear layers."""
        seen = [scaled]
        for weight, bias in self._layers[:-1]:
            seen.append(np.maximum(seen[-1] @ weight + bias, 0))
        weight, bias = self._layers[-1]
        return [*seen, seen[-1] @ weight + bias]

    def _backward(self, scaled: Floats, target: Floats, gradient: list[tuple[Floats, Floats]]) -> None:
        """Write the gradient of the mean squared error."""
        *seen, found = self._forward(scaled)
        error = 2 / len(target) * (found - target[:, None])
        for place in reversed(range(len(self._layers))):
            np.matmul(seen[place].T, error, out=gradient[place][0])
            error.sum(axis=0, out=gradient[place][1])
            if place:
                error = (error @ self._layers[place][0].T) * (seen[place] > 0)


def _drawn(sizes: Sequence[tuple[int, int]], seed: int) -> list[Floats]:
    """Weights and biases of linear layers as PyTorch begins them: uniform up to 1/sqrt(inputs)."""
    randomness = generator(seed)
    return [randomness.uniform(-1, 1, (n + 1) * outputs) / math.sqrt(n) for n, outputs in sizes]


def _views(values: Floats, sizes: Sequence[tuple[int, int]]) -> list[tuple[Floats, Floats]]:
    """Weight (inputs, outputs) and bias (outputs,) of each layer, within one row of numbers."""
    ends = np.cumsum([(n + 1) * outputs for n, outputs in sizes])
    parts = np.split(values, ends[:-1])
    return [
        (part[outputs:].reshape(n, outputs), part[:outputs]) for part, (n, outputs) in zip(parts, sizes, strict=True)
    ]

"""RankAdaptor (arXiv 2406.15734): a performance model of what was measured proposes what to measure next."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from rules2ranks.search.controls import draw, neighbours
from rules2ranks.search.models import checked, features, largest_features
from rules2ranks.search.searcher import Searcher
from rules2ranks.search.space import Floats, generator
from rules2ranks.search.trials import Proposal

# Only what fits a performance model needs torch, and then imports it.
if TYPE_CHECKING:
    from torch import nn


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

    def ask(self) -> Proposal | None:
        online = sum(trial.proposer == "online" for trial in self.trials)
        if len(self.trials) - online < self.offline:
            point = self.fresh(self.offline, self.trials)
            if point is not None:
                return Proposal(point, proposer="offline")
        if online >= self.limit - self.offline or self._agrees():
            return None
        return self._propose(online)

    def _agrees(self) -> bool:
        """Whether the last trial was predicted to within the tolerance."""
        last = self.trials[-1]
        if self.tolerance is None or last.proposer != "online":
            return False
        return abs(last.predicted[0] - last.scores[0]) <= self.tolerance

    def _propose(self, turn: int) -> Proposal | None:
        """The unmeasured candidate with the best prediction."""
        points, scores = [trial.point for trial in self.trials], [trial.scores[0] for trial in self.trials]
        randomness = generator(self.seed, 1, turn)
        pool = neighbours(self.space, points[int(np.argmin(scores))], self.candidates // 2, randomness)
        pool += draw(self.space, self.candidates - self.candidates // 2, randomness)
        pool = [point for point in dict.fromkeys(pool) if point not in set(points)]
        if not pool:
            return None
        model = PerformanceModel(largest_features(self.space))
        model.fit(features(self.space, points), scores, int(randomness.integers(2**31)))
        predicted = model.predict(features(self.space, pool))
        first = int(np.argmin(predicted))
        return Proposal(pool[first], predicted=(float(predicted[first]),), proposer="online")


class PerformanceModel:
    """Five-layer MLP (n-32-32-32-1) from features, scaled to 0..1, to the score (RankAdaptor, arXiv 2406.15734).

    largest: what features are divided by, one number or one for each column; of ranks, the largest rank. MSE on
    standardised scores, Adam with learning rate 1e-2, 200 epochs over the full batch, as in the first author's later
    library. The same seed and data give the same model; no global random state is used or changed.
    """

    def __init__(self, largest: ArrayLike) -> None:
        self.largest = np.asarray(largest)

    def fit(self, vectors: ArrayLike, scores: ArrayLike, seed: int) -> PerformanceModel:
        """Fit to features (n, columns) and scores (n,), n >= 2. Raises ValueError for other shapes or NaN."""
        import torch

        inputs, target = checked(vectors, scores, least=2)
        self._mean, self._spread = target.mean(), target.std() or 1.0
        scaled = torch.from_numpy(inputs / self.largest).float()
        standardised = torch.from_numpy((target - self._mean) / self._spread).float()[:, None]
        self.net = _mlp((inputs.shape[1], 32, 32, 32, 1), seed)
        optimiser = torch.optim.Adam(self.net.parameters(), lr=1e-2, fused=True)
        for _ in range(200):
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(self.net(scaled), standardised).backward()
            optimiser.step()
        return self

    def predict(self, vectors: ArrayLike) -> Floats:
        """Predicted scores (n,) of features (n, columns), after `fit`."""
        import torch

        scaled = torch.from_numpy(np.array(vectors, dtype=np.float64) / self.largest).float()
        with torch.no_grad():
            standardised = self.net(scaled)[:, 0].double().numpy()
        return standardised * self._spread + self._mean


def _mlp(sizes: Sequence[int], seed: int) -> nn.Sequential:
    """ReLU between linear layers, initialised like torch's own but from a generator of its own."""
    import torch
    from torch import nn

    randomness = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
        for parameter in linear.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=randomness)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])

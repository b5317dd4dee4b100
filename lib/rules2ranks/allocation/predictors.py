"""What a rank vector will score: RankAdaptor's performance model, an additive concave model, and how far they hold."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from rules2ranks.allocation.space import Floats, Ranks, Space, generator

FitPredict = Callable[[Sequence[Ranks], Sequence[float], Sequence[Ranks]], ArrayLike]

RIDGES = tuple(10.0**power for power in range(-4, 4))


class PerformanceModel:
    """Five-layer MLP (n-32-32-32-1) from the rank vector, scaled to 0..1, to the score (RankAdaptor, arXiv 2406.15734).

    MSE on standardised scores, Adam with learning rate 1e-2, 200 epochs over the full batch, as in the first author's
    later library. The same seed and data give the same model; no global random state is used or changed.
    """

    def __init__(self, max_rank: int, *, width: int = 32, epochs: int = 200, lr: float = 1e-2) -> None:
        if min(max_rank, width, epochs) < 1 or lr <= 0:
            raise ValueError(f"all settings must be positive, got {max_rank=}, {width=}, {epochs=}, {lr=}")
        self.max_rank, self.width, self.epochs, self.lr = max_rank, width, epochs, lr
        self.net: nn.Sequential | None = None

    def fit(self, vectors: Sequence[Ranks], scores: Sequence[float], seed: int) -> PerformanceModel:
        """Fit to measured vectors (n, layers) and scores (n,), n >= 2. Raises ValueError for other shapes or NaN."""
        ranks, target = _measurements(vectors, scores, least=2)
        self._mean, self._spread = target.mean(), target.std() or 1.0
        inputs = torch.from_numpy(ranks / self.max_rank).float()
        standardised = torch.from_numpy((target - self._mean) / self._spread).float()[:, None]
        self.net = _mlp((ranks.shape[1], self.width, self.width, self.width, 1), seed)
        optimiser = torch.optim.Adam(self.net.parameters(), lr=self.lr, fused=True)
        for _ in range(self.epochs):
            optimiser.zero_grad()
            nn.functional.mse_loss(self.net(inputs), standardised).backward()
            optimiser.step()
        return self

    def predict(self, vectors: Sequence[Ranks]) -> Floats:
        """Predicted scores (n,) of vectors (n, layers). Raises ValueError before `fit`."""
        if self.net is None:
            raise ValueError("fit the performance model before it predicts")
        inputs = torch.from_numpy(np.array(vectors, dtype=np.float64) / self.max_rank).float()
        with torch.no_grad():
            standardised = self.net(inputs)[:, 0].double().numpy()
        return standardised * self._spread + self._mean


def _mlp(sizes: Sequence[int], seed: int) -> nn.Sequential:
    """ReLU between linear layers, initialised like torch's own but from a generator of its own."""
    randomness = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
        for parameter in linear.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=randomness)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class AdditiveModel:
    """score = intercept + sum over layers of slope * log(1 + rank): every layer for itself, with falling returns."""

    intercept: float
    slopes: tuple[float, ...]
    ridge: float

    @classmethod
    def fit(cls, vectors: Sequence[Ranks], scores: Sequence[float]) -> AdditiveModel:
        """Ridge regression on log(1 + rank); the ridge is that of the smallest leave-one-out error, in closed form.

        `vectors` (n, layers) and `scores` (n,), n >= 3. Raises ValueError for other shapes, NaN or infinities.
        """
        ranks, target = _measurements(vectors, scores, least=3)
        features = np.log1p(ranks)
        centre, mean = features.mean(axis=0), target.mean()
        left, size, right = np.linalg.svd(features - centre, full_matrices=False)
        inner = left.T @ (target - mean)
        errors = []
        for ridge in RIDGES:
            shrink = size**2 / (size**2 + ridge)
            leverage = (left**2 * shrink).sum(axis=1) + 1 / len(target)
            errors.append((((target - mean - left @ (shrink * inner)) / (1 - leverage)) ** 2).mean())
        ridge = RIDGES[int(np.argmin(errors))]
        slopes = right.T @ (size / (size**2 + ridge) * inner)
        return cls(float(mean - centre @ slopes), tuple(slopes.tolist()), ridge)

    def predict(self, vectors: Sequence[Ranks]) -> Floats:
        """Predicted scores (n,) of vectors (n, layers)."""
        return self.intercept + np.log1p(np.array(vectors, dtype=np.float64)) @ np.array(self.slopes)

    def best(self, space: Space) -> Ranks:
        """The vector of the space that fills the budget and has the lowest predicted score: exact, not searched."""
        if len(self.slopes) != len(space.cost):
            raise ValueError(f"the model knows {len(self.slopes)} layers, the space {len(space.cost)}")
        slopes = np.array(self.slopes)[list(space.searched)]
        return space.best(-slopes[:, None] * np.log1p(space.grid))


def additive(space: Space, vectors: Sequence[Ranks], scores: Sequence[float]) -> tuple[Ranks, AdditiveModel]:
    """The exact best vector under the budget of an additive model of the measurements, and that model."""
    model = AdditiveModel.fit(vectors, scores)
    return model.best(space), model


def cross_validated_r2(
    fit_predict: FitPredict, vectors: Sequence[Ranks], scores: Sequence[float], *, folds: int = 5, seed: int = 0
) -> float:
    """Share of the variance of the scores that a model explains on vectors it has not seen.

    `fit_predict(train_vectors, train_scores, test_vectors)` returns predictions; every measurement is predicted once,
    by the model of the other folds; 1 is perfect, predicting the mean gives about 0 or a little below. Raises
    ValueError for folds outside 2..n, other shapes, NaN, or scores that are all equal.
    """
    ranks, target = _measurements(vectors, scores, least=2)
    if not 2 <= folds <= len(target):
        raise ValueError(f"folds must lie in 2..{len(target)}, got {folds}")
    if np.ptp(target) == 0:
        raise ValueError(f"scores must differ to have a variance, all are {target[0]:g}")
    order = generator(seed).permutation(len(target))
    predicted = np.empty(len(target))
    for test in np.array_split(order, folds):
        train = np.setdiff1d(order, test)
        known = [tuple(row) for row in ranks[train].tolist()]
        predicted[test] = fit_predict(known, target[train].tolist(), [tuple(row) for row in ranks[test].tolist()])
    return float(1 - ((target - predicted) ** 2).sum() / ((target - target.mean()) ** 2).sum())


def _measurements(vectors: Sequence[Ranks], scores: Sequence[float], *, least: int) -> tuple[Floats, Floats]:
    """Both as arrays, after a look at shapes and values."""
    ranks = np.array(vectors, dtype=np.float64)
    target = np.asarray(scores, dtype=np.float64)
    if ranks.ndim != 2 or target.shape != ranks.shape[:1] or len(target) < least:
        raise ValueError(
            f"vectors (n, layers) and scores (n,) with n of at least {least} are needed, got {ranks.shape} and "
            f"{target.shape}"
        )
    if not (np.isfinite(ranks).all() and np.isfinite(target).all() and (ranks >= 0).all()):
        raise ValueError("ranks must be finite and not negative, and scores finite")
    return ranks, target

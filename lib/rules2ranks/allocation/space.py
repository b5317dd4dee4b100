"""Which rank vectors a budget allows, and those that need no measurement: uniform, random and closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ranks = tuple[int, ...]
Floats = NDArray[np.float64]

FILL = 0.985


@dataclass(frozen=True)
class Space:
    """All rank vectors on a grid whose trainable parameters stay within those of the uniform mean rank.

    cost: trainable parameters per unit of rank, one entry per layer. mean_rank: must be on the grid, so that uniform
    is one of the vectors. grid: increasing ranks >= 0. fixed: layer -> rank for layers outside search and budget.
    Raises ValueError for a cost below 1, a grid that does not increase, a mean rank off the grid, an unknown fixed
    layer, or nothing left to search.
    """

    cost: tuple[int, ...]
    mean_rank: int
    grid: tuple[int, ...] = (0, 1, 2, 3, 4, 6, 8, 12, 16)
    fixed: Mapping[int, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cost", _integers(self.cost, "cost", least=1))
        object.__setattr__(self, "grid", _integers(self.grid, "grid", least=0))
        if not all(low < high for low, high in itertools.pairwise(self.grid)):
            raise ValueError(f"grid must increase, got {self.grid}")
        if self.mean_rank not in self.grid or self.mean_rank == 0:
            raise ValueError(f"mean_rank must be a positive rank of the grid {self.grid}, got {self.mean_rank}")
        for layer, rank in self.fixed.items():
            if layer not in range(len(self.cost)):
                raise ValueError(f"fixed layers must lie in 0..{len(self.cost) - 1}, got {layer}")
            _integers([rank], f"fixed rank of layer {layer}", least=0)
        if not self.searched:
            raise ValueError(f"at least one of the {len(self.cost)} layers must be left to search, all are fixed")

    @property
    def searched(self) -> tuple[int, ...]:
        """The layers that are not fixed."""
        return tuple(layer for layer in range(len(self.cost)) if layer not in self.fixed)

    @property
    def budget(self) -> int:
        """Trainable parameters of the searched layers at the mean rank."""
        return self.mean_rank * sum(self.cost[layer] for layer in self.searched)

    def used(self, ranks: Sequence[int]) -> int:
        """Trainable parameters of the searched layers. Raises ValueError for another number of ranks than layers."""
        if len(ranks) != len(self.cost):
            raise ValueError(f"one rank for each of {len(self.cost)} layers is needed, got {len(ranks)}")
        return sum(self.cost[layer] * int(ranks[layer]) for layer in self.searched)

    def contains(self, ranks: Sequence[int]) -> bool:
        """Whether the searched ranks are on the grid and within the budget, and the fixed ones as fixed."""
        return (
            self.used(ranks) <= self.budget
            and all(ranks[layer] in self.grid for layer in self.searched)
            and all(ranks[layer] == rank for layer, rank in self.fixed.items())
        )

    def fills(self, ranks: Sequence[int]) -> bool:
        """Whether at least 98.5 % of the budget is used: a vector that uses less loses something by that alone."""
        return self.used(ranks) >= FILL * self.budget

    def complete(self, searched: Iterable[int]) -> Ranks:
        """The full rank vector from the ranks of the searched layers."""
        ranks = dict(self.fixed) | dict(zip(self.searched, searched, strict=True))
        return tuple(int(ranks[layer]) for layer in range(len(self.cost)))

    @cached_property
    def _units(self) -> tuple[NDArray[np.int64], int, int]:
        """Costs of the searched layers, least and most use, in units small enough for dynamic programming.

        The unit is the common divisor of the costs where that gives few enough cells. Otherwise costs are rounded up
        to a coarser unit, so that a vector can only use less than it seems, and the least use is raised by the most
        that this rounding can hide (below one unit for each unit of rank).
        """
        cost = np.array([self.cost[layer] for layer in self.searched], dtype=np.int64)
        divisor = math.gcd(*cost.tolist())
        most_ranks = self.budget // int(cost.min()) + 1
        unit = max(divisor, math.ceil(self.budget / max(100_000, 200 * most_ranks)))
        hidden = 0 if unit == divisor else most_ranks
        least = min(math.ceil(FILL * self.budget / unit) + hidden, self.budget // unit)
        return -(-cost // unit), least, self.budget // unit

    @cached_property
    def _ways(self) -> list[Floats]:
        """For each searched layer, in how many ways it and those behind it use exactly s units (up to a factor)."""
        cost, _, most = self._units
        ways = [np.zeros(most + 1)]
        ways[0][0] = 1
        for step in cost[::-1]:
            here = np.zeros(most + 1)
            for shift in (int(step) * rank for rank in self.grid if int(step) * rank <= most):
                here[shift:] += ways[-1][: most + 1 - shift]
            # Only proportions matter, and the numbers themselves would overflow for hundreds of layers.
            ways.append(here / here.max())
        return ways[::-1]

    def sample(self, n: int, randomness: np.random.Generator) -> list[Ranks]:
        """n vectors, each drawn uniformly from all that fill the budget (repeats may occur)."""
        cost, least, most = self._units
        totals = self._ways[0][least:]
        left = randomness.choice(np.arange(least, most + 1), n, p=totals / totals.sum())
        chosen = np.empty((n, len(cost)), dtype=np.int64)
        grid = np.array(self.grid)
        for layer, step in enumerate(cost):
            behind = left[:, None] - step * grid
            weight = np.where(behind >= 0, self._ways[layer + 1][np.maximum(behind, 0)], 0).cumsum(axis=1)
            picks = (weight <= randomness.random((n, 1)) * weight[:, -1:]).sum(axis=1)
            chosen[:, layer], left = grid[picks], behind[np.arange(n), picks]
        return [self.complete(ranks) for ranks in chosen.tolist()]

    def best(self, values: ArrayLike) -> Ranks:
        """The vector that fills the budget and has the largest sum of `values` (searched layers, grid): exact.

        Dynamic programming over layers and parameters used. Raises ValueError for another shape, NaN or infinities.
        """
        table = np.asarray(values, dtype=np.float64)
        shape = (len(self.searched), len(self.grid))
        if table.shape != shape or not np.isfinite(table).all():
            raise ValueError(f"values must be finite and of the shape {shape}, got {table.shape}")
        cost, least, most = self._units
        sums = np.full(most + 1, -np.inf)
        sums[0] = 0
        choices = []
        for step, row in zip(cost.tolist(), table, strict=True):
            here, choice = np.full(most + 1, -np.inf), np.zeros(most + 1, dtype=np.int64)
            for rank, value in zip(self.grid, row, strict=True):
                if step * rank <= most:
                    offer, target = sums[: most + 1 - step * rank] + value, slice(step * rank, None)
                    choice[target][offer > here[target]] = rank
                    np.maximum(here[target], offer, out=here[target])
            sums = here
            choices.append(choice)
        used, ranks = least + int(sums[least:].argmax()), []
        for step, choice in zip(cost[::-1].tolist(), choices[::-1], strict=True):
            ranks.append(int(choice[used]))
            used -= step * ranks[-1]
        return self.complete(ranks[::-1])


def uniform(space: Space) -> Ranks:
    """The mean rank in every searched layer."""
    return space.complete([space.mean_rank] * len(space.searched))


def random(space: Space, n: int, seed: int) -> list[Ranks]:
    """n distinct vectors, drawn uniformly from all that fill the budget; the first of them do not depend on n.

    Ways to spend the budget are counted, not listed. Raises ValueError where fewer than n distinct ones are found.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    found = draw(space, n, generator(seed))
    if len(found) < n:
        raise ValueError(f"only {len(found)} distinct rank vectors fill the budget, {n} were asked for")
    return found


def draw(space: Space, n: int, randomness: np.random.Generator) -> list[Ranks]:
    """Up to n distinct vectors as `random` draws them; fewer where 200 blocks of 64 in a row bring nothing new."""
    found: dict[Ranks, None] = {}
    stale = 0
    while len(found) < n and stale < 200:
        before = len(found)
        found |= dict.fromkeys(space.sample(64, randomness))
        stale = stale + 1 if len(found) == before else 0
    return list(found)[:n]


def neighbours(space: Space, ranks: Ranks, n: int, randomness: np.random.Generator) -> list[Ranks]:
    """Up to n distinct vectors that fill the budget and differ from `ranks` in one or two layers."""
    if not space.contains(ranks):
        raise ValueError(f"{ranks} is not within the space")
    cost = np.array([space.cost[layer] for layer in space.searched])
    start = np.array([ranks[layer] for layer in space.searched])
    tries = 64 * n
    pair = randomness.integers(0, len(start), (tries, 2))
    moved = np.tile(start, (tries, 1))
    moved[np.arange(tries)[:, None], pair] = np.array(space.grid)[randomness.integers(0, len(space.grid), (tries, 2))]
    used = moved @ cost
    fitting = (used <= space.budget) & (used >= FILL * space.budget) & (moved != start).any(axis=1)
    return list(dict.fromkeys(space.complete(row) for row in moved[fitting].tolist()))[:n]


def by_importance(space: Space, importance: Sequence[float]) -> Ranks:
    """Ranks in proportion to the importance of the layers, the nearest such vector on the grid that fills the budget.

    The closed form of CFSP (coarse-to-fine structured pruning, recovery ranks by block importance). `importance` has
    one entry >= 0 per layer (those of fixed layers are not used); nearest by squared distance weighted with the cost.
    """
    weights = np.asarray(importance, dtype=np.float64)
    if weights.shape != (len(space.cost),):
        raise ValueError(f"importance must have one entry for each of {len(space.cost)} layers, got {weights.shape}")
    weights = weights[list(space.searched)]
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise ValueError(f"importance must be finite, not negative and not all zero, got {weights.tolist()}")
    cost = np.array([space.cost[layer] for layer in space.searched])
    wanted = weights * space.budget / (cost @ weights)
    return space.best(-cost[:, None] * (np.array(space.grid) - wanted[:, None]) ** 2)


def ends_high(space: Space) -> Ranks:
    """Three times as much rank at both ends of the searched layers as in the middle, linear between."""
    return by_importance(space, 0.5 + _distance_from_middle(space))


def middle_high(space: Space) -> Ranks:
    """Three times as much rank in the middle of the searched layers as at both ends, linear between."""
    return by_importance(space, 1.5 - _distance_from_middle(space))


def _distance_from_middle(space: Space) -> Floats:
    """0 in the middle of the searched layers, 1 at their ends, one entry per layer."""
    first, last = space.searched[0], space.searched[-1]
    place = (np.arange(len(space.cost)) - first) / max(last - first, 1)
    return np.abs(2 * place.clip(0, 1) - 1)


def generator(seed: int, *stream: int) -> np.random.Generator:
    """An independent generator for each seed and stream."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *stream])))


def _integers(values: Iterable[int], name: str, *, least: int) -> tuple[int, ...]:
    numbers = tuple(values)
    if not numbers or not all(int(number) == number >= least for number in numbers):
        raise ValueError(f"{name} must hold whole numbers of at least {least}, got {numbers}")
    return tuple(int(number) for number in numbers)

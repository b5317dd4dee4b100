"""Searches replayed on rank vectors that somebody measured: they may choose among these only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rules2ranks import search
from rules2ranks.configuration import Configuration
from rules2ranks.search import Knob, Option, Point, Space

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pool(Space):
    """A space of which only some points can be measured; what it offers (at random, nearest, best) is still unmeasured.

    points: all of them, in order. left: those not measured yet; who measures takes them out. Costs and budgets play no
    part.
    """

    points: dict[Point, None] = field(default_factory=dict)
    left: dict[Point, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("a pool needs at least one point")

    @classmethod
    def of(cls, vectors: ArrayLike) -> Pool:
        """The pool of rank vectors (n, layers); a vector that stands twice is one point."""
        ranks = np.asarray(vectors, dtype=np.int64)
        grids = [np.unique(column) for column in ranks.T]
        places = np.stack([np.searchsorted(grid, column) for grid, column in zip(grids, ranks.T, strict=True)], axis=1)
        points = dict.fromkeys(map(tuple, places.tolist()))
        knobs = tuple(
            Knob((f"layer_{layer}",), (), tuple(Option(rank=int(rank)) for rank in grid))
            for layer, grid in enumerate(grids)
        )
        costs = tuple(((0,),) * len(knob.options) for knob in knobs)
        return cls(knobs, costs, (0,), points=points, left=dict(points))

    def contains(self, point: Sequence[int]) -> bool:
        return tuple(point) in self.points

    fills = contains

    def filling(self, points: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.array([point in self.points for point in map(tuple, points.tolist())], dtype=bool)

    def sample(self, n: int, randomness: np.random.Generator) -> list[Point]:
        offered = list(self.left)
        return [offered[place] for place in randomness.integers(0, len(offered), n)] if offered else []

    def best(self, values: Sequence[ArrayLike]) -> Point:
        offered = list(self.left)
        if not offered:
            raise ValueError("all points of the pool are measured")
        places = np.array(offered)
        return offered[int(np.argmax(sum(np.asarray(row)[places[:, knob]] for knob, row in enumerate(values))))]


class NearestTPE(search.TPE):
    """TPE that is told of the vector that was measured: in a pool the one that it asked for is hardly ever there."""

    def tell(self, trial: search.Trial) -> None:
        self._asked = None
        super().tell(trial._replace(proposer="given"))


def best_so_far(vectors: ArrayLike, scores: ArrayLike, searcher: str, *, limit: int, seed: int) -> Floats:
    """The best score found after 1, 2, … `limit` measurements (limit,): one search, replayed.

    vectors: ranks (n, layers), all different; scores (n,), higher is better; limit: 10..n. searcher: "RankAdaptor"
    (8 random vectors, then whichever unmeasured one its model predicts best), "additive" (random ones, the last is the
    choice of a model of them), "random search" or "TPE" (the nearest unmeasured vector to what it asks for). Raises
    ValueError for vectors that stand twice, and as `search.search` does.
    """
    pool = Pool.of(vectors)
    if len(pool.points) != len(np.asarray(scores)):
        raise ValueError(f"{len(np.asarray(scores))} scores for {len(pool.points)} different vectors")
    known = dict(zip(pool.points, np.asarray(scores, dtype=np.float64).tolist(), strict=True))

    def measure(configuration: Configuration, _fidelity: float) -> float:
        point = pool.point(configuration)
        del pool.left[point]
        return -known[point]

    make: dict[str, Callable[[], search.Searcher]] = {
        "RankAdaptor": lambda: search.RankAdaptor(candidates=2 * len(known)),
        "additive": search.SEARCHERS["additive"],
        "random search": search.SEARCHERS["random search"],
        "TPE": NearestTPE,
    }
    # The additive model's choice is measured on top of its limit.
    most = limit - (searcher == "additive")
    found = search.search(pool, measure, make[searcher](), limit=most, seed=seed).trials
    return np.maximum.accumulate([-trial.scores[0] for trial in found])

"""What a search chooses from: knobs with options that cost something, and the budgets they share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from numbers import Integral
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rules2ranks.configuration import Configuration
from rules2ranks.search import knapsack
from rules2ranks.search.knapsack import Floats, Integers

Point = tuple[int, ...]

#: Least share of the first budget: a point that uses less loses something by that alone.
FILL = 0.985
#: Ranks that a search chooses from, unless told otherwise.
GRID = (0, 1, 2, 3, 4, 6, 8, 12, 16)


class Option(NamedTuple):
    """A level for parts, and bits and a rank for matrices. The defaults leave the model as it is."""

    level: int = 0
    bits: int = 16
    rank: int = 0


class Knob(NamedTuple):
    """The matrices and parts, by name, that one choice sets, and what it chooses from. One option: it is fixed."""

    matrices: tuple[str, ...]
    parts: tuple[str, ...]
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Space:
    """All points within the budgets. A point has one place per knob: that of its option, from 0 on.

    costs: whole numbers (knobs, options, budgets), ragged where knobs have different numbers of options. budgets: what
    the costs of a point may sum to. fill: the least share of the first budget that an allocator uses. uniform: the
    point that treats all alike, where there is one.

    Raises:
        ValueError: shapes that do not fit, costs below 0 or budgets below 1, a name or an option twice, nothing to
            choose, a uniform point outside, and budgets that nothing fits or fills (says how much is used instead).
    """

    knobs: tuple[Knob, ...]
    costs: tuple[tuple[tuple[int, ...], ...], ...]
    budgets: tuple[int, ...]
    fill: float = FILL
    uniform: Point | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "budgets", whole(self.budgets, "budgets", least=1))
        if len(self.costs) != len(self.knobs):
            raise ValueError(f"costs are needed for each of {len(self.knobs)} knobs, got {len(self.costs)}")
        costs = tuple(self._checked(*pair) for pair in enumerate(zip(self.knobs, self.costs, strict=True)))
        object.__setattr__(self, "costs", costs)
        for kind in ("matrices", "parts"):
            names = list(chain.from_iterable(getattr(knob, kind) for knob in self.knobs))
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{kind} must belong to one knob each, these stand twice: {', '.join(twice)}")
        if not self.searched:
            raise ValueError(f"at least one of the {len(self.knobs)} knobs must be left to search, all are fixed")
        if not 0 <= self.fill <= 1:
            raise ValueError(f"fill must lie in 0..1, got {self.fill}")
        self._check_use()

    def _checked(self, place: int, pair: tuple[Knob, Sequence[Sequence[int]]]) -> tuple[tuple[int, ...], ...]:
        """The costs of a knob, as tuples."""
        knob, costs = pair
        if not knob.options or len(set(knob.options)) != len(knob.options):
            raise ValueError(f"knob {place} must have options that differ, got {knob.options}")
        rows = tuple(whole(row, f"costs of knob {place}", least=0) for row in costs)
        if [len(row) for row in rows] != [len(self.budgets)] * len(knob.options):
            shape = (len(knob.options), len(self.budgets))
            raise ValueError(f"the costs of knob {place} must have the shape {shape}, got {rows}")
        return rows

    def _check_use(self) -> None:
        """Whether uniform fits and anything fills."""
        smallest = tuple(map(sum, zip(*(map(min, zip(*rows, strict=True)) for rows in self.costs), strict=True)))
        if any(use > budget for use, budget in zip(smallest, self.budgets, strict=True)):
            raise ValueError(f"nothing fits the budgets {self.budgets}: the smallest use there is is {smallest}")
        if self.uniform is not None:
            if not self.contains(self.uniform):
                raise ValueError(f"the uniform point {self.uniform} is not within the space")
            if self.fills(self.uniform):
                return
        found = self._largest([costs[:, 0].astype(np.float64) for costs in self._costs], 0)
        if found is None:
            raise ValueError(f"no point fits all budgets {self.budgets}: each alone takes at least {smallest}")
        if not self.fills(found):
            raise ValueError(
                f"nothing fills the budget of {self.budgets[0]}: at least {self.least} must be used, and the largest "
                f"use that fits is {self.used(found)[0]}"
            )

    @cached_property
    def searched(self) -> tuple[int, ...]:
        """The knobs with more than one option."""
        return tuple(place for place, knob in enumerate(self.knobs) if len(knob.options) > 1)

    @cached_property
    def least(self) -> int:
        """The least use of the first budget that counts as filling it."""
        return math.ceil(self.fill * self.budgets[0])

    @cached_property
    def _costs(self) -> list[Integers]:
        return [np.array(rows, dtype=np.int64) for rows in self.costs]

    @cached_property
    def _padded(self) -> Integers:
        """All costs as one array (knobs, options, budgets)."""
        padded = np.zeros((len(self.knobs), max(map(len, self.costs)), len(self.budgets)), dtype=np.int64)
        for row, costs in zip(padded, self._costs, strict=True):
            row[: len(costs)] = costs
        return padded

    def used(self, point: Sequence[int]) -> tuple[int, ...]:
        """What a point takes of each budget. Raises ValueError for places that the knobs do not have."""
        if not self._has(point):
            raise ValueError(f"the point {tuple(point)} has places without an option")
        return tuple(map(sum, zip(*(rows[place] for rows, place in zip(self.costs, point, strict=True)), strict=True)))

    def contains(self, point: Sequence[int]) -> bool:
        """Whether a point is within all budgets. Raises ValueError for another number of places than knobs."""
        return self._has(point) and all(use <= most for use, most in zip(self.used(point), self.budgets, strict=True))

    def fills(self, point: Sequence[int]) -> bool:
        """Whether a point is within all budgets and uses the least share of the first."""
        return self.contains(point) and self.used(point)[0] >= self.least

    def filling(self, points: Integers) -> NDArray[np.bool_]:
        """`fills` for many points (n, knobs) at once: (n,)."""
        used = self._padded[np.arange(len(self.knobs)), points].sum(axis=1)
        return (used <= self.budgets).all(axis=1) & (used[:, 0] >= self.least)

    def _has(self, point: Sequence[int]) -> bool:
        self._one_each(point, "place")
        return all(0 <= place < len(knob.options) for place, knob in zip(point, self.knobs, strict=True))

    def _one_each(self, values: Sequence, what: str) -> None:
        if len(values) != len(self.knobs):
            raise ValueError(f"one {what} for each of {len(self.knobs)} knobs is needed, got {len(values)}")

    def options(self, point: Sequence[int]) -> tuple[Option, ...]:
        """The options of a point."""
        return tuple(knob.options[place] for place, knob in zip(point, self.knobs, strict=True))

    def place_of(self, options: Sequence[Option]) -> Point:
        """The point of these options, one per knob. Raises ValueError for an option that a knob does not have."""
        self._one_each(options, "option")
        for place, (knob, option) in enumerate(zip(self.knobs, options, strict=True)):
            if option not in knob.options:
                raise ValueError(f"knob {place} has no {option}, it has {', '.join(map(str, knob.options))}")
        return tuple(knob.options.index(option) for knob, option in zip(self.knobs, options, strict=True))

    def configuration(self, point: Sequence[int]) -> Configuration:
        """What a point says about the model."""
        chosen = list(zip(self.knobs, self.options(point), strict=True))
        return Configuration(
            levels={part: option.level for knob, option in chosen for part in knob.parts},
            bits={name: option.bits for knob, option in chosen for name in knob.matrices},
            ranks={name: option.rank for knob, option in chosen for name in knob.matrices},
        )

    def point(self, configuration: Configuration) -> Point:
        """The first point with this configuration. Raises ValueError where none has it."""
        point = tuple(_matching(knob, configuration) for knob in self.knobs)
        if self.configuration(point) != configuration:
            raise ValueError(f"no point of the space has the configuration {configuration}")
        return point

    @cached_property
    def _fixed_use(self) -> Integers:
        """What the fixed knobs take of each budget."""
        return sum((rows[0] for rows in self._costs if len(rows) == 1), np.zeros(len(self.budgets), dtype=np.int64))

    def _knapsack(self, budget: int, least: int) -> knapsack.Knapsack:
        """The choices of the searched knobs that use from `least` to all of a budget."""
        fixed = int(self._fixed_use[budget])
        costs = [self._costs[knob][:, budget] for knob in self.searched]
        return knapsack.Knapsack(costs, least - fixed, self.budgets[budget] - fixed)

    @cached_property
    def _filling(self) -> knapsack.Knapsack:
        return self._knapsack(0, self.least)

    def _complete(self, searched: Integers) -> Integers:
        """Points (n, knobs) from the places of the searched knobs (n, searched)."""
        points = np.zeros((len(searched), len(self.knobs)), dtype=np.int64)
        points[:, self.searched] = searched
        return points

    def sample(self, n: int, randomness: np.random.Generator) -> list[Point]:
        """n points, each drawn uniformly from all that fill the budget (repeats may occur).

        What fills the first budget is counted, not listed; what is over another budget, or was rounded into the first,
        is drawn again, which leaves the chances equal.

        Raises:
            ValueError: too few of the points that fill the first budget are within the others.
        """
        found: list[Point] = []
        for size in (n, *[1024] * 200):
            points = self._complete(self._filling.draw(size, randomness))
            found += map(tuple, points[self.filling(points)].tolist())
            if len(found) >= n:
                return found[:n]
        raise ValueError(
            f"of {n + 200 * 1024} points about the budget {self.budgets[0]}, {len(found)} fit {self.budgets}"
        )

    def best(self, values: Sequence[ArrayLike]) -> Point:
        """The point that fills the budget and has the largest sum of `values` (knobs, options; may be ragged).

        Exact under one budget whose costs have few multiples of their common divisor below it (see `knapsack`): a
        dynamic programme. Otherwise HiGHS, as exact as `knapsack.solve` says, and never less than uniform.

        Raises:
            ValueError: another shape, NaN or infinities, or no point found.
        """
        rows = [np.asarray(row, dtype=np.float64) for row in values]
        shapes = [(len(knob.options),) for knob in self.knobs]
        if [row.shape for row in rows] != shapes or not all(np.isfinite(row).all() for row in rows):
            raise ValueError(
                f"values must be finite, one for each option of {len(shapes)} knobs ({[n for (n,) in shapes]}), got "
                f"the shapes {[row.shape for row in rows]}"
            )
        found = self._largest(rows, self.least)
        if found is None:
            raise ValueError(f"no point was found that fills the budget of {self.budgets[0]} and fits {self.budgets}")
        return found

    def _largest(self, rows: Sequence[Floats], least: int) -> Point | None:
        """The point with the largest sum of values that fits the budgets and uses at least so much of the first."""
        searched = [rows[knob] for knob in self.searched]
        counted = self._knapsack(0, least)
        if counted.exact and len(self.budgets) == 1:
            places = counted.best(searched)
            return None if places is None else tuple(self._complete(np.array([places]))[0].tolist())
        others = [self._knapsack(budget, 0) for budget in range(1, len(self.budgets))]
        places = knapsack.solve([counted, *others], searched)
        found = [] if places is None else [tuple(self._complete(np.array([places]))[0].tolist())]
        if self.uniform is not None and self.used(self.uniform)[0] >= least:
            found.append(self.uniform)
        return max(
            found, key=lambda point: sum(row[place] for row, place in zip(rows, point, strict=True)), default=None
        )

    def nearest(self, point: Sequence[int]) -> Point:
        """The point that fills the budget and is nearest, by the sum over knobs of squared distances in places."""
        self._one_each(point, "place")
        return self.best(
            [-((np.arange(len(knob.options)) - place) ** 2) for knob, place in zip(self.knobs, point, strict=True)]
        )


def rank_space(
    names: Sequence[Sequence[str]],
    cost_per_rank: Sequence[int],
    mean_rank: int,
    grid: Sequence[int] = GRID,
    fixed: Mapping[int, int] | None = None,
) -> Space:
    """A LoRA rank from the grid for each unit, where trainable parameters stay within those of the uniform mean rank.

    names: the matrices of each unit. cost_per_rank: trainable parameters that a unit of rank adds, one entry per unit.
    mean_rank: must be on the grid, so that uniform is one of the points. grid: increasing ranks >= 0. fixed: unit ->
    rank, outside search and budget.

    Raises:
        ValueError: a cost below 1, a grid that does not increase, a mean rank off the grid, an unknown fixed unit, or
            nothing left to search.
    """
    fixed = dict(fixed or {})
    costs, grid = whole(cost_per_rank, "cost_per_rank", least=1), whole(grid, "grid", least=0)
    if len(names) != len(costs):
        raise ValueError(f"names and cost_per_rank must be of equal length, got {len(names)} and {len(costs)}")
    if not all(low < high for low, high in pairwise(grid)):
        raise ValueError(f"grid must increase, got {grid}")
    if mean_rank not in grid or mean_rank == 0:
        raise ValueError(f"mean_rank must be a positive rank of the grid {grid}, got {mean_rank}")
    for unit, rank in fixed.items():
        if unit not in range(len(costs)):
            raise ValueError(f"fixed units must lie in 0..{len(costs) - 1}, got {unit}")
        whole([rank], f"fixed rank of unit {unit}", least=0)
    searched = [unit for unit in range(len(costs)) if unit not in fixed]
    if not searched or len(grid) < 2:
        raise ValueError(f"at least one of the {len(costs)} units must be left to search, over two ranks or more")
    ranks = [(fixed[unit],) if unit in fixed else grid for unit in range(len(costs))]
    return Space(
        knobs=tuple(
            Knob(tuple(unit), (), tuple(Option(rank=int(rank)) for rank in of_unit))
            for unit, of_unit in zip(names, ranks, strict=True)
        ),
        costs=tuple(
            ((0,),) if unit in fixed else tuple((cost * rank,) for rank in grid) for unit, cost in enumerate(costs)
        ),
        budgets=(mean_rank * sum(costs[unit] for unit in searched),),
        uniform=tuple(0 if unit in fixed else grid.index(mean_rank) for unit in range(len(costs))),
    )


def generator(seed: int, *stream: int) -> np.random.Generator:
    """An independent generator for each seed and stream."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *stream])))


def whole(values: Iterable[int], name: str, *, least: int) -> tuple[int, ...]:
    """The values as whole numbers. Raises ValueError for none, for fractions, and for any below `least`."""
    numbers = tuple(values)
    if not numbers or not all(isinstance(number, Integral) and number >= least for number in numbers):
        raise ValueError(f"{name} must hold whole numbers of at least {least}, got {numbers}")
    return tuple(int(number) for number in numbers)


def _matching(knob: Knob, configuration: Configuration) -> int:
    """The place of the first option that says of the knob's matrices and parts what the configuration says, or 0."""
    bare = Option()
    for place, option in enumerate(knob.options):
        if all(configuration.levels.get(part, bare.level) == option.level for part in knob.parts) and all(
            (configuration.bits.get(name, bare.bits), configuration.ranks.get(name, bare.rank)) == option[1:]
            for name in knob.matrices
        ):
            return place
    return 0

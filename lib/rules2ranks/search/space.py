"""What a search chooses from: knobs with options that cost something, and the budgets they share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rules2ranks.configuration import Configuration
from rules2ranks.search import knapsack
from rules2ranks.search.knapsack import Floats, Integers

#: The place of the option that each knob takes.
Point = tuple[int, ...]

#: Least share of the first budget: a point that uses less loses something by that alone.
FILL = 0.985


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
        ValueError: costs of another shape or below 0, a name or an option twice, nothing to choose, a uniform point
            outside, and budgets that nothing fits or fills (says how much is used instead).
    """

    knobs: tuple[Knob, ...]
    costs: tuple[tuple[tuple[int, ...], ...], ...]
    budgets: tuple[int, ...]
    fill: float = FILL
    uniform: Point | None = None

    def __post_init__(self) -> None:
        shapes = [(len(knob.options), len(self.budgets)) for knob in self.knobs]
        if [rows.shape for rows in self._costs] != shapes:
            raise ValueError(f"costs must have the shapes {shapes}, got {self.costs}")
        if not all(rows.dtype.kind == "i" and (rows >= 0).all() for rows in self._costs):
            raise ValueError(f"costs must be whole numbers from 0 on, got {self.costs}")
        names = [name for knob in self.knobs for name in (*knob.matrices, *knob.parts)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"matrices and parts must belong to one knob each, these stand twice: {', '.join(twice)}")
        if any(len(set(knob.options)) < len(knob.options) for knob in self.knobs):
            raise ValueError(f"a knob must have options that differ, got {[knob.options for knob in self.knobs]}")
        if not self.searched:
            raise ValueError(f"at least one of the {len(self.knobs)} knobs must be left to search, all are fixed")
        if self.uniform is not None and not self.contains(self.uniform):
            raise ValueError(f"the uniform point {self.uniform} is not within the space")
        if self.uniform is None or not self.fills(self.uniform):
            self._check_use()

    def _check_use(self) -> None:
        """Whether anything fits and fills."""
        smallest = sum(rows.min(axis=0) for rows in self._costs)
        fits = (smallest <= self.budgets).all()
        found = self._largest([rows[:, 0].astype(np.float64) for rows in self._costs], 0) if fits else None
        if found is None:
            raise ValueError(f"nothing fits the budgets {self.budgets}: each alone takes at least {smallest.tolist()}")
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
        return [np.array(rows) for rows in self.costs]

    def used(self, point: Sequence[int]) -> tuple[int, ...]:
        """What a point takes of each budget."""
        return tuple(self._used(np.array(point)).tolist())

    def _used(self, points: Integers) -> Integers:
        # (..., knobs) to (..., budgets)
        return sum(rows[points[..., knob]] for knob, rows in enumerate(self._costs))

    def contains(self, point: Sequence[int]) -> bool:
        """Whether a point has an option for every knob and is within all budgets."""
        sizes = [len(knob.options) for knob in self.knobs]
        if len(point) != len(sizes) or not all(0 <= place < size for place, size in zip(point, sizes, strict=True)):
            return False
        return all(use <= most for use, most in zip(self.used(point), self.budgets, strict=True))

    def fills(self, point: Sequence[int]) -> bool:
        """Whether a point is within all budgets and uses the least share of the first."""
        return self.contains(point) and self.used(point)[0] >= self.least

    def filling(self, points: Integers) -> NDArray[np.bool_]:
        """`fills` for many points (n, knobs) at once: (n,)."""
        used = self._used(points)
        return (used <= self.budgets).all(axis=1) & (used[:, 0] >= self.least)

    def options(self, point: Sequence[int]) -> tuple[Option, ...]:
        """The options of a point."""
        return tuple(knob.options[place] for place, knob in zip(point, self.knobs, strict=True))

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
        levels, bits, ranks = configuration.levels, configuration.bits, configuration.ranks
        unsaid = Option()

        def agrees(knob: Knob, option: Option) -> bool:
            return all(levels.get(part, unsaid.level) == option.level for part in knob.parts) and all(
                (bits.get(name, unsaid.bits), ranks.get(name, unsaid.rank)) == option[1:] for name in knob.matrices
            )

        point = tuple(
            next((place for place, option in enumerate(knob.options) if agrees(knob, option)), 0) for knob in self.knobs
        )
        if self.configuration(point) != configuration:
            raise ValueError(f"no point of the space has the configuration {configuration}")
        return point

    def _knapsack(self, budget: int, least: int) -> knapsack.Knapsack:
        """The choices of the searched knobs that use from `least` to all of a budget, fixed knobs included."""
        costs = [rows[:, budget] for rows in self._costs]
        fixed = sum(int(row[0]) for row in costs if len(row) == 1)
        return knapsack.Knapsack([costs[knob] for knob in self.searched], least - fixed, self.budgets[budget] - fixed)

    @cached_property
    def _filling(self) -> knapsack.Knapsack:
        return self._knapsack(0, self.least)

    def _complete(self, searched: Integers) -> Integers:
        """Points (n, knobs) from the places (n, searched) of the searched knobs."""
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
            raise ValueError(f"values must be finite and of the shapes {shapes}, got {rows}")
        found = self._largest(rows, self.least)
        if found is None:
            raise ValueError(f"no point was found that fills the budget of {self.budgets[0]} and fits {self.budgets}")
        return found

    def _largest(self, rows: Sequence[Floats], least: int) -> Point | None:
        """The point with the largest sum of values that fits the budgets and uses at least so much of the first."""
        searched = [rows[knob] for knob in self.searched]
        first, others = self._knapsack(0, least), [self._knapsack(k, 0) for k in range(1, len(self.budgets))]
        exact = first.exact and not others
        places = first.best(searched) if exact else knapsack.solve([first, *others], searched)
        found = [] if places is None else [tuple(self._complete(np.array([places]))[0].tolist())]
        if not exact and self.uniform is not None and self.used(self.uniform)[0] >= least:
            found.append(self.uniform)
        return max(found, key=lambda point: sum(row[k] for row, k in zip(rows, point, strict=True)), default=None)

    def nearest(self, point: Sequence[int]) -> Point:
        """The point that fills the budget and is nearest, by the sum over knobs of squared distances in places."""
        return self.best(
            [-((np.arange(len(knob.options)) - place) ** 2) for knob, place in zip(self.knobs, point, strict=True)]
        )


def generator(seed: int, *stream: int) -> np.random.Generator:
    """An independent generator for each seed and stream."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *stream])))

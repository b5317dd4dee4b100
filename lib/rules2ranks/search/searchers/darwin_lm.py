"""DarwinLM (arXiv 2502.07780): levels by evolution, and a selection that knows that training follows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from rules2ranks.search.scripted import Phase, Scripted
from rules2ranks.search.space import Option, Point, Space, generator

#: Switches of a child that fits the budget are tried so often, before the parent counts as having no more children.
TRIES = 200


@dataclass
class DarwinLM(Scripted, name="DarwinLM"):
    """`limit` counts trainings: one to a share of the schedule is that share, and `judging` comes on top of each.

    (1 + λ) evolution, from `start`, or else the same share of every part. Each of λ = `offspring` children has one to
    three level switches (the smaller of two draws): of two parts of a kind, one loses a step and the other gains it, so
    that the budget holds. Parent and children are trained for the first of `shares` of the schedule and judged; as many
    as the first of `survivors` are trained for the next share and judged again, and so on: the last is the parent of
    the next generation. Every training begins anew, as in the authors' code.

    Shares of (0,) judge before any training: evolution as in EvoPress (arXiv 2410.14649).
    """

    offspring: int = 16
    survivors: tuple[int, ...] = (8, 4, 2, 1)
    shares: tuple[float, ...] = (0.01, 0.05, 0.1, 0.2)
    judging: float = 0.025
    start: Point | None = None

    def __post_init__(self) -> None:
        if len(self.survivors) != len(self.shares) or self.survivors[-1] != 1:
            raise ValueError(
                f"shares {self.shares} and survivors {self.survivors} must be as many, the last survivor 1"
            )
        if list(self.survivors) != sorted(self.survivors, reverse=True) or self.offspring < self.survivors[0]:
            raise ValueError(f"of {self.offspring} offspring always fewer must survive, got {self.survivors}")
        if list(self.shares) != sorted(set(self.shares)) or not 0 <= self.shares[0] <= self.shares[-1] <= 1:
            raise ValueError(f"shares must rise, from 0 on and up to 1, got {self.shares}")

    def begin(self, space: Space, limit: int, seed: int) -> Self:
        if self.start is not None and not space.contains(self.start):
            raise ValueError(f"the start {self.start} is not within the space")
        begun = super().begin(space, limit, seed)
        begun._randomness = generator(seed, 4)
        begun._switches = Switches(space)
        return begun

    def _cost(self, fidelity: float, before: float) -> float:
        return fidelity + self.judging

    def _phases(self) -> Phase:
        parent = even(self.space) if self.start is None else tuple(self.start)
        while True:
            living = [parent, *self._children(parent)]
            if len(living) == 1:
                return
            for share, number in zip(self.shares, self.survivors, strict=True):
                word = "evolution" if share == self.shares[0] else "survivor"
                yield from self._measured(dict.fromkeys(living), share, word)
                judged = [point for point in living if self._score(point, share)]
                if len(judged) < len(living):  # nothing is left to spend
                    return
                living = sorted(judged, key=lambda point: self._score(point, share))[:number]
            parent = living[0]

    def _children(self, parent: Point) -> list[Point]:
        return self._switches.children(parent, self.offspring, self._randomness, self._all)


class Switches:
    """Changes of a point that keep its budget: of two parts of a kind, one loses a step and the other gains it. A step
    is one of the level, or of the bits or the rank where there are several, drawn with equal chance.

    Raises:
        ValueError: no two parts of the space are alike.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self._kinds = _kinds(space)
        sizes = np.array([len(kind) for kind in self._kinds], dtype=np.float64)
        self._chances = sizes / sizes.sum()
        self._steps = [[_steps(knob.options, place) for place in range(len(knob.options))] for knob in space.knobs]

    def children(
        self, parent: Point, number: int, randomness: np.random.Generator, known: Collection[Point] = ()
    ) -> list[Point]:
        """So many new points that fill the budget, or fewer, each one to three switches (the smaller of two draws)
        away from the parent.
        """
        found: dict[Point, None] = {}
        for _ in range(TRIES):
            child = list(parent)
            for _ in range(int(randomness.integers(1, 4, size=2).min())):
                self._switch(child, randomness)
            child = tuple(child)
            if child != parent and child not in known and self.space.fills(child):
                found[child] = None
            if len(found) == number:
                break
        return list(found)

    def _switch(self, point: list[int], randomness: np.random.Generator) -> None:
        """In place, where both parts can."""
        kind = self._kinds[int(randomness.choice(len(self._kinds), p=self._chances))]
        down, up = randomness.choice(kind, 2, replace=False).tolist()
        less, more = self._steps[down][point[down]][0], self._steps[up][point[up]][1]
        if less and more:
            for knob, steps in ((down, less), (up, more)):
                point[knob] = steps[0] if len(steps) == 1 else int(randomness.choice(steps))


def _steps(options: Sequence[Option], place: int) -> tuple[list[int], list[int]]:
    """The options that are a step smaller, and those a step larger: all else equal, the next level, bits or rank."""
    found: tuple[list[int], list[int]] = ([], [])
    for field, sign in enumerate((-1, 1, 1)):  # a higher level leaves less
        rest = [each[:field] + each[field + 1 :] for each in options]
        alike = [k for k in range(len(options)) if rest[k] == rest[place]]
        alike.sort(key=lambda k: sign * options[k][field])
        at = alike.index(place)
        found[0].extend(alike[at - 1 : at] if at else [])
        found[1].extend(alike[at + 1 : at + 2])
    return found


def _kinds(space: Space) -> list[list[int]]:
    """The searched knobs by kind, those that have the same costs; a kind of one cannot switch and is left out.

    Raises:
        ValueError: no two knobs are alike.
    """
    alike: dict[tuple, list[int]] = {}
    for knob in space.searched:
        alike.setdefault(space.costs[knob], []).append(knob)
    kinds = [knobs for knobs in alike.values() if len(knobs) > 1]
    if not kinds:
        raise ValueError("no two knobs have the same costs: there is nothing that can be switched")
    return kinds


def even(space: Space) -> Point:
    """The point that fills the budget and in which all parts take the same share of what they can, or next to that.

    The share is the one whose nearest such point is nearest.
    """
    costs = [np.array([cost[0] for cost in rows], dtype=np.float64) for rows in space.costs]
    found: list[tuple[float, Point]] = []
    for wanted in np.linspace(0, 1, 41):
        away = [np.zeros(len(c)) if len(c) == 1 else (c / (c.max() or 1.0) - wanted) ** 2 for c in costs]
        point = space.best([-row for row in away])
        found.append((float(sum(row[place] for row, place in zip(away, point, strict=True))), point))
    return min(found)[1]

"""The best bits first, then the best ranks: the sequence that a joint search is compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from rules2ranks.search.controls import draw
from rules2ranks.search.searcher import Searcher
from rules2ranks.search.searchers.rank_adaptor import RankAdaptor
from rules2ranks.search.space import Option, Point, Space, generator
from rules2ranks.search.trials import Proposal, Trial


@dataclass
class InTurn(Searcher, name="bits, then ranks"):
    """RankAdaptor twice, with half of `limit` each: over bits at one rank for all, then over ranks at the bits found.

    Half of each half, eight points at most, are random.

    The rank in the first half is one that leaves about as much of the budget to bits as it takes.
    """

    @property
    def least(self) -> int:
        return 8

    def begin(self, space: Space, limit: int, seed: int) -> Self:
        begun = super().begin(space, limit, seed)
        begun._part, begun._places = _at_one_rank(space)
        begun._inner = _half(begun._part, limit // 2, seed)
        begun._second = False
        return begun

    def ask(self) -> list[Proposal]:
        asked = self._inner.ask()
        if not asked and not self._second and self._inner.trials:
            self._turn()
            asked = self._inner.ask()
        return [proposal._replace(point=self._outer(proposal.point)) for proposal in asked]

    def tell(self, trial: Trial) -> None:
        super().tell(trial)
        self.ask()  # where a half is over, the next begins
        within = tuple(
            list(places).index(place) if place in places else -1
            for places, place in zip(self._places, trial.point, strict=True)
        )
        if -1 not in within and self._part.contains(within):
            self._inner.tell(trial._replace(point=within))

    def _turn(self) -> None:
        """From bits to ranks: the best bits stay."""
        best = min(self.trials, key=lambda trial: trial.scores).point
        bits = [self.space.knobs[knob].options[place].bits for knob, place in enumerate(best)]
        self._part, self._places = _only(self.space, lambda knob, option: option.bits == bits[knob])
        self._inner = _half(self._part, self.limit - self.limit // 2, self.seed)
        within = tuple(list(places).index(place) for places, place in zip(self._places, best, strict=True))
        self._inner.tell(Trial(within, min(trial.scores for trial in self.trials)))
        self._second = True

    def _outer(self, point: Point) -> Point:
        return tuple(places[place] for places, place in zip(self._places, point, strict=True))


def _half(space: Space, limit: int, seed: int) -> RankAdaptor:
    """RankAdaptor on a part that may have few points."""
    there = len(draw(space, min(RankAdaptor.offline, limit // 2), generator(seed, 3)))
    return RankAdaptor(offline=max(there, 2)).begin(space, limit, seed)


def _only(space: Space, wanted: Callable[[int, Option], bool]) -> tuple[Space, list[list[int]]]:
    """The part of a space whose options are wanted (fixed knobs stay), and where these stand in the whole."""
    places = [
        [place for place, option in enumerate(knob.options) if len(knob.options) == 1 or wanted(number, option)]
        for number, knob in enumerate(space.knobs)
    ]
    knobs = tuple(
        knob._replace(options=tuple(knob.options[p] for p in own))
        for knob, own in zip(space.knobs, places, strict=True)
    )
    costs = tuple(tuple(rows[p] for p in own) for rows, own in zip(space.costs, places, strict=True))
    return replace(space, knobs=knobs, costs=costs, uniform=None), places


def _at_one_rank(space: Space) -> tuple[Space, list[list[int]]]:
    """The bits at one rank for all: at that whose fewest bits take nearest to half of what the budget leaves to choose,
    of those at which the budget can be filled.
    """
    ranks = sorted({option.rank for option in space.knobs[space.searched[0]].options})

    def least(rank: int) -> int:
        """Of all points with this rank everywhere."""
        fits = [
            [c[0] for c, option in zip(rows, knob.options, strict=True) if len(rows) == 1 or option.rank == rank]
            for rows, knob in zip(space.costs, space.knobs, strict=True)
        ]
        return sum(map(min, fits))

    half = (space.budgets[0] + least(ranks[0])) / 2
    for rank in sorted(ranks, key=lambda rank: abs(least(rank) - half)):
        with contextlib.suppress(ValueError):
            return _only(space, lambda knob, option, rank=rank: option.rank == rank)
    raise ValueError(f"at none of the ranks {ranks} for all can bits alone fill the budget of {space.budgets[0]}")

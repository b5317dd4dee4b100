"""Searchers that are written as one course of events."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Mapping
from typing import Self

from rules2ranks.search.searcher import Searcher
from rules2ranks.search.space import Point, Space
from rules2ranks.search.trials import Proposal, Scores, Trial

#: What a phase hands over: proposals that need not wait for each other out, and on again when all are told.
Phase = Generator[list[Proposal], None, None]


class Scripted(Searcher):
    """A searcher whose `_phases` is a generator. `limit` counts trainings: a trial at a fidelity of 0.25 is a quarter.

    What was measured stands in `_all`, by point and fidelity. An interrupted search comes to where it was: trials that
    are told before anything was asked answer what the generator asks.
    """

    def begin(self, space: Space, limit: int, seed: int) -> Self:
        begun = super().begin(space, limit, seed)
        begun._all, begun._spent = {}, 0.0
        begun._run, begun._asked = begun._phases(), []
        return begun

    @abstractmethod
    def _phases(self) -> Phase:
        """The whole course of the search; it has begun."""

    def ask(self) -> list[Proposal]:
        if not self._asked:
            self._asked = next(self._run, [])
        return list(self._asked)

    def tell(self, trial: Trial) -> None:
        answer = trial.proposer != "given" and self.ask()
        super().tell(trial)
        before = self._all.setdefault(trial.point, {})
        self._spent += self._cost(trial.fidelity, max(before, default=0.0))
        before[trial.fidelity] = trial.scores
        if answer:
            del self._asked[0]

    def _cost(self, fidelity: float, before: float) -> float:
        """The trainings that a trial takes of a point that was measured at a fidelity before: it goes on from there."""
        return max(0.0, fidelity - before)

    def _measured(self, points: Mapping[Point, float | None], fidelity: float, word: str) -> Phase:
        """Measure points, with what is predicted of each: those that were not yet, so far or further, and in their
        order as many as there is something left to spend for.
        """
        asked, left = [], self._left()
        for point, predicted in points.items():
            known = self._all.get(point, {})
            cost = self._cost(fidelity, max(known, default=0.0))
            if fidelity not in known and 1.0 not in known and cost <= left:
                asked.append(Proposal(point, fidelity, None if predicted is None else (predicted,), word))
                left -= cost
        if asked:
            yield asked

    def _left(self) -> float:
        return self.limit - self._spent + 1e-9

    def _score(self, point: Point, fidelity: float) -> Scores | None:
        """What was measured of a point at this fidelity, or else in full."""
        known = self._all.get(point, {})
        return known.get(fidelity, known.get(1.0))

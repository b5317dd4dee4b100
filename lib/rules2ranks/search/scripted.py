"""Searchers that are written as one course of events: proposals out, trials in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator
from typing import Self

from rules2ranks.search.searcher import Searcher
from rules2ranks.search.space import Point, Space
from rules2ranks.search.trials import Proposal, Scores, Trial

#: What a phase hands over: proposals out, trials in.
Phase = Generator[Proposal, Trial, None]


class Scripted(Searcher):
    """A searcher whose `_phases` is a generator. `limit` counts trainings: a trial at a fidelity of 0.25 is a quarter.

    What was measured stands in `_all`, by point and fidelity. An interrupted search comes to where it was: trials that
    are told before anything was asked answer what the generator asks.
    """

    def begin(self, space: Space, limit: int, seed: int) -> Self:
        begun = super().begin(space, limit, seed)
        begun._all, begun._spent = {}, 0.0
        begun._run, begun._asked, begun._over = begun._phases(), None, False
        return begun

    @abstractmethod
    def _phases(self) -> Phase:
        """The whole course of the search; it has begun."""

    def ask(self) -> Proposal | None:
        if self._asked is None and not self._over:
            self._advance(None)
        return self._asked

    def tell(self, trial: Trial) -> None:
        answer = trial.proposer != "given" and self.ask() is not None
        super().tell(trial)
        before = self._all.setdefault(trial.point, {})
        self._spent += self._cost(trial.fidelity, max(before, default=0.0))
        before[trial.fidelity] = trial.scores
        if answer:
            self._advance(trial)

    def _advance(self, trial: Trial | None) -> None:
        try:
            self._asked = self._run.send(trial)
        except StopIteration:
            self._asked, self._over = None, True

    def _cost(self, fidelity: float, before: float) -> float:
        """The trainings that a trial takes of a point that was measured at a fidelity before: it goes on from there."""
        return max(0.0, fidelity - before)

    def _measured(self, point: Point, fidelity: float, word: str, predicted: float | None = None) -> Phase:
        """Measure a point unless it was already, so far or further, or there is nothing left to spend."""
        known = self._all.get(point, {})
        if fidelity in known or 1.0 in known or self._left() < self._cost(fidelity, max(known, default=0.0)):
            return
        yield Proposal(point, fidelity, None if predicted is None else (predicted,), word)

    def _left(self) -> float:
        return self.limit - self._spent + 1e-9

    def _score(self, point: Point, fidelity: float) -> Scores | None:
        """What was measured of a point at this fidelity, or else in full."""
        known = self._all.get(point, {})
        return known.get(fidelity, known.get(1.0))

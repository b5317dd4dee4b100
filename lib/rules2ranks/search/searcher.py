"""What every searcher is: settings that are begun on a space, then asked for proposals and told of trials."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Self

from rules2ranks.search.controls import random
from rules2ranks.search.space import Point, Space
from rules2ranks.search.trials import Proposal, Trial

#: Every searcher by its name; a class enters itself.
SEARCHERS: dict[str, type[Searcher]] = {}


class Searcher(ABC):
    """A way to search. An instance holds its settings; `begin` makes one that can be asked and told.

    A subclass names itself (`class Mine(Searcher, name="mine")`) and is then in `SEARCHERS`. Unless it says otherwise,
    it measures in full, learns from nothing less, and takes one score. Of scores, lower is better.
    """

    name: ClassVar[str]
    several: ClassVar[bool] = False
    least: int = 1
    space: Space
    limit: int
    seed: int
    trials: list[Trial]

    def __init_subclass__(cls, name: str | None = None) -> None:
        if name is not None:
            cls.name = name
            SEARCHERS[name] = cls

    def begin(self, space: Space, limit: int, seed: int) -> Self:
        """A copy that has begun: it measures up to `limit` points of the space, the same for the same seed and trials.

        Raises ValueError for too low a limit.
        """
        if not isinstance(limit, int) or limit < self.least:
            raise ValueError(f"limit must be at least {self.least} for {self.name}, got {limit}")
        begun = copy.copy(self)
        begun.space, begun.limit, begun.seed, begun.trials, begun._drawn = space, limit, seed, [], []
        return begun

    @abstractmethod
    def ask(self) -> list[Proposal]:
        """What to measure next: all that need not wait for each other's scores. Nothing: the search is over.

        Asked again when it was told some of them, in their order, it says the rest.
        """

    def tell(self, trial: Trial) -> None:
        """What came of a proposal, or was known before. Raises ValueError for scores that it cannot take."""
        if len(trial.scores) != 1 and not self.several:
            raise ValueError(f"{self.name} takes one score, got {len(trial.scores)}")
        if trial.fidelity == 1:
            self.trials.append(trial)

    @property
    def choice(self) -> Trial | None:
        """The trial that this searcher would choose, where that is not simply the one with the lowest score.

        Its proposer is "exact" then: by that word the tables of ranks know it again.
        """
        return None

    def fresh(self, n: int, known: Iterable[Trial]) -> list[Point]:
        """Those of n random points (of `controls.random` at the seed, n always the same) that are not known."""
        self._drawn = self._drawn or random(self.space, n, self.seed)
        points = {trial.point for trial in known}
        return [point for point in self._drawn if point not in points]

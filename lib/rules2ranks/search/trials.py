"""What a search proposes and what came of it."""

from collections.abc import Sequence
from typing import NamedTuple

from rules2ranks.search.space import Point

Scores = tuple[float, ...]


class Proposal(NamedTuple):
    """A point to be measured at a fidelity (1: in full), what the searcher predicts of it, and its word for how."""

    point: Point
    fidelity: float = 1.0
    predicted: Scores | None = None
    proposer: str = "given"


class Trial(NamedTuple):
    """A measured point. Of scores, lower is better; `predicted` is what the searcher said of them before."""

    point: Point
    scores: Scores
    fidelity: float = 1.0
    predicted: Scores | None = None
    proposer: str = "given"


class Search(NamedTuple):
    """All trials in order, and the searcher's own choice among them, where it has one."""

    trials: tuple[Trial, ...]
    own: Trial | None = None

    @property
    def chosen(self) -> Trial:
        """The searcher's own choice, else the first trial with the lowest score, of those at the highest fidelity.

        Raises:
            ValueError: no trials, or several scores, which have a front instead.
        """
        if self.own is not None:
            return self.own
        trials = self._comparable()
        if len(trials[0].scores) != 1:
            raise ValueError(f"nothing is best by {len(trials[0].scores)} scores at once: see the front")
        return min(trials, key=lambda trial: trial.scores)

    @property
    def front(self) -> list[Trial]:
        """The Pareto front of the trials at the highest fidelity.

        Raises:
            ValueError: no trials, or one score, of which one trial is chosen.
        """
        trials = self._comparable()
        if len(trials[0].scores) == 1:
            raise ValueError("one score has no front: see what is chosen")
        return pareto(trials)

    def _comparable(self) -> list[Trial]:
        if not self.trials:
            raise ValueError("nothing was measured")
        highest = max(trial.fidelity for trial in self.trials)
        return [trial for trial in self.trials if trial.fidelity == highest]


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other dominates: is at least as good in every score and better in one. Their order is kept."""
    return [trial for trial in trials if not any(_dominates(other.scores, trial.scores) for other in trials)]


def pareto_ranks(scores: Sequence[Scores]) -> list[int]:
    """Which front each is on: 0 are those that none dominates, 1 those that only these dominate, and so on."""
    ranks, left, front = [0] * len(scores), set(range(len(scores))), 0
    while left:
        best = {one for one in left if not any(_dominates(scores[other], scores[one]) for other in left)}
        for place in best:
            ranks[place] = front
        left, front = left - best, front + 1
    return ranks


def _dominates(one: Scores, other: Scores) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))

"""Samplers of Optuna (MIT) as controls, which know neither budgets nor what a point costs."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rules2ranks.search.searcher import Searcher
from rules2ranks.search.space import Point, Space
from rules2ranks.search.trials import Proposal, Trial

# Optuna takes a second to import, which only who uses it should pay.
if TYPE_CHECKING:
    import optuna

#: The search is over when so many points in a row were measured already.
STALE = 200


class Optuna(Searcher):
    """Up to `limit` points as a sampler of Optuna asks for them; known ones count.

    A point that does not fill the budget is moved to the nearest that does, and the sampler is told that one's scores.
    So it is, at no cost, of points that were measured already. The first point is random search's: only its scores
    say how many there are. One point is asked for at a time.
    """

    several = True

    @abstractmethod
    def sampler(self) -> optuna.samplers.BaseSampler:
        """The sampler, from the seed."""

    def begin(self, space: Space, limit: int, seed: int) -> Self:
        begun = super().begin(space, limit, seed)
        begun._study, begun._asked = None, None
        return begun

    def ask(self) -> list[Proposal]:
        if len(self.trials) >= self.limit:
            return []
        if self._study is None:
            return [Proposal(self.fresh(1, ())[0], proposer=self.name)]
        known = {trial.point: trial.scores for trial in self.trials}
        for _ in range(STALE):
            asked, point = self._asked or self._sample()
            if point not in known:
                self._asked = asked, point
                return [Proposal(point, proposer=self.name)]
            self._study.tell(asked, known[point])
        return []

    def tell(self, trial: Trial) -> None:
        if trial.fidelity != 1:
            return
        if self._study is None:
            self._study = self._started(len(trial.scores))
        elif trial.proposer == self.name:
            # Known from an interrupted search: asking brings the sampler to where it was.
            self.ask()
        super().tell(trial)
        if self._asked is not None and self._asked[1] == trial.point:
            asked, self._asked = self._asked[0], None
        else:
            self._study.enqueue_trial({str(knob): trial.point[knob] for knob in self.space.searched})
            asked, _ = self._sample()
        self._study.tell(asked, trial.scores)

    def _started(self, scores: int) -> optuna.Study:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return optuna.create_study(sampler=self.sampler(), directions=["minimize"] * scores)

    def _sample(self) -> tuple[optuna.Trial, Point]:
        """A trial of Optuna, and the point that is measured for it."""
        from optuna.distributions import IntDistribution

        options = {knob: len(self.space.knobs[knob].options) for knob in self.space.searched}
        asked = self._study.ask({str(knob): IntDistribution(0, n - 1) for knob, n in options.items()})
        point = tuple(asked.params.get(str(knob), 0) for knob in range(len(self.space.knobs)))
        return asked, point if self.space.fills(point) else self.space.nearest(point)


@dataclass
class TPE(Optuna, name="TPE"):
    """The tree-structured Parzen estimator (Bergstra et al., 2011), after `startup` random points."""

    startup: int = 10

    def sampler(self) -> optuna.samplers.BaseSampler:
        from optuna.samplers import TPESampler

        return TPESampler(seed=self.seed, n_startup_trials=self.startup)


@dataclass
class NSGA2(Optuna, name="NSGA-II"):
    """The non-dominated sorting genetic algorithm II (Deb et al., 2002); the first `population` points are random."""

    population: int = 10

    def sampler(self) -> optuna.samplers.BaseSampler:
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(seed=self.seed, population_size=self.population)


@dataclass
class GP(Optuna, name="GP"):
    """Bayesian optimisation with a Gaussian process, after `startup` random points: the largest gain expected in the
    score, or in the hyper-volume of several. It takes half a second and more a point.
    """

    startup: int = 10

    def sampler(self) -> optuna.samplers.BaseSampler:
        from optuna.samplers import GPSampler

        return GPSampler(seed=self.seed, n_startup_trials=self.startup)

"""AutoQRA (arXiv 2602.22268): bits and ranks together, by an evolution of several fidelities and a trust region."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Self

import numpy as np

from rules2ranks.search import evolution
from rules2ranks.search.controls import draw, neighbours
from rules2ranks.search.evolution import Axes
from rules2ranks.search.models import features, largest_features
from rules2ranks.search.scripted import Phase, Scripted
from rules2ranks.search.searchers.rank_adaptor import PerformanceModel
from rules2ranks.search.space import Floats, Point, Space, generator
from rules2ranks.search.trials import Scores, Trial, pareto

#: Trials in full that a surrogate is fitted to, at least.
ENOUGH = 4


@dataclass
class AutoQRA(Scripted, name="AutoQRA"):
    """`limit` counts trainings: a trial at a fidelity of 0.25 is a quarter of one, and its promotion the rest.

    1. *Importances*, measured at the low fidelity: from the cheapest point, what more bits and what more rank bring in
       each knob alone. They shape the first population and the mutations.
    2. *Evolution* (NSGA-II) at the low fidelity; of every generation, `promoted` go on to the end of the schedule. A
       surrogate, an MLP of options and low score, says which. Children are repaired exactly into the budget, so none
       has to be dominated for being outside. It ends with its share of the limit, or sooner: when for `patience`
       generations the hypervolume of what was measured in full has grown by less than `growth`, and a trust region
       is to come.
    3. *Trust region*: a Gaussian process (Matérn 5/2, scikit-learn's) of what was measured in full; each time the
       neighbour of the front with the largest expected improvement on what takes no more of the other scores.

    Each of these can be switched off. Of two scores the second must be known without measuring, as bytes are: the first
    is what is modelled.
    """

    importances: bool = True
    fidelities: bool = True
    surrogate: bool = True
    trust_region: bool = True
    population: int = 8
    promoted: int = 2
    low: float = 0.25
    evolution_share: float = 0.7
    patience: int = 2
    growth: float = 0.01

    several = True

    def __post_init__(self) -> None:
        if not 0 < self.low < 1 or not 0 < self.evolution_share <= 1:
            raise ValueError(f"low and evolution_share must be shares, got {self.low} and {self.evolution_share}")
        if not 2 <= self.promoted <= self.population:
            raise ValueError(f"of a population of {self.population}, 2 or more must be promoted: got {self.promoted}")

    @property
    def least(self) -> int:
        return self.population

    def begin(self, space: Space, limit: int, seed: int) -> Self:
        begun = super().begin(space, limit, seed)
        begun._axes, begun._randomness = Axes(space), generator(seed, 2)
        begun._worst = None
        begun._check_limit()
        return begun

    def _check_limit(self) -> None:
        """Refuse a limit that importances and the first generation use up, so that nothing would be trained in full."""
        base, first = self._cheapest(), self._first_fidelity
        raised = [self._raised(base, knob, axis) for knob in self.space.searched for axis in range(2)]
        before = self.low * (1 + sum(point != base for point in raised)) if self.importances else 0.0
        needed = math.ceil(before + self.population * first + (1 - first))
        if self.limit < needed:
            raise ValueError(
                f"{self.name} needs a limit of {needed} or more to train anything in full, got {self.limit}: "
                f"{before:g} go into the importances of {len(self.space.searched)} knobs (importances=False: none)"
            )

    def tell(self, trial: Trial) -> None:
        if len(trial.scores) > 2:
            raise ValueError(f"{self.name} takes one or two scores, got {len(trial.scores)}")
        super().tell(trial)

    def _phases(self) -> Phase:
        importances = np.ones((len(self.space.knobs), 2))
        if self.importances:
            yield from self._measure_importances(importances)
        yield from self._evolve(importances)
        if self.trust_region:
            yield from self._search_locally()

    # --- what is measured ---------------------------------------------------------------------------------------

    def _in_full(self) -> list[Trial]:
        return [Trial(point, known[1.0]) for point, known in self._all.items() if 1.0 in known]

    @property
    def _first_fidelity(self) -> float:
        return self.low if self.fidelities else 1.0

    # --- importances --------------------------------------------------------------------------------------------

    def _measure_importances(self, importances: Floats) -> Phase:
        """Write, into `importances` (knobs, 2), what more bits and more rank bring of the first score, at most."""
        base = self._cheapest()
        raised = {(knob, axis): self._raised(base, knob, axis) for knob in self.space.searched for axis in range(2)}
        yield from self._measured(dict.fromkeys([base, *raised.values()]), self.low, "importance")
        start = self._score(base, self.low)
        for (knob, axis), point in raised.items():
            if point != base and start is not None:
                found = self._score(point, self.low)
                importances[knob, axis] = max(start[0] - found[0], 0.0) if found else 0.0
        scale = importances[list(self.space.searched)].max()
        importances[:] = importances / scale if scale else 1.0
        np.maximum(importances, 0.05, out=importances)  # nothing is left out for good by one measurement

    def _cheapest(self) -> Point:
        """The fewest bits, and the lowest rank that trains at all where that fits."""
        cheapest = tuple(int(np.argmin([cost[0] for cost in rows])) for rows in self.space.costs)
        wanted = self._axes.of(cheapest)
        for knob in self.space.searched:
            if self.space.knobs[knob].options[cheapest[knob]].rank == 0:
                wanted[knob, 1] += 1
        trains = tuple(
            int(((rows - at) ** 2).sum(1).argmin()) for rows, at in zip(self._axes.places, wanted, strict=True)
        )
        return trains if self.space.contains(trains) else cheapest

    def _raised(self, base: Point, knob: int, axis: int) -> Point:
        """The point with one knob as high on one axis as the budget lets it."""
        rows, at = self._axes.places[knob], self._axes.places[knob][base[knob]]
        same = np.flatnonzero(rows[:, 1 - axis] == at[1 - axis])
        for place in sorted(same.tolist(), key=lambda place: -rows[place, axis]):
            point = (*base[:knob], place, *base[knob + 1 :])
            if self.space.contains(point):
                return point
        return base

    # --- evolution ----------------------------------------------------------------------------------------------

    def _evolve(self, importances: Floats) -> Phase:
        end = self.evolution_share * self.limit if self.trust_region else self.limit
        members = self._founders(importances)
        volumes: list[float] = []
        while members:
            yield from self._generation(members)
            scored = [point for point in members if self._score(point, self._first_fidelity)]
            volumes.append(self._volume())
            if self._spent >= end or len(scored) < 2 or (self.trust_region and self._settled(volumes)):
                return
            kept = evolution.selected([self._score(p, self._first_fidelity) for p in scored], self.population)
            parents = [scored[place] for place in kept]
            members = [*parents, *self._children(parents, importances)]

    def _founders(self, importances: Floats) -> list[Point]:
        """The first population: important knobs high, and some at random; where nothing is known, all at random."""
        drawn = draw(self.space, self.population, self._randomness)
        if not self.importances:
            return drawn
        found: dict[Point, None] = {}
        for noise in np.linspace(0, 1, self.population - self.population // 4):
            weights = importances * np.exp(noise * self._randomness.standard_normal(importances.shape))
            tops = np.array([rows.max(0) for rows in self._axes.places])
            wanted = tops * weights / weights.max(0)
            found[self._axes.repair(np.rint(wanted).astype(int))] = None
        return list(dict.fromkeys([*found, *drawn]))[: self.population]

    def _children(self, parents: list[Point], importances: Floats) -> list[Point]:
        known, found = set(self._all), {}
        for _ in range(20 * self.population):
            one, other = (parents[int(self._randomness.integers(len(parents)))] for _ in range(2))
            child = evolution.crossed(self._axes, one, other, self._randomness)
            child = evolution.mutated(self._axes, child, importances, self._randomness)
            if child not in known:
                found[child] = None
            if len(found) == self.population:
                break
        return list(found)

    def _generation(self, members: list[Point]) -> Phase:
        """Measure the members at the first fidelity, and those that promise most in full."""
        yield from self._measured(dict.fromkeys(members), self._first_fidelity, "evolution")
        if not self.fidelities:
            return
        waiting = [point for point in members if self._score(point, self.low) and 1.0 not in self._all[point]]
        promise = self._promises(waiting)
        objectives = [(value, *self._score(p, self.low)[1:]) for p, value in zip(waiting, promise, strict=True)]
        chosen = evolution.selected(objectives, self.promoted) if waiting else []
        yield from self._measured({waiting[place]: promise[place] for place in chosen}, 1.0, "promoted")

    def _promises(self, points: list[Point]) -> list[float]:
        """The first score in full, as the surrogate sees it, or at the low fidelity, where there is none."""
        low = np.array([self._score(point, self.low)[0] for point in points])
        pairs = [(p, known) for p, known in self._all.items() if 1.0 in known and self.low in known]
        if not self.surrogate or len(pairs) < ENOUGH or not points:
            return low.tolist()
        before = np.array([known[self.low][0] for _, known in pairs])
        gain = np.array([known[1.0][0] for _, known in pairs]) - before
        start, spread = min(before.min(), low.min()), np.ptp([*before, *low]) or 1.0

        def inputs(some: list[Point], scores: Floats) -> Floats:
            return np.column_stack([features(self.space, some) / self._scale, (scores - start) / spread])

        # Beside the options stands the low score; what is learnt is how much the rest of the schedule brings.
        model = PerformanceModel(1.0).fit(
            inputs([p for p, _ in pairs], before), gain, int(self._randomness.integers(2**31))
        )
        return (low + model.predict(inputs(points, low))).tolist()

    @property
    def _scale(self) -> Floats:
        largest = largest_features(self.space)
        return np.where(largest, largest, 1.0)

    def _volume(self) -> float:
        """What is dominated by all that was measured in full, of the box up to its worst scores."""
        full = [trial.scores for trial in self._in_full()]
        return evolution.hypervolume(full, self._reference(full)) if full else 0.0

    def _reference(self, full: list[Scores]) -> Scores:
        """A tenth beyond the worst scores of the first generation in full: fixed, so that volumes compare."""
        if self._worst is None:
            worst = [max(column) for column in zip(*full, strict=True)]
            self._worst = tuple(value + 0.1 * abs(value) for value in worst)
        return self._worst

    def _settled(self, volumes: list[float]) -> bool:
        if len(volumes) <= self.patience or not volumes[-1 - self.patience]:
            return False
        return volumes[-1] / volumes[-1 - self.patience] - 1 < self.growth

    # --- trust region -------------------------------------------------------------------------------------------

    def _search_locally(self) -> Phase:
        while self._left() >= 1:
            full = self._in_full()
            if len(full) < 2:
                return
            front = [trial.point for trial in pareto(full)]
            near = [p for point in front for p in neighbours(self.space, point, 64, self._randomness)]
            near = [point for point in dict.fromkeys(near) if 1.0 not in self._all.get(point, {})]
            if not near:
                return
            best, predicted = self._most_promising(full, near)
            yield from self._measured({best: predicted}, 1.0, "trust region")

    def _most_promising(self, full: list[Trial], near: list[Point]) -> tuple[Point, float]:
        """The neighbour with the largest expected improvement of the first score, and what that score should be."""
        from scipy.stats import norm
        from sklearn.gaussian_process import GaussianProcessRegressor, kernels

        def inputs(points: list[Point]) -> Floats:
            return np.log1p(features(self.space, points)) / np.log1p(self._scale)

        target = np.array([trial.scores[0] for trial in full])
        kernel = kernels.ConstantKernel() * kernels.Matern(nu=2.5) + kernels.WhiteKernel(0.01)
        process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=self.seed)
        with warnings.catch_warnings():  # of lengths at their bounds, where little is known
            warnings.simplefilter("ignore")
            process.fit(inputs([trial.point for trial in full]), target)
        mean, spread = process.predict(inputs(near), return_std=True)
        beaten = np.array([self._best_within(full, target, self.space.used(point)[0]) for point in near])
        gain, spread = beaten - mean, np.maximum(spread, 1e-12)
        expected = gain * norm.cdf(gain / spread) + spread * norm.pdf(gain / spread)
        place = int(expected.argmax())
        return near[place], float(mean[place])

    def _best_within(self, full: list[Trial], target: Floats, used: int) -> float:
        """The lowest first score that is known; where a front is asked for, of those that use no more."""
        if len(full[0].scores) == 1:
            return float(target.min())
        cheaper = [value for trial, value in zip(full, target, strict=True) if self.space.used(trial.point)[0] <= used]
        return float(min(cheaper, default=target.max()))

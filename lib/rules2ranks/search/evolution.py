"""What evolves a population of points: who dominates whom, crossover, mutation with importances in view, repair."""

from collections.abc import Sequence

import numpy as np

from rules2ranks.search.space import Floats, Integers, Point, Space
from rules2ranks.search.trials import Scores, pareto_ranks

#: How much more often an important knob is changed (AutoQRA, arXiv 2602.22268: Pr ∝ I^1.5).
SHARPNESS = 1.5


class Axes:
    """The options of each knob by their place among its widths of bits and among its ranks."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.places: list[Integers] = []
        for knob in space.knobs:
            columns = np.array([(option.bits, option.rank) for option in knob.options])
            self.places.append(np.column_stack([np.unique(column, return_inverse=True)[1] for column in columns.T]))

    def of(self, point: Point) -> Integers:
        """The places (knobs, 2) of a point."""
        return np.array([rows[place] for rows, place in zip(self.places, point, strict=True)])

    def repair(self, wanted: Integers) -> Point:
        """The point that fills the budget and is nearest to places on both axes, (knobs, 2): squared distances summed.

        Exact, where the budget is (`Space.best`): what is within it already stays as it is.
        """
        distances = [((rows - at) ** 2).sum(1) for rows, at in zip(self.places, wanted, strict=True)]
        point = tuple(int(row.argmin()) for row in distances)
        return point if self.space.fills(point) else self.space.best([-row for row in distances])


def mutated(axes: Axes, point: Point, importances: Floats, randomness: np.random.Generator) -> Point:
    """A point with some knobs changed, repaired. importances (knobs, 2), of bits and of ranks, say which.

    A knob is drawn by the sum of its importances, and then, with equal chance, either both its bits and its rank move a
    step, one up and the other down, or one of the two (drawn by importance) moves up. The repair takes from others.
    """
    wanted = axes.of(point)
    searched = list(axes.space.searched)
    weights = importances[searched] ** SHARPNESS
    for _ in range(1 + int(randomness.integers(2))):
        chosen = int(randomness.choice(len(searched), p=weights.sum(1) / weights.sum()))
        knob, step = searched[chosen], int(randomness.choice([-1, 1]))
        if randomness.random() < 0.5:
            wanted[knob] += (step, -step)
        else:
            wanted[knob, int(randomness.choice(2, p=weights[chosen] / weights[chosen].sum()))] += 1
    return axes.repair(wanted)


def crossed(axes: Axes, one: Point, other: Point, randomness: np.random.Generator) -> Point:
    """A point that has each knob from one of two, with equal chance, repaired."""
    take = randomness.random(len(one)) < 0.5
    return axes.repair(axes.of(tuple(np.where(take, one, other).tolist())))


def selected(scores: Sequence[Scores], n: int) -> list[int]:
    """The places of the best n: by non-dominated fronts, within a front by crowding distance (Deb et al., 2002)."""
    fronts, distances = pareto_ranks(scores), crowding(scores)
    return sorted(range(len(scores)), key=lambda place: (fronts[place], -distances[place], scores[place]))[:n]


def crowding(scores: Sequence[Scores]) -> Floats:
    """How far apart the neighbours of each lie within its own front, summed over the scores; infinite at the ends."""
    table, fronts = np.array(scores, dtype=np.float64), np.array(pareto_ranks(scores))
    found = np.zeros(len(table))
    for front in np.unique(fronts):
        own = np.flatnonzero(fronts == front)
        for column in table[own].T:
            order = own[np.argsort(column, kind="stable")]
            found[order[[0, -1]]] = np.inf
            if len(order) > 2 and np.ptp(column):
                ordered = np.sort(column)
                found[order[1:-1]] += (ordered[2:] - ordered[:-2]) / np.ptp(column)
    return found


def hypervolume(scores: Sequence[Scores], reference: Scores) -> float:
    """What one or two low scores dominate of the box below a reference: a length or an area.

    Raises:
        ValueError: more than two scores.
    """
    inside = sorted({each for each in scores if all(x < r for x, r in zip(each, reference, strict=True))})
    if len(reference) > 2:
        raise ValueError(f"the hypervolume of one or two scores is known here, got {len(reference)}")
    if len(reference) == 1:
        return reference[0] - inside[0][0] if inside else 0.0
    volume, height = 0.0, reference[1]
    for x, y in inside:
        if y < height:
            volume += (reference[0] - x) * (height - y)
            height = y
    return volume

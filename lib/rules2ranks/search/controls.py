"""Points of a space that need no measurement: random, neighbours, and closed forms for ranks."""

from collections.abc import Sequence

import numpy as np

from rules2ranks.search.space import Floats, Integers, Point, Space, generator


def random(space: Space, n: int, seed: int) -> list[Point]:
    """n distinct points, drawn uniformly from all that fill the budget; the first of them do not depend on n.

    Ways to spend the budget are counted, not listed. Raises ValueError where fewer than n distinct ones are found.
    """
    found = draw(space, n, generator(seed))
    if len(found) < n:
        raise ValueError(f"only {len(found)} distinct points fill the budget, {n} were asked for")
    return found


def draw(space: Space, n: int, randomness: np.random.Generator) -> list[Point]:
    """Up to n distinct points as `random` draws them; fewer where 200 blocks of 64 in a row bring nothing new."""
    found: dict[Point, None] = {}
    stale = 0
    while len(found) < n and stale < 200:
        before = len(found)
        found |= dict.fromkeys(space.sample(64, randomness))
        stale = stale + 1 if len(found) == before else 0
    return list(found)[:n]


def neighbours(space: Space, point: Point, n: int, randomness: np.random.Generator) -> list[Point]:
    """Up to n distinct points that fill the budget and differ from `point` in one or two knobs."""
    tries = 64 * n
    sizes = np.array([len(knob.options) for knob in space.knobs])
    pair = np.array(space.searched)[randomness.integers(0, len(space.searched), (tries, 2))]
    places = randomness.integers(0, sizes.max(), (tries, 2))
    moved = np.tile(point, (tries, 1))
    moved[np.arange(tries)[:, None], pair] = places
    # A knob with fewer options than the others may have been given a place that it does not have.
    moved = moved[(places < sizes[pair]).all(axis=1) & (moved != point).any(axis=1)]
    return list(dict.fromkeys(map(tuple, moved[space.filling(moved)].tolist())))[:n]


def by_importance(space: Space, importance: Sequence[float]) -> Point:
    """Ranks in proportion to the importance of the knobs, the nearest such point that fills the budget.

    The closed form of CFSP (coarse-to-fine structured pruning, recovery ranks by block importance). `importance` has
    one entry >= 0 per knob (those of fixed knobs are not used); nearest by squared distance weighted with the cost.

    Raises:
        ValueError: importance not finite, negative or all zero; a space that is not one of ranks.
    """
    weights = np.asarray(importance, dtype=np.float64)[list(space.searched)]
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise ValueError(f"importance must be finite, not negative and not all zero, got {weights.tolist()}")
    cost = _cost_per_rank(space)
    wanted = weights * space.budgets[0] / (cost @ weights)
    values: list[Floats] = [np.zeros(len(knob.options)) for knob in space.knobs]
    for knob, each, rank in zip(space.searched, cost, wanted, strict=True):
        values[knob] = -each * (np.array([option.rank for option in space.knobs[knob].options]) - rank) ** 2
    return space.best(values)


def ends_high(space: Space) -> Point:
    """Three times as much rank at both ends of the searched knobs as in the middle, linear between."""
    return by_importance(space, 0.5 + _distance_from_middle(space))


def middle_high(space: Space) -> Point:
    """Three times as much rank in the middle of the searched knobs as at both ends, linear between."""
    return by_importance(space, 1.5 - _distance_from_middle(space))


def _cost_per_rank(space: Space) -> Integers:
    """What a unit of rank costs of the first budget, for each searched knob."""
    found = []
    for knob in space.searched:
        options, costs = space.knobs[knob].options, [row[0] for row in space.costs[knob]]
        largest = max(option.rank for option in options)
        each = max(costs) // max(largest, 1)
        if len({option[:2] for option in options}) > 1 or [each * option.rank for option in options] != costs:
            raise ValueError(f"only ranks in proportion to their costs have a closed form, knob {knob} has {options}")
        found.append(each)
    return np.array(found)


def _distance_from_middle(space: Space) -> Floats:
    """0 in the middle of the searched knobs, 1 at their ends, one entry per knob."""
    first, last = space.searched[0], space.searched[-1]
    place = (np.arange(len(space.knobs)) - first) / max(last - first, 1)
    return np.abs(2 * place.clip(0, 1) - 1)

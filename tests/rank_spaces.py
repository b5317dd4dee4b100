"""Small spaces of ranks that the tests of searches share, and all that is in them."""

import itertools

import numpy as np

from rules2ranks.search import rank_space


def of_ranks(cost, mean_rank, *args, **options):
    """A space of ranks whose units are one matrix each."""
    return rank_space([[f"m{unit}"] for unit in range(len(cost))], cost, mean_rank, *args, **options)


def ranks(space, point):
    """The rank vector of a point."""
    return tuple(option.rank for option in space.options(point))


def philox(seed):
    return np.random.Generator(np.random.Philox(seed))


EIGHT = of_ranks((1000, 700, 712, 640, 820, 700, 690, 1000), 2, fixed={0: 2, 7: 2})
TINY = of_ranks((3, 4, 5), 4)


def every_point(space):
    """All points that fill the budget, by looking at every one."""
    everything = itertools.product(*(range(len(knob.options)) for knob in space.knobs))
    return [point for point in everything if space.fills(point)]

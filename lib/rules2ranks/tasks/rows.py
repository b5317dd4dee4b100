"""Rows of automata: what pretraining learns from, and how well rows can be predicted at all."""

import math
from typing import Literal

import numpy as np
from scipy import stats

from rules2ranks import automata

NEAR = 10  # cells that `crop_floor` looks at: twice the largest k of the paper

#: A rule, or rows of fair coin flips: the control in which nothing can be learnt.
Source = int | Literal["coin"]


def rows_of(source: Source, batch: int, width: int, rows: int, *, ring: int, every: int, seed: int) -> np.ndarray:
    """Windows of automata, `(batch, rows + 1, width)` uint8: a crop of a ring, not periodic, or the whole ring.

    Each window comes from a ring of its own with a random start and begins at a random time below 1000, the same for
    the whole batch. 64 automata evolve at the cost of one. ValueError for a crop wider than the ring.
    """
    if width > ring:
        raise ValueError(f"a crop of {width} cells does not fit on a ring of {ring}")
    if source == "coin":
        return automata.random_states((batch, rows + 1), width, seed=seed)
    states = automata.random_states(batch, ring, seed=seed)
    late = int(np.random.Generator(np.random.Philox(seed + 1)).integers(0, 1000 - rows))
    words = automata.simulate(source, states, rows, burn_in=late, every=every, packed="batch")
    # Rings have no edge: the first cells are as good a crop as any.
    return automata.unpack(words[:, :width], "batch", batch)


def crop_floor(
    source: Source, width: int, *, ring: int = 1000, every: int = 1, flip: float = 0.0, seed: int = 0
) -> float:
    """Nats per cell that a prediction from the last row alone cannot do without, on crops `width` wide.

    A cell closer to an edge than `every` depends on cells out of sight; the entropy that it keeps, given the ten cells
    of the crop nearest to that edge, is counted over a million places on rings at times below 1000. All other cells are
    determined, and on a whole ring (`width` = `ring`) all are. Coins cost ln 2. A network that looks back on more rows
    may know more of what is out of sight, and so get a little below. The count is some 5e-4 nats per edge cell too low.
    Where each cell to predict is turned over with the chance `flip`, none is determined.

    ValueError for `every` above 5, where ten cells no longer hold all that counts, or crops narrower than ten cells.
    """
    if source == "coin":
        return math.log(2)
    sure = float(stats.entropy([flip, 1 - flip]))
    if width == ring:
        return sure
    if not 1 <= every <= 5 or width < NEAR:
        raise ValueError(f"the floor is for every from 1 to 5 and crops of at least {NEAR} cells; got {every}, {width}")
    lost = 0.0
    times = np.linspace(0, 999, 40, dtype=int)  # rules like 110 grow calmer all the while
    begins = automata.random_states((len(times), max(1, 25_000 // ring)), ring, seed=seed)
    runs = [automata.simulate(source, begin, t, last=True) for begin, t in zip(begins, times.tolist(), strict=True)]
    now = np.concatenate(runs)
    after = automata.simulate(source, now, every, last=True)
    for here, later in ((now, after), (now[:, ::-1], after[:, ::-1])):  # the left edge, and the right one mirrored
        near = sum(np.roll(here, -place, axis=1).astype(np.int64) << place for place in range(NEAR))
        for place in range(every):
            codes = 2 * near + np.roll(later, -place, axis=1)
            counts = np.bincount(codes.ravel(), minlength=2 ** (NEAR + 1)).reshape(-1, 2)
            counts = (1 - flip) * counts + flip * counts[:, ::-1]
            lost += float(stats.entropy(counts.ravel()) - stats.entropy(counts.sum(axis=1)))
    return (lost + max(0, width - 2 * every) * sure) / width

"""Shannon's entropies of a run, in bits: of blocks, of a cell given its past or its neighbours, and in common.

A run is ``(T, W)`` zeros and ones, time downwards. All are plain estimates from counts; blocks and pairs do not wrap
round the edge.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rules2ranks.automata.rules import integer
from rules2ranks.complexity.patterns import one_run

BLOCK = 5  # 32 counts, few enough for the 1000 or so blocks of the published runs
_LONGEST_BLOCK = 20  # 2**20 counts; a longer block would need far more cells than any run here has


def block_entropy(bits: ArrayLike, length: int, *, axis: int = -1) -> float:
    """Shannon entropy, in bits, of the blocks of ``length`` neighbouring cells: from 0 (constant) to ``length``.

    ``axis=-1`` takes blocks in space, ``axis=-2`` in time; a string ``(n,)`` has the one axis. With length 1 it is
    the entropy of the cells. For m blocks, many more than 2**length, it lies about
    (2**length - 1) / (1.4 m) bits too low on random cells.

    Source: C. E. Shannon, A mathematical theory of communication (1948), section 7. Cost: linear.
    Raises ValueError for a length outside 1 to 20 or longer than the axis, no such axis, a batch of runs, or values
    other than 0 and 1.
    """
    return _entropy(_block_counts(bits, length, axis))


def entropy_rate(bits: ArrayLike, length: int = BLOCK, *, axis: int = -1) -> float:
    """Entropy of a cell, in bits, given the ``length - 1`` cells before it: from 0 (determined) to 1 (random).

    The conditional entropy H(length) - H(length - 1), both over the same blocks. It comes down to the entropy rate as
    the length grows, as long as there are many more blocks than the 2**length that could occur; with fewer it goes on
    down to 0, for nothing is seen twice. ``axis=-1`` looks along a row, ``axis=-2`` back in time at the same cell.
    Source, cost and errors: as `block_entropy`.
    """
    counts = _block_counts(bits, length, axis)
    return max(0.0, _entropy(counts) - _entropy(counts.reshape(-1, 2).sum(axis=1)))


def mutual_information(bits: ArrayLike, distance: int = 1, *, axis: int = -1) -> float:
    """What a cell tells of the cell ``distance`` further on, in bits: from 0 to 1.

    I = H(a) + H(b) - H(a, b) over all pairs at that distance, in space (``axis=-1``) or in time (``axis=-2``).
    Constant cells have nothing to tell: 0. Random ones give about 1 / (1.4 m) for m pairs, alternating ones 1.

    Source: W. Li, Mutual information functions versus correlation functions, J. Stat. Phys. 60, 823 (1990); for
    automata C. G. Langton, Computation at the edge of chaos, Physica D 42, 12 (1990). Cost: linear.
    Raises ValueError for a distance below 1 or not shorter than the axis; otherwise as `block_entropy`.
    """
    cells = _along(bits, axis)
    distance = integer("distance on this axis", distance, 1, cells.shape[-1] - 1)
    pairs = np.bincount((2 * cells[..., :-distance] + cells[..., distance:]).ravel(), minlength=4).reshape(2, 2)
    return max(0.0, _entropy(pairs.sum(axis=0)) + _entropy(pairs.sum(axis=1)) - _entropy(pairs))


def _block_counts(bits: ArrayLike, length: int, axis: int) -> NDArray[np.int64]:
    """How often each of the 2**length blocks occurs along the axis; the last cell is the lowest bit."""
    cells = _along(bits, axis)
    length = integer(f"block length on an axis of {cells.shape[-1]}", length, 1, min(_LONGEST_BLOCK, cells.shape[-1]))
    blocks = cells.shape[-1] - length + 1
    codes = np.zeros((*cells.shape[:-1], blocks), np.int32)
    for offset in range(length):
        codes = 2 * codes + cells[..., offset : offset + blocks]
    return np.bincount(codes.ravel(), minlength=2**length)


def _along(bits: ArrayLike, axis: int) -> NDArray[np.uint8]:
    cells = one_run(bits)
    return np.moveaxis(cells, integer(f"axis of cells of shape {cells.shape}", axis, -cells.ndim, cells.ndim - 1), -1)


def _entropy(counts: NDArray[np.int64]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum() + 0.0)

"""Complexity of a recorded run as a pattern: LZ76 phrases, compression, fractal dimension.

A run is ``(T, W)`` zeros and ones, time downwards; what reads one string takes it row after row.
"""

from __future__ import annotations

import zlib
from math import log2

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from rules2ranks import automata


def lz76(bits: ArrayLike) -> int:
    """Number of phrases in the Lempel-Ziv (1976) parsing of a string ``(n,)``, or of a run ``(T, W)`` row after row.

    Each phrase is the shortest string that has not occurred before, where "before" may overlap the phrase itself up
    to its last symbol; what is left at the end counts as one phrase. For n cells the number lies between 1 and about
    n / log2(n): it is 2 for constant cells (n >= 2), and near the upper end for random ones.

    Source: A. Lempel and J. Ziv, On the complexity of finite sequences, IEEE Trans. Inf. Theory 22, 75 (1976); the
    count is that of F. Kaspar and H. G. Schuster, Phys. Rev. A 36, 842 (1987). Cost: linear in the number of cells,
    about 32 bytes of memory each (a suffix automaton that grows with the string).

    Raises ValueError for no cells, more than two axes, or values other than 0 and 1.
    """
    return int(_lz76(one_run(bits).ravel()))


def lz76_normalised(bits: ArrayLike) -> float:
    """LZ76 phrases times log2(n) / n, for n cells: 1 in the limit of random cells, 0 in that of constant ones.

    Random runs come down to 1 slowly from above. Source, cost and errors: as `lz76`; at least two cells.
    """
    cells = one_run(bits)
    if cells.size < 2:
        raise ValueError("the normalised LZ76 needs at least 2 cells; got 1")
    return lz76(cells) * log2(cells.size) / cells.size


def compression(bits: ArrayLike) -> float:
    """Bits per cell that zlib at level 9 needs for a string ``(n,)`` or a run ``(T, W)`` row after row.

    The cells are packed eight to a byte first, so that the compressor does not spend its strength on undoing bytes.
    From near 0 (many constant cells) to a little over 1 (many random ones): zlib's frame of 11 bytes counts, which is
    0.08 bits per cell for 11 x 100 cells, and most of what a few cells cost. Other builds of zlib may differ by a byte
    or two. Cost: about linear.

    Source: J.-L. Gailly and M. Adler's zlib (DEFLATE, RFC 1951); H. Zenil, Compression-based investigation of the
    dynamical properties of cellular automata, Complex Systems 19, 1 (2010). Errors: as `lz76`.
    """
    cells = one_run(bits)
    return 8 * len(zlib.compress(np.packbits(cells).tobytes(), 9)) / cells.size


def fractal_dimension(run: ArrayLike) -> float:
    """Box-counting dimension of the 1s in a run ``(T, W)``: from 0 (a point, or no 1 at all) to 2 (the plane).

    The slope of log N(s) against log(1 / s), where N(s) boxes of s x s cells hold a 1; s = 1, 2, 4, ... up to half
    of the shorter side. The boxes fill a multiple of the largest one, and the counts are means over the four corners
    that they can begin in, so that mirroring changes nothing and no cell is left out. Constant 1 gives 2, constant 0
    gives 0, a line 1. Random cells give less than 2 (1.5 for 11 x 100 cells, 1.85 for 200 x 100), since the smallest
    boxes miss many of them. Exchanging 0 and 1 changes it: `table` takes the mean of both. Cost: linear.

    Source: B. B. Mandelbrot, The fractal geometry of nature (1982); for automata S. J. Willson, Cellular automata can
    generate fractals, Discrete Appl. Math. 8, 91 (1984).
    Raises ValueError unless the run has two axes, each of at least 4 cells, or for values other than 0 and 1.
    """
    cells = one_run(run)
    if cells.ndim != 2 or min(cells.shape) < 4:
        raise ValueError(f"box counting needs a run (T, W) of at least 4 x 4 cells; got shape {cells.shape}")
    largest = 2 ** ((min(cells.shape) // 2).bit_length() - 1)
    high, wide = (side - side % largest for side in cells.shape)
    sizes = largest.bit_length()
    counts = np.zeros(sizes)
    for corner in (cells, cells[::-1], cells[:, ::-1], cells[::-1, ::-1]):
        boxes = corner[:high, :wide]
        counts[0] += np.count_nonzero(boxes)
        for size in range(1, sizes):
            halves = boxes[::2] | boxes[1::2]
            boxes = halves[:, ::2] | halves[:, 1::2]
            counts[size] += np.count_nonzero(boxes)
    if not counts[0]:
        return 0.0
    return float(-np.polyfit(np.arange(sizes), np.log2(counts / 4), 1)[0] + 0.0)


def one_run(bits: ArrayLike) -> NDArray[np.uint8]:
    """Checked cells of one string or run; ValueError for a batch of them, which would be read as one string."""
    cells = automata.as_bits(bits)
    if cells.ndim > 2:
        raise ValueError(f"expected one string (n,) or one run (T, W); got shape {cells.shape}: take them one by one")
    if cells.size == 0:
        raise ValueError(f"expected at least one cell; got shape {cells.shape}")
    return cells


@njit(cache=True)
def _lz76(bits):  # pragma: no cover - compiled
    """Phrases by a suffix automaton of everything read so far, grown one symbol at a time.

    A state stands for a set of substrings; ``longest`` is the length of its longest one and ``link`` leads to the
    state of the longest suffix that is not in the set. While the current phrase can be followed from the root, it has
    occurred before.
    """
    states = 2 * len(bits) + 1
    follow = np.full((states, 2), -1, np.int32)
    link = np.full(states, -1, np.int32)
    longest = np.zeros(states, np.int32)
    used, last = 1, 0  # state 0 is the root, the empty string
    phrases, place, length = 0, 0, 0  # the phrase so far is the string of this length in the state at ``place``
    for symbol in bits:
        place = follow[place, symbol]
        length += 1
        if place < 0:
            phrases += 1
            place, length = 0, 0

        new = used
        used += 1
        longest[new] = longest[last] + 1
        walk = last
        while walk >= 0 and follow[walk, symbol] < 0:
            follow[walk, symbol] = new
            walk = link[walk]
        last = new
        if walk < 0:
            link[new] = 0
            continue
        found = follow[walk, symbol]
        if longest[walk] + 1 == longest[found]:
            link[new] = found
            continue
        clone = used
        used += 1
        longest[clone] = longest[walk] + 1
        follow[clone] = follow[found]
        link[clone] = link[found]
        link[found] = link[new] = clone
        while walk >= 0 and follow[walk, symbol] == found:
            follow[walk, symbol] = clone
            walk = link[walk]
        if place == found and length <= longest[clone]:  # the phrase's string has moved to the clone
            place = clone
    return phrases + (length > 0)

"""How complex a binary run is: LZ76 phrases, compression, block entropies, and the Wolfram class of every rule.

A run is ``(T, W)`` zeros and ones, time downwards; a measure that reads one string takes it row after row.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from functools import cache
from math import log2

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import ArrayLike, NDArray

from rules2ranks import automata, published

#: The measures of `table`, in its column order; each comes with a second column ``<measure>_sd``.
MEASURES = ("lz76", "lz76_normalised", "compression", "entropy", "entropy_rate", "entropy_rate_time")

_BLOCK = 5  # 32 counts, few enough for the 1000 or so blocks of the published runs
_LONGEST_BLOCK = 20  # 2**20 counts; a longer block would need far more cells than any run here has


def lz76(bits: ArrayLike) -> int:
    """Number of phrases in the Lempel-Ziv (1976) parsing of the cells, read row after row.

    Each phrase is the shortest string that has not occurred before, where "before" may overlap the phrase itself up
    to its last symbol; what is left at the end counts as one phrase. For n cells the number lies between 1 and about
    n / log2(n) (random cells), and is 2 for a constant string of two cells or more.

    Source: A. Lempel and J. Ziv, On the complexity of finite sequences, IEEE Trans. Inf. Theory 22, 75 (1976); the
    count is that of F. Kaspar and H. G. Schuster, Phys. Rev. A 36, 842 (1987). Cost: linear in the number of cells,
    about 32 bytes of memory each (a suffix automaton that grows with the string).

    Raises ValueError for no cells, or values other than 0 and 1.
    """
    return int(_lz76(automata.as_bits(bits).ravel()))


def lz76_normalised(bits: ArrayLike) -> float:
    """LZ76 phrases times log2(n) / n, for n cells: 1 in the limit of random cells, 0 in that of constant ones.

    Random runs come down to 1 slowly from above. Source: as `lz76`. Raises ValueError for fewer than two cells.
    """
    cells = automata.as_bits(bits)
    if cells.size < 2:
        raise ValueError("the normalised LZ76 needs at least 2 cells; got 1")
    return lz76(cells) * log2(cells.size) / cells.size


def compression(bits: ArrayLike) -> float:
    """Bits per cell after zlib at level 9, of the cells read row after row and packed eight to a byte.

    From near 0 (constant) to a little over 1 (random): zlib's frame of 11 bytes counts, which is 0.08 bits per cell
    for 100 x 11 cells. Other builds of zlib may differ by a byte or two.
    Raises ValueError for no cells, or values other than 0 and 1.
    """
    cells = automata.as_bits(bits)
    return 8 * len(zlib.compress(np.packbits(cells).tobytes(), 9)) / cells.size


def block_entropy(bits: ArrayLike, length: int, *, axis: int = -1) -> float:
    """Shannon entropy, in bits, of the blocks of ``length`` neighbouring cells: from 0 to ``length``.

    Blocks overlap and do not wrap round the edge. ``axis=-1`` takes them in space, ``axis=-2`` in time. The plain
    estimate from counts: for m blocks it lies about 2**length / (1.4 m) bits too low on random cells.

    Source: C. E. Shannon, A mathematical theory of communication (1948), section 7.
    Raises ValueError for a length outside 1 to 20 or longer than the axis, or values other than 0 and 1.
    """
    return _entropy(_block_counts(bits, length, axis))


def entropy_rate(bits: ArrayLike, length: int = _BLOCK, *, axis: int = -1) -> float:
    """Entropy of a cell, in bits, given the ``length - 1`` cells before it: from 0 (determined) to 1 (random).

    The conditional entropy H(length) - H(length - 1), both over the same blocks; it falls to the entropy rate as the
    length grows. ``axis=-1`` looks along a row, ``axis=-2`` back in time at the same cell.
    Source and errors: as `block_entropy`.
    """
    counts = _block_counts(bits, length, axis)
    return max(0.0, _entropy(counts) - _entropy(counts.reshape(-1, 2).sum(axis=1)))


@cache
def _wolfram_table() -> pd.DataFrame:
    return pd.read_csv(published.data_folder() / "wolfram_classes.csv", index_col="rule")


def wolfram_classes() -> pd.DataFrame:
    """The Wolfram class of all 256 rules: index ``rule``, columns ``representative``, ``class``, ``disputed``.

    ``class`` is 1 (uniform), 2 (periodic), 3 (chaotic) or 4 (complex); ``disputed`` marks rules that other authors
    class otherwise. Source: G. J. Martinez, A note on elementary cellular automata classification,
    arXiv 1306.5577 (2013).
    """
    return _wolfram_table().copy()


def wolfram_class(rule: int) -> int:
    """Wolfram class of a rule, 1 to 4 (`wolfram_classes`). ValueError for a rule outside 0 to 255."""
    return int(_wolfram_table()["class"].loc[automata.representative(rule)])


def table(
    rules: Iterable[int] = range(256),
    *,
    width: int = 100,
    rows: int = 11,
    burn_in: int = 0,
    seeds: Iterable[int] = range(20),
) -> pd.DataFrame:
    """Every measure of every rule, as mean and standard deviation over random starts.

    Each run is ``(rows, width)`` cells of a ring, recorded after ``burn_in`` updates from a random state of density
    one half; seed s gives every rule the same start. The defaults are the runs that the published complexities of
    "Intelligence at the Edge of Chaos" fit best.

    Returns one line per rule (index ``rule``): ``wolfram_class``, ``langton_lambda``, then each of `MEASURES` and
    its sample standard deviation ``<measure>_sd`` (NaN for a single seed). ``lz76`` is in phrases, the others in bits
    per cell; ``entropy`` is that of single cells, ``entropy_rate`` and ``entropy_rate_time`` take blocks of 5.

    Raises ValueError for no rules or no seeds, fewer than 5 rows or cells, or what `automata.simulate` refuses.
    """
    rules, seeds = list(rules), list(seeds)
    if not rules or not seeds:
        raise ValueError(f"expected at least one rule and one seed; got {len(rules)} rules and {len(seeds)} seeds")
    if min(rows, width) < _BLOCK:
        raise ValueError(f"rows and width must be at least {_BLOCK}; got {rows} rows of {width} cells")
    starts = np.stack([automata.random_states((), width, seed=seed) for seed in seeds])
    lines = []
    for rule in rules:
        runs = automata.simulate(rule, starts, rows - 1, burn_in=burn_in)
        values = np.array([_measures(run) for run in runs])
        spread = values.std(axis=0, ddof=1) if len(seeds) > 1 else np.full(len(MEASURES), np.nan)
        line = {"rule": rule, "wolfram_class": wolfram_class(rule), "langton_lambda": automata.langton_lambda(rule)}
        for name, mean, sd in zip(MEASURES, values.mean(axis=0), spread, strict=True):
            line |= {name: mean, f"{name}_sd": sd}
        lines.append(line)
    return pd.DataFrame(lines).set_index("rule")


def _measures(run: NDArray[np.uint8]) -> tuple[float, ...]:
    """The values of `MEASURES` for one run."""
    phrases = lz76(run)
    return (
        phrases,
        phrases * log2(run.size) / run.size,
        compression(run),
        block_entropy(run, 1),
        entropy_rate(run),
        entropy_rate(run, axis=-2),
    )


def _block_counts(bits: ArrayLike, length: int, axis: int) -> NDArray[np.int64]:
    """How often each of the 2**length blocks occurs along the axis; the last cell is the lowest bit."""
    cells = automata.as_bits(bits)
    if not -cells.ndim <= axis < cells.ndim:
        raise ValueError(f"axis {axis} does not exist in cells of shape {cells.shape}")
    cells = np.moveaxis(cells, axis, -1)
    if not 1 <= length <= min(_LONGEST_BLOCK, cells.shape[-1]):
        raise ValueError(
            f"block length must lie between 1 and {_LONGEST_BLOCK} and fit the axis of {cells.shape[-1]} cells; "
            f"got {length!r}"
        )
    blocks = cells.shape[-1] - length + 1
    codes = np.zeros((*cells.shape[:-1], blocks), np.int32)
    for offset in range(length):
        codes = 2 * codes + cells[..., offset : offset + blocks]
    return np.bincount(codes.ravel(), minlength=2**length)


def _entropy(counts: NDArray[np.int64]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum() + 0.0)


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

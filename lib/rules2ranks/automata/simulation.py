"""Evolving states, and packing cells into bits of words."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from numbers import Real
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rules2ranks.automata import kernels
from rules2ranks.automata.kernels import BOUNDARIES, Words
from rules2ranks.automata.rules import Bits, integer

Packing = Literal["batch", "width"]

PACKINGS = ("batch", "width")
_LINE = 64  # bytes of a cache line


def simulate(
    rule: int,
    states: ArrayLike,
    steps: int,
    *,
    boundary: str = "periodic",
    burn_in: int = 0,
    every: int = 1,
    last: bool = False,
    packed: Packing | None = None,
    out: NDArray | None = None,
) -> Bits | Words:
    """Evolve every state of a batch under one rule and return the recorded rows.

    Args:
        rule: Wolfram number, 0 to 255.
        states: ``(..., W)`` zeros and ones, W >= 1; the leading axes are the batch.
        steps: rows recorded after the first one, >= 0.
        boundary: what the cells beyond the edge are: ``periodic`` (a ring), ``fixed0``, ``fixed1``, or ``symmetric``
            (a mirror: each edge cell sees itself, as in NumPy's padding of that name).
        burn_in: updates made before the first recorded row, >= 0.
        every: updates from one recorded row to the next, >= 1.
        last: keep only the last of these rows, and drop the axis T.
        packed: ``None`` for a byte a cell, ``"batch"`` for a bit each of 64 automata in a word, ``"width"`` for 64
            neighbouring cells in a word; `unpack` turns either into bytes. An eighth of the memory for whole words, and
            many times as fast.
        out: where to write the result, C-contiguous and of exactly its shape and dtype; best at a multiple of 64 bytes.

    Returns:
        ``(..., T, W)`` uint8 with T = steps + 1: row ``t`` is the state after ``burn_in + t * every`` updates, so that
        without burn-in row 0 is the given state. Packed, uint64: ``(T, W, ceil(B / 64))`` for B states in all
        (``"batch"``), or ``(..., T, ceil(W / 64))`` (``"width"``). With ``last`` the same without T. It is ``out``, if
        that is given.

    Raises:
        ValueError: an argument outside its range, a boundary or packing that does not exist, states other than 0 and 1,
            an ``out`` that does not fit.
    """
    rule = integer("rule", rule, 0, 255)
    steps = integer("steps", steps, 0)
    burn_in = integer("burn_in", burn_in, 0)
    every = integer("every", every, 1)
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {', '.join(BOUNDARIES)}; got {boundary!r}")
    if packed is not None:
        _check_packing(packed)
    states = as_bits(states)
    *batch, width = states.shape
    states = states.reshape(prod(batch), width)
    if last:
        burn_in, steps, every = burn_in + steps * every, 0, 1
    rows = () if last else (steps + 1,)
    if packed == "batch":
        out = _buffer((*rows, width, _words_for(len(states))), np.uint64, out)
        lanes = out.shape[-1]
    else:
        cells = _words_for(width) if packed else width
        out = _buffer((*batch, *rows, cells), np.uint64 if packed else np.uint8, out)
        # A dense result takes the way with fewer words: 64 automata in each, or 64 cells of one automaton.
        lanes = int(packed is None and _words_for(len(states)) * width <= len(states) * _words_for(width))
    start = kernels.pack_batch(states, lanes) if lanes else pack(states, "width")
    how = kernels.How(kernels.masks(rule), BOUNDARIES.index(boundary), lanes, width)
    result = out.reshape(len(start) if packed else len(states), steps + 1, -1 if out.size else 0)
    kernels.evolve(how, start, result, burn_in, every)
    if packed == "batch" and len(states) % 64:
        out[..., -1] &= np.uint64(2 ** (len(states) % 64) - 1)  # the word's other bits have evolved too
    return out


def pack(states: ArrayLike, packed: Packing) -> Words:
    """Zeros and ones as bits of 64-bit words, the first in the lowest bit; what is left of the last word is 0.

    ``"width"``: ``(..., W)`` becomes ``(..., ceil(W / 64))``. ``"batch"``: ``(B, ..., W)`` becomes
    ``(..., W, ceil(B / 64))``. ValueError for a packing that does not exist, or states other than 0 and 1.
    """
    _check_packing(packed)
    states = as_bits(states)
    if packed == "batch":
        states = np.moveaxis(states, 0, -1)
    padding = [(0, 0)] * (states.ndim - 1) + [(0, -states.shape[-1] % 64)]
    octets = np.packbits(np.pad(states, padding), axis=-1, bitorder="little")
    return np.ascontiguousarray(octets).view("<u8").astype(np.uint64, copy=False)


def unpack(words: Words, packed: Packing, size: int) -> Bits:
    """The inverse of `pack`: uint8 cells, of which ``size`` lie along the packed axis.

    ``"width"``: ``(..., ceil(size / 64))`` becomes ``(..., size)``. ``"batch"``: ``(..., W, ceil(size / 64))``
    becomes ``(size, ..., W)``. ValueError for a packing that does not exist, or words of another shape or dtype.
    """
    _check_packing(packed)
    size = integer("size", size, 0)
    words = np.asarray(words)
    if words.dtype != np.uint64 or words.ndim == 0 or words.shape[-1] != _words_for(size):
        raise ValueError(
            f"{size} packed cells are uint64 words (..., {_words_for(size)}); got {words.dtype} of shape {words.shape}"
        )
    octets = np.ascontiguousarray(words, "<u8").view(np.uint8)
    cells = np.unpackbits(octets, axis=-1, count=size, bitorder="little")
    return np.ascontiguousarray(np.moveaxis(cells, -1, 0)) if packed == "batch" else cells


def random_states(batch: int | Sequence[int], width: int, *, seed: int, density: float = 0.5) -> Bits:
    """Independent random cells, ``(*batch, width)`` uint8, each 1 with probability ``density``.

    ``batch`` is a number of states or a shape (``()`` for a single state). The draws are NumPy's Philox, made in row
    order: a seed means the same cells on every machine, and a larger batch begins with the smaller one.

    Raises ValueError for a negative batch or seed, a width below 1 or a density outside 0 to 1.
    """
    sizes = batch if isinstance(batch, Sequence) else (batch,)
    shape = (*(integer("batch", size, 0) for size in sizes), integer("width", width, 1))
    seed = integer("seed", seed, 0)
    if not isinstance(density, Real) or not 0 <= density <= 1:
        raise ValueError(f"density must lie between 0 and 1; got {density!r}")
    return (np.random.Generator(np.random.Philox(seed)).random(shape) < density).astype(np.uint8)


def single_cell(width: int) -> Bits:
    """``(width,)`` uint8: zeros and one 1, at index ``width // 2``. ValueError for a width below 1."""
    state = np.zeros(integer("width", width, 1), np.uint8)
    state[len(state) // 2] = 1
    return state


def as_bits(values: ArrayLike) -> Bits:
    """The values ``(..., W)`` as contiguous uint8.

    Raises ValueError unless there is at least one axis, the last one is not empty and every value is 0 or 1.
    """
    array = np.asarray(values)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(f"expected cells of shape (..., width) with at least one cell; got shape {array.shape}")
    if array.dtype == np.uint8:
        good = array.size == 0 or array.max() <= 1  # the same in one pass, for what is nearly always given
    else:
        good = ((array == 0) | (array == 1)).all()
    if not good:
        wrong = array[(array != 0) & (array != 1)].flat[0]
        hint = " (packed rows? `unpack` them first)" if array.dtype == np.uint64 else ""
        raise ValueError(f"cells must be 0 or 1; got {wrong.item()!r}{hint}")
    return np.ascontiguousarray(array, np.uint8)


def _words_for(bits: int) -> int:
    return -(-bits // 64)


def _check_packing(packed: Packing) -> None:
    if packed not in PACKINGS:
        raise ValueError(f"packed must be 'batch' or 'width'; got {packed!r}")


def _buffer(shape: tuple[int, ...], dtype: type, out: NDArray | None) -> NDArray:
    """``out`` if it fits, else a new array that begins on a cache line, which the kernels write faster."""
    if out is None:
        size = prod(shape) * np.dtype(dtype).itemsize
        raw = np.empty(size + _LINE, np.uint8)
        offset = -raw.ctypes.data % _LINE
        return raw[offset : offset + size].view(dtype).reshape(shape)
    expected = f"out must be a writeable C-contiguous array of {np.dtype(dtype)} and shape {shape}"
    if not isinstance(out, np.ndarray):
        raise ValueError(f"{expected}; got {type(out).__name__}")
    if out.shape != shape or out.dtype != dtype or not (out.flags.c_contiguous and out.flags.writeable):
        kind = "" if out.flags.c_contiguous else ", not contiguous"
        kind += "" if out.flags.writeable else ", read-only"
        raise ValueError(f"{expected}; got {out.dtype} and shape {out.shape}{kind}")
    return out

"""The compiled part: words of 64 cells, updated by the rule's polynomial.

A row of words is W * lanes of them, where a bit is an automaton and neighbours lie ``lanes`` words apart; or, with
lanes = 0, ceil(W / 64) of them, where a bit is a cell and neighbours are the bits beside it. A run is T such rows.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from rules2ranks.automata.rules import algebraic_normal_form

Words = NDArray[np.uint64]

#: What the cells beyond the edges are: see `simulate`.
BOUNDARIES = ("periodic", "fixed0", "fixed1", "symmetric")
_PERIODIC, _FIXED0, _FIXED1, _SYMMETRIC = range(4)

_BIT = np.uint64(1)
_TOP = np.uint64(63)
_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
_BITS = np.left_shift(1, np.arange(8)).astype(np.uint8)

# Measured on one core with 1 MB of second-level cache; they change the speed and nothing else.
_CACHE = 2**19  # bytes of rows that are made before they are read
_ROWS = 512  # how many rows that should be, at least, before several runs share it
_OCTETS = 2**14  # bytes of eight automata each that are spread before the next ones
_TILE = 512  # words of a wide row that are taken through a few updates before the next ones
_SLOPE = 4  # how many updates that is


class How(NamedTuple):
    """What an update needs to know."""

    masks: tuple[np.uint64, ...]  # `masks`
    boundary: int  # place in BOUNDARIES
    lanes: int  # see above
    width: int  # cells of a row


@cache
def masks(rule: int) -> tuple[np.uint64, ...]:
    """The rule's polynomial, each coefficient all zeros or all ones."""
    return tuple(algebraic_normal_form(rule) * _ONES)


def evolve(how: How, start: Words, result: NDArray, burn_in: int, every: int) -> None:
    """Fill ``result``, packed (runs, T, words) or bytes (B, T, W), from ``start`` (runs, words)."""
    runs, words = start.shape
    length, packed = result.shape[1], result.dtype == np.uint64
    share = 64 if how.lanes and not packed else 1  # rows of bytes that a run has
    together = max(1, _CACHE // (8 * words * _ROWS))
    needed = max(burn_in, every) if packed else max(burn_in, every, length)
    ahead = max(1, min(_CACHE // (8 * words * together), needed))
    for first in range(0, runs, together):
        block = np.empty((min(together, runs - first), ahead + 1, words), np.uint64)
        block[:, 0] = start[first : first + together]
        _advance(how, block, burn_in)
        target = result[share * first : share * (first + together)]
        if packed and every == 1:  # made where they stay
            target[:, 0] = block[:, 0]
            _march(how, target, length - 1)
        else:
            _record(how, block, target, every)


def _record(how: How, block: Words, target: NDArray, every: int) -> None:
    """Fill ``target`` (., T, .) from the first rows of ``block`` on."""
    length = target.shape[1]
    ahead = block.shape[1] - 1 if every == 1 else 1
    for t in range(0, length, ahead):
        count, left = min(ahead, length - t), length - 1 - t
        if every == 1:
            _march(how, block, min(ahead, left))
        if target.dtype == np.uint64:
            target[:, t] = block[:, 0]
        elif how.lanes:
            _spread_batch(block, target, t, count)
        else:
            _spread_width(block, target, t, count)
        if left >= ahead:
            if every == 1:
                block[:, 0] = block[:, ahead]
            else:
                _advance(how, block, every)


def _advance(how: How, block: Words, updates: int) -> None:
    """Put in the first rows of ``block`` what they become after some updates; the other rows are overwritten."""
    while updates > 0:
        made = min(updates, block.shape[1] - 1)
        _march(how, block, made)
        block[:, 0] = block[:, made]
        updates -= made


def _march(how: How, rows: Words, updates: int) -> None:
    """Fill as many of ``rows`` (runs, T, words) after the first, each from the one before."""
    if how.lanes and how.boundary == _PERIODIC and how.width > 1:
        _march_rings(how.masks, how.lanes, rows, updates)
    elif how.lanes:
        _march_batch(how.masks, how.boundary, how.lanes, rows, updates)
    else:
        _march_width(how.masks, how.boundary, how.width, rows, updates)


@njit(cache=True)
def pack_batch(states, lanes):  # pragma: no cover - compiled
    """``(runs, W * lanes)`` words of the states ``(B, W)``: 64 automata a word, ``lanes`` words a cell."""
    batch, width = states.shape
    runs = -(-batch // (64 * lanes))
    words = np.empty((runs, width, lanes), np.uint64)
    for run in range(runs):
        for lane in range(lanes):
            word = np.zeros(width, np.uint64)
            begin = 64 * (run * lanes + lane)
            for b in range(begin, min(begin + 64, batch)):
                state, place = states[b], np.uint64(b - begin)
                for x in range(width):
                    word[x] |= np.uint64(state[x]) << place
            words[run, :, lane] = word
    return words.reshape(runs, width * lanes)


@njit(cache=True)
def _spread_batch(block, rows, t, count):  # pragma: no cover - compiled
    """Bits to bytes: the first rows of ``block`` (runs, >= count, W) to ``rows[:, t : t + count]`` (B, count, W)."""
    octets = np.empty(min(_OCTETS, count * block.shape[2]), np.uint8)
    for first in range(0, len(rows), 8):  # eight automata of a word at a time, so that what follows works on bytes
        words, shift = block[first // 64, :count].reshape(-1), np.uint64(first % 64)
        for begin in range(0, len(words), len(octets)):
            part = words[begin : begin + len(octets)]
            for x in range(len(part)):
                octets[x] = np.uint8(part[x] >> shift)
            for b in range(first, min(first + 8, len(rows))):
                bit = _BITS[b % 8]  # looked up: of 1 << b the compiler makes shifts, four times as slow
                cells = rows[b, t : t + count].reshape(-1)[begin : begin + len(octets)]
                for x in range(len(cells)):
                    cells[x] = (octets[x] & bit) != 0


@njit(cache=True)
def _spread_width(block, rows, t, count):  # pragma: no cover - compiled
    """Bits to bytes: the first rows of ``block`` (B, >= count, words) to ``rows[:, t : t + count]`` (B, count, W)."""
    for b in range(len(rows)):
        for i in range(count):
            words, cells = block[b, i], rows[b, t + i]
            whole = len(cells) // 64
            for k in range(whole):
                word, part = words[k], cells[64 * k : 64 * k + 64]
                for x in range(64):
                    part[x] = (word >> np.uint64(x)) & _BIT
            for x in range(64 * whole, len(cells)):
                cells[x] = (words[whole] >> np.uint64(x % 64)) & _BIT


@njit(inline="always")
def _polynomial(a, left, centre, right):  # pragma: no cover - compiled
    """The rule on words, from its masks: seven ternary instructions where the processor has them."""
    without_left = a[0] ^ (a[1] & right) ^ (centre & (a[2] ^ (a[3] & right)))
    with_left = a[4] ^ (a[5] & right) ^ (centre & (a[6] ^ (a[7] & right)))
    return without_left ^ (left & with_left)


@njit(inline="always")
def _apply(a, left, centre, right, new):  # pragma: no cover - compiled
    for i in range(len(new)):
        new[i] = _polynomial(a, left[i], centre[i], right[i])


@njit(cache=True)
def _march_rings(a, lanes, rows, updates):  # pragma: no cover - compiled
    """`_march` where neighbours lie ``lanes`` words apart, on rings of two cells or more: a tenth faster by itself."""
    end = rows.shape[2] - lanes  # the last cell begins here
    for run in range(len(rows)):
        for t in range(updates):
            now, new = rows[run, t], rows[run, t + 1]
            _apply(a, now[: end - lanes], now[lanes:end], now[2 * lanes :], new[lanes:end])
            _apply(a, now[end:], now[:lanes], now[lanes : 2 * lanes], new[:lanes])
            _apply(a, now[end - lanes : end], now[end:], now[:lanes], new[end:])


@njit(cache=True)
def _march_batch(a, boundary, lanes, rows, updates):  # pragma: no cover - compiled
    """`_march` where neighbours lie ``lanes`` words apart, for any boundary and width."""
    end = rows.shape[2] - lanes
    beyond = np.full(lanes, _ONES if boundary == _FIXED1 else np.uint64(0))
    for run in range(len(rows)):
        for t in range(updates):
            now, new = rows[run, t], rows[run, t + 1]
            first, last = now[:lanes], now[end:]
            if boundary == _PERIODIC:
                before, after = last, first
            elif boundary == _SYMMETRIC:
                before, after = first, last
            else:
                before, after = beyond, beyond
            if end:
                _apply(a, now[: end - lanes], now[lanes:end], now[2 * lanes :], new[lanes:end])
            _apply(a, before, first, now[lanes : 2 * lanes] if end else after, new[:lanes])
            _apply(a, now[end - lanes : end] if end else before, last, after, new[end:])


@njit(cache=True)
def _march_width(a, boundary, width, rows, updates):  # pragma: no cover - compiled
    """`_march` where neighbours are the bits beside each other; the cell further left is the lower bit.

    A wide row does not fit the fastest cache, so it is cut into tiles, and each tile makes a few rows before the next
    one begins: a word further left in every row, so that what it needs of the row before is there. What the slope
    leaves at both ends comes last.
    """
    words = rows.shape[2]
    steep = 1 if words < 2 * _TILE else _SLOPE
    for run in range(len(rows)):
        for known in range(0, updates, steep):
            count = min(steep, updates - known)
            for begin in range(0, words if words > 2 else 0, _TILE):
                for s in range(1, count + 1):
                    low = max(s, begin - s)
                    high = words - s if begin + _TILE >= words else begin + _TILE - s
                    _march_words(a, rows[run, known + s - 1], rows[run, known + s], low, high)
            for s in range(1, count + 1):
                now, new = rows[run, known + s - 1], rows[run, known + s]
                if s > 1:
                    _march_words(a, now, new, 1, s)
                    _march_words(a, now, new, words - s, words - 1)
                _march_ends(a, boundary, width, now, new)


@njit(inline="always")
def _march_words(a, now, new, low, high):  # pragma: no cover - compiled
    """The words from ``low`` to ``high``, neither the first nor the last of the row."""
    lower, middle, upper, target = now[low - 1 : high - 1], now[low:high], now[low + 1 : high + 1], new[low:high]
    for i in range(len(target)):
        left = middle[i] << _BIT | lower[i] >> _TOP
        right = middle[i] >> _BIT | upper[i] << _TOP
        target[i] = _polynomial(a, left, middle[i], right)


@njit(inline="always")
def _march_ends(a, boundary, width, now, new):  # pragma: no cover - compiled
    """The first and the last word, which may be the same."""
    end = len(now) - 1
    place = np.uint64((width - 1) % 64)  # of the last cell in the last word
    first, last = now[0] & _BIT, now[end] >> place & _BIT
    if boundary == _PERIODIC:
        before, after = last, first
    elif boundary == _SYMMETRIC:
        before, after = first, last
    else:
        before = after = np.uint64(boundary == _FIXED1)
    right = now[0] >> _BIT | (now[1] << _TOP if end else after << place)
    new[0] = _polynomial(a, now[0] << _BIT | before, now[0], right)
    if end:
        left = now[end] << _BIT | now[end - 1] >> _TOP
        new[end] = _polynomial(a, left, now[end], now[end] >> _BIT | after << place)
    new[end] &= _ONES >> (_TOP - place)

"""Elementary cellular automata: any rule, many states at once, and which rules are the same rule in disguise.

Conventions, everywhere in this package: Wolfram numbering (bit ``4 * left + 2 * centre + right`` of the rule is the
new cell), rows are ``(..., T, W)`` uint8 with the initial row counted in T, time runs downwards, the boundary is
periodic unless said.

Sources: S. Wolfram, Statistical mechanics of cellular automata, Rev. Mod. Phys. 55, 601 (1983), for the numbering and
the equivalences; C. G. Langton, Computation at the edge of chaos, Physica D 42, 12 (1990), for lambda.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

Bits = NDArray[np.uint8]

BOUNDARIES = ("periodic", "fixed0", "fixed1", "symmetric")
_PERIODIC, _FIXED0, _FIXED1 = range(3)
_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)


def simulate(
    rule: int, states: ArrayLike, steps: int, *, boundary: str = "periodic", burn_in: int = 0, every: int = 1
) -> Bits:
    """Evolve every state of a batch under one rule and return all recorded rows.

    Parameters
    ----------
    rule: Wolfram number, 0 to 255.
    states: ``(..., W)`` zeros and ones, W >= 1; the leading axes are the batch.
    steps: rows recorded after the first one, >= 0.
    boundary: what the cells beyond the edge are: ``periodic`` (a ring), ``fixed0``, ``fixed1``, or ``symmetric``
        (each edge cell sees itself, as in NumPy's padding of that name).
    burn_in: updates made before the first recorded row, >= 0.
    every: updates from one recorded row to the next, >= 1.

    Returns
    -------
    ``(..., steps + 1, W)`` uint8: row ``t`` is the state after ``burn_in + t * every`` updates, so that without
    burn-in row 0 is the given state.

    Raises
    ------
    ValueError: an argument outside its range, a boundary that does not exist, states other than 0 and 1.
    """
    rule = _integer("rule", rule, 0, 255)
    steps = _integer("steps", steps, 0)
    burn_in = _integer("burn_in", burn_in, 0)
    every = _integer("every", every, 1)
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {', '.join(BOUNDARIES)}; got {boundary!r}")
    states = as_bits(states)
    batch, width = states.shape[:-1], states.shape[-1]
    rows = np.empty((int(np.prod(batch, dtype=np.int64)), steps + 1, width), np.uint8)
    coefficients = algebraic_normal_form(rule) * _ONES
    _evolve(coefficients, states.reshape(-1, width), rows, BOUNDARIES.index(boundary), burn_in, every)
    return rows.reshape(*batch, steps + 1, width)


def random_states(batch: int | Sequence[int], width: int, *, seed: int, density: float = 0.5) -> Bits:
    """Independent random cells, ``(*batch, width)`` uint8, each 1 with probability ``density``.

    ``batch`` is a number of states or a shape (``()`` for a single state). The draws are NumPy's Philox, made in row
    order: a seed means the same cells on every machine, and a larger batch begins with the smaller one.

    Raises ValueError for a negative batch or seed, a width below 1 or a density outside 0 to 1.
    """
    sizes = batch if isinstance(batch, Sequence) else (batch,)
    shape = (*(_integer("batch", size, 0) for size in sizes), _integer("width", width, 1))
    seed = _integer("seed", seed, 0)
    if not 0 <= density <= 1:
        raise ValueError(f"density must lie between 0 and 1; got {density!r}")
    return (np.random.Generator(np.random.Philox(seed)).random(shape) < density).astype(np.uint8)


def single_cell(width: int) -> Bits:
    """``(width,)`` uint8: zeros and one 1, at index ``width // 2``. ValueError for a width below 1."""
    state = np.zeros(_integer("width", width, 1), np.uint8)
    state[len(state) // 2] = 1
    return state


def as_bits(values: ArrayLike) -> Bits:
    """The values ``(..., W)`` as contiguous uint8.

    Raises ValueError unless there is at least one axis, the last one is not empty and every value is 0 or 1.
    """
    array = np.asarray(values)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(f"expected cells of shape (..., width) with at least one cell; got shape {array.shape}")
    wrong = (array != 0) & (array != 1)
    if wrong.any():
        raise ValueError(f"cells must be 0 or 1; got {array[wrong].flat[0]}")
    return np.ascontiguousarray(array, np.uint8)


def rule_table(rule: int) -> Bits:
    """``(8,)`` uint8: the new cell for the neighbourhoods 000, 001, 010, ..., 111, **000 first**.

    Index ``4 * left + 2 * centre + right``. (Wolfram's drawings show the same eight, 111 first.)
    ValueError for a rule outside 0 to 255.
    """
    return (_integer("rule", rule, 0, 255) >> np.arange(8) & 1).astype(np.uint8)


def algebraic_normal_form(rule: int) -> Bits:
    """``(8,)`` uint8: the coefficients of the rule as a polynomial over the field of two elements.

    Coefficient ``4 * i + 2 * j + k`` belongs to ``left**i * centre**j * right**k``; sums are exclusive or. A rule is
    additive when only coefficients 1, 2 and 4 occur. ValueError for a rule outside 0 to 255.
    """
    coefficients = rule_table(rule).reshape(2, 2, 2)
    for _ in range(3):  # the Moebius transform, one variable after the other; three turns of the axes restore them
        coefficients = np.stack([coefficients[0], coefficients[0] ^ coefficients[1]], axis=-1)
    return coefficients.reshape(8)


def langton_lambda(rule: int) -> float:
    """Langton's lambda: the share of the eight neighbourhoods that give a 1, from 0 to 1 in eighths.

    The quiescent state is 0. ValueError for a rule outside 0 to 255.
    """
    return _integer("rule", rule, 0, 255).bit_count() / 8


def equivalents(rule: int) -> dict[str, int]:
    """The rules that do the same with left and right exchanged, with 0 and 1 exchanged, or with both.

    Keys ``mirror``, ``complement`` and ``both``; a rule may be its own equivalent.
    ValueError for a rule outside 0 to 255.
    """
    table = rule_table(rule)
    mirrored = table.reshape(2, 2, 2).transpose(2, 1, 0).reshape(8)
    # Exchanging 0 and 1 complements the result and sends neighbourhood n to 7 - n.
    tables = {"mirror": mirrored, "complement": 1 - table[::-1], "both": 1 - mirrored[::-1]}
    return {name: int(np.packbits(bits, bitorder="little")[0]) for name, bits in tables.items()}


def representative(rule: int) -> int:
    """The smallest rule number among a rule and its equivalents. ValueError for a rule outside 0 to 255."""
    return min(rule, *equivalents(rule).values())


def representatives() -> tuple[int, ...]:
    """The 88 rules, in rising order, that are the smallest of their equivalence class."""
    return tuple(rule for rule in range(256) if representative(rule) == rule)


def _integer(name: str, value: int, low: int, high: int | None = None) -> int:
    expected = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be {expected}; got {value!r}") from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} must be {expected}; got {number}")
    return number


@njit(cache=True)
def _evolve(coefficients, states, rows, boundary, burn_in, every):  # pragma: no cover - compiled
    """Fill ``rows`` (B, T, W) from ``states`` (B, W), 64 automata at a time, one in each bit of a word."""
    batch, length, width = rows.shape
    now = np.zeros(width + 2, np.uint64)  # a ghost cell at each end stands for what lies beyond the edge
    new = np.zeros(width + 2, np.uint64)
    for first in range(0, batch, 64):
        count = min(64, batch - first)
        now[:] = 0
        for b in range(count):
            for x in range(width):
                now[x + 1] |= np.uint64(states[first + b, x]) << np.uint64(b)
        for t in range(length):
            for _ in range(burn_in if t == 0 else every):
                _update(coefficients, now, new, boundary)
                now, new = new, now
            for b in range(count):
                for x in range(width):
                    rows[first + b, t, x] = (now[x + 1] >> np.uint64(b)) & np.uint64(1)


@njit(cache=True)
def _update(a, now, new, boundary):  # pragma: no cover - compiled
    """One update of every word: the rule's polynomial, each coefficient ``a`` all zeros or all ones."""
    last = len(now) - 2
    if boundary == _PERIODIC:
        now[0], now[last + 1] = now[last], now[1]
    elif boundary == _FIXED0:
        now[0], now[last + 1] = np.uint64(0), np.uint64(0)
    elif boundary == _FIXED1:
        now[0], now[last + 1] = _ONES, _ONES
    else:
        now[0], now[last + 1] = now[1], now[last]
    for x in range(1, last + 1):
        left, centre, right = now[x - 1], now[x], now[x + 1]
        without_left = a[0] ^ (a[1] & right) ^ (centre & (a[2] ^ (a[3] & right)))
        with_left = a[4] ^ (a[5] & right) ^ (centre & (a[6] ^ (a[7] & right)))
        new[x] = without_left ^ (left & with_left)

"""Columns of automata: a few neighbouring cells of many rules, from which a network can tell the rule."""

import functools

import numpy as np

from rules2ranks import automata

#: Cells of the rings that columns are cut from.
RING = 64


@functools.cache
def _tables() -> np.ndarray:
    return np.array([automata.rule_table(rule) for rule in range(256)])


def columns_of(rules: np.ndarray, rows: int, horizon: int, *, seed: int) -> np.ndarray:
    """A column for each of the rules `(B,)`: `(B, rows + horizon, 2 · horizon + 1)` uint8.

    Each is cut from a ring of its own, which begins with fair coin flips; row 0 is that beginning. The `2k + 1` cells
    of a row determine the middle one k rows later. Equal draws for equal seeds.

    Raises ValueError for fewer than one row, or a horizon whose cells the ring does not hold.
    """
    width = 2 * horizon + 1
    if rows < 1 or horizon < 1 or width > RING:
        raise ValueError(f"a column needs at least one row and a horizon from 1 to {(RING - 1) // 2}")
    state = automata.random_states(len(rules), RING, seed=seed)
    table, own = _tables()[np.asarray(rules)], np.arange(len(rules))[:, None]
    column = np.empty((len(rules), rows + horizon, width), np.uint8)
    for t in range(rows + horizon):
        column[:, t] = state[:, :width]  # rings have no edge: the first cells are as good as any
        state = table[own, 4 * np.roll(state, 1, 1) + 2 * state + np.roll(state, -1, 1)]
    return column


def ahead(columns: np.ndarray, horizon: int) -> np.ndarray:
    """The middle cells 1 … `horizon` rows later, `(B, rows, horizon)`, of what `columns_of` gives."""
    middle, rows = columns[..., horizon], columns.shape[1] - horizon
    return np.stack([middle[:, k : rows + k] for k in range(1, horizon + 1)], -1)


def neighbourhoods(columns: np.ndarray, horizon: int, reach: int = 1) -> np.ndarray:
    """The middle cell of each row with `reach` cells on both sides, as a binary number: `(B, rows)`."""
    cells = columns[:, : columns.shape[1] - horizon, horizon - reach : horizon + reach + 1].astype(np.int64)
    return cells @ (1 << np.arange(2 * reach, -1, -1))


def seen(columns: np.ndarray, horizon: int) -> np.ndarray:
    """Whether a row's cells stood in an earlier row, at least `horizon` before, so that what follows is known.

    `(B, rows, horizon)` bool: for the cell k rows later, the 2k + 1 cells that determine it, at least k rows before.
    """
    rows = columns.shape[1] - horizon
    known = []
    for k in range(1, horizon + 1):
        code = neighbourhoods(columns, horizon, k)
        same = code[:, :, None] == code[:, None, :]
        known.append((same & np.tri(rows, k=-k, dtype=bool)).any(-1))
    return np.stack(known, -1)

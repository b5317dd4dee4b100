"""Which random draws belong to training and which to validation."""

from collections.abc import Callable

import numpy as np

SPLITS = ("train", "validation")
HELD_OUT = 0.2
"""Share of what can be drawn that only validation draws: the published 80/20."""


def generator(seed: int, split: str) -> np.random.Generator:
    """The generator of one seed and split: different splits have different Philox keys, so they never share a draw.

    Raises:
        ValueError: the split is unknown or the seed is not in 0 … 2**64 - 1.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in 0 … 2**64 - 1, got {seed}")
    return np.random.Generator(np.random.Philox(key=np.array([seed, SPLITS.index(split)], dtype=np.uint64)))


def held_out(rows: np.ndarray) -> np.ndarray:
    """Which rows (n, k) of integers ≥ 0 belong to validation: about `HELD_OUT` of them, the same in every run.

    The row decides by a hash of its own (the finaliser of SplitMix64, Steele, Lea and Flood 2014), so nothing needs to
    be listed and no seed of a run has a part in it.
    """
    state = np.zeros(len(rows), dtype=np.uint64)
    for column in rows.T.astype(np.uint64):
        state = state + column + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state < np.uint64(round(HELD_OUT * 2**64))


def draw(n: int, rng: np.random.Generator, split: str, propose: Callable[[int], np.ndarray]) -> np.ndarray:
    """The first `n` of the proposed rows that belong to the split, (n, k); `propose(m)` draws m rows from `rng`.

    Raises:
        ValueError: for n < 1.
    """
    if n < 1:
        raise ValueError(f"a batch needs at least one sequence, got n={n}")
    share = HELD_OUT if split == "validation" else 1 - HELD_OUT
    rows = propose(0)
    while len(rows) < n:
        proposed = propose(int(1.2 * (n - len(rows)) / share) + 8)
        rows = np.concatenate([rows, proposed[held_out(proposed) == (split == "validation")]])
    return rows[:n]

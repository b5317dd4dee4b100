"""A rule as a Boolean function of its neighbourhood: how far from linear, how sensitive, how many cells it needs.

All but `linear_loss`, which counts neighbourhoods as they occur in a run, take every neighbourhood once, and are the
same for a rule and its equivalents by mirror and by complement.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from rules2ranks.automata.rules import integer, rule_table
from rules2ranks.complexity.patterns import one_run

#: Nats within which `linear_loss` finds its lowest value.
CLOSE = 1e-6


def linear_loss(rule: int, run: ArrayLike, k: int = 1) -> float:
    """Loss, in nats per cell, of the best logistic regression of a cell on the 2k + 1 cells around it, k steps before.

    From 0 (every cell is a threshold of a weighted sum of these) to ln 2 (no sum tells anything, as of a parity of
    random cells). Neighbourhoods count as often as they occur in the run ``(T, W)``, a ring; what follows is up to the
    rule. The infimum, to 1e-6, where weights may grow without end.

    ValueError for a rule outside 0 to 255, k outside 1 to 6 or not below T, a batch of runs, or other values than 0
    and 1.
    """
    cells = one_run(run)
    if cells.ndim != 2:
        raise ValueError(f"expected a run (T, W), got cells of shape {cells.shape}")
    k = integer(f"k for a run of {len(cells)} rows", k, 1, min(6, len(cells) - 1))
    codes = sum(np.roll(cells[:-k].astype(np.int64), place, axis=1) << place + k for place in range(-k, k + 1))
    counts = np.bincount(codes.ravel(), minlength=2 ** (2 * k + 1))
    seen = np.flatnonzero(counts)
    inputs = np.concatenate([2.0 * _inputs(k)[seen] - 1.0, np.ones((len(seen), 1))], axis=1)
    shares, signs = counts[seen] / counts.sum(), 1.0 - 2.0 * _after(rule, k)[seen]

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = signs * (inputs @ weights)
        slope = shares * signs / (1 + np.exp(-np.clip(margins, -500, 500)))
        return float(shares @ np.logaddexp(0, margins)), inputs.T @ slope

    found = minimize(loss, np.zeros(inputs.shape[1]), jac=True, method="BFGS", options={"gtol": CLOSE / 10})
    return 0.0 if found.fun < CLOSE else float(found.fun)


def nonlinearity(rule: int) -> int:
    """Entries of the rule's table to change before it is affine, a sum modulo 2 with or without 1 added: 0, 1 or 2.

    From the largest coefficient of the Walsh spectrum: W. Meier and O. Staffelbach, Nonlinearity criteria for
    cryptographic functions, Eurocrypt 1989. ValueError for a rule outside 0 to 255.
    """
    return int(8 - np.abs(walsh_spectrum(rule)).max()) // 2


def walsh_spectrum(rule: int) -> NDArray[np.int64]:
    """``(8,)``: the sum over neighbourhoods x of (-1) to the power of f(x) + s·x, for each choice s of cells.

    Index as in `automata.rule_table`; entry 0 belongs to no cell. ValueError for a rule outside 0 to 255.
    """
    cells = _inputs(1).astype(np.int64)
    return (1 - 2 * (cells @ cells.T % 2)) @ (1 - 2 * rule_table(rule).astype(np.int64))


def average_sensitivity(rule: int) -> float:
    """How many of the three cells change the new cell when they alone are flipped, on average: 0 to 3.

    Source: I. Shmulevich and S. A. Kauffman, Activities and sensitivities in Boolean network models, Phys. Rev. Lett.
    93, 048701 (2004). ValueError for a rule outside 0 to 255.
    """
    table = rule_table(rule)
    return float(sum((table != table[np.arange(8) ^ flip]).mean() for flip in (1, 2, 4)))


def canalisation(rule: int) -> float:
    """The share of the six pairs of a cell and a value of it that decide the new cell alone: 0 to 1.

    Source: S. A. Kauffman, The origins of order (1993), chapter 5. ValueError for a rule outside 0 to 255.
    """
    table, cells = rule_table(rule), _inputs(1)
    decided = [len(set(table[cells[:, cell] == value])) == 1 for cell in range(3) for value in (0, 1)]
    return sum(decided) / len(decided)


def effective_connectivity(rule: int) -> float:
    """How many cells have to be looked at, on average over neighbourhoods, when as many as can be are left out: 0 to 3.

    Of a neighbourhood as many cells are left out as the largest set of neighbourhoods has free, which contains it, is
    written with fixed and free cells, and has one result. Source: M. Marques-Pita and L. M. Rocha, Canalization and
    control in automata networks, PLoS ONE 8, e55946 (2013). ValueError for a rule outside 0 to 255.
    """
    table, cells = rule_table(rule), _inputs(1)
    free = np.zeros(8)
    for schema in product((0, 1, None), repeat=3):
        fixed = [place for place, value in enumerate(schema) if value is not None]
        inside = (cells[:, fixed] == [schema[place] for place in fixed]).all(axis=1)
        if len(set(table[inside])) == 1:
            free[inside] = np.maximum(free[inside], schema.count(None))
    return float(3 - free.mean())


def _inputs(k: int) -> NDArray[np.uint8]:
    """All neighbourhoods of 2k + 1 cells, the leftmost cell first and the highest bit."""
    width = 2 * integer("k", k, 1, 6) + 1
    return (np.arange(2**width)[:, None] >> np.arange(width)[::-1] & 1).astype(np.uint8)


def _after(rule: int, k: int) -> NDArray[np.uint8]:
    """The middle cell after k steps, for each neighbourhood."""
    table, cells = rule_table(rule), _inputs(k)
    for _ in range(k):
        cells = table[4 * cells[:, :-2] + 2 * cells[:, 1:-1] + cells[:, 2:]]
    return cells[:, 0]

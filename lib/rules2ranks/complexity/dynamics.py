"""Complexity of a rule as a dynamical system: how differences spread, and how observables grow."""

from __future__ import annotations

from functools import cache
from math import inf, log

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from rules2ranks import automata
from rules2ranks.automata.rules import integer
from rules2ranks.complexity.patterns import one_run


def lyapunov_damage(rule: int, state: ArrayLike, steps: int) -> float:
    """Lyapunov exponent by damage spreading: cells per step by which the region of differences widens, 0 to 2.

    Flip one cell of a ring ``(W,)``, evolve both rings ``steps`` times, and measure from the leftmost to the rightmost
    cell that differs; the mean over all W cells to flip, divided by ``steps``. It is the sum of the left and the right
    exponent, so that a shift counts as standing still: 0 where a difference dies, stays or only moves, 2 where it
    spreads at the speed of light both ways.

    Source: S. Wolfram, Universality and complexity in cellular automata, Physica D 10, 1 (1984), section 4; M. A.
    Shereshevsky, Lyapunov exponents for one-dimensional cellular automata, J. Nonlinear Sci. 2, 1 (1992).
    Cost: W * (W + 1) * steps cell updates.
    Raises ValueError for a rule outside 0 to 255, a state that is not one row, fewer than 1 step, or so many steps
    that differences would meet on the far side of the ring (W must exceed 2 * steps).
    """
    cells = one_run(state)
    width = cells.size
    if cells.ndim != 1:
        raise ValueError(f"expected one row of cells (W,); got shape {cells.shape}")
    if width < 3:
        raise ValueError(f"damage needs a ring of at least 3 cells; got {width}")
    steps = integer(f"steps on a ring of {width} cells", steps, 1, (width - 1) // 2)
    flipped = cells ^ np.eye(width, dtype=np.uint8)
    rows = automata.simulate(rule, np.vstack([cells, flipped]), steps, last=True)
    # Row i, column steps + d: whether the cell d places right of the flipped cell i differs.
    places = (np.arange(width)[:, None] + np.arange(-steps, steps + 1)) % width
    differs = np.take_along_axis(rows[1:] ^ rows[0], places, axis=1)
    spans = 2 * steps - differs.argmax(axis=1) - differs[:, ::-1].argmax(axis=1)
    return float(np.where(differs.any(axis=1), spans, 0).mean() / steps)


def lyapunov_boolean(rule: int, run: ArrayLike) -> float:
    """Maximal Lyapunov exponent by Boolean derivatives, in nats per step: -inf to ln 3.

    Along the run ``(T, W)`` of a ring, a defect at a cell passes to each of the three cells below whose value depends
    on it there (the Boolean derivative is 1), and defects add up without cancelling. The exponent is
    ln(N(T - 1) / N(0)) / (T - 1), with one defect in every cell at first: -inf where all die out, 0 where each is
    handed on once, ln 2 for rule 90 and ln 3 for rule 150 on any run.

    Source: F. Bagnoli, R. Rechtman and S. Ruffo, Damage spreading and Lyapunov exponents in cellular automata,
    Phys. Lett. A 172, 34 (1992). Cost: linear in the cells.
    Raises ValueError for a rule outside 0 to 255, fewer than two rows, or rows that do not follow from each other
    under the rule on a ring.
    """
    rows = one_run(run)
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(f"expected a run (T, W) of at least two rows; got shape {rows.shape}")
    if (automata.simulate(rule, rows[:-1], 1, last=True) != rows[1:]).any():
        raise ValueError(f"the rows are not a run of rule {rule} on a ring, each the update of the one before")
    table = automata.rule_table(rule)
    patterns = np.arange(8)
    passes = np.stack([table ^ table[patterns ^ place] for place in (4, 2, 1)])  # to left, centre and right parent
    return _defect_growth(passes, rows)


def krylov(rule: int, cells: int = 13, steps: int = 26) -> float:
    """Krylov complexity of the rule's Koopman operator on a ring of ``cells``: from 0 to steps / 2.

    The Koopman operator takes an observable g to g after one update, (K g)(x) = g(F(x)); here observables are real
    functions on the 2**cells states up to a constant, with the mean over all states as inner product. The first is
    the number of 1s; Gram-Schmidt on g, K g, K^2 g, ... gives the Krylov basis e_0, e_1, ... . At time t the
    observable lies at sum_k k <e_k, K^t g>^2 / |K^t g|^2; the result is the mean over t = 0 ... steps. It is 0 for
    rules that keep, exchange, shift or erase the number of 1s, and steps / 2 where every update makes an observable
    orthogonal to all before.

    A small ring has arithmetic of its own: the additive rules (60, 90, 105, 150) recur after a time that depends on
    the number of cells, and rule 90 lies anywhere between 1 and 13 for rings of 10 to 16 cells. Chaotic rules that are
    not additive (30, 45) hardly change.

    The papers name Krylov complexity and give no definition that could be followed; this one puts together D. E.
    Parker et al., A universal operator growth hypothesis, Phys. Rev. X 9, 041017 (2019), and K. Taga et al., Koopman
    spectral analysis of elementary cellular automata, Chaos 31, 103121 (2021), whose ring has 13 cells, too. There
    are no random starts: all states of the ring count. Cost: (steps + 1) * 2**cells numbers and their
    orthogonalisation, some 5 ms for 13 cells and 26 steps; results are kept.

    Raises ValueError for a rule outside 0 to 255, cells outside 3 to 20 or fewer than 1 step.
    """
    return _krylov(integer("rule", rule, 0, 255), integer("cells", cells, 3, 20), integer("steps", steps, 1))


@cache
def _krylov(rule: int, cells: int, steps: int) -> float:
    weights = 2 ** np.arange(cells)
    states = (np.arange(2**cells)[:, None] // weights % 2).astype(np.uint8)
    after = automata.simulate(rule, states, 1, last=True) @ weights
    observable = states.sum(axis=1, dtype=float)
    columns = np.empty((2**cells, steps + 1))
    for t in range(steps + 1):
        columns[:, t] = observable - observable.mean()
        observable = observable[after]
    shares = np.linalg.qr(columns, mode="r") ** 2
    norms = shares.sum(axis=0)
    alive = norms > 1e-9 * norms[0]  # an observable that has become constant has no place
    places = np.arange(len(shares)) @ shares / np.where(alive, norms, 1)  # no more than 2**cells directions
    return round(float(np.where(alive, places, 0).mean()), 9)  # rules that are equal but for rounding shall tie


@njit(cache=True)
def _defect_growth(passes, rows):  # pragma: no cover - compiled
    length, width = rows.shape
    now, new = np.ones(width), np.empty(width)
    growth = 0.0
    for t in range(length - 1):
        total = 0.0
        for x in range(width):
            left, right = (x - 1) % width, (x + 1) % width
            pattern = 4 * rows[t, left] + 2 * rows[t, x] + rows[t, right]
            new[x] = passes[0, pattern] * now[left] + passes[1, pattern] * now[x] + passes[2, pattern] * now[right]
            total += new[x]
        if total == 0:
            return -inf
        growth += log(total / width)
        for x in range(width):
            now[x] = new[x] * width / total
    return growth / (length - 1)

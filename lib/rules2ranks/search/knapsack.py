"""One option per knob, with costs that sum into a window: counted, drawn with equal chance, and the best of them.

Costs are counted in cells. Where the table of all sums is small enough, a cell is the common divisor of the costs and
everything is exact. Otherwise a cell is coarser, costs are rounded to the nearest, and the window is widened by what
rounding can hide: no choice is lost, and who draws has to look at the true costs.
"""

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_diag

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Numbers in a table of all sums, at most: 256 MiB.
TABLE = 2**25
#: Cells of a budget that cannot be counted in its common divisor.
COARSE = 100_000
#: Where HiGHS stops: its tree has so many nodes, or what is left to gain is this share of the sum.
NODES, GAP = 1000, 1e-6


class Knapsack:
    """Choices of one option per knob that cost from `low` to `high`.

    costs: per knob the whole numbers (options,) that its options cost.
    """

    def __init__(self, costs: Sequence[Integers], low: int, high: int) -> None:
        unit = max(math.gcd(*np.concatenate(costs).tolist()), 1)
        exact = high // unit <= max(COARSE, TABLE // len(costs))
        unit = unit if exact else -(-high // COARSE)
        steps = [(row + unit // 2) // unit for row in costs]
        errors = [row - step * unit for row, step in zip(costs, steps, strict=True)]
        lost, added = sum(int(error.max()) for error in errors), sum(int(-error.min()) for error in errors)
        self.steps, self.exact = steps, exact
        self.low, self.high = max(-((lost - low) // unit), 0), (high + added) // unit

    @cached_property
    def _ways(self) -> list[Floats]:
        """For each knob, in how many ways it and those behind it cost exactly s cells (up to a factor)."""
        ways = [np.zeros(self.high + 1)]
        ways[0][0] = 1
        for step in self.steps[::-1]:
            here = np.zeros(self.high + 1)
            for shift in step[step <= self.high].tolist():
                here[shift:] += ways[-1][: self.high + 1 - shift]
            # Only proportions matter, and the numbers themselves would overflow for hundreds of knobs.
            ways.append(here / here.max())
        return ways[::-1]

    def draw(self, n: int, randomness: np.random.Generator) -> Integers:
        """The places (n, knobs) of options, each row drawn uniformly from all choices in the window of cells.

        Raises:
            ValueError: no choice is in the window, or too small a share of those below it to be counted.
        """
        totals = self._ways[0][self.low :]
        if not totals.any():
            raise ValueError("too few choices fill the budget to draw from them")
        left = randomness.choice(np.arange(self.low, self.high + 1), n, p=totals / totals.sum())
        chosen = np.empty((n, len(self.steps)), dtype=np.int64)
        for knob, step in enumerate(self.steps):
            behind = left[:, None] - step
            weight = np.where(behind >= 0, self._ways[knob + 1][np.maximum(behind, 0)], 0).cumsum(axis=1)
            picks = (weight <= randomness.random((n, 1)) * weight[:, -1:]).sum(axis=1)
            chosen[:, knob], left = picks, behind[np.arange(n), picks]
        return chosen

    def best(self, values: Sequence[Floats]) -> list[int] | None:
        """The places of the options with the largest sum of `values` in the window of cells, or None: there are none.

        Dynamic programming over knobs and cells; of equal sums the first found, which costs least.
        """
        sums = np.full(self.high + 1, -np.inf)
        sums[0] = 0
        choices = []
        for step, row in zip(self.steps, values, strict=True):
            here = np.full(self.high + 1, -np.inf)
            choice = np.zeros(self.high + 1, dtype=np.min_scalar_type(len(row)))
            for place, (shift, value) in enumerate(zip(step.tolist(), row, strict=True)):
                if shift <= self.high:
                    offer, target = sums[: self.high + 1 - shift] + value, slice(shift, None)
                    choice[target][offer > here[target]] = place
                    np.maximum(here[target], offer, out=here[target])
            sums = here
            choices.append(choice)
        if not np.isfinite(sums[self.low :]).any():
            return None
        used, places = self.low + int(sums[self.low :].argmax()), []
        for step, choice in zip(self.steps[::-1], choices[::-1], strict=True):
            places.append(int(choice[used]))
            used -= int(step[places[-1]])
        return places[::-1]


def solve(costs: Sequence[Integers], values: Sequence[Floats], least: int, budgets: Sequence[int]) -> list[int] | None:
    """The places of the options with the largest sum of `values` under several budgets, by HiGHS, or None: none found.

    costs: per knob (options, budgets). `least` bounds the first budget's use from below. The sum is the largest to
    within `GAP`, unless the search tree ends at `NODES`, and apart from choices closer to a bound than the solver's
    tolerance (about 1e-6 of it); what is returned obeys all bounds exactly.
    """
    sizes = [len(row) for row in values]
    one_each = LinearConstraint(block_diag([np.ones((1, size)) for size in sizes], format="csr"), 1, 1)
    gain, use = np.concatenate(values), np.concatenate(costs).T
    scale = np.abs(gain).max() or 1.0
    lowest = np.array([least] + [-np.inf] * (len(budgets) - 1))
    too_much, too_little = np.zeros(len(budgets)), np.zeros(len(budgets))
    for _ in range(24):
        within = LinearConstraint(use, lowest + too_little, np.array(budgets) - too_much)
        options = {"node_limit": NODES, "mip_rel_gap": GAP}
        found = milp(-gain / scale, integrality=1, bounds=Bounds(0, 1), constraints=[one_each, within], options=options)
        if found.x is None:
            return None
        places = [int(part.argmax()) for part in np.split(found.x, np.cumsum(sizes)[:-1])]
        used = sum(cost[place] for cost, place in zip(costs, places, strict=True))
        over, under = np.maximum(used - budgets, 0), np.maximum(lowest - used, 0)
        if not over.any() and not under.any():
            return places
        # The solver lets a bound be missed by its tolerance: keep away from it, further each time.
        too_much, too_little = 2 * too_much + over, 2 * too_little + under
    return None

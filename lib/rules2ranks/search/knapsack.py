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
from scipy.sparse import block_array, csr_array

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Numbers in a table of all sums, at most: 256 MiB.
TABLE = 2**25
#: Cells of a budget that cannot be counted in its common divisor.
COARSE = 100_000
#: Where HiGHS stops: its tree has so many nodes, or what is left to gain is this share of the sum.
NODES, GAP = 1000, 1e-6


class Knapsack:
    """Choices of one option per knob that cost from `least` to `most`.

    costs: per knob the whole numbers (options,) that its options cost. A choice costs `steps` cells of `unit`, which
    lie in `low` … `high`; where `exact`, there is no more to it.
    """

    def __init__(self, costs: Sequence[Integers], least: int, most: int) -> None:
        unit = max(math.gcd(*np.concatenate(costs).tolist()), 1)
        exact = most // unit <= max(COARSE, TABLE // len(costs))
        unit = unit if exact else -(-most // COARSE)
        steps = [(row + unit // 2) // unit for row in costs]
        errors = [row - step * unit for row, step in zip(costs, steps, strict=True)]
        lost, added = sum(int(error.max()) for error in errors), sum(int(-error.min()) for error in errors)
        self.costs, self.least, self.most = costs, least, most
        self.unit, self.steps, self.exact = unit, steps, exact
        self.low, self.high = max(-((lost - least) // unit), 0), (most + added) // unit

    def used(self, places: Sequence[int]) -> int:
        """What these options cost."""
        return sum(int(row[place]) for row, place in zip(self.costs, places, strict=True))

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


def solve(knapsacks: Sequence[Knapsack], values: Sequence[Floats]) -> list[int] | None:
    """The places of the options with the largest sum of `values` in the windows of all knapsacks, or None: none found.

    By HiGHS: to within `GAP` of the sum, unless its search tree ends at `NODES`. What is returned is in all windows.
    """
    sizes = [len(row) for row in values]
    places, gain, one = sum(sizes), np.concatenate(values), np.eye(len(knapsacks))
    picks = csr_array((np.ones(places), np.arange(places), np.cumsum([0, *sizes])))
    # A whole number of cells for each knapsack, and apart from it what rounding hides: the solver takes a millionth of
    # a place for none, which of whole costs would be more than the difference between those that are nearly equal.
    cells = np.array([np.concatenate(each.steps) for each in knapsacks])
    hidden = np.array([np.concatenate(each.costs) / each.unit for each in knapsacks]) - cells
    low, high = (np.array([getattr(each, bound) / each.unit for each in knapsacks]) for bound in ("least", "most"))
    ones, zeros = np.ones(len(sizes)), np.zeros(len(knapsacks))
    found = milp(
        np.concatenate([-gain / (np.abs(gain).max() or 1), zeros]),
        integrality=1,
        bounds=Bounds(0, np.concatenate([np.ones(places), [each.high for each in knapsacks]])),
        constraints=LinearConstraint(
            block_array([[picks, None], [cells, -one], [hidden, one]]),
            np.concatenate([ones, zeros, low]),
            np.concatenate([ones, zeros, high]),
        ),
        options={"node_limit": NODES, "mip_rel_gap": GAP},
    )
    if found.x is None:
        return None
    chosen = [int(part.argmax()) for part in np.split(found.x[:places], np.cumsum(sizes)[:-1])]
    return chosen if all(each.least <= each.used(chosen) <= each.most for each in knapsacks) else None

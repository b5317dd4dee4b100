"""The spaces that are searched: ranks within trainable parameters; bits and ranks, or levels too, within bytes."""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise, product

from rules2ranks.configuration import GROUP, Configuration, Matrix, Shapes, matrix_bytes, memory
from rules2ranks.search.space import FILL, Knob, Option, Space

#: Ranks that a search chooses from, unless told otherwise.
GRID = (0, 1, 2, 3, 4, 6, 8, 12, 16)


def rank_space(
    names: Sequence[Sequence[str]],
    cost_per_rank: Sequence[int],
    mean_rank: int,
    grid: Sequence[int] = GRID,
    fixed: Mapping[int, int] | None = None,
) -> Space:
    """A LoRA rank from the grid for each unit, where trainable parameters stay within those of the uniform mean rank.

    names: the matrices of each unit. cost_per_rank: trainable parameters that a unit of rank adds, one entry per unit.
    grid: increasing ranks >= 0. fixed: unit -> rank, outside search and budget.

    Raises:
        ValueError: a grid that does not increase, a mean rank that is not on it, or nothing left to search.
    """
    if not all(low < high for low, high in pairwise(grid)):
        raise ValueError(f"grid must increase, got {grid}")
    if mean_rank not in grid or mean_rank == 0:
        raise ValueError(f"mean_rank must be a positive rank of the grid {grid}, got {mean_rank}")
    fixed, knobs, costs = fixed or {}, [], []
    for unit, (of_unit, cost) in enumerate(zip(names, cost_per_rank, strict=True)):
        ranks = (fixed[unit],) if unit in fixed else grid
        knobs.append(Knob(tuple(of_unit), (), tuple(Option(rank=rank) for rank in ranks)))
        costs.append(tuple((0 if unit in fixed else cost * rank,) for rank in ranks))
    budget = mean_rank * sum(cost for unit, cost in enumerate(cost_per_rank) if unit not in fixed)
    uniform = tuple(0 if unit in fixed else grid.index(mean_rank) for unit in range(len(knobs)))
    return Space(tuple(knobs), tuple(costs), (budget,), uniform=uniform)


def byte_space(
    units: Sequence[Sequence[Matrix]],
    budget: int,
    bits: Sequence[int],
    ranks: Sequence[int],
    *,
    rest: int = 0,
    itemsize: int = 4,
    group: int = GROUP,
    fill: float = FILL,
) -> Space:
    """Bits and a LoRA rank for each unit, where the bytes of the whole model and its adapters stay within the budget.

    units: the matrices that share a choice. rest: bytes of all that is in none of them. A number that is not quantised
    (16 bits) takes `itemsize` bytes. What a point uses of the budget is what its exported files take, headers aside.

    Raises:
        ValueError: a group that does not divide a matrix, or a budget that nothing fits (says what the least is).
    """
    options = tuple(Option(bits=width, rank=rank) for width, rank in product(bits, ranks))
    # What cannot be chosen stands in front, so that budgets are those of whole models.
    knobs, costs = [Knob((), (), (Option(),))], [((rest,),)]
    for unit in units:
        knobs.append(Knob(tuple(matrix.name for matrix in unit), (), options))
        costs.append(tuple((sum(matrix_bytes(m, o.bits, o.rank, itemsize, group) for m in unit),) for o in options))
    least = rest + sum(min(cost for (cost,) in of_unit) for of_unit in costs[1:])
    if budget < least:
        raise ValueError(f"nothing fits into {budget} bytes: the least that these bits and ranks take are {least}")
    return Space(tuple(knobs), tuple(costs), (budget,), fill)


def level_space(
    shapes: Shapes,
    levels: Mapping[str, Sequence[int]],
    budget: int,
    *,
    flops: int | None = None,
    bits: Sequence[int] = (16,),
    ranks: Sequence[int] = (0,),
    fixed: Collection[str] = (),
    group: int = GROUP,
    fill: float = FILL,
) -> Space:
    """A level (groups gone) for each part of a model, with bits and a LoRA rank for its matrices where there are any to
    choose, so that the whole model and its adapters stay within a budget of bytes.

    levels: those that each part has. flops: a second budget, floating point operations for a token in the matrices of
    the decoder layers, two for each number. fixed: parts that stay whole, as the checkpoint holds them.

    Raises:
        ValueError: a budget that nothing fits; says what the least is.
    """
    total = (memory(Configuration(), shapes), 2 * sum(matrix.numbers for matrix in shapes.matrices.values()))
    costs = {name: _part_costs(shapes, name, own, list(product(bits, ranks)), group) for name, own in levels.items()}
    whole = {name: _part_costs(shapes, name, [0], [(16, 0)], group)[Option()] for name in levels}
    rest = tuple(all_ - sum(own[k] for own in whole.values()) for k, all_ in enumerate(total))
    knobs, rows = [Knob((), (), (Option(),))], [(rest,)]
    for name in levels:
        own = {Option(): whole[name]} if name in fixed else costs[name]
        matrices = tuple(matrix.name for matrix in shapes.matrices.values() if matrix.part == name)
        knobs.append(Knob(matrices, (name,), tuple(own)))
        rows.append(tuple(own.values()))
    budgets = (budget,) if flops is None else (budget, flops)
    rows = [tuple(cost[: len(budgets)] for cost in of_part) for of_part in rows]
    least = [sum(min(cost[k] for cost in of_part) for of_part in rows) for k in range(len(budgets))]
    if any(low > most for low, most in zip(least, budgets, strict=True)):
        raise ValueError(f"nothing fits into {list(budgets)}: the least that these levels leave is {least}")
    return Space(tuple(knobs), tuple(rows), budgets, fill)


def _part_costs(
    shapes: Shapes, part: str, levels: Sequence[int], pairs: Sequence[tuple[int, int]], group: int
) -> dict[Option, tuple[int, int]]:
    """Bytes and FLOPs of one part by its options: levels with (bits, rank); what cannot be in few bits is left out."""
    others, found = memory(Configuration(levels={part: shapes.groups[part]}), shapes), {}
    for level in levels:
        left = [matrix for matrix in shapes.cut({part: level}).matrices.values() if matrix.part == part]
        for bits, rank in pairs if left else [(16, 0)]:
            names = [matrix.name for matrix in left]
            chosen = Configuration(
                levels={part: level}, bits=dict.fromkeys(names, bits), ranks=dict.fromkeys(names, rank)
            )
            with contextlib.suppress(ValueError):  # no whole number of groups of numbers
                used = memory(chosen, shapes, group) - others
                found[Option(level, bits, rank)] = (used, 2 * sum(matrix.numbers for matrix in left))
    return found

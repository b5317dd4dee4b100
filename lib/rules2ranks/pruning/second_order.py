"""Which groups of a part go first, and how those that stay make up for them: the optimal brain surgeon for groups.

Of a part, what its output matrix W gives for its inputs X is kept as near as it can be: with H = X·Xᵀ, the error of
other weights W' is tr((W − W')·H·(W − W')ᵀ). Taking out a group g of columns raises it by tr(W_g·([H⁻¹]_gg)⁻¹·W_gᵀ), if
W_g·([H⁻¹]_gg)⁻¹·[H⁻¹]_g: is taken off W (Hassibi and Stork 1992; for groups Frantar and Alistarh, arXiv 2208.11580, and
ZipLM, arXiv 2302.04089, from which DarwinLM, arXiv 2502.07780, has its database).
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: What is added to H's diagonal, as a share of its mean.
DAMPING = 0.01


class Removal(NamedTuple):
    """Groups in the order in which they go; what is lost after each; the weights that are left at some numbers gone.

    `errors` has an entry more than `order`, the first 0: shares of tr(W·H·Wᵀ), the damping counted in. `weights` are
    (outputs, inputs), zeros where a group is gone.
    """

    order: tuple[int, ...]
    errors: tuple[float, ...]
    weights: dict[int, Tensor]


@torch.no_grad()
def removal(
    weight: Tensor, moment: Tensor, groups: Tensor, levels: Collection[int], *, damping: float = DAMPING
) -> Removal:
    """Take out all groups, one after the other, always the one whose going costs least.

    weight: (outputs, inputs). moment: X·Xᵀ, up to a factor, (inputs, inputs). groups: the columns of each group,
    (groups, columns of one). levels: numbers of groups gone at which the weights are asked for. Computed in float64: n
    groups of s columns of n·s inputs take n rank-s updates of (inputs + outputs) × inputs.

    Raises:
        ValueError: shapes that do not fit, a damping that is not above 0, a level outside 0…groups, or a moment that is
            not finite or all zero.
    """
    _check(weight, moment, groups, levels, damping)
    h, w = moment.double().clone(), weight.double().clone()
    h.diagonal().add_(damping * h.diagonal().mean())
    whole = ((w @ h) * w).sum().item() or 1.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    order: list[int] = []
    errors, weights, here = [0.0], {0: weight.clone()}, torch.ones(len(groups), dtype=torch.bool, device=w.device)
    for number in range(1, len(groups) + 1):
        left = here.nonzero()[:, 0]
        costs = _costs(w, inverse, groups[left])
        gone = int(left[costs.argmin()])
        columns = groups[gone]
        taken = torch.linalg.solve(inverse[columns][:, columns], inverse[columns])
        w -= w[:, columns] @ taken
        inverse -= inverse[:, columns] @ taken
        w[:, columns] = 0
        here[gone] = False
        order.append(gone)
        errors.append(errors[-1] + costs.min().item() / whole)
        if number in levels:
            weights[number] = w.to(weight.dtype, copy=True)
    return Removal(tuple(order), tuple(errors), {level: weights[level] for level in sorted(levels)})


def _costs(w: Tensor, inverse: Tensor, groups: Tensor) -> Tensor:
    """What each group's going costs: tr(W_g·([H⁻¹]_gg)⁻¹·W_gᵀ)."""
    if groups.shape[1] == 1:
        columns = groups[:, 0]
        return w[:, columns].square().sum(0) / inverse.diagonal()[columns]
    blocks = inverse[groups[:, :, None], groups[:, None, :]]  # (groups, s, s)
    own = w[:, groups].permute(1, 2, 0)  # (groups, s, outputs)
    return (own * torch.linalg.solve(blocks, own)).sum((1, 2))


def _check(weight: Tensor, moment: Tensor, groups: Tensor, levels: Collection[int], damping: float) -> None:
    inputs = weight.shape[1]
    if moment.shape != (inputs, inputs):
        raise ValueError(f"a weight with {inputs} inputs needs a moment of {inputs} × {inputs}, got {moment.shape}")
    if groups.ndim != 2 or sorted(groups.flatten().tolist()) != list(range(inputs)):
        raise ValueError(f"groups must share out all {inputs} columns, each once, got {groups.tolist()}")
    if damping <= 0:
        raise ValueError(f"damping must lie above 0, got {damping}")
    if wrong := [level for level in levels if not 0 <= level <= len(groups)]:
        raise ValueError(f"levels must lie between 0 and the {len(groups)} groups, got {wrong}")
    if not moment.isfinite().all() or not moment.diagonal().sum():
        raise ValueError("the moment is not finite or all zero: nothing went into the matrix, or a number overflowed")


def spaced(count: int, steps: int) -> list[int]:
    """Numbers of groups gone from none to all `count`, in `steps` equal steps as far as whole groups go."""
    return sorted({round(count * step / steps) for step in range(steps + 1)})


def kept(order: Sequence[int], level: int) -> tuple[int, ...]:
    """The groups that are still there, ascending, when the first `level` of the order are gone."""
    return tuple(sorted(order[level:]))

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

#: So many columns are taken out before the inverse is brought up to date.
WAITING = 64
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
    groups of s columns of n·s inputs take n rank-s updates of outputs × inputs, and the inverse's all in one.

    Raises:
        ValueError: shapes that do not fit, a damping that is not above 0, a level outside 0…groups, or a moment that is
            not finite or all zero.
    """
    _check(weight, moment, groups, levels, damping)
    h = moment.double().clone()
    h.diagonal().add_(damping * h.diagonal().mean())
    w = weight.double()
    whole = ((w @ h) * w).sum().item() or 1.0
    state = _State(w.clone(), torch.cholesky_inverse(torch.linalg.cholesky(h)), groups)
    order: list[int] = []
    errors, weights = [0.0], {0: weight.clone()}
    for number in range(1, len(groups) + 1):
        gone, cost = state.remove_least()
        order.append(gone)
        errors.append(errors[-1] + cost / whole)
        if number in levels:
            weights[number] = state.weights(weight.shape).to(weight.dtype)
    return Removal(tuple(order), tuple(errors), {level: weights[level] for level in sorted(levels)})


class _State:
    """Weights and inverse of the groups that are left, after some have gone.

    The inverse is the larger of the two. What is to be taken off it waits until there is enough for one product of
    matrices, and rows that are asked for meanwhile are brought up to date; so are each group's own blocks, always. What
    is gone is left out of all of them at the same time.
    """

    def __init__(self, w: Tensor, inverse: Tensor, groups: Tensor):
        self.w, self.inverse, self.groups = w, inverse, groups
        self.names, self.columns = torch.arange(len(groups)), torch.arange(w.shape[1])
        self.blocks = inverse[groups[:, :, None], groups[:, None, :]].clone()  # (groups, s, s)
        self.here = torch.ones(len(groups), dtype=torch.bool, device=w.device)
        self._clear()

    def _clear(self) -> None:
        self.left, self.taken = self.w.new_empty(len(self.inverse), 0), self.w.new_empty(0, len(self.inverse))

    def remove_least(self) -> tuple[int, float]:
        """Take out the group whose going costs least: tr(W_g·([H⁻¹]_gg)⁻¹·W_gᵀ). Its number, and the cost."""
        costs = self._costs().masked_fill(~self.here, torch.inf)
        place = int(costs.argmin())
        columns = self.groups[place]
        rows = self.inverse[columns] - self.left[columns] @ self.taken  # (s, inputs); the inverse is symmetric
        taken = torch.linalg.solve(rows[:, columns], rows)
        self.w -= self.w[:, columns] @ taken
        self.w[:, columns] = 0
        of_groups = rows.T[self.groups]  # (groups, s, s of the one that goes)
        self.blocks -= of_groups @ taken.T[self.groups].mT
        self.here[place] = False
        name = int(self.names[place])
        self.left, self.taken = torch.cat([self.left, rows.T], 1), torch.cat([self.taken, taken])
        if len(self.taken) >= WAITING and self.here.any():
            self._leave_out()
        return name, costs[place].item()

    def _costs(self) -> Tensor:
        if self.groups.shape[1] == 1:
            return self.w[:, self.groups[:, 0]].square().sum(0) / self.blocks[:, 0, 0]
        own = self.w[:, self.groups].permute(1, 2, 0)  # (groups, s, outputs)
        blocks = self.blocks.clone()
        blocks[~self.here] = torch.eye(blocks.shape[1], dtype=blocks.dtype, device=blocks.device)
        return (own * torch.linalg.solve(blocks, own)).sum((1, 2))

    def _leave_out(self) -> None:
        stays = self.groups[self.here].flatten().sort().values
        self.inverse = self.inverse[stays][:, stays] - self.left[stays] @ self.taken[:, stays]
        self.w, self.columns = self.w[:, stays], self.columns[stays]
        self.groups = torch.searchsorted(stays, self.groups[self.here])
        self.blocks, self.names = self.blocks[self.here], self.names[self.here]
        self.here = self.here[self.here]
        self._clear()

    def weights(self, shape: torch.Size) -> Tensor:
        """The weights in their whole shape, zeros where a group is gone."""
        return self.w.new_zeros(shape).index_copy_(1, self.columns.to(self.w.device), self.w)


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

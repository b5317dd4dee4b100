"""AdaLoRA (Zhang et al., arXiv 2303.10512): ranks that move while the adapter trains, within a budget."""

import math
from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel
from torch import Tensor, nn

from rules2ranks.recovery.lora import adapted, check_addable, own_generator, ranks_by_name, task_type, transposed, wrap

#: The first rank over the last, on average (section 3.3: "e.g., 1.5 times").
FIRST_OVER_LAST = 1.5
#: γ of equation 4, the most common value in the paper's appendix.
ORTHOGONALITY = 0.1


def add_adalora(
    model: nn.Module, rank: int, *, steps: int, alpha_per_rank: float = 2.0, dropout: float = 0.0, seed: int
) -> PeftModel:
    """Put AdaLoRA on the matrices of every decoder layer: W + alpha/r · B·diag(E)·A, with E = 0.

    Every matrix begins with 1.5 × `rank` triplets (a row of A, an entry of E, a column of B), so that it trains more
    parameters at first than LoRA of that rank. `allocate`, after every optimiser step, sets to zero those that matter
    least. The budget is whole for a sixth of the steps, falls, and is fixed from the middle on (the authors' schedule:
    500 and 1500 of 3000). At the end the ranks are `rank` on average or less, and such that LoRA of these ranks has no
    more parameters than LoRA of `rank` everywhere: the paper counts triplets alone, whatever the matrix.

    A and B are normal with PEFT's deviation 0.02, drawn from `seed` and the matrix's place alone. `with_orthogonality`
    belongs to the loss. Training cannot be resumed to the same bits: what matters is a running average.

    Args:
        rank: the mean rank at the end, over all matrices.
        steps: optimiser steps of the training; the schedule of the budget follows from them.
        alpha_per_rank: the factor of the correction, as of `add_lora`.
        dropout: in [0, 1), of the adapter's input.

    Raises:
        ValueError: ranks other than one for all; a rank over two thirds of the model's width; fewer than 4 steps; a
            model that has an adapter already.
    """
    check_addable(model, dropout)
    if not isinstance(rank, Integral):
        raise ValueError(f"adalora moves the ranks itself: give one mean rank for all matrices, not {rank!r}")
    if steps < 4:
        raise ValueError(f"adalora moves the ranks in the middle of the training: 4 steps at least, got {steps}")
    ranks_by_name(model, rank)
    first = math.ceil(FIRST_OVER_LAST * rank)
    by_name = ranks_by_name(model, first)
    config = AdaLoraConfig(
        task_type=task_type(model),
        init_r=first,
        target_r=rank,
        tinit=steps // 6,
        tfinal=steps // 2,
        total_step=steps,
        orth_reg_weight=ORTHOGONALITY,
        lora_alpha=alpha_per_rank * first,
        target_modules=list(by_name),
        fan_in_fan_out=transposed(model, by_name),
        lora_dropout=dropout,
    )
    wrapped = wrap(model, config)
    with torch.no_grad():
        for place, _, module in adapted(wrapped):
            a, b = module.lora_A["default"], module.lora_B["default"].T
            for part, p in enumerate((a, b)):
                p.copy_(0.02 * torch.randn(p.shape, generator=own_generator(seed, place, part)))
    return wrapped


def with_orthogonality(loss: Callable[[nn.Module, Any], Tensor]) -> Callable[[PeftModel, Any], Tensor]:
    """The loss with AdaLoRA's regulariser γ·R (equation 4), which keeps A's rows and B's columns near orthonormal.

    R is PEFT's: the mean over all A and B of the Frobenius norms ‖A·Aᵀ − I‖ and ‖Bᵀ·B − I‖ (the paper sums squares).
    """

    def regularised(model: PeftModel, batch: Any) -> Tensor:
        norms = []
        for _, _, module in adapted(model):
            for p in (module.lora_A["default"], module.lora_B["default"].T):
                norms.append(torch.linalg.matrix_norm(p @ p.T - torch.eye(len(p), dtype=p.dtype, device=p.device)))
        return loss(model, batch) + model.peft_config["default"].orth_reg_weight * torch.stack(norms).mean()

    return regularised


def allocate(model: PeftModel, step: int) -> None:
    """Score the triplets and set to zero those beyond the budget of this step.

    Call it after every optimiser step, while the gradients are still there; `step` counts the finished ones.
    """
    tuner = model.base_model
    config, allocator = tuner.peft_config["default"], tuner.rankallocator
    if step == config.total_step - config.tfinal:  # the last allocation
        limit = config.target_r * sum(_cost(module) for _, _, module in adapted(model))
        while True:  # a smaller budget only masks more: the next try does not ask for what this one took away
            config.rank_pattern = allocator.mask_to_budget(tuner.model, allocator.target_bgt)
            if kept_parameters(model) <= limit:
                break
            allocator.target_bgt -= 1
    tuner.update_and_allocate(step)


def kept_ranks(model: PeftModel) -> dict[str, int]:
    """The rank that AdaLoRA has left to each matrix so far, by its name."""
    return {name: int(mask.sum()) for name, mask in kept(model).items()}


def kept_parameters(model: PeftModel) -> int:
    """The parameters of LoRA of the ranks that are left: Σ rank × (inputs + outputs); E is part of A then."""
    modules = {name: module for _, name, module in adapted(model)}
    return sum(rank * _cost(modules[name]) for name, rank in kept_ranks(model).items())


def kept(model: PeftModel) -> dict[str, Tensor]:
    """Which triplets are left of each matrix, by its name: bool, (triplets,); all before the first allocation."""
    pattern = model.peft_config["default"].rank_pattern or {}
    return {
        name: torch.tensor(pattern.get(f"{name}.lora_E.default", [True] * module.r["default"]))
        for _, name, module in adapted(model)
    }


def _cost(module: nn.Module) -> int:
    return module.in_features + module.out_features

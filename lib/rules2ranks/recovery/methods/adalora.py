"""AdaLoRA (Zhang et al., arXiv 2303.10512): ranks that move while the adapter trains, within a budget."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel
from torch import Tensor, nn

from rules2ranks.calibration import Loss
from rules2ranks.decoders import linears
from rules2ranks.recovery.method import Given
from rules2ranks.recovery.methods.lora import Lora
from rules2ranks.recovery.ranks import Ranks, ranks_by_name
from rules2ranks.recovery.wrapping import adapted_matrices, own_generator, targets, wrap, write_lora

#: The first rank over the last, on average (section 3.3: "e.g., 1.5 times").
FIRST_OVER_LAST = 1.5
#: γ of equation 4, the most common value in the paper's appendix.
ORTHOGONALITY = 0.1


class AdaLora(Lora):
    """W + alpha/r · B·diag(E)·A on all matrices, with E = 0 at first; `ranks` is the mean rank at the end.

    Every matrix begins with 1.5 × that many triplets (a row of A, an entry of E, a column of B), so that it trains more
    parameters at first than LoRA of that rank. After every step, those that matter least are set to zero. The budget
    is whole for a sixth of `steps`, falls, and is fixed from the middle on (the authors' schedule: 500 and 1500 of
    3000). At the end the ranks are as given on average or less, and such that LoRA of these ranks has no more
    parameters than LoRA of the mean rank everywhere: the paper counts triplets alone, whatever the matrix.

    A and B are normal with PEFT's deviation 0.02, drawn from `seed` and the matrix's place alone. Training cannot be
    resumed to the same bits: what matters is a running average.
    """

    name = "adalora"
    resumes = False

    def add(self, model: nn.Module, ranks: Ranks, given: Given) -> PeftModel:
        """Raises ValueError also for a first rank over the model's width, or fewer than 4 steps."""
        by_name = ranks_by_name(model, ranks)
        values = {by_name.get(name, 0) for layer in linears(model) for name in layer}
        if len(values) > 1:
            raise ValueError(f"adalora moves the ranks itself: give one mean rank for all matrices, not {ranks!r}")
        if (given.steps or 0) < 4:
            raise ValueError(
                f"adalora moves the ranks in the middle of the training: 4 steps at least, got {given.steps}"
            )
        rank = values.pop()
        first = math.ceil(FIRST_OVER_LAST * rank)
        config = AdaLoraConfig(
            init_r=first,
            target_r=rank,
            tinit=given.steps // 6,
            tfinal=given.steps // 2,
            total_step=given.steps,
            orth_reg_weight=ORTHOGONALITY,
            lora_alpha=given.alpha_per_rank * first,
            lora_dropout=given.dropout,
            **targets(model, ranks_by_name(model, first)),
        )
        adapted = wrap(model, config)
        with torch.no_grad():
            for place, _, module in adapted_matrices(adapted):
                for part, p in enumerate(_rows(module)):
                    p.copy_(0.02 * torch.randn(p.shape, generator=own_generator(given.seed, place, part)))
        return adapted

    def loss(self, loss: Loss) -> Loss:
        """The loss with γ·R (equation 4), which keeps A's rows and B's columns near orthonormal.

        R is PEFT's, the mean of the Frobenius norms ‖A·Aᵀ − I‖ and ‖Bᵀ·B − I‖ over all A and B (the paper: squares).
        """

        def regularised(adapted: PeftModel, batch: Any) -> Tensor:
            norms = [
                torch.linalg.matrix_norm(p @ p.T - torch.eye(len(p), dtype=p.dtype, device=p.device))
                for _, _, module in adapted_matrices(adapted)
                for p in _rows(module)
            ]
            return loss(adapted, batch) + adapted.peft_config["default"].orth_reg_weight * torch.stack(norms).mean()

        return regularised

    def after_step(self, adapted: PeftModel) -> Callable[[int], None]:
        return partial(_allocate, adapted)

    def counts(self, adapted: PeftModel) -> dict[str, int]:
        """`trained_parameters` of LoRA of the ranks that are left; `peak_parameters`: those that it began with."""
        peak = super().counts(adapted)["trained_parameters"]
        return {"trained_parameters": _kept_parameters(adapted), "peak_parameters": peak}

    def save(self, adapted: PeftModel, folder: str | Path) -> None:
        """With the ranks that it kept, E multiplied into A."""
        pairs, masks = {}, kept(adapted)
        for _, name, module in adapted_matrices(adapted):
            first = module.ranknum["default"]
            # PEFT divides alpha by first + 1e-5.
            a = module.lora_A["default"] * module.lora_E["default"] * first / (first + 1e-5)
            pairs[name] = a[masks[name]], module.lora_B["default"][:, masks[name]]
        config = adapted.peft_config["default"]
        write_lora(adapted, pairs, config.lora_alpha / config.init_r, folder)


def kept(adapted: PeftModel) -> dict[str, Tensor]:
    """Which triplets are left of each matrix, by its name: bool, (triplets,); all before the first allocation."""
    pattern = adapted.peft_config["default"].rank_pattern or {}
    return {
        name: torch.tensor(pattern.get(f"{name}.lora_E.default", [True] * module.r["default"]))
        for _, name, module in adapted_matrices(adapted)
    }


def _rows(module: nn.Module) -> tuple[Tensor, Tensor]:
    """A's rows and B's columns: (triplets, inputs) and (triplets, outputs)."""
    return module.lora_A["default"], module.lora_B["default"].T


def _kept_parameters(adapted: PeftModel) -> int:
    """The parameters of LoRA of the ranks that are left; E is part of A then."""
    masks = kept(adapted)
    return sum(int(masks[name].sum()) * _triplet(module) for _, name, module in adapted_matrices(adapted))


def _triplet(module: nn.Module) -> int:
    """The numbers of a row of A and a column of B: inputs + outputs."""
    return sum(p.shape[1] for p in _rows(module))


def _allocate(adapted: PeftModel, step: int) -> None:
    """Score the triplets and set to zero those beyond the budget of this step."""
    tuner = adapted.base_model
    config, allocator = tuner.peft_config["default"], tuner.rankallocator
    if step == config.total_step - config.tfinal:  # the last allocation
        limit = config.target_r * sum(_triplet(module) for _, _, module in adapted_matrices(adapted))
        while True:  # a smaller budget only masks more: the next try does not ask for what this one took away
            config.rank_pattern = allocator.mask_to_budget(tuner.model, allocator.target_bgt)
            if _kept_parameters(adapted) <= limit:
                break
            allocator.target_bgt -= 1
    tuner.update_and_allocate(step)

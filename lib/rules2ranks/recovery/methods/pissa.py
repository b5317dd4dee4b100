"""PiSSA (Meng et al., arXiv 2404.02948): LoRA that starts as the main part of each matrix."""

from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from rules2ranks.decoders import width
from rules2ranks.recovery.method import Given
from rules2ranks.recovery.methods.lora import Lora
from rules2ranks.recovery.ranks import Ranks, ranks_by_name
from rules2ranks.recovery.wrapping import adapted_matrices, lora_config, wrap, write_lora


class Pissa(Lora):
    """alpha/r · B·A starts as the truncated singular value decomposition of W (equations 2 to 4).

    What is left of W is frozen in its place. Nothing is drawn. The paper has alpha = r.
    """

    name = "pissa"

    def quantise(self, model: nn.Module, given: Given) -> None:
        raise ValueError("pissa freezes what it leaves of a matrix, which few bits cannot hold: loftq is made for them")

    @torch.no_grad()
    def add(self, model: nn.Module, ranks: Ranks, given: Given) -> PeftModel:
        by_name = ranks_by_name(model, ranks)
        for name, rank in by_name.items():
            if rank > (most := min(width(model.get_submodule(name)))):
                raise ValueError(f"{name} has {most} singular values: pissa cannot start at rank {rank}")
        config = lora_config(model, by_name, given.alpha_per_rank, given.dropout)
        config.init_lora_weights = "pissa"
        adapted = wrap(model, config)
        for _, _, module in adapted_matrices(adapted):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            # Signs such that the largest entry of each row of A is positive.
            signs = torch.sign(a.gather(1, a.abs().argmax(1, keepdim=True)))
            a.mul_(signs)
            b.mul_(signs.T)
            # What is trained less what it starts with is the correction to the whole of W.
            module.register_buffer("first_A", a.detach().clone(), persistent=False)
            module.register_buffer("first_B", b.detach().clone(), persistent=False)
        return adapted

    def save(self, adapted: PeftModel, folder: str | Path) -> None:
        """With twice the rank, as what the training changed: B·A − B₀·A₀ (PEFT's `subtract_mutated_init`)."""
        pairs = {}
        for _, name, module in adapted_matrices(adapted):
            a = torch.cat([module.lora_A["default"].weight, module.first_A])  # (2·rank, inputs)
            b = torch.cat([module.lora_B["default"].weight, -module.first_B], dim=1)  # (outputs, 2·rank)
            pairs[name] = a, b
        config = adapted.peft_config["default"]
        write_lora(adapted, pairs, config.lora_alpha / config.r, folder)

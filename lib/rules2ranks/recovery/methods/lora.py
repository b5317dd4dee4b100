"""LoRA (Hu et al., arXiv 2106.09685): W + alpha/r · B·A."""

import math
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from rules2ranks.recovery.method import Given, Method
from rules2ranks.recovery.ranks import Ranks, ranks_by_name
from rules2ranks.recovery.wrapping import adapted_matrices, lora_config, own_generator, wrap


class Lora(Method):
    """B starts at zero, A as PEFT's default: uniform, Kaiming with a = √5.

    A is drawn for every matrix from `seed` and the matrix's place alone: at equal seeds a matrix starts with the same
    rows whatever the other ranks are, a higher rank only adds rows.
    """

    name = "lora"

    def add(self, model: nn.Module, ranks: Ranks, given: Given) -> PeftModel:
        config = lora_config(model, ranks_by_name(model, ranks), given.alpha_per_rank, given.dropout)
        adapted = wrap(model, config)
        for place, _, module in adapted_matrices(adapted):
            a = module.lora_A["default"].weight
            drawn = torch.empty(a.shape, dtype=torch.float32)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=own_generator(given.seed, place))
            with torch.no_grad():
                a.copy_(drawn)
        return adapted

    def merge(self, adapted: PeftModel) -> nn.Module:
        return adapted.merge_and_unload(safe_merge=True)

    def save(self, adapted: PeftModel, folder: str | Path) -> None:
        adapted.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)

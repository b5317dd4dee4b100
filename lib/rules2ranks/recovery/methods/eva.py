"""EVA (Paischer et al., arXiv 2410.07170): LoRA that starts with the main directions of each matrix's inputs."""

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_eva_state_dict
from torch import Tensor, nn

from rules2ranks.decoders import width
from rules2ranks.recovery.method import Given
from rules2ranks.recovery.methods.lora import Lora
from rules2ranks.recovery.ranks import Ranks, ranks_by_name
from rules2ranks.recovery.wrapping import adapted_matrices

#: PEFT goes round the batches until every direction moves by less than this (cosine from one pass to the next) …
SIMILARITY = 0.99
#: … which directions of equal weight never do: so many passes over a batch are the most.
MOST_PASSES = 1000


class Eva(Lora):
    """B starts at zero, the rows of A as the main directions of the inputs over `batches`, at `positions`.

    They are orthonormal, about the inputs' mean. Ranks stay as given (the paper's rho = 1: without its redistribution).
    Nothing is drawn from `seed`.
    """

    name = "eva"

    def add(self, model: nn.Module, ranks: Ranks, given: Given) -> PeftModel:
        directions = _directions(model, ranks_by_name(model, ranks), given)
        adapted = super().add(model, ranks, given)
        with torch.no_grad():
            for _, name, module in adapted_matrices(adapted):
                module.lora_A["default"].weight.copy_(directions[name])
        return adapted


def _directions(model: nn.Module, by_name: Mapping[str, int], given: Given) -> dict[str, Tensor]:
    """The main directions (rank, inputs) of every matrix's inputs, orthonormal, the first the one of most variance.

    PEFT's incremental principal components, made for the highest rank in every matrix and cut to each one's own.
    `model` is left alone.
    """
    rank = max(by_name.values())
    if not len(given.batches) or given.loss is None:
        raise ValueError("eva starts from the inputs of the matrices: give batches, and the loss that takes them")
    for name in by_name:
        inputs, _ = width(model.get_submodule(name))
        if 2 * rank > inputs:  # PEFT's randomised decomposition works with twice the directions asked for
            raise ValueError(f"{name} has {inputs} inputs: eva can start at rank {inputs // 2} at most")
    passes = itertools.count(1)

    def forward(model: nn.Module, batch: Any) -> None:
        if next(passes) > MOST_PASSES:
            raise ValueError(f"eva's directions at rank {rank} do not settle: a lower rank or more data may help")
        given.loss(model, batch)

    def chosen(inputs: tuple[Tensor, ...], where: Tensor | None, name: str) -> Tensor:
        rows = inputs[0].flatten(0, -2) if where is None else inputs[0][where]
        if len(rows) < 2 * rank:
            raise ValueError(f"eva at rank {rank} takes batches of {2 * rank} positions or more, one has {len(rows)}")
        return rows

    found = get_eva_state_dict(
        # The same parameters in modules of their own, for PEFT's hooks.
        copy.deepcopy(model, {id(p): p for p in itertools.chain(model.parameters(), model.buffers())}).eval(),
        given.batches,
        LoraConfig(
            r=rank, target_modules=list(by_name), init_lora_weights="eva", eva_config=EvaConfig(rho=1.0, tau=SIMILARITY)
        ),
        forward_fn=forward,
        prepare_model_inputs_fn=lambda batch, config: given.positions(batch) if given.positions else None,
        prepare_layer_inputs_fn=chosen,
        show_progress_bar=False,
    )
    return {name: found[name][:own] for name, own in by_name.items()}

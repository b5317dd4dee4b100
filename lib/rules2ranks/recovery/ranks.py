"""Which rank each matrix gets, and what ranks cost."""

from collections.abc import Mapping, Sequence

from torch import nn

from rules2ranks.configuration import by_matrix
from rules2ranks.decoders import linears, width

#: One rank for all decoder layers, one per layer, or one per matrix by its full name (the others none).
Ranks = int | Sequence[int] | Mapping[str, int]


def ranks_by_name(model: nn.Module, ranks: Ranks) -> dict[str, int]:
    """Ranks above 0 by the full name of the matrix, in the order of the network.

    Raises:
        ValueError: ranks of the wrong number, not whole, negative, over the model's width or all zero; unknown names.
    """
    layers = linears(model)
    by_name = by_matrix(ranks, [list(layer) for layer in layers])
    # The residual stream is as wide as the widest of the layers' first inputs: pruning leaves it alone.
    widest = max(width(next(iter(layer.values())))[0] for layer in layers if layer)
    for name, rank in by_name.items():
        if rank > widest:
            raise ValueError(f"{name}: expected a rank from 0 to the model's width {widest}, got {rank}")
    if not by_name:
        raise ValueError("all ranks are 0: there is nothing to train")
    return by_name


def lora_parameters(model: nn.Module, ranks: Ranks) -> int:
    """The number of parameters of LoRA of these ranks on `model`: Σ rank × (inputs + outputs).

    Raises:
        ValueError: as `ranks_by_name`.
    """
    return sum(rank * sum(width(model.get_submodule(name))) for name, rank in ranks_by_name(model, ranks).items())


def cost_per_rank(model: nn.Module) -> list[int]:
    """Per decoder layer the parameters that one unit of rank adds: Σ (inputs + outputs) over its matrices."""
    return [sum(sum(width(module)) for module in layer.values()) for layer in linears(model)]

"""LoRA with a rank per layer or per matrix: put on, counted, merged."""

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, Literal, get_args

import numpy as np
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rules2ranks.decoders import linears
from rules2ranks.recovery import starts

# peft 0.21 asks transformers 5.23 by a name that this deprecates; nobody who adds an adapter can do anything about it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

Ranks = int | Sequence[int] | Mapping[str, int]
#: How A and B begin: at random and at zero, with the main part of W, or with the main directions of the inputs.
Start = Literal["lora", "pissa", "eva"]


def add_lora(
    model: nn.Module,
    ranks: Ranks,
    *,
    start: Start = "lora",
    batches: Sequence[Any] = (),
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    positions: Callable[[Any], Tensor] | None = None,
    alpha_per_rank: float = 2.0,
    dropout: float = 0.0,
    seed: int,
) -> PeftModel:
    """Put LoRA on the matrices of every decoder layer (Hu et al., arXiv 2106.09685): W + alpha/r · B·A.

    `model` itself is changed (PEFT wraps its matrices and freezes all else); `merge` gives a plain model back. At first
    it computes what it did without the adapter. The global random state is neither used nor moved.

    - "lora": B is zero and A PEFT's default (uniform, Kaiming with a = √5), drawn for every matrix from `seed` and the
      matrix's place alone: at equal seeds a matrix starts with the same rows whatever the other ranks are, a higher
      rank only adds rows.
    - "pissa" (Meng et al., arXiv 2404.02948, equations 2 to 4): alpha/r · B·A is the main part of W, the truncated
      singular value decomposition; what is left of W is frozen in its place. Nothing is drawn. The paper has alpha = r.
    - "eva" (Paischer et al., arXiv 2410.07170): B is zero, the rows of A are the main directions of the matrix's inputs
      (orthonormal, about their mean) over `batches`, at `positions`. Ranks stay as given (the paper's rho = 1: without
      its redistribution). Nothing is drawn from `seed`.

    Args:
        ranks: one for all layers, one per decoder layer, or one per matrix by its full name (the others none).
        batches: for "eva" the training data, in as many parts as fit; `loss(model, batch)` feeds one to the model.
        positions: for "eva" which positions of a batch count, bool (examples, positions), all unless given. Give it
            where there is padding.
        alpha_per_rank: alpha = alpha_per_rank × rank, so the factor alpha/r is the same in all layers.
        dropout: in [0, 1), of the adapter's input.

    Raises:
        ValueError: ranks of the wrong number, negative, over the layer's width or all zero; unknown names; a model that
            has an adapter already; a rank that the start has not enough directions for; no batches for "eva".
    """
    if start not in get_args(Start):
        raise ValueError(f"start is one of {', '.join(get_args(Start))}, got {start!r}")
    check_addable(model, dropout)
    by_name = ranks_by_name(model, ranks)
    widths = {name: width(model.get_submodule(name)) for name in by_name}
    if start == "pissa":
        starts.check_pissa(by_name, widths)
    directions = starts.eva(model, by_name, widths, batches, loss, positions) if start == "eva" else {}
    config = lora_config(model, by_name, alpha_per_rank, dropout)
    config.init_lora_weights = "pissa" if start == "pissa" else True
    wrapped = wrap(model, config)
    for place, name, module in adapted(wrapped):
        if start == "pissa":
            starts.keep_first(module)
            continue
        a = module.lora_A["default"].weight
        drawn = torch.empty(a.shape, dtype=torch.float32)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=own_generator(seed, place))
        with torch.no_grad():
            a.copy_(directions.get(name, drawn))
    return wrapped


def lora_parameters(model: nn.Module, ranks: Ranks) -> int:
    """The number of parameters that `add_lora(model, ranks)` would make trainable, from whatever start.

    Raises:
        ValueError: as `add_lora`.
    """
    return sum(rank * sum(width(model.get_submodule(name))) for name, rank in ranks_by_name(model, ranks).items())


def cost_per_rank(model: nn.Module) -> list[int]:
    """Per decoder layer the parameters that one unit of rank adds: Σ (inputs + outputs) over its matrices."""
    return [sum(sum(width(module)) for module in layer.values()) for layer in linears(model)]


def merge(model: PeftModel) -> nn.Module:
    """The plain model with the correction added to its weights. It takes `model` apart: use only the result.

    Parameters that the adapter froze stay frozen.

    Raises:
        ValueError: the merged weights are not finite.
    """
    return model.merge_and_unload(safe_merge=True)


# --- what the other modules of this package use too -------------------------------------------------------------


def check_addable(model: nn.Module, dropout: float) -> None:
    """Raise ValueError if `model` has an adapter already or the dropout is impossible."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise ValueError("the model has an adapter already: merge it first")


def ranks_by_name(model: nn.Module, ranks: Ranks) -> dict[str, int]:
    """Ranks above 0 by the full name of the matrix, in the order of the network."""
    layers = linears(model)
    names = [name for layer in layers for name in layer]
    if isinstance(ranks, Mapping):
        if unknown := sorted(set(ranks) - set(names)):
            raise ValueError(f"no such matrices in the decoder layers: {unknown}; they are named like {names[0]}")
        given = {name: ranks.get(name, 0) for name in names}
    else:
        per_layer = [ranks] * len(layers) if isinstance(ranks, Integral) else list(ranks)
        if len(per_layer) != len(layers):
            raise ValueError(f"expected {len(layers)} ranks, one per decoder layer, got {len(per_layer)}")
        given = {name: rank for layer, rank in zip(layers, per_layer, strict=True) for name in layer}
    # The residual stream is as wide as the widest of the layers' first inputs: pruning leaves it alone.
    widest = max(width(next(iter(layer.values())))[0] for layer in layers)
    for name, rank in given.items():
        if isinstance(rank, bool) or not isinstance(rank, Integral) or not 0 <= rank <= widest:
            raise ValueError(f"{name}: expected a whole rank from 0 to the model's width {widest}, got {rank!r}")
    if not any(given.values()):
        raise ValueError("all ranks are 0: there is nothing to train")
    return {name: int(rank) for name, rank in given.items() if rank}


def width(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a matrix module."""
    return (module.nx, module.nf) if isinstance(module, Conv1D) else (module.in_features, module.out_features)


def task_type(model: nn.Module) -> TaskType | None:
    """What PEFT is to take the model for."""
    return TaskType.CAUSAL_LM if hasattr(model, "can_generate") and model.can_generate() else None


def lora_config(model: nn.Module, by_name: Mapping[str, int], alpha_per_rank: float, dropout: float) -> LoraConfig:
    """PEFT's configuration for these ranks: the highest as its default, the others by name."""
    default = max(by_name.values())
    special = {re.escape(name): rank for name, rank in by_name.items() if rank != default}
    return LoraConfig(
        task_type=task_type(model),
        r=default,
        lora_alpha=alpha_per_rank * default,
        rank_pattern=special,
        alpha_pattern={name: alpha_per_rank * rank for name, rank in special.items()},
        target_modules=list(by_name),
        fan_in_fan_out=transposed(model, by_name),
        lora_dropout=dropout,
    )


def transposed(model: nn.Module, names: Mapping[str, int]) -> bool:
    """Whether these matrices are GPT-2's, which hold W as (inputs, outputs)."""
    return any(isinstance(model.get_submodule(name), Conv1D) for name in names)


def wrap(model: nn.Module, config: LoraConfig) -> PeftModel:
    """`get_peft_model` that leaves the global random state alone, and a configuration that is the same everywhere."""
    names = [name for layer in linears(model) for name in layer if name in config.target_modules]
    with torch.random.fork_rng(devices=[]):
        wrapped = get_peft_model(model, config)
    # PEFT keeps a set, abbreviated, whose order changes from process to process.
    config.target_modules = names
    return wrapped


def adapted(wrapped: PeftModel) -> Iterator[tuple[int, str, LoraLayer]]:
    """Place among all matrices of the decoder layers, name and module of each matrix that has an adapter."""
    base = wrapped.get_base_model()
    for place, name in enumerate(name for layer in linears(base) for name in layer):
        module = base.get_submodule(name)
        if isinstance(module, LoraLayer):
            yield place, name, module


def own_generator(*seeds: int) -> torch.Generator:
    """A generator of its own for each tuple of numbers."""
    seed = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0] >> np.uint64(1)
    return torch.Generator().manual_seed(int(seed))

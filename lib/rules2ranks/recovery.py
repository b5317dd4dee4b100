"""LoRA with a rank per layer on pruned models: put on, counted, merged, saved and loaded in PEFT's own format.

Nothing here trains. Ranks come as one number for all decoder layers, as one per layer (RankAdaptor, arXiv 2406.15734,
section 3: shared by the matrices of a layer), or as one per matrix by name; rank 0 leaves the matrix out.
"""

import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rules2ranks.decoders import linears

# peft 0.21 asks transformers 5.23 by a name that this deprecates; nobody who adds an adapter can do anything about it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

Ranks = int | Sequence[int] | Mapping[str, int]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # what PEFT puts before a module's name


def add_lora(
    model: nn.Module, ranks: Ranks, *, alpha_per_rank: float = 2.0, dropout: float = 0.0, seed: int
) -> PeftModel:
    """Put LoRA on the matrices of every decoder layer (Hu et al., arXiv 2106.09685): W + alpha/r · B·A, with B = 0.

    `model` itself is changed (PEFT wraps its matrices and freezes all else); `merge` gives a plain model back.

    A starts as PEFT's default (uniform, Kaiming with a = √5), drawn for every matrix from `seed` and the matrix's place
    alone: at equal seeds a matrix starts with the same rows whatever the other ranks are, a higher rank only adds rows.
    The global random state is neither used nor moved.

    Args:
        ranks: one for all layers, one per decoder layer, or one per matrix by its full name (the others none).
        alpha_per_rank: alpha = alpha_per_rank × rank, so the factor alpha/r is the same in all layers.
        dropout: in [0, 1), of the adapter's input.

    Raises:
        ValueError: ranks of the wrong number, negative, over the layer's width or all zero; unknown names; a model that
            has an adapter already.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise ValueError("the model has an adapter already: merge it first")
    by_name = _ranks_by_name(model, ranks)
    default = max(by_name.values())
    special = {re.escape(name): rank for name, rank in by_name.items() if rank != default}
    generates = hasattr(model, "can_generate") and model.can_generate()
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM if generates else None,
        r=default,
        lora_alpha=alpha_per_rank * default,
        rank_pattern=special,
        alpha_pattern={name: alpha_per_rank * rank for name, rank in special.items()},
        target_modules=list(by_name),
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in by_name),
        lora_dropout=dropout,
    )
    with torch.random.fork_rng(devices=[]):
        wrapped = get_peft_model(model, config)
    # PEFT keeps a set, abbreviated, whose order changes from process to process; the names are the same everywhere.
    config.target_modules = list(by_name)
    _draw_a(wrapped, [name for layer in linears(model) for name in layer], seed)
    return wrapped


def lora_parameters(model: nn.Module, ranks: Ranks) -> int:
    """The number of parameters that `add_lora(model, ranks)` would make trainable.

    Raises:
        ValueError: as `add_lora`.
    """
    modules = {name: module for layer in linears(model) for name, module in layer.items()}
    return sum(rank * sum(_width(modules[name])) for name, rank in _ranks_by_name(model, ranks).items())


def cost_per_rank(model: nn.Module) -> list[int]:
    """Per decoder layer the parameters that one unit of rank adds: Σ (inputs + outputs) over its matrices."""
    return [sum(sum(_width(module)) for module in layer.values()) for layer in linears(model)]


def merge(model: PeftModel) -> nn.Module:
    """The plain model with W + alpha/r · B·A for W. It takes `model` apart: use only the result.

    Parameters that the adapter froze stay frozen.

    Raises:
        ValueError: the merged weights are not finite.
    """
    return model.merge_and_unload(safe_merge=True)


def save_adapter(model: PeftModel, folder: str | Path) -> None:
    """Write the adapter as PEFT does (`adapter_config.json`, `adapter_model.safetensors`).

    Plain `PeftModel.from_pretrained(pruned_model, folder)` loads it; `load_adapter` also checks that it fits.
    """
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)


def load_adapter(model: nn.Module, folder: str | Path, *, trainable: bool = False) -> PeftModel:
    """Put a saved LoRA adapter on `model` (changed in place), after checking every name and shape.

    Raises:
        ValueError: files missing or damaged, not LoRA, a model with an adapter already, or anything that does not fit:
            then each misfit is named and the model is left untouched.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: expected a folder in PEFT's format with safetensors")
    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise ValueError("the model has an adapter already: merge it first")
    if (kind := json.loads((folder / CONFIG).read_text()).get("peft_type")) != "LORA":
        raise ValueError(f"expected a LORA adapter, got {kind}")
    config = PeftConfig.from_pretrained(str(folder))
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged: {error}") from error
    _check_fit(_shapes_called_for(model, config), weights)
    with torch.random.fork_rng(devices=[]):
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)


def _ranks_by_name(model: nn.Module, ranks: Ranks) -> dict[str, int]:
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
    width = max(_width(next(iter(layer.values())))[0] for layer in layers)
    for name, rank in given.items():
        if isinstance(rank, bool) or not isinstance(rank, Integral) or not 0 <= rank <= width:
            raise ValueError(f"{name}: expected a whole rank from 0 to the model's width {width}, got {rank!r}")
    if not any(given.values()):
        raise ValueError("all ranks are 0: there is nothing to train")
    return {name: int(rank) for name, rank in given.items() if rank}


def _width(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a matrix module."""
    return (module.nx, module.nf) if isinstance(module, Conv1D) else (module.in_features, module.out_features)


@torch.no_grad()
def _draw_a(wrapped: PeftModel, names: Sequence[str], seed: int) -> None:
    """Start every A from `seed` and the place of its matrix among all `names`."""
    for place, name in enumerate(names):
        module = wrapped.get_base_model().get_submodule(name)
        if isinstance(module, LoraLayer):
            own_seed = int(np.random.SeedSequence([seed, place]).generate_state(1, np.uint64)[0] >> np.uint64(1))
            a = module.lora_A["default"].weight
            drawn = torch.empty(a.shape, dtype=torch.float32)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=torch.Generator().manual_seed(own_seed))
            a.copy_(drawn)


def _shapes_called_for(model: nn.Module, config: PeftConfig) -> dict[str, tuple[int, int]]:
    """The tensors that PEFT would put on `model` for `config`, by their names in the file."""
    shapes = {}
    for name, module in model.named_modules():
        if name and check_target_module_exists(config, name):
            if not isinstance(module, Conv1D) and not hasattr(module, "in_features"):
                raise ValueError(f"the adapter wants {name}, a {type(module).__name__}: only matrices can be checked")
            inputs, outputs = _width(module)
            rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)
            shapes[f"{PREFIX}{name}.lora_A.weight"] = (rank, inputs)
            shapes[f"{PREFIX}{name}.lora_B.weight"] = (outputs, rank)
    return shapes


def _check_fit(expected: Mapping[str, tuple[int, int]], weights: Mapping[str, Tensor]) -> None:
    wrong = []
    for name in sorted(expected.keys() | weights.keys()):
        want = expected.get(name, "no such tensor")
        have = tuple(weights[name].shape) if name in weights else "no such tensor"
        if want != have:
            wrong.append(f"{name.removeprefix(PREFIX)}: the model calls for {want}, the file has {have}")
    if wrong or not weights:
        raise ValueError("the adapter does not fit this model, nothing was loaded:\n" + "\n".join(wrong))

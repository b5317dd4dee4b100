"""A model in PEFT's hands: its configuration for given ranks, the wrapper, the adapted matrices, and files."""

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rules2ranks.decoders import linears

# peft 0.21 asks transformers 5.23 by a name that this deprecates; nobody who adds an adapter can do anything about it.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # what PEFT puts before a module's name


def lora_config(model: nn.Module, by_name: Mapping[str, int], alpha_per_rank: float, dropout: float) -> LoraConfig:
    """PEFT's configuration for these ranks: the highest as its default, the others by name."""
    default = max(by_name.values())
    special = {re.escape(name): rank for name, rank in by_name.items() if rank != default}
    return LoraConfig(
        r=default,
        lora_alpha=alpha_per_rank * default,
        rank_pattern=special,
        alpha_pattern={name: alpha_per_rank * rank for name, rank in special.items()},
        lora_dropout=dropout,
        **targets(model, by_name),
    )


def targets(model: nn.Module, names: Mapping[str, int]) -> dict[str, Any]:
    """What all of PEFT's configurations say of the model and of the matrices that get an adapter."""
    return {
        "task_type": TaskType.CAUSAL_LM if hasattr(model, "can_generate") and model.can_generate() else None,
        "target_modules": list(names),
        # GPT-2's matrices hold W as (inputs, outputs).
        "fan_in_fan_out": any(isinstance(model.get_submodule(name), Conv1D) for name in names),
    }


def wrap(model: nn.Module, config: LoraConfig) -> PeftModel:
    """`get_peft_model` that leaves the global random state alone, with a configuration that is the same everywhere."""
    names = [name for layer in linears(model) for name in layer if name in config.target_modules]
    with torch.random.fork_rng(devices=[]):
        adapted = get_peft_model(model, config)
    config.target_modules = names  # PEFT keeps a set, abbreviated, whose order changes from process to process
    return adapted


def adapted_matrices(adapted: PeftModel) -> Iterator[tuple[int, str, LoraLayer]]:
    """Place among all matrices of the decoder layers, name and module of each matrix that has an adapter."""
    base = adapted.get_base_model()
    for place, name in enumerate(name for layer in linears(base) for name in layer):
        module = base.get_submodule(name)
        if isinstance(module, LoraLayer):
            yield place, name, module


def own_generator(*seeds: int) -> torch.Generator:
    """A generator of its own for each tuple of numbers."""
    seed = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0] >> np.uint64(1)
    return torch.Generator().manual_seed(int(seed))


def write_lora(
    adapted: PeftModel, pairs: Mapping[str, tuple[Tensor, Tensor]], alpha_per_rank: float, folder: str | Path
) -> None:
    """Write A and B of each matrix, by its name, as an ordinary LoRA: W + alpha_per_rank · B·A.

    A is (rank, inputs), B is (outputs, rank); matrices of rank 0 are left out.
    """
    base, own = adapted.get_base_model(), adapted.peft_config["default"]
    ranks = {name: len(a) for name, (a, _) in pairs.items() if len(a)}
    config = lora_config(base, ranks, alpha_per_rank, own.lora_dropout)
    config.target_modules = list(ranks)
    config.fan_in_fan_out, config.inference_mode = own.fan_in_fan_out, True
    config.base_model_name_or_path = base.__dict__.get("name_or_path")
    config.save_pretrained(str(folder))  # makes the folder
    tensors = {
        f"{PREFIX}{name}.lora_{x}.weight": p.detach().cpu().contiguous()
        for name in ranks
        for x, p in zip("AB", pairs[name], strict=True)
    }
    save_file(tensors, Path(folder) / WEIGHTS, metadata={"format": "pt"})

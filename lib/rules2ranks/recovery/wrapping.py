"""A model in PEFT's hands: its configuration for given ranks, the wrapper, and the matrices that have an adapter."""

import re
import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from rules2ranks.decoders import linears

# peft 0.21 asks transformers 5.23 by a name that this deprecates; nobody who adds an adapter can do anything about it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def check_plain(model: nn.Module) -> None:
    """Raise ValueError if `model` has an adapter already."""
    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise ValueError("the model has an adapter already: merge it first")


def task_type(model: nn.Module) -> TaskType | None:
    """What PEFT is to take the model for."""
    return TaskType.CAUSAL_LM if hasattr(model, "can_generate") and model.can_generate() else None


def transposed(model: nn.Module, names: Mapping[str, int]) -> bool:
    """Whether these matrices are GPT-2's, which hold W as (inputs, outputs)."""
    return any(isinstance(model.get_submodule(name), Conv1D) for name in names)


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


def wrap(model: nn.Module, config: LoraConfig) -> PeftModel:
    """`get_peft_model` that leaves the global random state alone, and a configuration that is the same everywhere."""
    names = [name for layer in linears(model) for name in layer if name in config.target_modules]
    with torch.random.fork_rng(devices=[]):
        adapted = get_peft_model(model, config)
    # PEFT keeps a set, abbreviated, whose order changes from process to process.
    config.target_modules = names
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

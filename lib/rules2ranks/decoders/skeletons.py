"""Models without weights: their shapes, and room for nothing else."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


def skeleton(
    config: PreTrainedConfig, kind: type[PreTrainedModel] | None = None, *, attn_implementation: str | None = None
) -> PreTrainedModel:
    """A model of the shapes that `config` states, its buffers filled, its parameters without memory (on "meta").

    Args:
        kind: its class; unless given the one that `config.architectures` names.

    Raises:
        ValueError: `config.architectures` names no class of transformers' models.
    """
    if kind is None:
        name = (config.architectures or ["none"])[0]
        kind = getattr(transformers, name, None)
        if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
            raise ValueError(f"config.json names the architecture {name}, which transformers does not have")
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with torch.random.fork_rng(devices=[]), _parameters_on_meta():
        return kind._from_config(copy.deepcopy(config), **options)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules made inside never hold a parameter's values: a pruned model loads without room for the unpruned one."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
        if value is not None and not value.is_meta:  # one that is there already is being tied, and stays the same
            value = nn.Parameter(value.to("meta"), value.requires_grad)
        register(module, name, value)

    nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register

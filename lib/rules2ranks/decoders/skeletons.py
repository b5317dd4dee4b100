"""Models without weights: their classes and their shapes, and room for nothing else."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


def causal_lm(config: PreTrainedConfig) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """The class that transformers takes for a causal language model with `config`, and the part of `config` that it is
    made from (of a model of text and images the text's).

    Raises:
        ValueError: there is no such class.
    """
    kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        raise ValueError(f"transformers has no causal language model with a {type(config).__name__}")
    return kind, config if isinstance(config, kind.config_class) else config.get_text_config()


def skeleton(config: PreTrainedConfig, kind: type[PreTrainedModel] | None = None) -> PreTrainedModel:
    """A model of the shapes that `config` states, its buffers filled, its parameters without memory (on "meta").

    Its class is `kind`, or unless given the one that `config.architectures` names.

    Raises:
        ValueError: `config.architectures` names no class of transformers' models.
    """
    if kind is None:
        name = (config.architectures or ["none"])[0]
        kind = getattr(transformers, name, None)
        if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
            raise ValueError(f"config.json names the architecture {name}, which transformers does not have")
    with torch.random.fork_rng(devices=[]), _parameters_on_meta():
        return kind._from_config(copy.deepcopy(config))


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

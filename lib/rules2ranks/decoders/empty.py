"""What a part of a decoder layer does when none of its groups is left: it adds its output's bias, or nothing."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Nothing:
    """In place of a module's `forward`: what it computes when its output matrix, of that name, has no inputs."""

    module: nn.Module
    output: str

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        bias = getattr(self.module, self.output).bias
        nothing = torch.zeros_like(hidden_states)
        return nothing if bias is None else nothing + bias


class NothingAttended(Nothing):
    """The same of attention, which answers with its weights too, and lets the cache know how long the text is.

    transformers asks the first layer's keys for that; one number a position stands for them.
    """

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        cache = kwargs.get("past_key_values", kwargs.get("layer_past"))
        if cache is not None:
            keys = torch.zeros_like(hidden_states[:, None, :, :1])
            cache.update(keys, keys, self.module.layer_idx)
        return super().__call__(hidden_states), None

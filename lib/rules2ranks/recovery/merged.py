"""A training step with small matrices in less time: what an adapter adds is put into the weights once a step."""

import copy
import itertools
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn

from rules2ranks.recovery.wrapping import adapted_matrices

#: Numbers in a matrix, on average, up to which merging pays. PEFT takes every input through A and B, some eight small
#: operations more for each matrix; merging costs one gradient of the matrix's size, which grows with it.
SMALL = 2**14


def trainable(adapted: nn.Module) -> nn.Module:
    """What to train and to score in place of `adapted`: the same parameters, logits and gradients, up to rounding.

    For small matrices `Merged`; `adapted` itself where that would not pay or not be the same: larger matrices, weights
    of less precision than float32 (which would round the correction away), dropout, other layers than plain LoRA.
    """
    layers = [module for _, _, module in adapted_matrices(adapted)] if isinstance(adapted, PeftModel) else []
    if not layers or not all(isinstance(module, Linear) and _plain(module) for module in layers):
        return adapted
    numbers = sum(module.get_base_layer().weight.numel() for module in layers)
    return Merged(adapted) if numbers <= SMALL * len(layers) else adapted


def _plain(module: Linear) -> bool:
    base, dropout = module.get_base_layer(), module.lora_dropout["default"]
    return isinstance(dropout, nn.Identity) and base.weight.dtype == torch.float32 and not module.lora_variant


class Merged(nn.Module):
    """The model beneath an adapter, called with W + alpha/r · B·A in place of every adapted W, merged in every call.

    Its parameters are those of `adapted`, which sees what is trained here.
    """

    def __init__(self, adapted: PeftModel):
        super().__init__()
        self.adapted = adapted
        base = adapted.get_base_model()
        self._matrices = {name: module for _, name, module in adapted_matrices(adapted)}
        # The same parameters in modules of their own, with plain matrices in the place of PEFT's layers.
        known = {id(p): p for p in itertools.chain(base.parameters(), base.buffers())}
        known |= {id(module): _alone(module.get_base_layer()) for module in self._matrices.values()}
        # In a list: no part of this module, which has these parameters already.
        self._twin = [copy.deepcopy(base, known)]

    def train(self, mode: bool = True) -> "Merged":
        self._twin[0].train(mode)
        return super().train(mode)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        weights = {f"{name}.weight": _weight(module) for name, module in self._matrices.items()}
        return torch.func.functional_call(self._twin[0], weights, inputs, named)


def _alone(module: nn.Module) -> nn.Module:
    """A module of its own with the same parameters, for one that has no others in it."""
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)
    return twin


def _weight(module: Linear) -> Tensor:
    base, a, b = module.get_base_layer(), module.lora_A["default"].weight, module.lora_B["default"].weight
    left, right = (a.T, b.T) if module.fan_in_fan_out else (b, a)
    return torch.addmm(base.weight, left, right, alpha=module.scaling["default"])

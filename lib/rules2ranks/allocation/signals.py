"""What the closed forms go by: a number for each matrix that says how much it has to mend."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rules2ranks.decoders import linears


def gradient_norms(
    model: nn.Module, batches: Iterable[Any], loss: Callable[[nn.Module, Any], Tensor]
) -> list[dict[str, float]]:
    """Per decoder layer, by the matrix's name, ‖∂L/∂W‖_F of the mean `loss` over `batches`: what recovery starts with.

    Taken on the pruned model, dropout off; modes, flags and `.grad` are afterwards as they were.

    Raises:
        ValueError: no batch, or a gradient that is not finite.
    """
    layers = linears(model)
    weights = {name: module.weight for layer in layers for name, module in layer.items()}
    flags = {name: weight.requires_grad for name, weight in weights.items()}
    modes = [(module, module.training) for module in model.modules()]
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    count = 0
    try:
        model.eval()
        for weight in weights.values():
            weight.requires_grad_(True)
        for count, batch in enumerate(batches, 1):  # noqa: B007
            with torch.enable_grad():
                gradients = torch.autograd.grad(loss(model, batch), list(weights.values()))
            for total, gradient in zip(sums.values(), gradients, strict=True):
                total += gradient
    finally:
        for module, mode in modes:
            module.training = mode
        for name, weight in weights.items():
            weight.requires_grad_(flags[name])
    if not count:
        raise ValueError("gradient norms need at least one batch")
    norms = {name: (total / count).norm().item() for name, total in sums.items()}
    if not all(torch.isfinite(torch.tensor(list(norms.values())))):
        raise ValueError("a gradient is not finite; a model in half precision may need float32")
    return [{name: norms[name] for name in layer} for layer in layers]

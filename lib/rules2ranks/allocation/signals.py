"""What a closed form goes by: a number for each matrix that says how much it has to mend."""

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

from rules2ranks.calibration import Loss, mean_gradients
from rules2ranks.decoders import linears


def gradient_norms(model: nn.Module, batches: Iterable[Any], loss: Loss) -> list[dict[str, float]]:
    """Per decoder layer, by the matrix's name, ‖∂L/∂W‖_F of the mean `loss` over `batches`: what recovery starts with.

    Taken on the pruned model, which is left as it was.

    Raises:
        ValueError: no batch, or a gradient that is not finite.
    """
    layers, batches = linears(model), list(batches)
    if not batches:
        raise ValueError("gradient norms need at least one batch")
    weights = [module.weight for layer in layers for module in layer.values()]
    norms = [gradient.norm().item() for gradient in mean_gradients(model, weights, batches, loss)]
    if not all(map(math.isfinite, norms)):
        raise ValueError("a gradient is not finite; a model in half precision may need float32")
    found = iter(norms)
    return [{name: next(found) for name in layer} for layer in layers]

"""How much every coupled group of a decoder matters: importance from gradients, from weights, or drawn at random."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rules2ranks.decoders import groups

Loss = Callable[[nn.Module, Any], Tensor]
Kind = Literal["taylor", "l2", "random"]


@dataclass(frozen=True, eq=False)
class Scores:
    """Importance of every group: per layer one 1-D float64 tensor over attention groups and one over channels."""

    kind: str
    attention: list[Tensor]
    channels: list[Tensor]


def importance(
    model: nn.Module, batches: Iterable[Any], loss: Loss | None, kind: Kind = "taylor", *, seed: int | None = None
) -> Scores:
    """Score every attention group and MLP channel of every layer; the model is left as it was.

    - `taylor`: Σ|w·g| over the group's weights and biases, g the gradient of the mean of `loss` over `batches` (which
      should be of equal size), dropout off: first-order "Element¹" of LLM-Pruner (arXiv 2305.11627, eq. 5).
    - `l2`: Σw², the squared norm of the group.
    - `random`: uniform draws from `seed` times the group's size, so that the importance *per parameter* is uniform.

    `batches` and `loss` serve `taylor` only; for the others `()` and None do.

    Raises:
        ValueError: an unknown kind, no batch, no seed, an unsupported model, or a score that is not finite.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {get_args(Kind)}, got {kind!r}")
    if kind == "random" and seed is None:
        raise ValueError("random importance needs a seed")
    if kind == "taylor" and loss is None:
        raise ValueError("taylor importance needs a loss")
    parts = [part for layer in groups(model) for part in layer.parts]
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        scores = [torch.rand(part.count, generator=generator, dtype=torch.float64) * part.parameters for part in parts]
    else:
        tensors = [c.tensor for part in parts for c in part.coupled]
        if kind == "taylor":
            gradients = _mean_gradients(model, tensors, batches, loss)
            values = ((w.detach().float() * g).abs() for w, g in zip(tensors, gradients, strict=True))
        else:
            values = (w.detach().float().square() for w in tensors)
        scores = [torch.stack([part.sums(c, next(values)) for c in part.coupled]).sum(0) for part in parts]
        scores = [score.double().cpu() for score in scores]
    if not all(score.isfinite().all() for score in scores):
        raise ValueError(f"{kind} importance is not finite; a model in half precision may need float32")
    return Scores(kind, scores[0::2], scores[1::2])


def _mean_gradients(model: nn.Module, tensors: Sequence[Tensor], batches: Iterable[Any], loss: Loss) -> list[Tensor]:
    """Gradient of the mean loss over the batches, in float32; modes, flags and `.grad` stay as they were."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [tensor.requires_grad for tensor in tensors]
    sums, count = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in tensors], 0
    try:
        model.eval()
        for tensor in tensors:
            tensor.requires_grad_(True)
        for count, batch in enumerate(batches, 1):  # noqa: B007
            with torch.enable_grad():
                for total, gradient in zip(sums, torch.autograd.grad(loss(model, batch), tensors), strict=True):
                    total += gradient
    finally:
        for module, mode in modes:
            module.training = mode
        for tensor, flag in zip(tensors, flags, strict=True):
            tensor.requires_grad_(flag)
    if not count:
        raise ValueError("taylor importance needs at least one batch")
    return [total / count for total in sums]

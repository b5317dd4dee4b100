"""How much every coupled group of a decoder matters, and how much every decoder layer does.

Groups by gradients (LLM-Pruner, arXiv 2305.11627, section 3.2), by weights, by activations (Wanda-sp and FLAP, arXiv
2312.11983), or drawn at random; layers by how far they turn the residual stream (CFSP, arXiv 2409.13199).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rules2ranks import calibration
from rules2ranks.calibration import Loss, Positions
from rules2ranks.decoders import Groups, decoder_layers, groups

Kind = Literal["taylor", "taylor2", "taylor-mixed", "vector", "l1", "l2", "random", "wanda-sp", "flap"]
GRADIENTS = ("taylor", "taylor2", "taylor-mixed", "vector")
ACTIVATIONS = ("wanda-sp", "flap")


@dataclass(frozen=True, eq=False)
class Means:
    """Mean inputs of the output matrices: per layer one 1-D float64 tensor for attention and one for the MLP."""

    attention: list[Tensor]
    channels: list[Tensor]


@dataclass(frozen=True, eq=False)
class Scores:
    """Importance of every group: per layer one 1-D float64 tensor over attention groups and one over channels.

    `wanda-sp` and `flap` have seen what goes into the output matrices and give its `means`; the others have none.
    """

    kind: str
    attention: list[Tensor]
    channels: list[Tensor]
    means: Means | None = None


def importance(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss | None,
    kind: Kind = "taylor",
    *,
    seed: int | None = None,
    positions: Positions | None = None,
) -> Scores:
    """Score every attention group and MLP channel of every layer; the model is left as it was.

    From gradients, with w all weights and biases of a group, g the gradient of the mean of `loss` over `batches` (which
    should be of equal size), h the mean over all examples of the square of the example's own gradient (the diagonal of
    the Fisher information, for the Hessian), dropout off; LLM-Pruner, equations 3 to 5:

    - `taylor`: Σ|w·g|, first order ("Element¹").
    - `taylor2`: Σ|½·w·h·w|, second order alone.
    - `taylor-mixed`: Σ|w·g − ½·w·h·w| ("Element²").
    - `vector`: |Σ w·g|, the group as one vector.

    From weights: `l1` Σ|w| and `l2` Σw² (the squared norm).

    From activations, with W the output matrix (o_proj, down_proj) and X_j its inputs at all positions that count, j
    over the inputs that belong to the group:

    - `wanda-sp`: Σ_j Σ_i |W_ij|·‖X_j‖₂ (Wanda for structures, as FLAP's authors compare with).
    - `flap`: Σ_j Var(X_j)·‖W_:j‖₂², the fluctuation that no bias can make up for (FLAP).

    `random`: uniform draws from `seed` times the group's size, so that the importance *per parameter* is uniform.

    Args:
        batches: calibration data, with `loss` to feed it to the model; weights and chance need none (`()` and None do).
        positions: which positions of a batch count for activations, all unless given. Give it where there is padding.

    Raises:
        ValueError: an unknown kind, no batch, no loss, no seed, an unsupported model, or a score that is not finite.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {get_args(Kind)}, got {kind!r}")
    if kind == "random" and seed is None:
        raise ValueError("random importance needs a seed")
    parts = [part for layer in groups(model) for part in layer.parts]
    means = None
    if kind == "random":
        scores = _drawn(parts, seed)
    elif kind in ACTIVATIONS:
        fed = _fed(f"{kind} importance", batches, loss)
        moments = calibration.input_moments(model, [part.output.module for part in parts], *fed, positions)
        scores = [_by_activations(kind, part, seen) for part, seen in zip(parts, moments, strict=True)]
        means = _means(moments)
    else:
        fed = _fed(f"{kind} importance", batches, loss) if kind in GRADIENTS else ()
        scores = _by_weights(kind, model, parts, *fed)
    scores = [score.double().cpu() for score in scores]
    if not all(score.isfinite().all() for score in scores):
        raise ValueError(f"{kind} importance is not finite; a model in half precision may need float32")
    return Scores(kind, scores[0::2], scores[1::2], means)


def input_means(model: nn.Module, batches: Iterable[Any], loss: Loss, *, positions: Positions | None = None) -> Means:
    """Mean inputs of the output matrices (o_proj, down_proj) over all positions that count, for bias compensation.

    Raises:
        ValueError: no batch, or an unsupported model.
    """
    modules = [part.output.module for layer in groups(model) for part in layer.parts]
    return _means(calibration.input_moments(model, modules, *_fed("a mean", batches, loss), positions))


def block_importance(
    model: nn.Module, batches: Iterable[Any], loss: Loss, *, positions: Positions | None = None
) -> list[float]:
    """Per decoder layer arccos(cos(x, y))/π of its input x and its output y, the mean over all positions that count.

    From 0 (the layer changes no direction) to 1: the coarse importance of CFSP (arXiv 2409.13199).

    Raises:
        ValueError: no batch, or no decoder layers that are known.
    """
    blocks = list(decoder_layers(model).values())
    return calibration.angular_distances(model, blocks, *_fed("block importance", batches, loss), positions)


def _fed(what: str, batches: Iterable[Any], loss: Loss | None) -> tuple[Sequence[Any], Loss]:
    """Batches and loss, both there."""
    if loss is None:
        raise ValueError(f"{what} needs a loss")
    if not (batches := list(batches)):
        raise ValueError(f"{what} needs at least one batch")
    return batches, loss


def _drawn(parts: Sequence[Groups], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(part.count, generator=generator, dtype=torch.float64) * part.parameters for part in parts]


def _by_activations(kind: str, part: Groups, seen: calibration.Moments) -> Tensor:
    weight = part.output.tensor.detach().float()
    if kind == "wanda-sp":
        sizes, factor = weight.abs(), seen.norm
    else:
        sizes, factor = weight.square(), seen.variance
    shape = [1, 1]
    shape[part.output.dim] = -1
    return part.sums(part.output, sizes * factor.view(shape))


def _by_weights(kind: str, model: nn.Module, parts: Sequence[Groups], *fed: Any) -> list[Tensor]:
    """Scores that are sums of one value per weight, made a tensor at a time."""
    coupled = [c for part in parts for c in part.coupled]
    tensors = [c.tensor for c in coupled]
    if kind in ("l1", "l2"):
        values = (w.detach().float().abs() if kind == "l1" else w.detach().float().square() for w in tensors)
    elif kind in ("taylor", "vector"):
        first = calibration.mean_gradients(model, tensors, *fed)
        values = (w.detach().float() * g for w, g in zip(tensors, first, strict=True))
        if kind == "taylor":
            values = (value.abs() for value in values)
    else:
        first, second = calibration.example_gradients(model, [(c.module, c.parameter) for c in coupled], *fed)
        with_first = kind == "taylor-mixed"
        values = (
            (with_first * w.detach().float() * g - w.detach().float().square() * h / 2).abs()
            for w, g, h in zip(tensors, first, second, strict=True)
        )
    scores = [torch.stack([part.sums(c, next(values)) for c in part.coupled]).sum(0) for part in parts]
    return [score.abs() for score in scores] if kind == "vector" else scores


def _means(moments: Sequence[calibration.Moments]) -> Means:
    means = [seen.mean.cpu() for seen in moments]
    return Means(means[0::2], means[1::2])

"""How much every coupled group of a decoder matters, and how much every decoder layer and matrix does.

`MEASURES` has the importances of groups by name. Layers matter by how far they turn the residual stream (CFSP, arXiv
2409.13199), matrices by their gradients.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rules2ranks.calibration import Angles, Loss, Moments, Positions, collect, example_gradients, mean_gradients
from rules2ranks.decoders import Groups, decoder_layers, groups, linears


@dataclass(frozen=True)
class Measure:
    """An importance of groups: what it must see, and its value of every weight.

    A group's importance is |Σ value| over its weights. A new measure is an entry of `MEASURES` and its test. What
    `value` gets, all float32 unless said, follows from `needs`; it returns one number per weight, in w's shape:

    - "weights": w, each weight and bias in turn.
    - "gradients": w and g, the gradient of the mean loss.
    - "example gradients": w, g and h, the mean over all examples of the square of the example's own gradient (the
      diagonal of the Fisher information, for the Hessian).
    - "activations": w, the output matrix (o_proj, down_proj) as (outputs, inputs), and x, the `calibration.Moments` of
      its inputs: float64, (inputs,).
    - "seed": how many groups there are, and a generator; it returns a number per parameter of each group.
    """

    needs: Literal["weights", "gradients", "example gradients", "activations", "seed"]
    value: Callable[..., Tensor]


#: From gradients: LLM-Pruner, arXiv 2305.11627, equations 3 to 5; from activations: FLAP, arXiv 2312.11983.
MEASURES: dict[str, Measure] = {
    # Σ|w·g|, first order (Element¹)
    "taylor": Measure("gradients", lambda w, g: (w * g).abs()),
    # Σ|½·w·h·w|, second order alone
    "taylor2": Measure("example gradients", lambda w, g, h: (w.square() * h / 2).abs()),
    # Σ|w·g − ½·w·h·w| (Element²)
    "taylor-mixed": Measure("example gradients", lambda w, g, h: (w * g - w.square() * h / 2).abs()),
    # |Σ w·g|, the group as one vector
    "vector": Measure("gradients", lambda w, g: w * g),
    "l1": Measure("weights", lambda w: w.abs()),
    # Σw², the squared norm
    "l2": Measure("weights", lambda w: w.square()),
    # A uniform draw times the group's size: uniform per parameter.
    "random": Measure("seed", lambda count, generator: torch.rand(count, generator=generator, dtype=torch.float64)),
    # Σ|W_ij|·‖X_j‖₂ (Wanda for structures, as FLAP's authors compare with)
    "wanda-sp": Measure("activations", lambda w, x: w.abs() * x.norm),
    # Σ_j Var(X_j)·‖W_:j‖₂², the fluctuation that no bias can make up for
    "flap": Measure("activations", lambda w, x: w.square() * x.variance),
}
Kind = Literal[*MEASURES]


@dataclass(frozen=True, eq=False)
class Means:
    """Mean inputs of the output matrices: per layer one 1-D float64 tensor for attention and one for the MLP."""

    attention: list[Tensor]
    channels: list[Tensor]


@dataclass(frozen=True, eq=False)
class Scores:
    """Importance of every group: per layer one 1-D float64 tensor over attention groups and one over channels.

    Measures of activations have seen what goes into the output matrices and give its `means`; the others have none.
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
    """Score every attention group and MLP channel of every layer by a measure of `MEASURES`; the model is left alone.

    Gradients are those of the mean of `loss` over `batches` (which should be of equal size), dropout off.

    Args:
        batches: calibration data, with `loss` to feed it to the model; weights and chance need none (`()` and None do).
        seed: of a measure that draws.
        positions: which positions of a batch count for activations, all unless given. Give it where there is padding.

    Raises:
        ValueError: an unknown kind, no batch, no loss, no seed, an unsupported model, or a score that is not finite.
    """
    parts = [part for layer in groups(model) for part in layer.parts]
    scores, seen = scored(model, parts, batches, loss, kind, seed, positions)
    return Scores(kind, scores[0::2], scores[1::2], seen)


def scored(
    model: nn.Module,
    parts: Sequence[Groups],
    batches: Iterable[Any],
    loss: Loss | None,
    kind: str,
    seed: int | None,
    positions: Positions | None,
) -> tuple[list[Tensor], Means | None]:
    """As `importance`, of any parts, such as `decoders.query_heads`: the scores of each one's groups, float64; and the
    mean inputs where these were seen.
    """
    if kind not in MEASURES:
        raise ValueError(f"kind must be one of {tuple(MEASURES)}, got {kind!r}")
    measure = MEASURES[kind]
    fed = () if measure.needs in ("seed", "weights") else _fed(f"{kind} importance", batches, loss)
    seen_means = None
    if measure.needs == "seed":
        if seed is None:
            raise ValueError(f"{kind} importance needs a seed")
        generator = torch.Generator().manual_seed(seed)
        scores = [measure.value(part.count, generator) * part.parameters for part in parts]
    elif measure.needs == "activations":
        moments = collect(model, [part.output.module for part in parts], Moments, *fed, positions)
        scores = [of_inputs(measure, part, seen) for part, seen in zip(parts, moments, strict=True)]
        seen_means = means(moments)
    else:
        scores = _of_parameters(measure, model, parts, fed)
    scores = [score.double().abs().cpu() for score in scores]
    if not all(score.isfinite().all() for score in scores):
        raise ValueError(f"{kind} importance is not finite; a model in half precision may need float32")
    return scores, seen_means


def input_means(model: nn.Module, batches: Iterable[Any], loss: Loss, *, positions: Positions | None = None) -> Means:
    """Mean inputs of the output matrices (o_proj, down_proj) over all positions that count, for bias compensation.

    Raises:
        ValueError: no batch, or an unsupported model.
    """
    matrices = [part.output.module for layer in groups(model) for part in layer.parts]
    return means(collect(model, matrices, Moments, *_fed("a mean", batches, loss), positions))


def block_importance(
    model: nn.Module, batches: Iterable[Any], loss: Loss, *, positions: Positions | None = None
) -> list[float]:
    """Per decoder layer arccos(cos(x, y))/π of its input x and its output y, the mean over all positions that count.

    From 0 (the layer changes no direction) to 1: the coarse importance of CFSP (arXiv 2409.13199).

    Raises:
        ValueError: no batch, or no decoder layers that are known.
    """
    blocks = list(decoder_layers(model).values())
    fed = _fed("block importance", batches, loss)
    return [angles.mean for angles in collect(model, blocks, Angles, *fed, positions)]


def gradient_norms(model: nn.Module, batches: Iterable[Any], loss: Loss) -> list[dict[str, float]]:
    """Per decoder layer, by the matrix's name, ‖∂L/∂W‖_F of the mean `loss` over `batches`; the model is left alone.

    On a pruned model: what the recovery of each matrix starts with.

    Raises:
        ValueError: no batch, or a gradient that is not finite.
    """
    layers, fed = linears(model), _fed("a gradient norm", batches, loss)
    weights = [module.weight for layer in layers for module in layer.values()]
    norms = [gradient.norm().item() for gradient in mean_gradients(model, weights, *fed)]
    if not all(map(math.isfinite, norms)):
        raise ValueError("a gradient is not finite; a model in half precision may need float32")
    found = iter(norms)
    return [{name: next(found) for name in layer} for layer in layers]


def _fed(what: str, batches: Iterable[Any], loss: Loss | None) -> tuple[Sequence[Any], Loss]:
    """Batches and loss, both there."""
    if loss is None:
        raise ValueError(f"{what} needs a loss")
    if not (batches := list(batches)):
        raise ValueError(f"{what} needs at least one batch")
    return batches, loss


def _of_parameters(measure: Measure, model: nn.Module, parts: Sequence[Groups], fed: tuple) -> list[Tensor]:
    """Sums over each group of the values of all its weights and biases, made a tensor at a time."""
    coupled = [c for part in parts for c in part.coupled]
    seen: Sequence[Sequence[Tensor]] = ()
    if measure.needs == "gradients":
        seen = [mean_gradients(model, [c.tensor for c in coupled], *fed)]
    elif measure.needs == "example gradients":
        seen = example_gradients(model, [(c.module, c.parameter) for c in coupled], *fed)
    values = (measure.value(c.tensor.detach().float(), *more) for c, *more in zip(coupled, *seen, strict=True))
    return [torch.stack([part.sums(c, next(values)) for c in part.coupled]).sum(0) for part in parts]


def of_inputs(measure: Measure, part: Groups, seen: Moments) -> Tensor:
    """Sums over each group of the values of its columns of the output matrix."""
    output = part.output
    values = measure.value(output.tensor.detach().float().movedim(output.dim, -1), seen)  # (outputs, inputs)
    return part.sums(output, values.movedim(-1, output.dim))


def means(moments: Sequence[Moments]) -> Means:
    """Mean inputs from what was seen of the output matrices, attention and MLP in turn."""
    found = [seen.mean.cpu() for seen in moments]
    return Means(found[0::2], found[1::2])

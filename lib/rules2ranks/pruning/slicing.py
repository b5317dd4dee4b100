"""Cutting groups out of a model, or writing zeros in their place, with or without bias compensation."""

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rules2ranks.decoders import blank, check_architecture, give_bias, groups, kept_copy, outputs
from rules2ranks.importance import Means, Scores
from rules2ranks.models import parameter_count
from rules2ranks.pruning.files import weights_of
from rules2ranks.pruning.plans import Plan, Spread, others
from rules2ranks.pruning.plans import plan as make_plan


def prune(
    model: nn.Module,
    ratio: float | Plan,
    scores: Scores | None = None,
    *,
    spread: Spread = "uniform",
    protect: tuple[int, int] = (0, 0),
    blocks: Sequence[float] | None = None,
    standardise: bool = False,
    multiple: int = 1,
    of: Literal["model", "layers"] = "model",
    means: Means | None = None,
) -> nn.Module:
    """A sliced copy of `model`, which stays as it is: `ratio` of its parameters gone, the least important groups.

        scores = importance(model, batches, loss, "flap")
        pruned = prune(model, 0.3, scores, spread="global", standardise=True, means=scores.means)

    or, to look at a plan before: `prune(model, plan(model, scores, 0.3, spread="global"))`. The outputs are those of
    `mask` with the same plan and means.

    With `means`, each output matrix W (o_proj, down_proj) that loses inputs j gets Σ_j W_:j·mean(X_j) added to its
    bias, made if there is none: FLAP's bias compensation (arXiv 2312.11983), by which the mean of its output stays what
    it was as long as its inputs do. New biases are not counted in the ratio; `report` counts them.

    Args:
        ratio: in (0, 1), with `scores` and the other arguments of `plan`; or a `Plan`, which needs none of them.
        means: of the unpruned model, from `input_means`, or `scores.means` of `flap` and `wanda-sp`.

    Raises:
        ValueError: as `plan` and `check_architecture`; a ratio without scores, a plan with them; a plan or means made
            for other shapes.
    """
    check_architecture(model)
    if not isinstance(ratio, Plan):
        if scores is None:
            raise ValueError("a ratio needs the scores of the groups (see importance); a plan does not")
        how = {"blocks": blocks, "standardise": standardise, "multiple": multiple, "of": of}
        ratio = make_plan(model, scores, ratio, spread=spread, protect=protect, **how)
    elif scores is not None:
        raise ValueError("a plan says already which groups stay: pass scores with a ratio only")
    check_plan(model, ratio)
    return sliced(model, ratio, means)


def sliced(model: nn.Module, plan: Plan, means: Means | None = None) -> nn.Module:
    """What `prune` leaves by a plan, of a model or of a single decoder layer."""
    return _compensated(kept_copy(model, _chosen(plan)), model, plan, means)


def mask(model: nn.Module, plan: Plan, *, means: Means | None = None) -> nn.Module:
    """A copy of `model` in its full shapes, with zeros in every weight that `prune` would remove; same compensation.

    Raises:
        ValueError: as `check_architecture`; the plan or the means were made for other shapes.
    """
    check_architecture(model)
    check_plan(model, plan)
    return _compensated(blank(copy.deepcopy(model), _chosen(plan)), model, plan, means)


def report(before: nn.Module, after: nn.Module) -> dict[str, float]:
    """What pruning removed, counted.

    FLOPs per token are two per entry of every matrix that a token is multiplied by (output head included, look-ups and
    the attention products, which depend on the length, not); bytes are those of the tensors in a weights file.
    """
    rows = {}
    for when, model in (("before", before), ("after", after)):
        matrices = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
        rows[f"parameters_{when}"] = parameter_count(model)
        rows[f"flops_per_token_{when}"] = 2 * sum(module.weight.numel() for module in matrices)
        rows[f"bytes_{when}"] = sum(tensor.numel() * tensor.element_size() for tensor in weights_of(model).values())
    for what in ("parameters", "flops_per_token", "bytes"):
        rows[f"{what}_removed"] = 1 - rows[f"{what}_after"] / rows[f"{what}_before"]
    return rows


def _chosen(plan: Plan) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(kept.attention, kept.channels) for kept in plan.layers]


@torch.no_grad()
def _compensated(copied: nn.Module, model: nn.Module, plan: Plan, means: Means | None) -> nn.Module:
    """A copy of `model` without what is to go, and with what that gives on average in the biases of its outputs."""
    if means is None:
        return copied
    layers, pairs = groups(model), list(zip(means.attention, means.channels, strict=True))
    inputs = [tuple(part.output.tensor.shape[part.output.dim] for part in layer.parts) for layer in layers]
    if (given := [(len(attention), len(channels)) for attention, channels in pairs]) != inputs:
        raise ValueError(f"the means are for output matrices of {given} inputs, the model has {inputs}")
    into = iter(outputs(copied).values())
    for layer, kept, pair in zip(layers, plan.layers, pairs, strict=True):
        for part, chosen, mean in zip(layer.parts, (kept.attention, kept.channels), pair, strict=True):
            output = next(into)
            if gone := others(chosen, part.count):
                index = part.index(part.output, gone)
                columns = part.output.tensor.index_select(part.output.dim, index).movedim(part.output.dim, 0).double()
                added = mean.to(index.device)[index] @ columns
                give_bias(output)
                output.bias += added.to(output.bias.dtype)
    return copied


def check_plan(model: nn.Module, plan: Plan) -> None:
    """Refuse, as a ValueError, a plan that was made for other shapes."""
    expected = [(layer.attention.count, layer.channels.count) for layer in groups(model)]
    got = [(kept.attention_groups_before, kept.channels_before) for kept in plan.layers]
    if got != expected:
        raise ValueError(f"the plan is for layers of (attention groups, channels) {got}, the model has {expected}")
    for number, kept in enumerate(plan.layers):
        for chosen, count in ((kept.attention, kept.attention_groups_before), (kept.channels, kept.channels_before)):
            if list(chosen) != sorted(set(chosen)) or not set(chosen) <= set(range(count)):
                raise ValueError(f"layer {number}: expected ascending numbers from 0 to {count - 1}, got {chosen}")

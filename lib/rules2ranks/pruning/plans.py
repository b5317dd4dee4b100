"""Which groups stay: a ratio of the whole model's parameters, spread over layers and filled with whole groups."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
from torch import nn

from rules2ranks import decoders, spreads
from rules2ranks.importance import Scores
from rules2ranks.models import parameter_count
from rules2ranks.spreads import SPREADS, Spread

TOLERANCE = 0.01  # a ratio is kept to within one point, or refused


@dataclass(frozen=True)
class Kept:
    """What stays of one layer, in ascending order, and how much there was."""

    attention: tuple[int, ...]
    channels: tuple[int, ...]
    attention_groups_before: int
    channels_before: int


@dataclass(frozen=True)
class Plan:
    """Which groups stay in every layer. `ratio` was asked for, `removed` is the share of the model that really goes."""

    ratio: float
    removed: float
    spread: str
    layers: tuple[Kept, ...]


def plan(
    model: nn.Module,
    scores: Scores,
    ratio: float,
    *,
    spread: Spread = "uniform",
    protect: tuple[int, int] = (0, 0),
    blocks: Sequence[float] | None = None,
    standardise: bool = False,
    multiple: int = 1,
    of: Literal["model", "layers"] = "model",
) -> Plan:
    """Choose the groups that stay so that `ratio` of the whole model's parameters goes, to within one point.

    Args:
        ratio: in (0, 1), a share of all parameters of the model, embeddings included; or `of` its "layers": of the
            groups' parameters in all of them, which a large vocabulary leaves as they are.
        spread: how the loss is spread over the unprotected layers, a name of `spreads.SPREADS`: `uniform`,
            `importance` (`spreads.in_proportion`), `global` (`spreads.ranked`) or `same` (`spreads.same`).
        protect: how many layers stay whole at the beginning and at the end.
        blocks: for `importance`: how much each decoder layer matters, such as `block_importance` says.
        standardise: for `global`: rank by importance standardised within each layer and kind.
        multiple: for `same`: of what each layer keeps a multiple of channels.

    Raises:
        ValueError: a value out of range, scores of another model, or a ratio that cannot be reached while one attention
            group and one channel stay in every layer (the message states the nearest and the highest that can).
    """
    layers = _layers(model, scores)
    _check(layers, ratio, spread, protect)
    choose, takes = SPREADS[spread]
    first, end = protect[0], len(layers) - protect[1]
    given = {"standardise": standardise, "multiple": multiple}
    options: dict[str, Any] = {name: value for name, value in given.items() if name in takes}
    if "blocks" in takes:
        options["blocks"] = _block_weights(blocks, len(layers))[first:end]
    whole, cuttable = parameter_count(model), sum(layer.cost for layer in layers)
    total = whole if of == "model" else cuttable
    gone, highest = choose(layers[first:end], ratio * total, **options)
    gone = [([], [])] * protect[0] + gone + [([], [])] * protect[1]
    pairs = list(zip(layers, gone, strict=True))
    removed = sum(len(some) * part.cost for layer, pair in pairs for part, some in zip(layer, pair, strict=True))
    if abs(removed / total - ratio) > TOLERANCE:
        raise ValueError(
            f"ratio {ratio} cannot be reached (spread {spread}, protect {protect}, at least one attention group and "
            f"one channel in each layer): the nearest is {removed / total:.4f}, "
            f"the highest reachable {highest / total:.4f}{_why(layers, whole, cuttable, of)}"
        )
    kept = tuple(
        Kept(
            others(attention, layer.attention.count),
            others(channels, layer.channels.count),
            layer.attention.count,
            layer.channels.count,
        )
        for layer, (attention, channels) in pairs
    )
    return Plan(ratio, removed / whole, spread, kept)


def _why(layers: Sequence[spreads.Layer], whole: int, cuttable: int, of: str) -> str:
    """What stands in the way of more, as a sentence of its own; empty if it is nothing unusual."""
    said = []
    if of == "model" and cuttable < whole / 2:
        said.append(
            f"{1 - cuttable / whole:.0%} of the parameters are outside the layers' groups (embeddings, mostly): take a "
            "share of the layers' instead (of='layers'), or cut the vocabulary first"
        )
    if any(layer.attention.count == 1 for layer in layers):
        said.append("with one key/value head a layer's attention never goes")
    return "".join(f". {each[0].upper()}{each[1:]}" for each in said)


def others(some: Iterable[int], count: int) -> tuple[int, ...]:
    """0…count−1 without `some`, ascending."""
    return tuple(sorted(set(range(count)) - set(some)))


def _layers(model: nn.Module, scores: Scores) -> list[spreads.Layer]:
    """What the choice needs to know of each layer, protected ones included."""
    layers = decoders.groups(model)
    expected = [(layer.attention.count, layer.channels.count) for layer in layers]
    got = [(len(a), len(c)) for a, c in zip(scores.attention, scores.channels, strict=True)]
    if got != expected:
        raise ValueError(f"the scores are for layers of (attention groups, channels) {got}, the model has {expected}")
    return [
        spreads.Layer(*(spreads.Part(s.numpy(), part.parameters) for s, part in zip(pair, layer.parts, strict=True)))
        for layer, *pair in zip(layers, scores.attention, scores.channels, strict=True)
    ]


def _check(layers: Sequence[spreads.Layer], ratio: float, spread: str, protect: tuple[int, int]) -> None:
    first, last = protect
    if not (isinstance(ratio, Real) and 0 < ratio < 1):
        raise ValueError(f"ratio must lie between 0 and 1, got {ratio!r}")
    if spread not in SPREADS:
        raise ValueError(f"spread must be one of {tuple(SPREADS)}, got {spread!r}")
    if first < 0 or last < 0 or first + last >= len(layers):
        raise ValueError(f"protect={protect} must leave at least one of the {len(layers)} layers unprotected")


def _block_weights(blocks: Sequence[float] | None, layers: int) -> np.ndarray:
    if blocks is None:
        raise ValueError("spread importance needs blocks: how much each decoder layer matters (see block_importance)")
    weights = np.asarray(blocks, dtype=np.float64)
    if weights.shape != (layers,) or not np.isfinite(weights).all():
        raise ValueError(f"blocks must be {layers} finite numbers, one per decoder layer, got {blocks}")
    return weights

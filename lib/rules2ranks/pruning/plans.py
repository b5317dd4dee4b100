"""Which groups stay: a ratio of the whole model's parameters, spread over layers and filled with whole groups."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from rules2ranks.decoders import Layer, groups
from rules2ranks.importance import Scores
from rules2ranks.models import parameter_count

Spread = Literal["uniform", "importance", "global"]
#: Per layer the attention groups and the channels that go.
Gone = list[tuple[list[int], list[int]]]

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
    """Which groups stay in every layer. `ratio` was asked for, `removed` is what the plan really removes."""

    ratio: float
    removed: float
    spread: str
    layers: tuple[Kept, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries: JSON."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Plan":
        """The plan that `to_dict` wrote down."""
        layers = [
            Kept(**{key: tuple(v) if isinstance(v, list) else v for key, v in layer.items()})
            for layer in values["layers"]
        ]
        return cls(**{**values, "layers": tuple(layers)})


def plan(
    model: nn.Module,
    scores: Scores,
    ratio: float,
    *,
    spread: Spread = "uniform",
    protect: tuple[int, int] = (0, 0),
    blocks: Sequence[float] | None = None,
    standardise: bool = False,
) -> Plan:
    """Choose the groups that stay so that `ratio` of the whole model's parameters goes, to within one point.

    - `uniform`: every unprotected layer loses the same share of its groups' parameters.
    - `importance`: the share that an unprotected layer keeps is in proportion to the sigmoid of its `blocks` entry,
      standardised over these layers (CFSP, arXiv 2409.13199: coarse to fine). What a layer cannot keep (more than all
      of it) or lose (its last groups) goes to the others, in the same proportion.
    - `global`: the groups of all unprotected layers in one ranking by importance per parameter, the least go first.
      With `standardise`, by importance standardised within each layer and kind (attention, MLP), for scores whose sizes
      cannot be compared from one matrix to another (FLAP, arXiv 2312.11983).

    In the first two, attention comes as near to a layer's share as whole groups can and MLP channels fill the rest; the
    least important of each go.

    Args:
        ratio: in (0, 1), a share of all parameters of the model, embeddings included.
        protect: how many layers stay whole at the beginning and at the end.
        blocks: for `importance`: how much each decoder layer matters, such as `block_importance` says.
        standardise: for `global`: see there.

    Raises:
        ValueError: a value out of range, scores of another model, or a ratio that cannot be reached while one attention
            group and one channel stay in every layer (the message states the nearest and the highest that can).
    """
    layers = groups(model)
    _check(layers, scores, ratio, spread, protect)
    total = parameter_count(model)
    free = range(protect[0], len(layers) - protect[1])
    if spread == "uniform":
        gone, highest = _choose_uniform(layers, scores, ratio * total, free)
    elif spread == "importance":
        gone, highest = _choose_importance(layers, scores, ratio * total, free, _block_weights(blocks, layers))
    else:
        gone, highest = _choose_global(layers, scores, ratio * total, free, standardise)
    kept = tuple(
        Kept(others(attention, layer.attention.count), others(channels, layer.channels.count),
             layer.attention.count, layer.channels.count)
        for layer, (attention, channels) in zip(layers, gone, strict=True)
    )  # fmt: skip
    removed = sum(
        len(some) * part.parameters
        for layer, pair in zip(layers, gone, strict=True)
        for part, some in zip(layer.parts, pair, strict=True)
    )
    if abs(removed / total - ratio) > TOLERANCE:
        raise ValueError(
            f"ratio {ratio} cannot be reached (spread {spread}, protect {protect}, at least one attention group and "
            f"one channel in each layer): the nearest is {removed / total:.4f}, "
            f"the highest reachable {highest / total:.4f}"
        )
    return Plan(ratio, removed / total, spread, kept)


def _choose_uniform(layers: list[Layer], scores: Scores, target: float, free: range) -> tuple[Gone, float]:
    """What goes, and the most parameters that this spread can remove."""
    prunable = sum(layers[i].parameters for i in free)
    limit = min(sum((p.count - 1) * p.parameters for p in layers[i].parts) / layers[i].parameters for i in free)
    share = min(target / prunable, limit)
    return _choose_shares(layers, scores, dict.fromkeys(free, share)), limit * prunable


def _choose_importance(
    layers: list[Layer], scores: Scores, target: float, free: range, blocks: np.ndarray
) -> tuple[Gone, float]:
    """What goes, and the most parameters that this spread can remove."""
    size = np.array([layers[i].parameters for i in free], dtype=float)
    least = np.array([sum(p.parameters for p in layers[i].parts) for i in free]) / size
    weight = 1 / (1 + np.exp(-_standardised(blocks[free])))
    wanted = max(size.sum() - target, least @ size)
    low, high = 0.0, 1 / weight.min()  # kept at `low`: the least; at `high`: everything
    for _ in range(100):
        middle = (low + high) / 2
        fits = np.clip(middle * weight, least, 1) @ size <= wanted
        low, high = (middle, high) if fits else (low, middle)
    shares = 1 - np.clip(low * weight, least, 1)
    gone = _choose_shares(layers, scores, dict(zip(free, shares.tolist(), strict=True)))
    return gone, (1 - least) @ size


def _choose_shares(layers: list[Layer], scores: Scores, shares: Mapping[int, float]) -> Gone:
    """What goes when the layers named lose these shares of their groups' parameters, and the others nothing."""
    gone: Gone = [([], []) for _ in layers]
    due = 0.0
    for i, share in shares.items():
        heads, channels = layers[i].parts
        due += share * layers[i].parameters  # what rounding left over is made up for in the next layer
        options = []
        for n in range(heads.count):
            m = min(max(round((due - n * heads.parameters) / channels.parameters), 0), channels.count - 1)
            miss = abs(due - n * heads.parameters - m * channels.parameters)
            options.append((max(miss, channels.parameters / 2), abs(n - share * heads.count), n, m))
        _, _, n, m = min(options)
        due -= n * heads.parameters + m * channels.parameters
        gone[i] = (_lowest(scores.attention[i], n), _lowest(scores.channels[i], m))
    return gone


def _choose_global(
    layers: list[Layer], scores: Scores, target: float, free: range, standardise: bool
) -> tuple[Gone, float]:
    """What goes, and the most parameters that this spread can remove."""
    value, cost, where = [], [], []
    for i in free:
        for kind, (part, score) in enumerate(
            zip(layers[i].parts, (scores.attention[i], scores.channels[i]), strict=True)
        ):
            candidates = _lowest(score, part.count - 1)  # the most important one always stays
            ranked = torch.from_numpy(_standardised(score.numpy())) if standardise else score / part.parameters
            value += ranked[candidates].tolist()
            cost += [part.parameters] * len(candidates)
            where += [(i, kind, group) for group in candidates]
    slack = min(layers[i].channels.parameters for i in free) / 2
    gone: Gone = [([], []) for _ in layers]
    for k in _fill(np.argsort(value, kind="stable").tolist(), cost, [kind for _, kind, _ in where], target, slack):
        i, kind, group = where[k]
        gone[i][kind].append(group)
    return gone, sum(cost)


def _fill(order: list[int], cost: list[int], kind: list[int], target: float, slack: float) -> list[int]:
    """Candidates in this order up to the target, give or take `slack`: heads (kind 0) are coarse, channels fill."""
    taken: list[int] = []
    left: list[int] = []
    removed = 0
    for k in order:
        fits = removed + cost[k] <= target + slack  # a head that does not fit is left, and channels fill the rest
        (taken if fits else left).append(k)
        removed += cost[k] * fits
    for k in left:
        if removed >= target - slack:
            break
        # The channels ran out: one head more, and the most important channels come back.
        channels = [j for j in taken if kind[j] == 1]
        taken.append(k)
        removed += cost[k]
        while channels and removed - cost[channels[-1]] >= target - slack:
            removed -= cost[channels[-1]]
            taken.remove(channels.pop())
    return taken


def _standardised(values: np.ndarray) -> np.ndarray:
    """(values − mean) / standard deviation; zeros where all are equal."""
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)


def _lowest(score: Tensor, number: int) -> list[int]:
    return torch.argsort(score, stable=True)[:number].tolist()


def others(some: Iterable[int], count: int) -> tuple[int, ...]:
    """0…count−1 without `some`, ascending."""
    return tuple(sorted(set(range(count)) - set(some)))


def _check(layers: list[Layer], scores: Scores, ratio: float, spread: str, protect: tuple[int, int]) -> None:
    first, last = protect
    if not (isinstance(ratio, Real) and 0 < ratio < 1):
        raise ValueError(f"ratio must lie between 0 and 1, got {ratio!r}")
    if spread not in get_args(Spread):
        raise ValueError(f"spread must be one of {get_args(Spread)}, got {spread!r}")
    if first < 0 or last < 0 or first + last >= len(layers):
        raise ValueError(f"protect={protect} must leave at least one of the {len(layers)} layers unprotected")
    expected = [(layer.attention.count, layer.channels.count) for layer in layers]
    got = [(len(a), len(c)) for a, c in zip(scores.attention, scores.channels, strict=True)]
    if got != expected:
        raise ValueError(f"the scores are for layers of (attention groups, channels) {got}, the model has {expected}")


def _block_weights(blocks: Sequence[float] | None, layers: list[Layer]) -> np.ndarray:
    if blocks is None:
        raise ValueError("spread importance needs blocks: how much each decoder layer matters (see block_importance)")
    weights = np.asarray(blocks, dtype=np.float64)
    if weights.shape != (len(layers),) or not np.isfinite(weights).all():
        raise ValueError(f"blocks must be {len(layers)} finite numbers, one per decoder layer, got {blocks}")
    return weights

"""Structured pruning of decoders: plan, slicing, and files that load again in their pruned shapes.

`importance` scores the coupled groups, `plan` chooses which stay, `prune` slices, `save_pruned` and `load_pruned` keep
the result. A ratio is always the share of the whole model's parameters that is removed.
"""

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rules2ranks.decoders import Layer, decoder_layers, groups, keep, resize, sizes
from rules2ranks.importance import Scores, importance
from rules2ranks.models import parameter_count

__all__ = [
    "Kept",
    "Plan",
    "Scores",
    "decoder_layers",
    "groups",
    "importance",
    "load_pruned",
    "mask",
    "plan",
    "prune",
    "report",
    "resize",
    "save_pruned",
    "sizes",
]

Spread = Literal["uniform", "global"]

FORMAT = 1
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
) -> Plan:
    """Choose the groups that stay so that `ratio` of the whole model's parameters goes, to within one point.

    - `uniform`: every unprotected layer loses the same share of its groups' parameters; attention comes as near to
      that share as whole groups can, MLP channels fill the rest. The least important of each layer go.
    - `global`: the groups of all unprotected layers in one ranking by importance per parameter, the least go first.

    Args:
        ratio: in (0, 1), a share of all parameters of the model, embeddings included.
        protect: how many layers stay whole at the beginning and at the end.

    Raises:
        ValueError: a value out of range, scores of another model, or a ratio that cannot be reached while one attention
            group and one channel stay in every layer (the message states the nearest and the highest that can).
    """
    layers = groups(model)
    first, last = protect
    if not 0 < ratio < 1:
        raise ValueError(f"ratio must lie between 0 and 1, got {ratio}")
    if spread not in get_args(Spread):
        raise ValueError(f"spread must be one of {get_args(Spread)}, got {spread!r}")
    if first < 0 or last < 0 or first + last >= len(layers):
        raise ValueError(f"protect={protect} must leave at least one of the {len(layers)} layers unprotected")
    _check_scores(layers, scores)
    total = parameter_count(model)
    free = range(first, len(layers) - last)
    choose = _choose_uniform if spread == "uniform" else _choose_global
    gone, highest = choose(layers, scores, ratio * total, free)
    kept = tuple(
        Kept(_others(attention, layer.attention.count), _others(channels, layer.channels.count),
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


def prune(model: nn.Module, plan: Plan) -> nn.Module:
    """A sliced copy of `model` (which stays as it is): its outputs are those of `mask(model, plan)`.

    Raises:
        ValueError: the plan was made for other shapes.
    """
    _check_plan(model, plan)
    return keep(copy.deepcopy(model), [(kept.attention, kept.channels) for kept in plan.layers])


@torch.no_grad()
def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of `model` in its full shapes, with zeros in every weight that `prune` would remove.

    Raises:
        ValueError: the plan was made for other shapes.
    """
    _check_plan(model, plan)
    masked = copy.deepcopy(model)
    for layer, kept in zip(groups(masked), plan.layers, strict=True):
        for part, chosen in zip(layer.parts, (kept.attention, kept.channels), strict=True):
            for c in part.coupled:
                c.tensor.index_fill_(c.dim, part.index(c, _others(chosen, part.count)), 0)
    return masked


def save_pruned(model: nn.Module, folder: str | Path) -> None:
    """Write `model.safetensors`, the model's own `config.json`, and `pruning.json` with the sizes of every layer.

    Raises:
        ValueError: not a transformers model: save `sizes(model)` and the weights, and load them after `resize`.
    """
    if not isinstance(model, transformers.PreTrainedModel):
        raise ValueError(
            f"expected a transformers model, got {type(model).__name__}: merge an adapter first; "
            "of any other module save its sizes and its weights"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], model.dtype
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in _weights(model).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    before = parameter_count(_unpruned(config, "meta"))
    about = {
        "format": FORMAT,
        "parameters": parameter_count(model),
        "ratio_removed": 1 - parameter_count(model) / before,
        "layers": sizes(model),
    }
    (folder / "pruning.json").write_text(json.dumps(about, indent=1) + "\n")


def load_pruned(folder: str | Path, *, attn_implementation: str | None = None) -> transformers.PreTrainedModel:
    """The model that `save_pruned` wrote, bit for bit, in eval mode.

    Raises:
        ValueError: a file is missing or damaged, or a tensor's name, shape or type is not the one that `config.json`
            and `pruning.json` call for; nothing is loaded in part.
    """
    folder = Path(folder)
    for name in ("config.json", "pruning.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: expected a folder that save_pruned wrote")
    about = json.loads((folder / "pruning.json").read_text())
    if about.get("format") != FORMAT:
        raise ValueError(f"pruning.json has format {about.get('format')}, this version reads {FORMAT}")
    try:
        weights = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{folder / 'model.safetensors'} is damaged: {error}") from error
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    model = resize(_unpruned(config, "cpu", attn_implementation), about["layers"])
    _check_weights(_weights(model), weights)
    # A tied tensor is in the file once; its other name shares the memory that is filled here.
    model.load_state_dict(weights, strict=False)
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval()


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
        rows[f"bytes_{when}"] = sum(tensor.numel() * tensor.element_size() for tensor in _weights(model).values())
    for what in ("parameters", "flops_per_token", "bytes"):
        rows[f"{what}_removed"] = 1 - rows[f"{what}_after"] / rows[f"{what}_before"]
    return rows


def _choose_uniform(
    layers: list[Layer], scores: Scores, target: float, free: range
) -> tuple[list[tuple[list[int], list[int]]], float]:
    """Per layer the groups to remove, and the most parameters that this spread can remove."""
    prunable = sum(layers[i].parameters for i in free)
    limit = min(sum((p.count - 1) * p.parameters for p in layers[i].parts) / layers[i].parameters for i in free)
    share = min(target / prunable, limit)
    gone: list[tuple[list[int], list[int]]] = [([], []) for _ in layers]
    due = 0.0
    for i in free:
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
    return gone, limit * prunable


def _choose_global(
    layers: list[Layer], scores: Scores, target: float, free: range
) -> tuple[list[tuple[list[int], list[int]]], float]:
    """Per layer the groups to remove, and the most parameters that this spread can remove."""
    value, cost, where = [], [], []
    for i in free:
        for kind, (part, score) in enumerate(
            zip(layers[i].parts, (scores.attention[i], scores.channels[i]), strict=True)
        ):
            candidates = _lowest(score, part.count - 1)  # the most important one always stays
            value += (score[candidates] / part.parameters).tolist()
            cost += [part.parameters] * len(candidates)
            where += [(i, kind, group) for group in candidates]
    slack = min(layers[i].channels.parameters for i in free) / 2
    taken: list[int] = []
    left: list[int] = []
    removed = 0
    for k in np.argsort(value, kind="stable").tolist():
        fits = removed + cost[k] <= target + slack  # a head that does not fit is left, and channels fill the rest
        (taken if fits else left).append(k)
        removed += cost[k] * fits
    for k in left:
        if removed >= target - slack:
            break
        # The channels ran out: one head more, and the most important channels come back.
        channels = [j for j in taken if where[j][1] == 1]
        taken.append(k)
        removed += cost[k]
        while channels and removed - cost[channels[-1]] >= target - slack:
            removed -= cost[channels[-1]]
            taken.remove(channels.pop())
    gone: list[tuple[list[int], list[int]]] = [([], []) for _ in layers]
    for i, kind, group in (where[k] for k in taken):
        gone[i][kind].append(group)
    return gone, sum(cost)


def _lowest(score: Tensor, number: int) -> list[int]:
    return torch.argsort(score, stable=True)[:number].tolist()


def _others(some: Iterable[int], count: int) -> tuple[int, ...]:
    """0…count−1 without `some`, ascending."""
    return tuple(sorted(set(range(count)) - set(some)))


def _check_scores(layers: list[Layer], scores: Scores) -> None:
    expected = [(layer.attention.count, layer.channels.count) for layer in layers]
    got = [(len(a), len(c)) for a, c in zip(scores.attention, scores.channels, strict=True)]
    if got != expected:
        raise ValueError(f"the scores are for layers of (attention groups, channels) {got}, the model has {expected}")


def _check_plan(model: nn.Module, plan: Plan) -> None:
    expected = [(layer.attention.count, layer.channels.count) for layer in groups(model)]
    got = [(kept.attention_groups_before, kept.channels_before) for kept in plan.layers]
    if got != expected:
        raise ValueError(f"the plan is for layers of (attention groups, channels) {got}, the model has {expected}")
    for number, kept in enumerate(plan.layers):
        for chosen, count in ((kept.attention, kept.attention_groups_before), (kept.channels, kept.channels_before)):
            if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= count:
                raise ValueError(f"layer {number}: expected ascending numbers from 0 to {count - 1}, got {chosen}")


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The state by name, a tensor that has two names (tied embeddings) under the first only."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    return state


def _check_weights(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    wrong = []
    for name in sorted(expected.keys() | got.keys()):
        want, have = (
            f"{tuple(state[name].shape)} {state[name].dtype}" if name in state else "no such tensor"
            for state in (expected, got)
        )
        if want != have:
            wrong.append(f"{name}: the model needs {want}, the file has {have}")
    if wrong:
        raise ValueError("the weights do not fit the model, nothing was loaded:\n" + "\n".join(wrong))


def _unpruned(
    config: transformers.PretrainedConfig, device: str, attn_implementation: str | None = None
) -> transformers.PreTrainedModel:
    """A model of the shapes that `config` states; its random start does not touch the caller's random state."""
    name = (config.architectures or ["none"])[0]
    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ValueError(f"config.json names the architecture {name}, which transformers does not have")
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with torch.random.fork_rng(devices=[]), torch.device(device):
        return kind._from_config(copy.deepcopy(config), **options)

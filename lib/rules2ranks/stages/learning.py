"""The stage that learns a rule: pretraining, one network at a time or several side by side."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from rules2ranks import models, runs, snapshots, training
from rules2ranks.gpt2 import Mask
from rules2ranks.stages.ranges import Rate, Rule, Seed, Size, Steps
from rules2ranks.tasks import rows as automaton_rows

CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "model.safetensors"
#: Windows that a network is validated on.
HELD_OUT = 128
#: A rule counts as learnt when so many of the cells that the rows in sight determine are predicted right.
LEARNT = 0.99
#: How many networks train side by side on a GPU: so many parameters in all, and no more than so many networks.
TOGETHER = {"parameters": 4_000_000, "networks": 32}
#: A rule, or rows of fair coin flips: the control in which nothing can be learnt.
Source = Rule | Literal["coin"]


class Pretraining(runs.Params):
    """A network and what it learns: rows of automata under one rule, or of coin flips.

    With `flip` each cell to predict is turned over with that chance (cells that are read are not): the loss is the mean
    over all such turns. With `excess` training ends as soon as the loss is within so many nats per cell of its floor,
    at a rate that is held until then, rather than at the end of the round in which the rule is learnt.

    Raises:
        ParameterError: a crop wider than the ring, or a hidden size that is no multiple of the heads.
    """

    source: Source = 110
    width: Size = 20
    rows: Annotated[int, Field(ge=2, le=900)] = 40
    ring: Annotated[int, Field(ge=3, le=1_000_000)] = 1000
    every: Annotated[int, Field(ge=1, le=100, description="k, horizon and stride in rows")] = 1
    layers: Size = 2
    heads: Size = 4
    hidden: Size = 64
    steps: Steps = 300
    rounds: Annotated[int, Field(ge=1, le=12, description="at most, each twice as long as the one before")] = 4
    batch: Size = 16
    lr: Rate = 6e-3
    seed: Seed = 0
    mask: Mask = "causal"
    bf16: bool = False
    # Defaults of what came later are left out, so that results from before are found under their own parameters.
    flip: Annotated[float, Field(ge=0, lt=0.5, exclude_if=lambda flip: flip == 0)] = 0.0
    weight_decay: Annotated[float, Field(ge=0, le=100, exclude_if=lambda decay: decay == 0)] = 0.0
    excess: Annotated[float | None, Field(gt=0, exclude_if=lambda excess: excess is None)] = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width > self.ring:
            raise ValueError(f"a crop of {self.width} cells does not fit on a ring of {self.ring}")
        if self.hidden % self.heads:
            raise ValueError(f"hidden = {self.hidden} must be a multiple of heads = {self.heads}")
        if self.excess is not None and not has_floor(self):
            raise ValueError(
                f"excess needs a floor: every up to 5, crops of {automaton_rows.NEAR} cells or whole rings"
            )
        return self


# --- data -------------------------------------------------------------------------------------------------------


def draw_seed(seed: int, split: int, step: int) -> int:
    """A seed for one step's draws, never the same for another seed, split or step (steps below 2**31)."""
    return ((seed * 2 + split) << 32) + 2 * step


def draw(body: Pretraining, count: int, seed: int) -> np.ndarray:
    """Windows of as many automata, `(count, rows + 1, width)` uint8, drawn from one seed."""
    window = {"ring": body.ring, "every": body.every}
    return automaton_rows.rows_of(body.source, count, body.width, body.rows, **window, seed=seed)


def by_step(body: Pretraining, split: int) -> Callable[[int], np.ndarray]:
    """A function that gives the windows of a step, `(batch, rows + 1, width)` uint8.

    Automata evolve 64 to a word, so small batches are drawn for several steps at once.
    """
    at_once = max(1, 64 // body.batch)

    @functools.lru_cache(maxsize=1)
    def block(place: int) -> np.ndarray:
        return draw(body, at_once * body.batch, draw_seed(body.seed, split, place))

    def of_step(step: int) -> np.ndarray:
        begin = step % at_once * body.batch
        return block(step // at_once)[begin : begin + body.batch]

    return of_step


def held_out(body: Pretraining) -> np.ndarray:
    """Windows of automata that training never sees, from eight times of the run."""
    return np.concatenate([draw(body, HELD_OUT // 8, draw_seed(body.seed, 1, place)) for place in range(8)])


def floats(array: np.ndarray) -> Tensor:
    """An array as float32, on the device."""
    return torch.from_numpy(array).to(training.device(), torch.float32)


# --- the network and its scores ---------------------------------------------------------------------------------


def network(body: Pretraining) -> models.RowGPT:
    """A model as pretraining begins with it, wherever torch makes tensors now."""
    shape = {name: getattr(body, name) for name in ("layers", "heads", "hidden", "rows", "seed", "mask")}
    return models.RowGPT(body.width, body.width, **shape)


def untrained(body: Pretraining) -> models.RowGPT:
    """A model as pretraining begins with it, on the device."""
    return network(body).to(training.device())


def pretrained(body: Pretraining) -> models.RowGPT:
    """The model of a pretraining result, made if need be."""
    model = untrained(body)
    models.load_weights(model, pretrain(body).file(WEIGHTS))
    return model.eval()


def edges(body: Pretraining) -> int:
    """How many cells at each edge of a crop depend on cells out of sight: none on a whole ring."""
    return 0 if body.width == body.ring else body.every


def has_floor(body: Pretraining) -> bool:
    """Whether `crop_floor` is defined for what this network learns."""
    return body.width == body.ring or (body.every <= 5 and body.width >= automaton_rows.NEAR)


@functools.lru_cache(maxsize=64)  # asked for at every evaluation
def floor(body: Pretraining) -> float:
    """The loss, nats per cell, that no look at the last row alone can get below."""
    return automaton_rows.crop_floor(body.source, body.width, ring=body.ring, every=body.every, flip=body.flip)


def row_loss(model: nn.Module, windows: Tensor, flip: float = 0.0) -> Tensor:
    """Binary cross-entropy, nats per cell, of every row given those above. Windows `(..., B, rows + 1, width)`.

    Each cell to predict is turned over with the chance `flip`: the mean over all turns.
    """
    return _cell_losses(model(windows[..., :-1, :]), windows[..., 1:, :], flip).mean((-3, -2, -1))


def _cell_losses(logits: Tensor, target: Tensor, flip: float) -> Tensor:
    soft = target + flip * (1 - 2 * target) if flip else target
    return F.binary_cross_entropy_with_logits(logits, soft, reduction="none")


def row_scores(model: nn.Module, windows: Tensor, hidden: int = 0, flip: float = 0.0) -> dict[str, Any]:
    """Loss, shares of cells and of whole rows predicted right, and the two baselines on the same windows.

    The loss is `row_loss`, with the same `flip`; all else looks at the cells as they are.

    `hidden` is how many cells at each edge of a crop depend on cells out of sight: `determined` is the accuracy on the
    others (None if there is none). Windows `(..., B, rows + 1, width)`; for models `Together` each value is a list.
    """
    before, target = windows[..., :-1, :], windows[..., 1:, :]
    logits = model(before)
    right = (logits > 0) == (target > 0.5)
    inner = right[..., hidden : target.shape[-1] - hidden].float().mean((-3, -2, -1))
    ones = target.mean((-3, -2, -1))
    scores = {
        "loss": _cell_losses(logits, target, flip).mean((-3, -2, -1)),
        "accuracy": right.float().mean((-3, -2, -1)),
        "determined": inner,
        "row_accuracy": right.all(-1).float().mean((-2, -1)),
        "majority": torch.maximum(ones, 1 - ones),
        "copy": (target == before).float().mean((-3, -2, -1)),
    }
    values = {name: value.tolist() for name, value in scores.items()}
    if target.shape[-1] <= 2 * hidden:
        values["determined"] = None if inner.ndim == 0 else [None] * len(inner)
    return values


# --- training ---------------------------------------------------------------------------------------------------


@runs.stage(version=3)
def pretrain(work: Path, given: Pretraining) -> dict:
    """Train a GPT-2 to predict the next row of one rule from the rows above it, until the rule is learnt.

    Training goes in rounds: `steps` optimiser steps with a warm-up and a cosine to zero, then, unless the rule is
    learnt, twice as many, and so on (`training.restarts`). A rule is learnt when 99 % of the cells that the rows in
    sight determine are predicted right in validation. Coins have nothing to learn and get one round.

    Every step sees fresh automata; validation sees others that are never trained on. `mask="published"` lets the
    future through, as the paper's code does (`gpt2.Mask`): an ablation, whose loss is no measure of learning.
    Metrics: `row_scores` of the validation, `crop_floor` (None where it is not defined), whether the rule was `learnt`
    and in how many `steps`, the root mean square of the blocks' matrices, the history. Files: `model.safetensors`.
    """
    names = ("width", "rows", "layers", "heads", "hidden", "batch")
    sizes = ", ".join(f"{name}={getattr(given, name)}" for name in names)
    training.check_memory(_bytes(given), f"pretraining with {sizes}")
    model = untrained(given)
    checkpoint, label = work / CHECKPOINT, f"pretrain {given.source}"
    history = _learn(model, [given], lambda entry: _through(given, entry), checkpoint, label)
    metrics = _write(work, given, model, history)
    checkpoint.unlink(missing_ok=True)
    return metrics


def pretrain_together(bodies: Sequence[Pretraining], at_once: int | None = None) -> list[runs.Result]:
    """The results of several pretrainings, those that are missing trained side by side in this process.

    For a GPU that one small model cannot fill; on a CPU it gains little. Those that train together, `at_once` of them
    (None: `side_by_side`), agree in everything but source and seed. The results are as if made one by one, to the
    rounding of sums in another order; an interrupted group goes on from its checkpoint.
    """
    groups: dict[Pretraining, list[Pretraining]] = {}
    for body in dict.fromkeys(bodies):  # each once, however often it is asked for
        if pretrain.find(body) is None:
            groups.setdefault(body.model_copy(update={"source": 0, "seed": 0}), []).append(body)
    for shape, missing in groups.items():
        size = at_once or side_by_side(shape)
        for begin in range(0, len(missing), size):
            group = missing[begin : begin + size]
            with runs.only_one(_together(group).with_suffix(".lock")):
                _pretrain_group(group)
    return [pretrain(body) for body in bodies]


def side_by_side(body: Pretraining) -> int:
    """How many networks of this size train at once on a GPU."""
    return max(1, min(TOGETHER["networks"], TOGETHER["parameters"] // _numbers(body)))


def _numbers(body: Pretraining) -> int:
    """Nearly all parameters of a network: twelve matrices of hidden × hidden a block."""
    return 12 * body.layers * body.hidden**2


def _bytes(body: Pretraining) -> float:
    """What training takes at least: weights, gradients, Adam's moments, a step, and the rows that are held out."""
    parameters = _numbers(body) + 2 * body.width * body.hidden
    # As bytes and as floats, with the same number of scores beside them.
    held_out = HELD_OUT * (body.rows + 1) * body.width * 9
    return 16.0 * parameters + max(step_of(body, body.batch), held_out)


def step_of(body: Pretraining, batch: int) -> float:
    """What one training step takes at least on a batch of so many automata, in bytes."""
    return models.step_bytes(batch, body.rows, body.layers, body.hidden, body.heads, body.width)


def _pretrain_group(bodies: Sequence[Pretraining]) -> None:
    """Train networks of one shape side by side and keep their results.

    A network that is through goes on changing with the others. Its weights are put aside in a file beside the
    checkpoint, where an interrupted training finds them.
    """
    checkpoint = _together(bodies)
    members = [untrained(body) for body in bodies]
    model = training.Together(members)
    files = [checkpoint.with_name(f"{checkpoint.name}.{place}") for place in range(len(bodies))]
    aside = {place: kept for place, file in enumerate(files) if file.is_file() and (kept := _from_aside(file))}

    def all_through(entry: dict[str, Any]) -> bool:
        for place, body in enumerate(bodies):
            own = {name: value[place] for name, value in entry.items() if name != "step"}
            if place not in aside and _through(body, own):
                state = model.member(place)
                snapshots.write(files[place], state, {"steps": str(entry["step"])})
                aside[place] = entry["step"], {name: value.clone() for name, value in state.items()}
        # A training that goes on from an older checkpoint finds some put aside at a step that is still to come.
        return len(aside) == len(bodies) and entry["step"] >= max(steps for steps, _ in aside.values())

    history = _learn(model, bodies, all_through, checkpoint, f"pretrain {len(bodies)} models")
    for place, (body, member) in enumerate(zip(bodies, members, strict=True)):
        steps, state = aside.get(place) or (history.steps, model.member(place))
        member.load_state_dict(state)
        own = history.member(place, steps)
        pretrain.keep(body, functools.partial(_write, given=body, model=member, history=own))
    for file in (checkpoint, *files):
        file.unlink(missing_ok=True)


def _through(body: Pretraining, scores: dict[str, Any]) -> bool:
    """Whether a network is trained no further: it has learnt its rule, or there is none."""
    if body.excess is not None:
        return scores["loss"] - floor(body) <= body.excess
    return body.source == "coin" or _learnt(body, scores["determined"])


def _learnt(body: Pretraining, determined: float | None) -> bool:
    return body.source != "coin" and determined is not None and determined >= LEARNT


def _together(bodies: Sequence[Pretraining]) -> Path:
    """The checkpoint of networks that are trained side by side."""
    name = runs.key({"bodies": [body.model_dump(mode="json") for body in bodies]}, pretrain.versions(bodies[0]))
    return runs.root() / pretrain.name / f".together-{name}.safetensors"


def _from_aside(file: Path) -> tuple[int, dict[str, Tensor]] | None:
    found = snapshots.read(file, {"steps"})
    return found and (int(found[1]["steps"]), found[0])


def _learn(
    model: models.RowGPT | training.Together,
    bodies: Sequence[Pretraining],
    through: Callable[[dict[str, Any]], bool],
    checkpoint: Path,
    label: str,
) -> training.History:
    """Train a network, or several together, through all rounds or to the end of the one after which all is `through`.

    `through` is asked with the evaluation there; where the excess decides, with every evaluation.
    """
    body = bodies[0]
    streams = [by_step(each, 0) for each in bodies]

    def joined(arrays: list[np.ndarray]) -> Tensor:
        return floats(np.stack(arrays) if isinstance(model, training.Together) else arrays[0])

    validation = joined([held_out(each) for each in bodies])
    rate, ends = training.restarts(body.steps, body.rounds)
    rate = rate if body.excess is None else training.held(body.steps)
    # At least five times a round (fifteen where any may be the last), and at its end: the largest divisor that does.
    often = 5 if body.excess is None else 15
    watch = training.Watch(
        evaluate=lambda model: row_scores(model, validation, edges(body), body.flip),
        every=next(d for d in range(max(1, body.steps // often), 0, -1) if body.steps % d == 0),
        until=lambda entry: (body.excess is not None or entry["step"] in ends) and through(entry),
        log_every=max(1, body.steps // 50),
    )
    with training.reproducible(body.seed):
        return training.train(
            model,
            lambda step: joined([stream(step) for stream in streams]),
            functools.partial(row_loss, flip=body.flip) if body.flip else row_loss,
            training.Schedule(ends[-1], body.lr, rate=rate, bf16=body.bf16, weight_decay=body.weight_decay),
            seed=body.seed,
            watch=watch,
            checkpoint=checkpoint,
            label=label,
        )


def _write(work: Path, given: Pretraining, model: models.RowGPT, history: training.History) -> dict:
    """Write what was learnt; its metrics."""
    models.save_weights(model, work / WEIGHTS)
    final = {name: value for name, value in history.evaluations[-1].items() if name != "step"}
    matrices = torch.cat([p.detach().flatten() for p in model.body.h.parameters() if p.ndim > 1])
    return {
        **final,
        "floor": floor(given) if has_floor(given) else None,
        "learnt": _learnt(given, final["determined"]),
        "steps": history.steps,
        "weight_rms": matrices.square().mean().sqrt().item(),
        "parameters": models.parameter_count(model),
        "history": asdict(history),
    }

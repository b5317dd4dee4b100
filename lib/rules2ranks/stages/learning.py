"""Stages that learn: pretraining on a rule, downstream tasks, and the language suite."""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from scipy import stats
from torch import Tensor, nn

from rules2ranks import automata, models, tasks, training
from rules2ranks.runs import stage
from rules2ranks.stages.parameters import Rate, Rule, Seed, Size, Steps, Task
from rules2ranks.tasks import language as suite

CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "model.safetensors"
_NEAR = 10  # cells that `crop_floor` looks at: twice the largest k of the paper
#: A rule, or rows of fair coin flips: the control in which nothing can be learnt.
Source = Rule | Literal["coin"]


# --- rows of automata -------------------------------------------------------------------------------------------


def rows_of(source: Source, batch: int, width: int, rows: int, *, ring: int, every: int, seed: int) -> np.ndarray:
    """Windows of automata on a ring, `(batch, rows + 1, width)` uint8: the crop is as wide as asked for, not periodic.

    Each window comes from a ring of its own with a random start and begins at a random time below 1000, the same for
    the whole batch.
    """
    if source == "coin":
        return automata.random_states((batch, rows + 1), width, seed=seed)
    states = automata.random_states(batch, ring, seed=seed)
    late = int(np.random.Generator(np.random.Philox(seed + 1)).integers(0, 1000 - rows))
    # Rings have no edge: the first cells are as good a crop as any.
    return automata.simulate(source, states, rows * every, burn_in=late, every=every)[..., :width]


def crop_floor(source: Source, width: int, *, ring: int = 1000, every: int = 1, seed: int = 0) -> float:
    """Nats per cell that a prediction from the last row alone cannot do without, on crops `width` wide.

    A cell closer to an edge than `every` depends on cells out of sight; the entropy that it keeps, given the ten cells
    of the crop nearest to that edge, is counted over a million places on rings at times below 1000. All other cells are
    determined. Coins cost ln 2. A network that looks back on more rows may know more of what is out of sight, and so
    get a little below. The count is some 5e-4 nats per edge cell too low.

    ValueError for `every` above 5, where ten cells no longer hold all that counts, or crops narrower than ten cells.
    """
    if source == "coin":
        return math.log(2)
    if not 1 <= every <= 5 or width < _NEAR:
        raise ValueError(
            f"the floor is for every from 1 to 5 and crops of at least {_NEAR} cells; got {every}, {width}"
        )
    lost = 0.0
    times = np.linspace(0, 999, 40, dtype=int)  # rules like 110 grow calmer all the while
    begins = automata.random_states((len(times), max(1, 25_000 // ring)), ring, seed=seed)
    runs = [automata.simulate(source, begin, t, last=True) for begin, t in zip(begins, times.tolist(), strict=True)]
    now = np.concatenate(runs)
    after = automata.simulate(source, now, every, last=True)
    for here, later in ((now, after), (now[:, ::-1], after[:, ::-1])):  # the left edge, and the right one mirrored
        near = sum(np.roll(here, -place, axis=1).astype(np.int64) << place for place in range(_NEAR))
        for place in range(every):
            codes = 2 * near + np.roll(later, -place, axis=1)
            counts = np.bincount(codes.ravel(), minlength=2 ** (_NEAR + 1)).reshape(-1, 2)
            lost += float(stats.entropy(counts.ravel()) - stats.entropy(counts.sum(axis=1)))
    return lost / width


def draw_seed(seed: int, split: int, step: int) -> int:
    """A seed for one step's draws, never the same for another seed, split or step (steps below 2**31)."""
    return ((seed * 2 + split) << 32) + 2 * step


def row_loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Binary cross-entropy, in nats per cell, of every row given those above it. Windows `(B, rows + 1, width)`."""
    return F.binary_cross_entropy_with_logits(model(windows[:, :-1]), windows[:, 1:])


def row_scores(model: nn.Module, windows: Tensor) -> dict[str, float]:
    """Loss, share of cells and share of whole rows predicted right, and the two baselines on the same windows."""
    target = windows[:, 1:]
    logits = model(windows[:, :-1])
    right = (logits > 0) == (target > 0.5)
    ones = target.mean().item()
    return {
        "loss": F.binary_cross_entropy_with_logits(logits, target).item(),
        "accuracy": right.float().mean().item(),
        "row_accuracy": right.all(-1).float().mean().item(),
        "majority": max(ones, 1 - ones),
        "copy": (target == windows[:, :-1]).float().mean().item(),
    }


def floats(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(training.device(), torch.float32)


def untrained(body: Any) -> models.RowGPT:
    """A model as pretraining begins with it. `body` are `pretrain.Params`."""
    shape = {name: getattr(body, name) for name in ("layers", "heads", "hidden", "rows", "seed", "mask")}
    return models.RowGPT(body.width, body.width, **shape).to(training.device())


@stage(version=2)
def pretrain(
    work: Path,
    source: Source = 110,
    width: Size = 20,
    rows: Annotated[int, Field(ge=2, le=900)] = 40,
    ring: Annotated[int, Field(ge=3, le=1_000_000)] = 1000,
    every: Annotated[int, Field(ge=1, le=100, description="k, horizon and stride in rows")] = 1,
    layers: Size = 2,
    heads: Size = 4,
    hidden: Size = 64,
    steps: Steps = 300,
    batch: Size = 16,
    lr: Rate = 6e-3,
    seed: Seed = 0,
    mask: models.Mask = "causal",
) -> dict:
    """Train a GPT-2 to predict the next row of one rule from the rows above it.

    Every step sees fresh automata; validation sees others that are never trained on. `mask="published"` lets the
    future through, as the paper's code does (`models.Mask`): an ablation, whose loss is no measure of learning.
    Metrics: loss in nats per cell, share of cells and of whole rows right, the baselines (majority cell, copy of the
    last row), `crop_floor` (None where it is not defined) and the history. Files: `model.safetensors`.
    """
    if width > ring:
        raise ValueError(f"a crop of {width} cells does not fit on a ring of {ring}")
    model = models.RowGPT(width, width, layers=layers, heads=heads, hidden=hidden, rows=rows, seed=seed, mask=mask)
    model.to(training.device())

    def windows(split: int, step: int, size: int = batch) -> Tensor:
        drawn = draw_seed(seed, split, step)
        return floats(rows_of(source, size, width, rows, ring=ring, every=every, seed=drawn))

    held_out = torch.cat([windows(1, step) for step in range(8)])
    with training.reproducible(seed):
        history = training.train(
            model,
            lambda step: windows(0, step),
            row_loss,
            steps=steps,
            lr=lr,
            seed=seed,
            evaluate=lambda m: row_scores(m, held_out),
            evaluate_every=max(1, steps // 10),
            checkpoint=work / CHECKPOINT,
            label=f"pretrain {source}",
        )
    models.save_weights(model, work / WEIGHTS)
    (work / CHECKPOINT).unlink(missing_ok=True)
    final = {name: value for name, value in history.evaluations[-1].items() if name != "step"}
    floor = crop_floor(source, width, ring=ring, every=every) if every <= 5 and width >= _NEAR else None
    return {**final, "floor": floor, "parameters": models.parameter_count(model), "history": asdict(history)}


def pretrained(body: Any) -> models.RowGPT:
    """The model of a pretraining result, made if need be. `body` are `pretrain.Params`."""
    model = untrained(body)
    models.load_weights(model, pretrain(**body.model_dump()).file(WEIGHTS))
    return model.eval()


# --- downstream tasks -------------------------------------------------------------------------------------------

#: What the blocks start from: what they learnt from the rule, their random initialisation, or what they learnt with
#: the entries of every weight matrix shuffled.
Start = Literal["pretrained", "random", "shuffled"]


def _body(body: Any, start: Start, seed: int) -> nn.Module:
    model = untrained(body) if start == "random" else pretrained(body)
    if start == "shuffled":
        models.shuffle_weights(model.body.h, seed)
    return model.body


def task_loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy in nats over the scored cells or tokens (others are marked -100)."""
    x, y = pair
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten(), ignore_index=-100)


def pairs(task: tasks.Task, size: int, seed: int, split: str) -> tuple[Tensor, Tensor]:
    x, y = task.batch(size, seed, split=split)
    return torch.from_numpy(x).to(training.device()), torch.from_numpy(y).to(training.device())


def freeze(model: models.TaskGPT) -> None:
    """Freeze what the paper freezes: the whole body for boards, only the blocks for tokens (Nim, chess)."""
    frozen = model.body if model.kind == "boards" else model.body.h
    for p in frozen.parameters():
        p.requires_grad_(False)


@stage(version=1, uses=(pretrain,))
def downstream(
    work: Path,
    body: pretrain.Params,
    task: Task = "reasoning-hard",
    start: Start = "pretrained",
    train: Literal["ends", "all"] = "ends",
    steps: Steps = 400,
    batch: Size = 32,
    lr: Rate = 2e-2,
    seed: Seed = 0,
) -> dict:
    """Put new input and output layers on a body, train these (or all), and score a task the body never saw.

    Metrics: validation loss in nats, accuracy (boards: all cells of the next board right; tokens: next token right),
    the first evaluated step at which accuracy reached 0.8 (None if never), the task's trivial baselines, the history.
    """
    spec = tasks.get(task)
    size = {"cells": spec.cells, "classes": spec.classes, "length": spec.length}
    # Published, only the rows and the boards go without a causal mask: Nim and chess are causal there, too.
    mask = body.mask if spec.kind == "boards" else "causal"
    model = models.TaskGPT(_body(body, start, seed), spec.kind, **size, seed=seed, mask=mask).to(training.device())
    if train == "ends":
        freeze(model)
    held_out = pairs(spec, 256, draw_seed(seed, 1, 0), "validation")

    def scores(m: nn.Module) -> dict[str, float]:
        x, y = held_out
        logits = m(x)
        value = F.cross_entropy(logits.flatten(0, -2), y.flatten(), ignore_index=-100).item()
        return {"loss": value, "accuracy": spec.score(logits.argmax(-1).cpu().numpy(), y.cpu().numpy())}

    with training.reproducible(seed):
        history = training.train(
            model,
            lambda step: pairs(spec, batch, draw_seed(seed, 0, step), "train"),
            task_loss,
            steps=steps,
            lr=lr,
            seed=seed,
            warmup=0.0,
            schedule="constant",
            evaluate=scores,
            evaluate_every=max(1, steps // 8),
            checkpoint=work / CHECKPOINT,
            label=f"{task} on {body.source if start != 'random' else 'random weights'}",
        )
    (work / CHECKPOINT).unlink(missing_ok=True)
    last = history.evaluations[-1]
    reached = [entry["step"] for entry in history.evaluations if entry["accuracy"] >= 0.8]
    return {
        "loss": last["loss"],
        "accuracy": last["accuracy"],
        "step_at_80": reached[0] if reached else None,
        "baselines": spec.baselines(),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "history": asdict(history),
    }


# --- the language suite -----------------------------------------------------------------------------------------


def language_pairs(size: int, seed: int, split: str) -> tuple[Tensor, Tensor]:
    """A batch of the seven symbolic tasks: tokens and labels, `(size, 20)`."""
    return pairs(suite, size, seed, split)


def language_loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy in nats over the answers' tokens."""
    tokens, labels = pair
    logits = model(input_ids=tokens).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def language_scores(size: int, seed: int) -> Callable[[nn.Module], dict[str, float]]:
    """A function that scores a model on `size` held-out examples: loss, accuracy per task and their mean.

    An answer is right when all its tokens are.
    """
    tokens, labels = language_pairs(size, seed, "validation")

    def scores(model: nn.Module) -> dict[str, float]:
        logits = model(input_ids=tokens).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100).item()
        by_task = suite.score(logits.argmax(-1).cpu().numpy(), labels.cpu().numpy(), tokens.cpu().numpy())
        return {"loss": loss, "accuracy": float(np.mean(list(by_task.values()))), **by_task}

    return scores


@stage(version=1)
def language(
    work: Path,
    steps: Steps = 1600,
    stop: Steps | None = None,
    batch: Size = 64,
    lr: Rate = 4e-3,
    seed: Seed = 0,
) -> dict:
    """Train the small Llama on the seven symbolic tasks: `stop` of the `steps` that the schedule is made for.

    Metrics: loss in nats over answer tokens, accuracy per task and on average, the history. Files: the model in
    transformers' own form, `config.json` and `model.safetensors`.
    """
    model = models.small_llama(seed).to(training.device())
    with training.reproducible(seed):
        history = training.train(
            model,
            lambda step: language_pairs(batch, draw_seed(seed, 0, step), "train"),
            language_loss,
            steps=steps,
            stop=min(stop, steps) if stop else None,
            lr=lr,
            seed=seed,
            evaluate=language_scores(700, draw_seed(seed, 1, 0)),
            evaluate_every=max(1, steps // 20),
            checkpoint=work / CHECKPOINT,
            label="language suite",
        )
    model.save_pretrained(work)
    (work / CHECKPOINT).unlink(missing_ok=True)
    final = {name: value for name, value in history.evaluations[-1].items() if name != "step"}
    return {**final, "parameters": models.parameter_count(model), "history": asdict(history)}

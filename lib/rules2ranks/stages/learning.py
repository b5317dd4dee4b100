"""Stages that learn: pretraining on a rule, and downstream tasks."""

import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rules2ranks import evaluation, models, runs, tasks, training
from rules2ranks.gpt2 import Blocks, Mask
from rules2ranks.published import data_folder
from rules2ranks.runs import stage
from rules2ranks.stages.parameters import Rate, Rule, Seed, Share, Size, Steps, Task
from rules2ranks.tasks import rows as automaton_rows
from rules2ranks.tasks.rows import crop_floor, rows_of

CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "model.safetensors"
PREDICTIONS = "predictions.safetensors"
GAMES = data_folder() / "games" / "stockfish.txt"
#: A rule counts as learnt when so many of the cells that the rows in sight determine are predicted right.
LEARNT = 0.99
#: A rule, or rows of fair coin flips: the control in which nothing can be learnt.
Source = Rule | Literal["coin"]


# --- pretraining ------------------------------------------------------------------------------------------------


def draw_seed(seed: int, split: int, step: int) -> int:
    """A seed for one step's draws, never the same for another seed, split or step (steps below 2**31)."""
    return ((seed * 2 + split) << 32) + 2 * step


def by_step(body: Any, split: int) -> Callable[[int], np.ndarray]:
    """A function that gives the windows of a step, `(batch, rows + 1, width)` uint8. `body` are `pretrain.Params`.

    Automata evolve 64 to a word, so small batches are drawn for several steps at once.
    """
    at_once = max(1, 64 // body.batch)
    window = {"ring": body.ring, "every": body.every}

    @functools.lru_cache(maxsize=1)
    def block(place: int) -> np.ndarray:
        seed = draw_seed(body.seed, split, place)
        return rows_of(body.source, at_once * body.batch, body.width, body.rows, **window, seed=seed)

    def windows(step: int) -> np.ndarray:
        begin = step % at_once * body.batch
        return block(step // at_once)[begin : begin + body.batch]

    return windows


def held_out(body: Any) -> np.ndarray:
    """128 windows of automata that training never sees, from eight times of the run."""
    window = {"ring": body.ring, "every": body.every}
    draws = [draw_seed(body.seed, 1, place) for place in range(8)]
    return np.concatenate([rows_of(body.source, 16, body.width, body.rows, **window, seed=seed) for seed in draws])


def row_loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Binary cross-entropy, nats per cell, of every row given those above. Windows `(..., B, rows + 1, width)`."""
    logits = model(windows[..., :-1, :])
    return F.binary_cross_entropy_with_logits(logits, windows[..., 1:, :], reduction="none").mean((-3, -2, -1))


def row_scores(model: nn.Module, windows: Tensor, hidden: int = 0) -> dict[str, Any]:
    """Loss, shares of cells and of whole rows predicted right, and the two baselines on the same windows.

    `hidden` is how many cells at each edge of a crop depend on cells out of sight: `determined` is the accuracy on the
    others (None if there is none). Windows `(..., B, rows + 1, width)`; for models `Together` each value is a list.
    """
    before, target = windows[..., :-1, :], windows[..., 1:, :]
    logits = model(before)
    right = (logits > 0) == (target > 0.5)
    inner = right[..., hidden : target.shape[-1] - hidden].float().mean((-3, -2, -1))
    ones = target.mean((-3, -2, -1))
    scores = {
        "loss": F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((-3, -2, -1)),
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


def floats(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(training.device(), torch.float32)


def untrained(body: Any) -> models.RowGPT:
    """A model as pretraining begins with it. `body` are `pretrain.Params`."""
    shape = {name: getattr(body, name) for name in ("layers", "heads", "hidden", "rows", "seed", "mask")}
    return models.RowGPT(body.width, body.width, **shape).to(training.device())


def edges(body: Any) -> int:
    """How many cells at each edge of a crop depend on cells out of sight: none on a whole ring."""
    return 0 if body.width == body.ring else body.every


@stage(version=3)
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
    rounds: Annotated[int, Field(ge=1, le=12, description="at most, each twice as long as the one before")] = 4,
    batch: Size = 16,
    lr: Rate = 6e-3,
    seed: Seed = 0,
    mask: Mask = "causal",
    bf16: bool = False,
) -> dict:
    """Train a GPT-2 to predict the next row of one rule from the rows above it, until the rule is learnt.

    Training goes in rounds: `steps` optimiser steps with a warm-up and a cosine to zero, then, unless the rule is
    learnt, twice as many, and so on (`training.restarts`). A rule is learnt when 99 % of the cells that the rows in
    sight determine are predicted right in validation. Coins have nothing to learn and get one round.

    Every step sees fresh automata; validation sees others that are never trained on. `mask="published"` lets the
    future through, as the paper's code does (`gpt2.Mask`): an ablation, whose loss is no measure of learning.
    Metrics: `row_scores` of the validation, `crop_floor` (None where it is not defined), whether the rule was `learnt`
    and in how many `steps`, the root mean square of the blocks' matrices, the history. Files: `model.safetensors`.

    Raises:
        ParameterError: a crop wider than the ring, or a hidden size that is no multiple of the heads.
    """
    body = pretrain.Params(**{name: value for name, value in locals().items() if name != "work"})
    ((model, metrics),) = _learn([body], work / CHECKPOINT)
    models.save_weights(model, work / WEIGHTS)
    (work / CHECKPOINT).unlink(missing_ok=True)
    return metrics


def _learn(bodies: Sequence[Any], checkpoint: Path) -> list[tuple[models.RowGPT, dict]]:
    """Train models of one shape (side by side, if there are several), each until it has learnt its rule."""
    body = bodies[0]
    for each in bodies:
        if each.width > each.ring:
            raise runs.ParameterError(f"a crop of {each.width} cells does not fit on a ring of {each.ring}")
        if each.hidden % each.heads:
            raise runs.ParameterError(f"hidden = {each.hidden} must be a multiple of heads = {each.heads}")
    alone = len(bodies) == 1
    members = [untrained(each) for each in bodies]
    model = members[0] if alone else training.Together(members)
    streams = [by_step(each, 0) for each in bodies]
    validation = floats(held_out(body) if alone else np.stack([held_out(each) for each in bodies]))
    rate, ends = training.restarts(body.steps, body.rounds)
    done: dict[int, tuple[int, bool, dict[str, Tensor]]] = {}  # steps, learnt, weights of the models that are finished
    if not alone:
        # Their weights go on changing with the others': an interrupted training finds them as they were put aside.
        done |= {
            place: _from_aside(file) for place in range(len(bodies)) if (file := _aside(checkpoint, place)).is_file()
        }

    def batch(step: int) -> Tensor:
        return floats(streams[0](step) if alone else np.stack([stream(step) for stream in streams]))

    def until(entry: dict[str, Any]) -> bool:
        if entry["step"] in ends:
            for place, each in enumerate(bodies):
                right = entry["determined"] if alone else entry["determined"][place]
                learnt = each.source != "coin" and right is not None and right >= LEARNT
                if place not in done and (learnt or each.source == "coin" or entry["step"] == ends[-1]):
                    state = model.state_dict() if alone else model.member(place)
                    done[place] = (entry["step"], learnt, {name: value.clone() for name, value in state.items()})
                    if not alone:
                        _put_aside(_aside(checkpoint, place), *done[place])
        return len(done) == len(bodies) and entry["step"] >= max(steps for steps, *_ in done.values())

    with training.reproducible(body.seed):
        history = training.train(
            model,
            batch,
            row_loss,
            steps=ends[-1],
            rate=rate,
            lr=body.lr,
            seed=body.seed,
            bf16=body.bf16,
            log_every=max(1, body.steps // 50),
            evaluate=lambda m: row_scores(m, validation, edges(body)),
            evaluate_every=max(
                d for d in range(1, body.steps + 1) if body.steps % d == 0 and d <= max(1, body.steps // 5)
            ),
            until=until,
            checkpoint=checkpoint,
            label=f"pretrain {body.source}" if alone else f"pretrain {len(bodies)} models",
        )
    finished = []
    for place, each in enumerate(bodies):
        steps, learnt, state = done[place]
        members[place].load_state_dict(state)
        own = history if alone else history.member(place, steps)
        finished.append((members[place].eval(), _pretrain_metrics(each, members[place], own, learnt)))
    return finished


def _aside(checkpoint: Path, place: int) -> Path:
    """Beside a group's checkpoint: the file of a member that is finished before the others."""
    return checkpoint.with_name(f"{checkpoint.name}.{place}")


def _put_aside(file: Path, steps: int, learnt: bool, state: dict[str, Tensor]) -> None:
    beside = file.with_name(f"{file.name}.new")
    save_file(
        {name: value.contiguous() for name, value in state.items()},
        beside,
        {"steps": str(steps), "learnt": str(learnt)},
    )
    os.replace(beside, file)


def _from_aside(file: Path) -> tuple[int, bool, dict[str, Tensor]]:
    with safe_open(file, "pt") as kept:
        noted = kept.metadata()
        return int(noted["steps"]), noted["learnt"] == "True", {name: kept.get_tensor(name) for name in kept.keys()}


def _pretrain_metrics(body: Any, model: models.RowGPT, history: training.History, learnt: bool) -> dict:
    final = {name: value for name, value in history.evaluations[-1].items() if name != "step"}
    defined = body.width == body.ring or (body.every <= 5 and body.width >= automaton_rows.NEAR)
    floor = crop_floor(body.source, body.width, ring=body.ring, every=body.every) if defined else None
    matrices = torch.cat([p.detach().flatten() for p in model.body.h.parameters() if p.ndim > 1])
    return {
        **final,
        "floor": floor,
        "learnt": learnt,
        "steps": history.steps,
        "weight_rms": matrices.square().mean().sqrt().item(),
        "parameters": models.parameter_count(model),
        "history": asdict(history),
    }


def pretrain_together(bodies: Sequence[Any], at_once: int) -> list[runs.Result]:
    """The results of several pretrainings, those that are missing trained `at_once` side by side in this process.

    For a GPU that one small model cannot fill; on a CPU it gains nothing. `bodies` are `pretrain.Params`; those that
    train together agree in everything but source and seed. The results are as if made one by one, to the rounding of
    sums in another order; an interrupted group goes on from its checkpoint.
    """
    groups: dict[str, list[Any]] = {}
    for body in dict.fromkeys(bodies):  # each once, however often it is asked for
        if pretrain.find(**body.model_dump()) is None:
            groups.setdefault(body.model_copy(update={"source": 0, "seed": 0}).model_dump_json(), []).append(body)
    for missing in groups.values():
        for begin in range(0, len(missing), at_once):
            part = missing[begin : begin + at_once]
            name = runs.key({"bodies": [each.model_dump(mode="json") for each in part]}, pretrain.versions)
            checkpoint = runs.root() / pretrain.name / f".together-{name}.safetensors"
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            for body, (model, metrics) in zip(part, _learn(part, checkpoint), strict=True):
                pretrain.keep(functools.partial(_written, model=model, metrics=metrics), **body.model_dump())
            for file in (checkpoint, *(_aside(checkpoint, place) for place in range(len(part)))):
                file.unlink(missing_ok=True)
    return [pretrain(**body.model_dump()) for body in bodies]


def _written(work: Path, model: models.RowGPT, metrics: dict) -> dict:
    models.save_weights(model, work / WEIGHTS)
    return metrics


def pretrained(body: Any) -> models.RowGPT:
    """The model of a pretraining result, made if need be. `body` are `pretrain.Params`."""
    model = untrained(body)
    models.load_weights(model, pretrain(**body.model_dump()).file(WEIGHTS))
    return model.eval()


# --- downstream tasks -------------------------------------------------------------------------------------------

#: What the blocks start from: what they learnt from the rule, their random initialisation, or what they learnt with
#: the entries of every weight matrix shuffled.
Start = Literal["pretrained", "random", "shuffled"]
#: What is trained: what the paper trains for the task (boards: the new ends; tokens: all but the blocks), the new ends
#: only, all but the blocks (the ends, the positions and the last norm), or everything.
Trained = Literal["paper", "ends", "all but blocks", "all"]


def _body(body: Any, start: Start, seed: int) -> Blocks:
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


def validation_draw(seed: int) -> tuple[int, int, str]:
    """Number, seed and split of the sequences that `downstream` validates on."""
    return 256, draw_seed(seed, 1, 0), "validation"


def freeze(model: models.TaskGPT, trained: Trained) -> None:
    """Freeze all but what `trained` names. As in the paper: the whole body for boards, only the blocks for tokens."""
    if trained == "paper":
        trained = "ends" if model.kind == "boards" else "all but blocks"
    frozen = {"ends": model.body, "all but blocks": model.body.h}.get(trained)
    if frozen is not None:
        frozen.requires_grad_(False)


@stage(version=2, uses=(pretrain,), reads=(GAMES,))
def downstream(
    work: Path,
    body: pretrain.Params,
    task: Task = "reasoning-hard",
    start: Start = "pretrained",
    train: Trained = "paper",
    board_input: models.BoardInput = "integers",
    steps: Steps = 400,
    evaluate_every: Steps | None = None,
    until: Share | None = None,
    games: str | None = None,
    batch: Size = 32,
    lr: Rate = 2e-2,
    seed: Seed = 0,
) -> dict:
    """Put new input and output layers on a body, train these (or more), and score a task the body never saw.

    Training takes `steps`, or ends at the first evaluation (every eighth of the steps, unless said) with an accuracy
    of `until`. Metrics: validation loss in nats, accuracy (boards: all cells of the next board right; tokens: next
    token right), the first evaluated step at which accuracy reached 0.8 (None if never), failures before success over
    the possible values of a cell or token (`evaluation.survival_game`), the task's trivial baselines, the history.
    Files: `predictions.safetensors`, the predicted cells or tokens of the 256 validation sequences.

    Chess takes other `games` than the shipped ones from a file that `tasks.chess.Chess` reads, PGN for example. The
    result is found again by the file's name, so other games need another name.

    Raises:
        ParameterError: `games` for another task than chess.
        ValueError: games that cannot be used, before anything is trained.
    """
    spec = _task(task, games)
    # Published, only the rows and the boards go without a causal mask: Nim and chess are causal there, too.
    model = _with_ends(body, start, spec, board_input, seed)
    freeze(model, train)
    x, y = pairs(spec, *validation_draw(seed))

    def scores(m: nn.Module) -> dict[str, float]:
        logits = m(x)
        value = F.cross_entropy(logits.flatten(0, -2), y.flatten(), ignore_index=-100).item()
        return {"loss": value, "accuracy": spec.score(logits.argmax(-1).cpu().numpy(), y.cpu().numpy())}

    with training.reproducible(seed):
        history = training.train(
            model,
            lambda step: pairs(spec, batch, draw_seed(seed, 0, step), "train"),
            task_loss,
            steps=steps,
            rate=training.constant,
            lr=lr,
            seed=seed,
            evaluate=scores,
            evaluate_every=evaluate_every or max(1, steps // 8),
            until=(lambda entry: entry["accuracy"] >= until) if until else None,
            checkpoint=work / CHECKPOINT,
            label=f"{task} on {body.source if start != 'random' else 'random weights'}",
        )
        logits = training.evaluated(model, lambda m: m(x))
    (work / CHECKPOINT).unlink(missing_ok=True)
    save_file({"predicted": logits.argmax(-1).to(torch.int16).cpu()}, work / PREDICTIONS)
    last = history.evaluations[-1]
    reached = [entry["step"] for entry in history.evaluations if entry["accuracy"] >= 0.8]
    tried = evaluation.failures(logits.float().cpu().numpy(), y.cpu().numpy())
    game = evaluation.survival_game(tried, answers=spec.classes)
    return {
        "loss": last["loss"],
        "accuracy": last["accuracy"],
        "step_at_80": reached[0] if reached else None,
        "failures": {"mean": game.mean, "variance": game.variance, "alpha": _finite(game.alpha), "level": game.level},
        "baselines": _baselines(task, games),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "history": asdict(history),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@functools.cache  # read once, not once for every run of a process
def _task(task: str, games: str | None) -> tasks.Task:
    if games is None:
        return tasks.get(task)
    if task != "chess":
        raise runs.ParameterError(f"games are for the task chess, not for {task}")
    from rules2ranks.tasks.chess import Chess

    chess = Chess(games)
    chess.baselines(n=1)  # reads the file, and says what is wrong with it
    return chess


@functools.cache  # the same for every run of a process
def _baselines(task: str, games: str | None) -> dict[str, float]:
    return _task(task, games).baselines()


def _with_ends(body: Any, start: Start, spec: tasks.Task, board_input: models.BoardInput, seed: int) -> models.TaskGPT:
    """A body with new ends for a task; token tasks are causal even where the rows were not, as in the paper's code."""
    blocks = _body(body, start, seed)
    if spec.kind == "tokens":
        blocks.set_mask("causal")
    size = {"cells": spec.cells, "classes": spec.classes, "length": spec.length}
    model = models.TaskGPT(blocks, spec.kind, **size, seed=seed, board_input=board_input)
    return model.to(training.device())

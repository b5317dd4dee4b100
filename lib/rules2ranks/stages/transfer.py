"""The stage that asks what a network that learnt a rule is worth elsewhere: new ends on its blocks, for a task."""

import functools
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from rules2ranks import evaluation, models, runs, tasks, training
from rules2ranks.gpt2 import Blocks
from rules2ranks.published import data_folder
from rules2ranks.runs import stage
from rules2ranks.stages.learning import CHECKPOINT, draw_seed, pretrain, pretrained, untrained
from rules2ranks.stages.parameters import Rate, Seed, Share, Size, Steps, Task

PREDICTIONS = "predictions.safetensors"
GAMES = data_folder() / "games" / "stockfish.txt"
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

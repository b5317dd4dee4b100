"""The stage that asks what a network that learnt a rule is worth elsewhere: new ends on its blocks, for a task."""

import functools
import math
from dataclasses import asdict
from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from rules2ranks import evaluation, models, runs, tasks, training
from rules2ranks.published import data_folder
from rules2ranks.stages.learning import CHECKPOINT, Pretraining, draw_seed, pretrained, untrained
from rules2ranks.stages.ranges import Rate, Seed, Share, Size, Steps
from rules2ranks.tasks import Name as Task

PREDICTIONS = "predictions.safetensors"
GAMES = data_folder() / "games" / "stockfish.txt"
#: What the blocks start from: what they learnt from the rule, their random initialisation, or what they learnt with
#: the entries of every weight matrix shuffled.
Start = Literal["pretrained", "random", "shuffled"]
#: What is trained: what the paper trains for the task (boards: the new ends; tokens: all but the blocks), the new ends
#: only, all but the blocks (the ends, the positions and the last norm), or everything.
Trained = Literal["paper", "ends", "all but blocks", "all"]


class Downstream(runs.Params):
    """A body with new ends, and the task that these are trained for.

    Training takes `steps`, or ends at the first evaluation (every eighth of the steps, unless said) with an accuracy
    of `until`. Chess takes other `games` than the shipped ones from a file that `tasks.chess.Chess` reads, PGN for
    example; what it holds is part of the result's key, so that changed games are another result.

    Raises:
        ParameterError: `games` for another task than chess, or a file that is not there.
    """

    body: Pretraining
    task: Task = "reasoning-hard"
    start: Start = "pretrained"
    train: Trained = "paper"
    board_input: models.BoardInput = "integers"
    steps: Steps = 400
    evaluate_every: Steps | None = None
    until: Share | None = None
    games: str | None = None
    batch: Size = 32
    lr: Rate = 2e-2
    seed: Seed = 0

    @model_validator(mode="after")
    def _games_of_chess(self) -> Self:
        if self.games is not None and self.task != "chess":
            raise ValueError(f"games are for the task chess, not for {self.task}")
        if self.games is not None and not Path(self.games).is_file():
            raise ValueError(f"there is no file of games {self.games}")
        return self

    def reads(self) -> tuple[Path, ...]:
        if self.task != "chess":
            return ()
        return (GAMES if self.games is None else Path(self.games),)


def validation_draw(seed: int) -> tuple[int, int, str]:
    """Number, seed and split of the sequences that `downstream` validates on."""
    return 256, draw_seed(seed, 1, 0), "validation"


def task_loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy in nats over the scored cells or tokens (others are marked -100)."""
    x, y = pair
    # (B, T, classes) and (B, T), or for boards (B, T, cells, classes) and (B, T, cells): all scored alike.
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten(), ignore_index=-100)


@functools.cache  # read once, not once for every run of a process
def _chess(games: str, content: str) -> tasks.Task:
    """The task on a file's games; its content is asked for so that a changed file is read again."""
    from rules2ranks.tasks.chess import Chess

    return Chess(games)


@functools.cache  # the same for every run of a process
def _baselines(task: tasks.Task) -> dict[str, float]:
    return task.baselines()


def with_ends(given: Downstream, task: tasks.Task) -> models.TaskGPT:
    """The body with new ends for the task, all frozen but what is to be trained."""
    begun = untrained(given.body) if given.start == "random" else pretrained(given.body)
    if given.start == "shuffled":
        models.shuffle_weights(begun.body.h, given.seed)
    if task.kind == "tokens":
        # Published, only the rows and the boards go without a causal mask: Nim and chess are causal there, too.
        begun.body.set_mask("causal")
    size = {"cells": task.cells, "classes": task.classes, "length": task.length}
    model = models.TaskGPT(begun.body, task.kind, **size, seed=given.seed, board_input=given.board_input)
    freeze(model, given.train)
    return model.to(training.device())


def freeze(model: models.TaskGPT, trained: Trained) -> None:
    """Freeze all but what `trained` names. As in the paper: the whole body for boards, only the blocks for tokens."""
    if trained == "paper":
        trained = "ends" if model.kind == "boards" else "all but blocks"
    frozen = {"ends": model.body, "all but blocks": model.body.h}.get(trained)
    if frozen is not None:
        frozen.requires_grad_(False)


@runs.stage(version=2)
def downstream(work: Path, given: Downstream) -> dict:
    """Put new input and output layers on a body, train these (or more), and score a task the body never saw.

    Metrics: validation loss in nats, accuracy (boards: all cells of the next board right; tokens: next token right),
    the first evaluated step at which accuracy reached 0.8 (None if never), failures before success over the possible
    values of a cell or token (`evaluation.survival_game`), the task's trivial baselines, the history.
    Files: `predictions.safetensors`, the predicted cells or tokens of the 256 validation sequences.

    Raises:
        ValueError: games that cannot be used, before anything is trained.
    """
    task = tasks.get(given.task) if given.games is None else _chess(given.games, runs.sha256(Path(given.games)))
    sizes = (given.body.layers, given.body.hidden, given.body.heads, task.cells * task.classes)
    needed = models.step_bytes(given.batch, task.length, *sizes)
    training.check_memory(needed, f"downstream training with batch={given.batch}")
    baselines = _baselines(task)  # first, as they read the games
    model = with_ends(given, task)
    x, y = training.on_device(task.batch(*validation_draw(given.seed)))
    with training.reproducible(given.seed):
        history = _train(model, given, task, (x, y), work / CHECKPOINT)
        logits = training.evaluated(model, lambda m: m(x))
    (work / CHECKPOINT).unlink(missing_ok=True)
    save_file({"predicted": logits.argmax(-1).to(torch.int16).cpu()}, work / PREDICTIONS)
    last = history.evaluations[-1]
    failures = evaluation.failures(logits.float().cpu().numpy(), y.cpu().numpy())
    game = evaluation.survival_game(failures, answers=task.classes)
    alpha = game.alpha if math.isfinite(game.alpha) else None
    return {
        "loss": last["loss"],
        "accuracy": last["accuracy"],
        "step_at_80": next((entry["step"] for entry in history.evaluations if entry["accuracy"] >= 0.8), None),
        "failures": {"mean": game.mean, "variance": game.variance, "alpha": alpha, "level": game.level},
        "baselines": baselines,
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "history": asdict(history),
    }


def _train(
    model: nn.Module, given: Downstream, task: tasks.Task, held_out: tuple[Tensor, Tensor], checkpoint: Path
) -> training.History:
    def scores(m: nn.Module) -> dict[str, float]:
        x, y = held_out
        logits = m(x)
        loss = F.cross_entropy(logits.flatten(0, -2), y.flatten(), ignore_index=-100).item()
        return {"loss": loss, "accuracy": task.score(logits.argmax(-1).cpu().numpy(), y.cpu().numpy())}

    watch = training.Watch(
        evaluate=scores,
        every=given.evaluate_every or max(1, given.steps // 8),
        until=(lambda entry: entry["accuracy"] >= given.until) if given.until else None,
    )
    return training.train(
        model,
        lambda step: training.on_device(task.batch(given.batch, draw_seed(given.seed, 0, step), "train")),
        task_loss,
        training.Schedule(given.steps, given.lr, rate=training.constant),
        seed=given.seed,
        watch=watch,
        checkpoint=checkpoint,
        label=f"{given.task} on {given.body.source if given.start != 'random' else 'random weights'}",
    )

"""The stage that learns a rule: pretraining, one network at a time or several side by side."""

import functools
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

from rules2ranks import models, runs, training
from rules2ranks.gpt2 import Mask
from rules2ranks.runs import stage
from rules2ranks.stages.parameters import Rate, Rule, Seed, Size, Steps
from rules2ranks.tasks import rows as automaton_rows
from rules2ranks.tasks.rows import crop_floor, rows_of

CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "model.safetensors"
#: A rule counts as learnt when so many of the cells that the rows in sight determine are predicted right.
LEARNT = 0.99
#: A rule, or rows of fair coin flips: the control in which nothing can be learnt.
Source = Rule | Literal["coin"]


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
            # At least five times a round, and at the end of each: the largest divisor that does.
            evaluate_every=next(d for d in range(max(1, body.steps // 5), 0, -1) if body.steps % d == 0),
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

    For a GPU that one small model cannot fill; on a CPU it gains little. `bodies` are `pretrain.Params`; those that
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

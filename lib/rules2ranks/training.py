"""The one loop: steps, checkpoint, resume, progress, metrics. Pretraining, heads and recovery all use it."""

import contextlib
import ctypes
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

#: A loss takes the model and a batch and gives a scalar to go down.
Loss = Callable[[nn.Module, Any], Tensor]


def _keep_memory() -> None:
    """Ask glibc not to hand large blocks back to the system after every step: they are needed again at once."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for setting in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            libc.mallopt(setting, 1 << 30)


_keep_memory()


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """One thread and seeded draws inside; the caller's threads and random state are as before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


@dataclass
class History:
    """What a training saw.

    `loss` holds (step, mean training loss since the last entry); `evaluations` the dictionaries that `evaluate` gave,
    each with its `step`. Both count finished optimiser steps.
    """

    steps: int = 0
    loss: list[tuple[int, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)


def rate_at(step: int, steps: int, warmup: float, schedule: str) -> float:
    """The share of the peak learning rate at a step: linear warm-up, then constant or half a cosine to zero."""
    ramp = max(1, round(warmup * steps))
    if warmup > 0 and step < ramp:
        return (step + 1) / ramp
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - ramp * (warmup > 0)) / max(1, steps - ramp * (warmup > 0))))


def train(
    model: nn.Module,
    batch: Callable[[int], Any],
    loss: Loss,
    *,
    steps: int,
    lr: float,
    seed: int = 0,
    stop: int | None = None,
    warmup: float = 0.1,
    schedule: str = "cosine",
    weight_decay: float = 0.0,
    clip: float = 1.0,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    evaluate_every: int | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 15.0,
    label: str = "training",
) -> History:
    """Train the parameters that require a gradient, with AdamW, in place.

    Args:
        batch: gives the batch of a step; a pure function of the step, so that a resumed run sees the same ones.
        steps: optimiser steps that the schedule is made for.
        stop: end after this many of them (None: all).
        warmup: share of `steps` with a linearly rising rate.
        schedule: "cosine" (to zero) or "constant".
        clip: largest gradient norm; 0 leaves gradients as they are.
        evaluate: called every `evaluate_every` steps and after the last, on the model in evaluation mode.
        checkpoint: a safetensors file, written every `checkpoint_seconds`; if it is there, training goes on from it to
            the same bits as without the interruption.

    Raises:
        ValueError: impossible settings, or a checkpoint of another training.
        FloatingPointError: the loss is no longer finite; says at which step.
    """
    if schedule not in ("cosine", "constant"):
        raise ValueError(f"schedule is 'cosine' or 'constant', not {schedule!r}")
    if stop is not None and not 0 < stop <= steps:
        raise ValueError(f"stop lies between 1 and the {steps} steps, not at {stop}")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("no parameter of the model requires a gradient: nothing to train")
    fused = next(iter(trained.values())).device.type in ("cpu", "cuda")
    optimiser = torch.optim.AdamW(trained.values(), lr=lr, weight_decay=weight_decay, fused=fused)
    history = _resume(checkpoint, trained, optimiser, steps) if checkpoint and checkpoint.is_file() else History()
    last, every = stop or steps, evaluate_every or steps
    saved = time.monotonic()
    since: list[float] = []
    model.train()
    with tqdm(total=last, initial=history.steps, desc=label, unit="step", leave=False, mininterval=0.5) as bar:
        for step in range(history.steps, last):
            # Dropout draws from the global generator: seeding it by the step makes resuming exact.
            torch.manual_seed((seed << 32) + step)
            for group in optimiser.param_groups:
                group["lr"] = lr * rate_at(step, steps, warmup, schedule)
            value = _step(model, batch(step), loss, optimiser, trained, clip, step)
            since.append(value)
            done = history.steps = step + 1
            if done % max(1, steps // 50) == 0 or done == last:
                history.loss.append((done, sum(since) / len(since)))
                bar.set_postfix(loss=f"{history.loss[-1][1]:.4f}", refresh=False)
                since.clear()
            if evaluate and (done % every == 0 or done == last):
                history.evaluations.append({"step": done, **evaluated(model, evaluate)})
            bar.update()
            # Only where no mean is under way, so that the history resumes to the same numbers too.
            if checkpoint and not since and time.monotonic() - saved > checkpoint_seconds and done < last:
                _save(checkpoint, trained, optimiser, history, steps)
                saved = time.monotonic()
    model.eval()
    return history


def _step(model, batch, loss, optimiser, trained, clip, step) -> float:
    optimiser.zero_grad(set_to_none=True)
    value = loss(model, batch)
    if not torch.isfinite(value):
        raise FloatingPointError(f"the loss is {value.item()} at step {step}: a lower learning rate may help")
    value.backward()
    if clip:
        nn.utils.clip_grad_norm_(trained.values(), clip)
    optimiser.step()
    return value.item()


@torch.no_grad()
def evaluated(model: nn.Module, evaluate: Callable[[nn.Module], Any]) -> Any:
    """What `evaluate(model)` gives in evaluation mode and without gradients; the model's mode is as before after it."""
    mode = model.training
    model.eval()
    try:
        return evaluate(model)
    finally:
        model.train(mode)


def _save(path: Path, trained: dict, optimiser: torch.optim.Optimizer, history: History, steps: int) -> None:
    tensors = {f"value/{name}": p.detach() for name, p in trained.items()}
    for name, p in trained.items():
        tensors |= {f"{part}/{name}": value for part, value in optimiser.state[p].items()}
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    beside = path.with_name(f".{path.name}.new")
    save_file(tensors, beside, metadata={"history": json.dumps(asdict(history)), "steps": str(steps)})
    os.replace(beside, path)


def _resume(path: Path, trained: dict, optimiser: torch.optim.Optimizer, steps: int) -> History:
    with safe_open(path, "pt") as file:
        names = {name.partition("/")[2] for name in file.keys()}
        if names != set(trained) or file.metadata()["steps"] != str(steps):
            raise ValueError(f"{path} is a checkpoint of another training: remove it to begin anew")
        for name, p in trained.items():
            with torch.no_grad():
                p.copy_(file.get_tensor(f"value/{name}"))
            optimiser.state[p] = {
                part: file.get_tensor(f"{part}/{name}").to("cpu" if part == "step" else p.device)
                for part in ("step", "exp_avg", "exp_avg_sq")
            }
        return History(**json.loads(file.metadata()["history"]))

"""The one loop: steps, checkpoint, resume, progress, metrics. Pretraining, heads and recovery all use it."""

import bisect
import contextlib
import ctypes
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

#: A loss takes the model and a batch and gives a scalar to go down (for models `Together`: one for each).
Loss = Callable[[nn.Module, Any], Tensor]
#: The share of the peak learning rate at a step, counted from 0.
Rate = Callable[[int], float]


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
    each with its `step`. Both count finished optimiser steps. Of models `Together` the values are lists.
    """

    steps: int = 0
    loss: list[tuple[int, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    def member(self, place: int, steps: int) -> "History":
        """What the training of one of several models saw in its first `steps` steps."""
        loss = [(step, value[place]) for step, value in self.loss if step <= steps]
        evaluations = [
            {"step": entry["step"], **{name: value[place] for name, value in entry.items() if name != "step"}}
            for entry in self.evaluations
            if entry["step"] <= steps
        ]
        return History(steps, loss, evaluations)


def cosine(steps: int, warmup: float = 0.1) -> Rate:
    """Linear warm-up over a share of the steps, then half a cosine down to zero."""
    ramp = round(warmup * steps)

    def rate(step: int) -> float:
        if step < ramp:
            return (step + 1) / ramp
        return 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, steps - ramp)))

    return rate


def constant(step: int) -> float:
    """The peak rate at every step."""
    return 1.0


def restarts(first: int, rounds: int, warmup: float = 0.1) -> tuple[Rate, list[int]]:
    """Rounds of `cosine`, each twice as long as the one before (Loshchilov and Hutter 2017, SGDR), and their ends.

    What is learnt in the first round has been trained just as without the others.
    """
    ends = [first * (2 ** (k + 1) - 1) for k in range(rounds)]
    begins = [0, *ends[:-1]]

    def rate(step: int) -> float:
        k = bisect.bisect_right(begins, step) - 1
        return cosine(ends[k] - begins[k], warmup)(step - begins[k])

    return rate, ends


class Together(nn.Module):
    """Several models of one shape side by side: one process, one training, for a GPU that one cannot fill.

    Inputs and outputs have a first axis of models. Each is trained as it would be alone (its own loss, its own
    gradient norm), to the rounding of sums in another order.
    """

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        self._pattern = [members[0]]  # in a list, so that it is no part of this module: only its code is used
        stacked, _ = torch.func.stack_module_state(list(members))
        for name, values in stacked.items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(values.detach()))

    def forward(self, x: Tensor) -> Tensor:
        def one(values: dict[str, Tensor], own: Tensor) -> Tensor:
            return torch.func.functional_call(self._pattern[0], values, (own,))

        return torch.vmap(one)({name.replace("/", "."): p for name, p in self.named_parameters()}, x)

    def member(self, place: int) -> dict[str, Tensor]:
        """The state of one of the models."""
        return {name.replace("/", "."): p.detach()[place] for name, p in self.named_parameters()}

    def clip_gradients(self, largest: float) -> None:
        """Scale each model's gradient down to that norm, as `clip_grad_norm_` does for a model alone."""
        gradients = [p.grad for p in self.parameters()]
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
        scale = (largest / (norms + 1e-6)).clamp(max=1)
        for g in gradients:
            g.mul_(scale.view(-1, *[1] * (g.ndim - 1)))


def train(
    model: nn.Module,
    batch: Callable[[int], Any],
    loss: Loss,
    *,
    steps: int,
    lr: float,
    seed: int = 0,
    stop: int | None = None,
    rate: Rate | None = None,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    bf16: bool = False,
    log_every: int | None = None,
    evaluate: Callable[[nn.Module], dict[str, Any]] | None = None,
    evaluate_every: int | None = None,
    until: Callable[[dict[str, Any]], bool] | None = None,
    after_step: Callable[[int], None] | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 15.0,
    label: str = "training",
) -> History:
    """Train the parameters that require a gradient, with AdamW, in place.

    Args:
        batch: gives the batch of a step; a pure function of the step, so that a resumed run sees the same ones.
        steps: optimiser steps that the learning rate is planned for.
        stop: end after this many of them (None: all).
        rate: share of the peak rate `lr` at a step (None: `cosine(steps)`).
        clip: largest gradient norm; 0 leaves gradients as they are.
        bf16: compute in bfloat16 where that is safe (torch's autocast); worth it on a GPU, slower on most CPUs.
        log_every: steps from one entry of the loss's history to the next (None: a fiftieth of all).
        evaluate: called every `evaluate_every` steps and after the last, on the model in evaluation mode.
        until: asked after each evaluation, with its entry (scores and `step`): True ends the training.
        after_step: called with the number of finished steps after each, while its gradients are still there.
        checkpoint: a safetensors file, written every `checkpoint_seconds`; if it is there, training goes on from it to
            the same bits as without the interruption.

    Raises:
        ValueError: impossible settings, or a checkpoint of another training.
        FloatingPointError: the loss is no longer finite; says at which step.
    """
    if stop is not None and not 0 < stop <= steps:
        raise ValueError(f"stop lies between 1 and the {steps} steps, not at {stop}")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("no parameter of the model requires a gradient: nothing to train")
    place = next(iter(trained.values())).device.type
    optimiser = torch.optim.AdamW(trained.values(), lr=lr, weight_decay=weight_decay, fused=place in ("cpu", "cuda"))
    history = _resume(checkpoint, trained, optimiser, steps) if checkpoint and checkpoint.is_file() else History()
    rate, last, every, log_every = (
        rate or cosine(steps),
        stop or steps,
        evaluate_every or steps,
        log_every or steps // 50,
    )
    saved = time.monotonic()
    since: list[Any] = []
    model.train()
    with tqdm(total=last, initial=history.steps, desc=label, unit="step", leave=False, mininterval=0.5) as bar:
        for step in range(history.steps, last):
            # Dropout draws from the global generator: seeding it by the step makes resuming exact.
            _seed((seed << 32) + step)
            for group in optimiser.param_groups:
                group["lr"] = lr * rate(step)
            with torch.autocast(place, torch.bfloat16, enabled=bf16):
                value = loss(model, batch(step))
            since.append(_step(model, value, optimiser, trained, clip, step))
            done = history.steps = step + 1
            if after_step:
                after_step(done)
            if done % max(1, log_every) == 0 or done == last:
                history.loss.append((done, np.mean(since, axis=0).tolist()))
                since.clear()
                bar.set_postfix(_shown(history), refresh=False)
            bar.update()
            if evaluate and (done % every == 0 or done == last):
                history.evaluations.append({"step": done, **evaluated(model, evaluate)})
                if until and until(history.evaluations[-1]):
                    break
            # Only where no mean is under way, so that the history resumes to the same numbers too.
            if checkpoint and not since and time.monotonic() - saved > checkpoint_seconds and done < last:
                _save(checkpoint, trained, optimiser, history, steps)
                saved = time.monotonic()
    model.eval()
    return history


def _seed(value: int) -> None:
    # torch.manual_seed does the same, but keeps a stack trace of every call while there is no GPU, to replay it
    # should one come: 3 of 14 ms a step at the core settings.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(value)


def _step(model, value, optimiser, trained, clip, step) -> Any:
    optimiser.zero_grad(set_to_none=True)
    if not torch.isfinite(value).all():
        raise FloatingPointError(f"the loss is {value.tolist()} at step {step}: a lower learning rate may help")
    value.sum().backward()
    if clip:
        if isinstance(model, Together):
            model.clip_gradients(clip)
        else:
            nn.utils.clip_grad_norm_(trained.values(), clip)
    optimiser.step()
    return value.tolist()


def _shown(history: History) -> dict[str, str]:
    """What the progress bar says beside steps and time left: the latest loss, and accuracy where it is evaluated."""
    latest = dict(loss=history.loss[-1][1]) if history.loss else {}
    if history.evaluations and "accuracy" in history.evaluations[-1]:
        latest["accuracy"] = history.evaluations[-1]["accuracy"]
    return {name: f"{np.mean(value):.4f}" for name, value in latest.items()}


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
        fits = names == set(trained) and file.metadata()["steps"] == str(steps)
        if not fits or any(file.get_slice(f"value/{n}").get_shape() != list(p.shape) for n, p in trained.items()):
            raise ValueError(f"{path} is a checkpoint of another training: remove it to begin anew")
        for name, p in trained.items():
            with torch.no_grad():
                p.copy_(file.get_tensor(f"value/{name}"))
            optimiser.state[p] = {
                part: file.get_tensor(f"{part}/{name}").to("cpu" if part == "step" else p.device)
                for part in ("step", "exp_avg", "exp_avg_sq")
            }
        return History(**json.loads(file.metadata()["history"]))

"""The one loop: steps, checkpoint, resume, progress, metrics. Pretraining, heads and recovery all use it."""

import bisect
import contextlib
import ctypes
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from rules2ranks import optimising, runs, snapshots

#: A loss takes the model and a batch and gives a scalar to go down (for models `Together`: one for each).
Loss = Callable[[nn.Module, Any], Tensor]
#: The share of the peak learning rate at a step, counted from 0.
Rate = Callable[[int], float]
#: Largest norm of a model's gradient: what is larger is scaled down to it.
CLIP = 1.0
#: What a checkpoint notes beside its tensors.
NOTED = {"steps", "history", "losses"}
#: Seconds between two checkpoints of a training under way.
CHECKPOINT_SECONDS = 15.0


# glibc hands large blocks back to the system after every step unless asked not to: they are needed again at once.
with contextlib.suppress(OSError, AttributeError):
    for _setting in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        ctypes.CDLL("libc.so.6").mallopt(_setting, 1 << 30)


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_memory(needed: float, what: str) -> None:
    """Refuse a training that cannot fit, before it begins.

    Raises:
        ValueError: it needs more bytes than the GPU, or else the machine, has in all.
    """
    if device().type == "cuda":
        there = torch.cuda.get_device_properties(0).total_memory
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        sizes = f"about {needed / 2**30:,.0f} GiB to train, and there are {there / 2**30:,.0f}"
        raise ValueError(f"{what} needs {sizes}: smaller ones would fit")


def on_device(arrays: Iterable[np.ndarray]) -> tuple[Tensor, ...]:
    """Arrays as tensors of the same types, on the device."""
    return tuple(torch.from_numpy(array).to(device()) for array in arrays)


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """As many threads as `runs.threads` says (one) and seeded draws; afterwards the caller's are as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(runs.threads())
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


def held(steps: int, warmup: float = 0.1) -> Rate:
    """Linear warm-up over a share of the steps, then the peak rate."""
    ramp = round(warmup * steps)
    return lambda step: min(1.0, (step + 1) / ramp) if ramp else 1.0


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


@dataclass(frozen=True)
class Schedule:
    """How a model is trained: with AdamW, at a rate planned for so many steps.

    Args:
        steps: optimiser steps that the rate is planned for.
        lr: the peak learning rate.
        stop: end after this many of the steps (None: all). The rate is as without a stop.
        rate: share of the peak rate at a step (None: `cosine(steps)`).
        bf16: compute in bfloat16 where that is safe (torch's autocast); worth it on a GPU, slower on most CPUs.
        weight_decay: AdamW's, of all that is trained.
    """

    steps: int
    lr: float
    stop: int | None = None
    rate: Rate | None = None
    bf16: bool = False
    weight_decay: float = 0.0

    @property
    def last(self) -> int:
        """The step that training ends with."""
        return self.stop or self.steps


@dataclass(frozen=True)
class Watch:
    """What is looked at in training.

    Args:
        evaluate: gives scores of the model, called in evaluation mode.
        every: steps from one evaluation to the next (None: only after the last step, where there always is one).
        until: asked after each of these evaluations, with its entry (scores and `step`): True ends the training. Its
            answer may depend on the entry only, as it is asked again when a training goes on from there.
        log_every: steps from one entry of the loss's history to the next (None: a fiftieth of all).
    """

    evaluate: Callable[[nn.Module], dict[str, Any]] | None = None
    every: int | None = None
    until: Callable[[dict[str, Any]], bool] | None = None
    log_every: int | None = None


def train(
    model: nn.Module,
    batch: Callable[[int], Any],
    loss: Loss,
    schedule: Schedule,
    *,
    seed: int = 0,
    watch: Watch | None = None,
    after_step: Callable[[int], None] | None = None,
    checkpoint: Path | None = None,
    label: str = "training",
) -> History:
    """Train the parameters that require a gradient, in place.

    Args:
        batch: gives the batch of a step, counted from 0; a pure function of the step, so that a resumed run sees the
            same ones.
        after_step: called with the number of finished steps after each, while its gradients are still there.
        checkpoint: a safetensors file, written every `CHECKPOINT_SECONDS` and at the end. If it is there, training goes
            on from it, to the same weights and the same history as without the interruption; so a training that was
            stopped goes on with a higher `stop`, or without. A damaged one is put aside, and training begins anew.

    Raises:
        ValueError: nothing to train, or a checkpoint of another training or from beyond the stop.
        FloatingPointError: the loss is no longer finite; says at which step.
    """
    shown = {"desc": label, "unit": "step", "leave": False, "mininterval": 0.5}
    with contextlib.closing(_Run(model, schedule, watch or Watch())) as run:
        if checkpoint and checkpoint.is_file():
            run.resume(checkpoint)
        saved = time.monotonic()
        model.train()
        with tqdm(total=schedule.last, initial=run.history.steps, **shown) as bar:
            while not run.ended():
                run.step(batch, loss, seed)
                if after_step:
                    after_step(run.history.steps)
                if run.look():
                    bar.set_postfix(_shown(run.history), refresh=False)
                bar.update()
                if checkpoint and time.monotonic() - saved > CHECKPOINT_SECONDS:
                    run.save(checkpoint)
                    saved = time.monotonic()
        if checkpoint:
            run.save(checkpoint)
    model.eval()
    return run.seen()


class _Run:
    """A training under way: its model, its optimiser, what was seen, and the losses that wait for their mean."""

    def __init__(self, model: nn.Module, schedule: Schedule, watch: Watch):
        self.model, self.schedule, self.watch = model, schedule, watch
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.trained:
            raise ValueError("no parameter of the model requires a gradient: nothing to train")
        self.device = next(iter(self.trained.values())).device.type
        self.optimiser = optimising.AdamW(self.trained, schedule.lr, schedule.weight_decay)
        self.rate = schedule.rate or cosine(schedule.steps)
        self.every = watch.every or schedule.steps
        self.log_every = watch.log_every or max(1, schedule.steps // 50)
        self.history = History()
        self.losses: list[Any] = []

    def ended(self) -> bool:
        """Whether the last step is done, or `until` ends the training here."""
        if self.history.steps == self.schedule.last:
            return True
        return bool(self.watch.until and self._just_evaluated() and self.watch.until(self.history.evaluations[-1]))

    def _just_evaluated(self) -> bool:
        return bool(self.history.evaluations) and self.history.evaluations[-1]["step"] == self.history.steps

    def step(self, batch: Callable[[int], Any], loss: Loss, seed: int) -> None:
        step = self.history.steps
        # Dropout draws from the global generator: seeding it by the step makes resuming exact.
        _seed((seed << 32) + step)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.schedule.bf16):
            value = loss(self.model, batch(step))
        self.optimiser.clear()
        seen = value.tolist()
        if not np.isfinite(seen).all():
            raise FloatingPointError(f"the loss is {seen} at step {step}: a lower learning rate may help")
        value.sum().backward()
        self.optimiser.gather()
        (self.model.clip_gradients if isinstance(self.model, Together) else self.optimiser.clip)(CLIP)
        self.optimiser.step(self.schedule.lr * self.rate(step))
        self.losses.append(seen)
        self.history.steps = step + 1

    def look(self) -> bool:
        """Note the mean loss and the scores where they are due; whether any was."""
        mean_due = self.history.steps % self.log_every == 0
        scores_due = self.watch.evaluate and self.history.steps % self.every == 0
        if mean_due:
            self.history.loss.append(self._mean_loss())
            self.losses.clear()
        if scores_due:
            self.history.evaluations.append(self._scores())
        return bool(mean_due or scores_due)

    def _mean_loss(self) -> tuple[int, Any]:
        return self.history.steps, np.mean(self.losses, axis=0).tolist()

    def _scores(self) -> dict[str, Any]:
        return {"step": self.history.steps, **evaluated(self.model, self.watch.evaluate)}

    def seen(self) -> History:
        """The history as a reader wants it: at the end with the latest losses and scores, due or not."""
        seen = History(self.history.steps, self.history.loss.copy(), self.history.evaluations.copy())
        if self.history.steps == self.schedule.last:
            if self.losses:
                seen.loss.append(self._mean_loss())
            if self.watch.evaluate and not self._just_evaluated():
                seen.evaluations.append(self._scores())
        return seen

    def close(self) -> None:
        """Leave the model's parameters as they were found: each with memory of its own."""
        self.optimiser.release()

    def save(self, path: Path) -> None:
        tensors = {f"value/{name}": p.detach() for name, p in self.trained.items()} | self.optimiser.moments()
        noted = {"steps": self.schedule.steps, "history": asdict(self.history), "losses": self.losses}
        snapshots.write(path, tensors, {name: json.dumps(value) for name, value in noted.items()})

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint, or begin anew where it is damaged."""
        if (found := snapshots.read(path, NOTED)) is None:
            return
        tensors, about = found
        self._check(path, tensors, about)
        with torch.no_grad():
            for name, p in self.trained.items():
                p.copy_(tensors[f"value/{name}"])
        seen = json.loads(about["history"])
        self.optimiser.resume(tensors, seen["steps"])
        self.history = History(seen["steps"], [tuple(entry) for entry in seen["loss"]], seen["evaluations"])
        self.losses = json.loads(about["losses"])

    def _check(self, path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
        fits = {name.partition("/")[2] for name in tensors} == set(self.trained)
        fits = fits and about.get("steps") == str(self.schedule.steps) and "losses" in about
        if not fits or any(tensors[f"value/{name}"].shape != p.shape for name, p in self.trained.items()):
            raise ValueError(f"{path} is a checkpoint of another training: remove it to begin anew")
        done = json.loads(about["history"])["steps"]
        if done > self.schedule.last:
            raise ValueError(f"{path} holds {done} steps, more than those up to the stop at {self.schedule.last}")


def _seed(value: int) -> None:
    # torch.manual_seed does the same, but keeps a stack trace of every call while there is no GPU, to replay it
    # should one come: 3 of 14 ms a step at the core settings.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(value)


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

"""Measures steps of pretraining beside other ways to the same numbers, into data/reference/bench_training.csv.

    make bench

Pretraining runs as in `learning.pretrain`: its loop, its loss, its data drawn on the way; only validation and
checkpoints are left out. The other two are bare loops that a program without a library might hold, around transformers'
GPT-2 and around plain torch, on the same data drawn in the same way; they do not look at the loss. Before
anything is measured, the three models give the same output from the same weights. All settings and ways take turns, so
that whatever slows the machine slows all alike; each begins its every turn with a new model, sets up what it needs
before the clock runs, and the median over the turns stands. A first turn does not count.

Everything runs in one thread and, if torch finds a GPU, on that (`make bench PROFILE=gpu`; other profiles hide it). The
device stands in every task.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import transformers
from common import compared, medians, write
from torch import Tensor, nn

from rules2ranks import cpu, models, training
from rules2ranks.stages import learning

ROUNDS = 9
#: What the reference tables pretrain with, the same with full words of automata, and the laptop profile's notebook.
CORE = learning.Pretraining()
FULL = CORE.model_copy(update={"batch": 64})
LARGE = CORE.model_copy(update={"width": 100, "rows": 60, "hidden": 128, "batch": 32, "lr": 3e-3})
#: A turn's steps, of the core as many as a round of pretraining has: multiples of those that data are drawn for at
#: once, so that every turn draws just what it uses.
STEPS, STEPS_OF_LARGE, STEPS_TOGETHER = 320, 48, 16
STEPS_DRAWN = 64
GPU = training.device().type == "cuda"
DEVICE = torch.cuda.get_device_name() if GPU else "CPU"
MANY = (16, 32, 64) if GPU else (8,)
#: On most CPUs bfloat16 is slower.
PRECISIONS = {"float32": False, "bfloat16": True} if GPU else {"float32": False}
WITH_TRANSFORMERS = f"transformers {transformers.__version__}"
UNIT = "optimiser steps per second"


class Transformers(nn.Module):
    """transformers' own GPT-2 between two linear layers.

    The activation is torch's own, as in the library: transformers' default for GPT-2 is the same function in several
    operations, one after the other.
    """

    def __init__(self, like: models.RowGPT, body: learning.Pretraining):
        super().__init__()
        config = transformers.GPT2Config(
            vocab_size=1,
            bos_token_id=None,
            eos_token_id=None,
            n_positions=body.rows,
            n_layer=body.layers,
            n_head=body.heads,
            n_embd=body.hidden,
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            attn_implementation="sdpa",
        )
        self.body = transformers.GPT2Model(config)
        self.body.load_state_dict(like.body.state_dict(), strict=False)  # there are no tokens to embed
        self.input, self.output = like.input, like.output

    def forward(self, rows: Tensor) -> Tensor:
        return self.output(self.body(inputs_embeds=self.input(rows)).last_hidden_state)


class Attention(nn.Module):
    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.c_attn, self.c_proj, self.heads = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden), heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attn, self.mlp = Attention(hidden, heads), MLP(hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Plain(nn.Module):
    """GPT-2 as short programs write it: linear layers and torch's fused attention."""

    def __init__(self, like: models.RowGPT, body: learning.Pretraining):
        super().__init__()
        self.body = nn.Module()
        self.body.wpe = nn.Embedding(body.rows, body.hidden)
        self.body.h = nn.ModuleList(Block(body.hidden, body.heads) for _ in range(body.layers))
        self.body.ln_f = nn.LayerNorm(body.hidden)
        state = like.body.state_dict()
        inner = {name for name, p in state.items() if name.startswith("h.") and p.ndim == 2}
        self.body.load_state_dict({name: p.T if name in inner else p for name, p in state.items()})
        self.input, self.output = like.input, like.output

    def forward(self, rows: Tensor) -> Tensor:
        x = self.input(rows) + self.body.wpe.weight[: rows.shape[1]]
        for block in self.body.h:
            x = block(x)
        return self.output(self.body.ln_f(x))


OTHERS: dict[str, Callable[[models.RowGPT, learning.Pretraining], nn.Module]] = {
    WITH_TRANSFORMERS: Transformers,
    "plain torch": Plain,
}


def other(make: Callable[[models.RowGPT, learning.Pretraining], nn.Module], body: learning.Pretraining) -> nn.Module:
    return make(learning.untrained(body), body).to(training.device())


def seconds_a_step(run: Callable[[], object], steps: int) -> float:
    """The seconds of a run over the number of its steps; a GPU has finished both what was before and the run."""
    if GPU:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    if GPU:
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / steps


def with_library(bodies: list[learning.Pretraining], steps: int, bf16: bool = False) -> float:
    """Seconds of a step of pretraining, of one model or of several side by side, as `learning.pretrain` runs it.

    The loop makes its optimiser itself, so that this counts against the library.
    """
    members, streams = [learning.untrained(body) for body in bodies], [learning.by_step(body, 0) for body in bodies]
    alone, body = len(bodies) == 1, bodies[0]
    model = members[0] if alone else training.Together(members)
    rate, ends = training.restarts(body.steps, body.rounds)

    def batch(step: int) -> Tensor:
        return learning.floats(streams[0](step) if alone else np.stack([stream(step) for stream in streams]))

    def run() -> None:
        training.train(
            model,
            batch,
            learning.row_loss,
            training.Schedule(ends[-1], body.lr, stop=steps, rate=rate, bf16=bf16),
            seed=body.seed,
            watch=training.Watch(log_every=body.steps // 50),
        )

    with contextlib.redirect_stderr(io.StringIO()):  # its progress is computed as ever, but not shown
        return seconds_a_step(run, steps)


def with_loop(
    make: Callable[[models.RowGPT, learning.Pretraining], nn.Module], body: learning.Pretraining, steps: int
) -> float:
    """Seconds of a step of a bare loop on the same data."""
    stream = learning.by_step(body, 0)
    model = other(make, body)
    optimiser = torch.optim.AdamW(model.parameters(), lr=body.lr, weight_decay=0.0, fused=True)

    def run() -> None:
        for step in range(steps):
            windows = learning.floats(stream(step))
            optimiser.zero_grad(set_to_none=True)
            F.binary_cross_entropy_with_logits(model(windows[:, :-1]), windows[:, 1:]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()

    return seconds_a_step(run, steps)


def drawing(body: learning.Pretraining, steps: int) -> float:
    """Seconds of drawing the data of a step and bringing them to the device."""
    stream = learning.by_step(body, 0)
    return seconds_a_step(lambda: [learning.floats(stream(step)) for step in range(steps)], steps)


def products(body: learning.Pretraining, steps: int) -> float:
    """Seconds of the products of a step's blocks alone, as the library multiplies: on the way there and back.

    What no way of training can do without: a layer's matrices, of four kinds, and the products of attention.
    """
    device, positions, hidden = training.device(), body.batch * body.rows, body.hidden
    layer = ((hidden, 3 * hidden), (hidden, hidden), (hidden, 4 * hidden), (4 * hidden, hidden))
    matrices = [
        [torch.randn(*shape, device=device) for shape in ((positions, inputs), (inputs, outputs), (positions, outputs))]
        for inputs, outputs in layer
    ]
    heads, wide = (
        (body.batch * body.heads, body.rows, hidden // body.heads),
        (body.batch * body.heads, *[body.rows] * 2),
    )
    q, weights = torch.randn(*heads, device=device), torch.randn(*wide, device=device)

    def run() -> None:
        for _ in range(steps * body.layers):
            for x, weight, dy in matrices:
                cpu.product(x, weight), cpu.product(dy, weight.T), cpu.product(x.T, dy)
            for _ in range(2):  # scores, and what they mix: each once there and twice back
                q @ q.mT, weights @ q, weights.mT @ q

    return seconds_a_step(run, steps)


def agree(body: learning.Pretraining) -> None:
    """Compare the outputs of the three models.

    Raises:
        AssertionError: they are not the same numbers.
    """
    rows = learning.floats(learning.by_step(body, 0)(0))[:, :-1]
    with torch.no_grad():
        expected = learning.untrained(body)(rows)
        for make in OTHERS.values():
            torch.testing.assert_close(other(make, body)(rows), expected, rtol=1e-4, atol=1e-5)


def measured(rounds: int = ROUNDS) -> pd.DataFrame:
    """All lines, measured in one run of turns."""
    ways: dict[tuple[str, int], Callable[[], float]] = {}  # by the batch, or by the number of models
    for body, steps in ((CORE, STEPS), (LARGE, STEPS_OF_LARGE)):
        agree(body)
        ways["library", body.batch] = partial(with_library, [body], steps)
        for name, make in OTHERS.items():
            ways[name, body.batch] = partial(with_loop, make, body, steps)
        ways["products", body.batch] = partial(products, body, steps)
    ways["library", FULL.batch] = partial(with_library, [FULL], STEPS)
    for body in (CORE, FULL):
        ways["drawing", body.batch] = partial(drawing, body, STEPS_DRAWN)
    members = [CORE.model_copy(update={"seed": seed}) for seed in range(max(MANY))]
    for name, bf16 in PRECISIONS.items():
        for count in (1, *MANY):  # one in as many steps as several: the fewer there are, the more the set-up weighs
            ways[name, count] = partial(with_library, members[:count], STEPS if GPU else STEPS_TOGETHER, bf16)
    rates = {way: 1 / seconds for way, seconds in medians(ways, rounds).items()}

    tables = []
    for body in (CORE, LARGE):
        lines = {name: rates[name, body.batch] for name in ("library", *OTHERS)}
        tables.append(compared(f"training step, {shape(body)}, {DEVICE}", UNIT, lines))
        lines = {"library": rates["library", body.batch], "its products alone": rates["products", body.batch]}
        tables.append(compared(f"training step, {shape(body)}, and its blocks' products, {DEVICE}", UNIT, lines))
    for body in (CORE, FULL):
        lines = {"library": rates["library", body.batch], "drawing its data alone": rates["drawing", body.batch]}
        tables.append(compared(f"training step, {shape(body)}, and its data's share of it, {DEVICE}", UNIT, lines))
    for name in PRECISIONS:
        for count in MANY:
            lines = {"library": count * rates[name, count], "one model alone": rates[name, 1]}
            task = f"{count} models side by side in {name}, {shape(CORE)}, {DEVICE}"
            tables.append(compared(task, "model steps per second", lines))
    return pd.concat(tables, ignore_index=True)


def shape(body: learning.Pretraining) -> str:
    blocks = f"{body.layers} layers, {body.heads} heads, hidden {body.hidden}"
    return f"{blocks}, batch {body.batch} of {body.rows} rows of {body.width} cells"


def main() -> None:
    """Measure, print and write."""
    with training.reproducible(0):
        table = measured()
    write(table, "bench_training.csv", f", {WITH_TRANSFORMERS}, {DEVICE}")


if __name__ == "__main__":
    main()

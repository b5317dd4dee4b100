"""Measure a step of recovery beside loops that hold less. Writes data/reference/bench_recovery.csv.

    make bench

The shipped model, half of it removed from all layers alike, is trained as `stages.recover` trains it: its loop, its
loss, its examples, LoRA of rank 2 in every matrix, merged into the weights once a step (`recovery.trainable`). The
others are bare loops that a program without a library might hold, on the same examples; they do not look at the loss.
One keeps peft's model, which takes each input through A and B. Two merge α/r·B·A into every matrix once in a step as
well: one calls transformers' Llama with these weights (`torch.func.functional_call`), one a Llama written in a few
lines of plain torch. Before anything is measured, all give the same logits and, after ten steps, the same loss. All
ways take turns, so that whatever slows the machine slows all alike; each begins its every turn with a new adapter, sets
up what it needs before the clock runs, and the median over the turns stands. A first turn does not count.

Everything runs in one thread and, if torch finds a GPU, on that. The device stands in every task.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import time
from collections.abc import Callable

import pandas as pd
import peft
import torch
import torch.nn.functional as F
import transformers
from common import compared, medians, write
from torch import Tensor, nn

from rules2ranks import recovery, training
from rules2ranks.decoders import linears
from rules2ranks.stages import compressing, subjects
from rules2ranks.stages.compressing import Recovery
from rules2ranks.stages.learning import draw_seed
from rules2ranks.tasks import language as suite

ROUNDS = 5
STEPS = 60
RANK = 2
ASKED = Recovery(pruned={"ratio": 0.5, "spread": "uniform"}, ranks=RANK)
SCALE = 2.0  # α/r
GPU = training.device().type == "cuda"
DEVICE = torch.cuda.get_device_name() if GPU else "CPU"
Pair = tuple[Tensor, Tensor]


@functools.cache
def given() -> tuple[nn.Module, Pair]:
    """The pruned model, and all examples of a recovery."""
    pool = subjects.subject(ASKED.pruned.base).draw(ASKED.examples, draw_seed(ASKED.seed, 0, 0))
    return compressing.load_pruned(ASKED.pruned), pool


def examples(step: int) -> Pair:
    """The batch of a step, drawn as in `stages.recover`."""
    _, (tokens, labels) = given()
    chosen = torch.Generator().manual_seed(draw_seed(ASKED.seed, 0, step))
    rows = torch.randint(len(tokens), (ASKED.batch,), generator=chosen).to(tokens.device)
    return tokens[rows], labels[rows]


def adapter() -> peft.PeftModel:
    return recovery.add_adapter(copy.deepcopy(given()[0]), ASKED.ranks, seed=ASKED.seed)


class Merged(nn.Module):
    """The pruned model with A and B of every matrix beside it, merged anew in every call."""

    def __init__(self, wrapped: peft.PeftModel):
        super().__init__()
        base = wrapped.get_base_model()
        self.names = [name for layer in linears(base) for name in layer]
        modules = [base.get_submodule(name) for name in self.names]
        self.a = nn.ParameterList(module.lora_A["default"].weight.detach().clone() for module in modules)
        self.b = nn.ParameterList(module.lora_B["default"].weight.detach().clone() for module in modules)
        self.frozen = {name: p.detach() for name, p in given()[0].named_parameters()}
        self.model = [given()[0].requires_grad_(False)]  # in a list: no part of this module

    def weights(self) -> dict[str, Tensor]:
        merged = dict(self.frozen)
        for name, a, b in zip(self.names, self.a, self.b, strict=True):
            merged[f"{name}.weight"] = torch.addmm(self.frozen[f"{name}.weight"], b, a, alpha=SCALE)
        return merged

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.func.functional_call(self.model[0], self.weights(), kwargs={"input_ids": tokens}).logits


class Plain(Merged):
    """The same without transformers: what a Llama computes, written down."""

    def __init__(self, wrapped: peft.PeftModel):
        super().__init__(wrapped)
        config = self.model[0].config
        self.layers, self.head, self.eps = config.num_hidden_layers, config.head_dim, config.rms_norm_eps
        places = torch.arange(config.max_position_embeddings, device=self.a[0].device)
        speeds = config.rope_parameters["rope_theta"] ** (
            -torch.arange(0, self.head, 2, device=places.device) / self.head
        )
        self.angles = (places[:, None] * speeds).repeat(1, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        w = self.weights()
        turn = self.angles[: tokens.shape[1]].cos(), self.angles[: tokens.shape[1]].sin()
        x = F.embedding(tokens, w["model.embed_tokens.weight"])
        for name in (f"model.layers.{i}." for i in range(self.layers)):
            h = self.norm(x, w[name + "input_layernorm.weight"])
            q, k, v = (
                F.linear(h, w[f"{name}self_attn.{x}_proj.weight"]).unflatten(-1, (-1, self.head)).transpose(1, 2)
                for x in "qkv"
            )
            q, k = turned(q, *turn), turned(k, *turn)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + F.linear(mixed.transpose(1, 2).flatten(2), w[name + "self_attn.o_proj.weight"])
            h = self.norm(x, w[name + "post_attention_layernorm.weight"])
            gate, up = (F.linear(h, w[f"{name}mlp.{which}_proj.weight"]) for which in ("gate", "up"))
            x = x + F.linear(F.silu(gate) * up, w[name + "mlp.down_proj.weight"])
        return F.linear(self.norm(x, w["model.norm.weight"]), w["lm_head.weight"])

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.eps)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: pairs of halves turned by their angle."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Peft(nn.Module):
    """peft's own model, called as the merged ones are."""

    def __init__(self, wrapped: peft.PeftModel):
        super().__init__()
        self.wrapped = wrapped

    def forward(self, tokens: Tensor) -> Tensor:
        return self.wrapped(input_ids=tokens).logits


OTHERS: dict[str, Callable[[peft.PeftModel], nn.Module]] = {
    f"loop, peft {peft.__version__}": Peft,
    "loop, transformers with merged weights": Merged,
    "loop, plain torch with merged weights": Plain,
}


def seconds_a_step(run: Callable[[], object], steps: int) -> float:
    """The seconds of a run over the number of its steps; a GPU has finished both what was before and the run."""
    if GPU:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    if GPU:
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / steps


def with_library(wrapped: peft.PeftModel, steps: int) -> float:
    """Train as `stages.recover` does. The loop makes its optimiser itself, so that this counts against the library."""
    loss = subjects.subject(ASKED.pruned.base).loss

    trained = recovery.trainable(wrapped)

    def run() -> None:
        training.train(trained, examples, loss, training.Schedule(STEPS, ASKED.lr, stop=steps), seed=ASKED.seed)

    with contextlib.redirect_stderr(io.StringIO()):  # its progress is computed as ever, but not shown
        return seconds_a_step(run, steps)


def with_loop(model: nn.Module, steps: int) -> float:
    """Train in a bare loop."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, weight_decay=0.0, fused=True)
    rate = training.cosine(STEPS)

    def run() -> None:
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = ASKED.lr * rate(step)
            optimiser.zero_grad(set_to_none=True)
            loss_of(model, examples(step)).backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()

    return seconds_a_step(run, steps)


def loss_of(model: nn.Module, pair: Pair) -> Tensor:
    tokens, labels = pair
    logits = model(tokens)[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=suite.IGNORED)


def agree(steps: int = 10) -> None:
    """Compare the ways: logits of one trained adapter, and the loss after as many steps of each.

    Raises:
        AssertionError: they are not the same numbers.
    """
    with_library(wrapped := adapter(), steps)
    with torch.no_grad():
        expected, loss = Peft(wrapped)(examples(0)[0]), loss_of(Peft(wrapped), examples(steps))
        for make in OTHERS.values():
            # Sums in another order: float32 rounding, which the pruned model's small inputs to its norms magnify.
            torch.testing.assert_close(make(wrapped)(examples(0)[0]), expected, rtol=1e-3, atol=1e-3)
    for make in OTHERS.values():
        with_loop(model := make(adapter()), steps)
        with torch.no_grad():
            torch.testing.assert_close(loss_of(model, examples(steps)), loss, rtol=1e-3, atol=0)


def measured(rounds: int = ROUNDS) -> pd.DataFrame:
    """All lines, measured in one run of turns."""
    agree()
    ways: dict[str, Callable[[], float]] = {"library": lambda: with_library(adapter(), STEPS)}
    for name, make in OTHERS.items():
        ways[name] = lambda make=make: with_loop(make(adapter()), STEPS)
    rates = {way: 1 / seconds for way, seconds in medians(ways, rounds).items()}
    task = f"recovery step, half of the parameters, rank {RANK}, batch {ASKED.batch} of 20 tokens, {DEVICE}"
    return compared(task, "optimiser steps per second", rates)


def main() -> None:
    """Measure, print and write."""
    with training.reproducible(0):
        table = measured()
    write(table, "bench_recovery.csv", f", transformers {transformers.__version__}, peft {peft.__version__}, {DEVICE}")


if __name__ == "__main__":
    main()

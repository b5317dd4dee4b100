"""Measures what pruning saves, into data/reference/bench_pruning.csv: size, speed and memory at several shares removed.

    make bench

Two Llamas with grouped-query attention: the one that the project ships, and a larger random one, in which matrices
rather than everything round them take the time. Both are pruned with the uniform spread, by the size of their weights:
how much is saved depends on the shapes alone. Rates are those of reading a prompt (`prefill`) and of
`generate` with its cache, greedily; all shares take turns, so that whatever slows the machine slows all alike, and the
median over the turns stands. A first turn does not count.

Peak memory is what a fresh process needs beyond its imports to load the saved model, read the prompt and generate.
Everything runs on the CPU, in one thread.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd
import running
import transformers
from common import FOLDER, machine, medians
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from rules2ranks import models, pruning, training
from rules2ranks.published import data_folder

ROUNDS = 5
SHARES = (0.2, 0.25, 0.3, 0.5)
COLUMNS = ("prefill_tokens_per_second", "generated_tokens_per_second")


@dataclass(frozen=True)
class Case:
    """A model, the prompts that it reads, `(examples, tokens)`, and what is pruned `of` it."""

    name: str
    load: Callable[[], nn.Module]
    prompts: tuple[int, int]
    of: Literal["model", "layers"] = "model"
    shares: tuple[float, ...] = SHARES


def random_llama() -> LlamaForCausalLM:
    """28 million parameters: 8 layers of hidden size 512, 8 query heads of 64 on 4 key/value heads, SwiGLU of 1408."""
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


CASES = (
    Case("shipped Llama", partial(models.load_causal_lm, data_folder() / "models" / "language_suite"), (16, 32)),
    Case("random Llama", random_llama, (1, 256)),
)


def peak_of(folder: Path, prompts: tuple[int, int]) -> int | None:
    """Bytes that loading and running a saved model need at most, measured in a fresh process."""
    command = [sys.executable, running.__file__, str(folder), *map(str, prompts)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return int(printed) if printed else None


def measured(case: Case, rounds: int = ROUNDS) -> list[dict[str, object]]:
    """One row for the whole model and one for each share."""
    whole = case.load()
    scores = pruning.importance(whole, (), None, "l2")
    pruned = {0.0: whole, **{share: pruning.prune(whole, share, scores, of=case.of) for share in case.shares}}
    tokens = running.drawn(whole, *case.prompts)
    ways = {
        (share, column): partial(run, model, tokens)
        for share, model in pruned.items()
        for column, run in zip(COLUMNS, (running.prefill, running.generation), strict=True)
    }
    seconds = medians(ways, rounds)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for share, model in pruned.items():
            folder = Path(place) / str(share)
            pruning.save_pruned(model, folder)
            counted = pruning.report(whole, model)
            rows.append(
                {
                    "model": case.name,
                    "share": share,
                    "parameters": counted["parameters_after"],
                    "flops_per_token": counted["flops_per_token_after"],
                    "file_bytes": (folder / "model.safetensors").stat().st_size,
                    **{column: float(f"{1 / seconds[share, column]:.4g}") for column in COLUMNS},
                    "peak_bytes": peak_of(folder, case.prompts),
                }
            )
    return rows


def write(cases: Sequence[Case], path: Path) -> None:
    """Measure, print and write."""
    with training.reproducible(0):
        table = pd.DataFrame([row for case in cases for row in measured(case)])
    table = table.assign(machine=machine(f", transformers {transformers.__version__}, CPU"))
    table.to_csv(path, index=False)
    print(table.drop(columns="machine").to_string(index=False))
    print(f"\nWritten to {path}")


if __name__ == "__main__":
    write(CASES, FOLDER / "bench_pruning.csv")

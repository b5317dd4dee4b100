"""Reads a prompt and generates, clocked; as a program, measures how much memory a saved model needs for that.

    python tests/bench/running.py FOLDER EXAMPLES LENGTH

Imports little, so that what it imports does not hide what the model needs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import nn

from rules2ranks.pruning import load_pruned

NEW_TOKENS = 32


def drawn(model: nn.Module, examples: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, model.config.vocab_size, (examples, length), generator=generator)


@torch.no_grad()
def prefill(model: nn.Module, tokens: torch.Tensor) -> float:
    """Seconds per token of reading a prompt."""
    begin = time.perf_counter()
    model(tokens, use_cache=False)
    return (time.perf_counter() - begin) / tokens.numel()


def generation(model: nn.Module, tokens: torch.Tensor) -> float:
    """Seconds per generated token, the short prompt's reading included."""
    begin = time.perf_counter()
    made = model.generate(
        tokens[:1, :8], min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=True
    )
    assert made.shape[1] == 8 + NEW_TOKENS
    return (time.perf_counter() - begin) / NEW_TOKENS


def status(name: str) -> int | None:
    """Bytes that /proc/self/status gives under this name: VmRSS now, VmHWM at most; None where there is no /proc."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def main(folder: str, examples: str, length: str) -> None:
    """Print the bytes that loading and running a saved model need at most, beyond what the imports took."""
    torch.set_num_threads(1)
    before = status("VmRSS")
    model = load_pruned(folder)
    tokens = drawn(model, int(examples), int(length))
    prefill(model, tokens)
    generation(model, tokens)
    most = status("VmHWM")
    print("" if most is None else most - before)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Clocks, compares and writes: what the measurements of `make bench` share."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch

FOLDER = Path(__file__).resolve().parents[2] / "data" / "reference"
Way = TypeVar("Way", bound=Hashable)


def fastest(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of the fastest of several calls of each way, in turns, after a first one that is not counted."""
    seconds = {name: float("inf") for name in ways}
    for turn in range(repeats + 1):
        for name, call in ways.items():
            begin = time.perf_counter()
            call()
            if turn:
                seconds[name] = min(seconds[name], time.perf_counter() - begin)
    return seconds


def medians(ways: dict[Way, Callable[[], float]], rounds: int) -> dict[Way, float]:
    """Median over several rounds of the seconds that each way gives, in turns, after a first round that is not counted.

    A way clocks itself, so that what it has to set up does not count.
    """
    seconds: dict[Way, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, call in ways.items():
            value = call()
            if turn:
                seconds[name].append(value)
    return {name: statistics.median(values) for name, values in seconds.items()}


def compared(task: str, unit: str, rates: dict[str, float]) -> pd.DataFrame:
    """A line for each way; `ratio` is the first way's rate over this one's: how many times as fast the library is."""
    first = next(iter(rates.values()))
    return pd.DataFrame(
        [{"task": task, "way": way, "rate": rate, "unit": unit, "ratio": first / rate} for way, rate in rates.items()]
    )


def machine(also: str = "") -> str:
    """Where it ran: machine and versions, and what else the measurement depends on."""
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {torch.__version__}"
    return f"{platform.system()} {platform.machine()}, one thread, {versions}{also}"


def write(table: pd.DataFrame, name: str, also: str = "") -> None:
    """Print and write, with where it ran."""
    table = table.assign(machine=machine(also))
    FOLDER.mkdir(parents=True, exist_ok=True)
    table.to_csv(FOLDER / name, index=False, float_format="%.3g")
    for task, lines in table.groupby("task", sort=False):
        print(f"\n{task} ({lines['unit'].iloc[0]}; ratio: the first way's rate over this one's)")
        for line in lines.itertuples():
            print(f"  {line.way:32} {line.rate:10.3g} {line.ratio:10.3g}")
    print(f"\nWritten to {FOLDER / name}")

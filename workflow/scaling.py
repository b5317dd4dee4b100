"""What stands in the tables of docs/scaling.md: how cost was measured to grow, and what the paper's sweeps would take.

What is calculated begins from what is measured in `make bench` (tests/bench/scale.py), and from the figures below.
"""

from __future__ import annotations

import pandas as pd
import torch

import results
from rules2ranks import findings
from rules2ranks.stages import learning

#: Optimiser steps a second, measured once: six processes on one H100, each with a network of 12 layers, 12 heads, 768.
STEPS = 65
#: Taken for granted: dollars a GPU hour; an H100's operations a second (bfloat16, by its maker); the share of them that
#: fine-tuning gets.
PRICE, PEAK, SHARE = 2.5, 989e12, 0.4
#: The sweeps: rules and seeds, the paper's limit of steps (10,000 epochs of 700), downstream tasks, removed shares, and
#: rank vectors of each.
RULES, SEEDS, LIMIT, TASKS, RATIOS, VECTORS = 256, 5, 7_000_000, 3, (0.2, 0.25, 0.3, 0.5), 100


def measured() -> pd.DataFrame:
    """Values by what was measured, how many there were, and which measure."""
    table = pd.read_csv(results.REPOSITORY / "data" / "reference" / "bench_scale.csv")
    return table.set_index(["what", "number", "measure"]).value.unstack()


def jobs() -> str:
    """Snakemake and jobs that do nothing."""
    found = measured().loc["jobs of Snakemake"]
    each = 1000 * (found["run"] - found["nothing to do"]) / found.index
    peak = found[["run, peak memory", "nothing to do, peak memory"]].max(axis=1) / 1e6
    columns = {"whole run, s": found["run"], "a job, ms": each, "nothing to do, s": found["nothing to do"]}
    return _table(pd.DataFrame(columns | {"peak memory, MB": peak}), "jobs")


def store() -> str:
    """Results in `runs/`."""
    found = measured().loc["results in runs/"]
    columns = {
        "making one, ms": 1000 * found["making one"],
        "finding one, ms": 1000 * found["finding one"],
        "listing, s": found["listing"],
        "a table of all, s": found["a table of all"],
    }
    return _table(pd.DataFrame(columns), "results")


def large() -> str:
    """One large result."""
    found = measured().loc["GB in one result"]
    columns = {f"{name}, s": found[name] for name in ("write", "find", "verify")}
    return _table(pd.DataFrame(columns), "GB")


def sweeps() -> str:
    """What the paper's sweeps would take: all of it calculated."""
    steps, downstream = results.values("gpu")["20_pretrain"]["steps"], results.values("gpu")["21_downstream"]["steps"]
    networks = RULES * SEEDS
    with torch.device("meta"):
        body = learning.Pretraining(source=110, width=100, rows=60, layers=12, heads=12, hidden=768)
        size = 4 * sum(parameter.numel() for parameter in learning.network(body).parameters())
    rows = [
        (f"pretraining, {RULES} rules × {SEEDS} seeds, {steps:,} steps", networks, steps / STEPS, size),
        (f"the same, to the paper's limit of {LIMIT:,} steps", networks, LIMIT / STEPS, size),
        (f"{TASKS} tasks of {downstream:,} steps on each", TASKS * networks, downstream / STEPS, 0),
        _recoveries(),
    ]
    table = pd.DataFrame(
        [
            {
                "sweep": name,
                "jobs": f"{number:,}",
                "GPU hours": f"{number * seconds / 3600:,.0f}",
                "storage, GB": f"{number * size / 1e9:,.0f}",
                "cost, $": f"{number * seconds / 3600 * PRICE:,.0f}",
            }
            for name, number, seconds, size in rows
        ]
    )
    return findings.markdown(table.set_index("sweep"))


def memory() -> str:
    """LLaMA-7B step by step, by plan."""
    found = measured().loc[("LLaMA-7B", 0.2)]
    steps = {"importance, from its files": "importance", "pruning, from its files": "pruning", "recovery": "recovery"}
    peaks = [f"{found[f'{step}, peak memory by plan'] / 1e9:.1f}" for step in steps.values()]
    return findings.markdown(pd.DataFrame({"peak, GB": peaks}, index=pd.Index(steps, name="step")))


def _recoveries() -> tuple[str, int, float, float]:
    """LLaMA-7B: how many recoveries, the mean seconds of one, and the mean bytes that it leaves.

    A token takes six operations a parameter: two forward, two backward, two for computing layers again; adapters and
    attention beside that are little. Adapters are in float32; the pruned models, in bfloat16, are shared.
    """
    parameters = measured().loc[("LLaMA-7B", 0.2), "loading, parameters"]
    given = results.values("gpu")["36_your_own_model"]
    tokens = given["steps"] * given["batch"] * given["length"]
    left = [(1 - ratio) * parameters for ratio in RATIOS]
    seconds = 6 * sum(left) / len(left) * tokens / (SHARE * PEAK)
    layers, hidden, channels = 32, 4096, 11008
    adapter = (
        4 * given["rank"] * layers * (4 * 2 * hidden + 3 * (hidden + channels)) * sum(left) / len(left) / parameters
    )
    number = len(RATIOS) * VECTORS
    name = f"LLaMA-7B, {len(RATIOS)} ratios × {VECTORS} rank vectors, {given['steps']:,} steps each"
    return name, number, seconds, adapter + 2 * sum(left) / number


def _table(columns: pd.DataFrame, name: str) -> str:
    """Two digits that count."""
    text = columns.map(lambda value: f"{float(f'{value:.2g}'):,g}")
    text.index = pd.Index([f"{number:,g}" for number in columns.index], name=name)
    return findings.markdown(text)


BLOCKS = {"jobs": jobs, "store": store, "large": large, "sweeps": sweeps, "memory": memory}

"""Ways to recover: over rates and lengths on the search's examples, then each at its best on the report's."""

from typing import Annotated, Literal

import pandas as pd
from pydantic import Field

from rules2ranks import recovery, runs
from rules2ranks.stages.compressing import Pruning, load_pruned, prune
from rules2ranks.stages.ranges import Rank, Rate, Seed, Size, Steps
from rules2ranks.stages.subjects import subject
from rules2ranks.tables import ALONE, Rows, read
from rules2ranks.tables.many import Job, measure, seconds_of, stage_jobs

#: A recovery method, or all weights trained.
Way = Literal[*recovery.METHODS, "all weights"]
#: What is chosen by, and what is reported.
SEARCH, REPORT = ("search_loss", "search_accuracy"), ("loss", "accuracy", "trained_parameters")
#: Steps of a recovery: a best length is one of at most so many, that all ways have equal data.
BUDGET = 60
#: What stands beside all ways: a new model of the pruned shape.
SCRATCH = "from scratch"


class Grid(runs.Params):
    """Rates and lengths of one way to recover."""

    rates: list[Rate]
    steps: list[Steps]


class Scratch(runs.Params):
    """How a new model of a pruned shape is trained: on as many examples as the unpruned one and a recovery together."""

    prunings: list[str] = Field(default_factory=list)
    steps: Steps = BUDGET
    batch: Size = 28
    rates: list[Rate] = Field(default_factory=list)
    seeds: list[Seed] = Field(default_factory=list)


class RateTable(runs.Params):
    """Ways to recover prunings by name, each over its grid, at the mean rank and under the seeds."""

    prunings: dict[str, Pruning]
    ways: Annotated[dict[Way, Grid], Field(min_length=1)]
    rank: Rank
    seeds: list[Seed]
    scratch: Scratch = Scratch()


class RecoveryTable(runs.Params):
    """Ways to recover prunings by name, each at its best in `recovery_rates`, at the mean rank and under the seeds."""

    prunings: dict[str, Pruning]
    ways: list[Way]
    rank: Rank
    seeds: list[Seed]
    scratch: Scratch = Scratch()


def recovery_rates(settings: RateTable) -> tuple[dict[str, Rows], float]:
    """Every way at every rate and length on every pruning, and what is left without: scores on the search's examples.

    A row a run: `setting`, `way`, `lr`, `steps`, `seed` and the scores.
    """
    return _rates("recovery_rates", settings)


def mending_rates(settings: RateTable) -> tuple[dict[str, Rows], float]:
    """The same for methods that train weights in place, beside LoRA and all weights."""
    return _rates("mending_rates", settings)


def _rates(table: str, settings: RateTable) -> tuple[dict[str, Rows], float]:
    measure(stage_jobs("prune", list(settings.prunings.values())), "pruning")
    rows = [
        {"setting": name, "way": way, "lr": lr, "steps": steps, "seed": seed}
        for name in settings.prunings
        for way, grid in settings.ways.items()
        for lr in grid.rates
        for steps in grid.steps
        for seed in settings.seeds
    ]
    for lr in settings.scratch.rates:
        rows += _new(settings.scratch, lr)
    results = measure(_jobs(rows, settings), "rates")
    rows = [row | {name: r.metrics[name] for name in SEARCH} for row, r in zip(rows, results, strict=True)]
    alone = [{"setting": name, "way": ALONE, **pruned_only(pruned)} for name, pruned in settings.prunings.items()]
    return {table: alone + rows}, seconds_of(results)


def pruned_only(pruned: Pruning) -> dict[str, float]:
    """What a pruned model scores on the search's examples before any recovery."""
    found = subject(pruned.base).evaluate("search", load_pruned(pruned))
    return {"search_loss": found["loss"], "search_accuracy": found["accuracy"]}


def best(table: pd.DataFrame, setting: str, way: str) -> tuple[float, int]:
    """The rate and the length with the lowest mean loss on the search's examples.

    A recovery has at most `BUDGET` steps; the rate of new models is that of all settings in the table together.
    """
    own = table[table.way == way]
    if way != SCRATCH:
        own = own[(own.setting == setting) & (own.steps <= BUDGET)]
    lr, steps = own.groupby(["lr", "steps"]).search_loss.mean().idxmin()
    return float(lr), int(steps)


def recoveries(settings: RecoveryTable) -> tuple[dict[str, Rows], float]:
    """Every way at its best, the pruned model as it is, and a new one of its shape: scores on the report's examples.

    A row a run: `setting`, `way`, `lr`, `steps`, `seed` and the scores.
    """
    return _at_best("recoveries", "recovery_rates", settings)


def mendings(settings: RecoveryTable) -> tuple[dict[str, Rows], float]:
    """The same for methods that train weights in place, each at its best in `mending_rates`."""
    return _at_best("mendings", "mending_rates", settings)


def _at_best(table: str, rates: str, settings: RecoveryTable) -> tuple[dict[str, Rows], float]:
    measure(stage_jobs("prune", list(settings.prunings.values())), "pruning")
    tuned, rows = read(rates).table, []
    for name in settings.prunings:
        for way in settings.ways:
            lr, steps = best(tuned, name, way)
            rows += [{"setting": name, "way": way, "lr": lr, "steps": steps, "seed": seed} for seed in settings.seeds]
    if settings.scratch.prunings:
        rows += _new(settings.scratch, best(tuned, "", SCRATCH)[0])
    results = measure(_jobs(rows, settings), "recoveries")
    rows = [row | {name: r.metrics[name] for name in REPORT} for row, r in zip(rows, results, strict=True)]
    for name, pruned in settings.prunings.items():
        after = prune(pruned).metrics["after"]
        rows.append({"setting": name, "way": ALONE, "loss": after["loss"], "accuracy": after["accuracy"]})
    return {table: rows}, seconds_of(results)


def _new(scratch: Scratch, lr: float) -> Rows:
    """Rows of new models at one rate."""
    own = {"way": SCRATCH, "lr": lr, "steps": scratch.steps}
    return [{"setting": name, **own, "seed": seed} for name in scratch.prunings for seed in scratch.seeds]


def _jobs(rows: Rows, settings: RateTable | RecoveryTable) -> list[Job]:
    jobs: list[Job] = []
    for row in rows:
        given = {"pruned": settings.prunings[row["setting"]]} | {name: row[name] for name in ("lr", "steps", "seed")}
        if row["way"] == SCRATCH:
            new = {"start": "scratch", "batch": settings.scratch.batch, "examples": None}
            jobs += stage_jobs("retrain", [given | new])
        elif row["way"] == "all weights":
            jobs += stage_jobs("retrain", [given])
        else:
            jobs += stage_jobs("recover", [given | {"ranks": settings.rank, "method": row["way"]}])
    return jobs

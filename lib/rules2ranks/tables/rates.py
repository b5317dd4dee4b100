"""What learning rates and lengths are chosen by: every way to recover, at each of them, on the search's examples."""

from typing import Annotated, Literal

from pydantic import Field

from rules2ranks import recovery, runs
from rules2ranks.stages.compressing import Pruning, Recovery, load_pruned
from rules2ranks.stages.ranges import Rank, Rate, Seed, Steps
from rules2ranks.stages.retraining import Retraining
from rules2ranks.stages.subjects import subject
from rules2ranks.tables import Rows
from rules2ranks.tables.many import Job, measure, seconds_of, stage_jobs

#: A recovery method, or all weights trained.
Way = Literal[*recovery.METHODS, "all weights"]
SCORES = ("search_loss", "search_accuracy")


class Grid(runs.Params):
    """Rates and lengths of one way to recover."""

    rates: list[Rate]
    steps: list[Steps]


class RateTable(runs.Params):
    """Ways to recover prunings by name, each over its grid, at the mean rank and under the seeds."""

    prunings: dict[str, Pruning]
    ways: Annotated[dict[Way, Grid], Field(min_length=1)]
    rank: Rank
    seeds: list[Seed]


def recovery_rates(settings: RateTable, workers: int) -> tuple[dict[str, Rows], float]:
    """Every way at every rate and length on every pruning, and what is left without: scores on the search's examples.

    A row a run: `setting`, `way`, `lr`, `steps`, `seed` and the scores.
    """
    measure(stage_jobs("prune", list(settings.prunings.values())), workers, "pruning")
    asked = [
        ({"setting": name, "way": way, "lr": lr, "steps": steps, "seed": seed}, _run(pruned, way, settings.rank))
        for name, pruned in settings.prunings.items()
        for way, grid in settings.ways.items()
        for lr in grid.rates
        for steps in grid.steps
        for seed in settings.seeds
    ]
    jobs: list[Job] = []
    for row, (stage, parameters) in asked:
        jobs += stage_jobs(stage, [parameters | {name: row[name] for name in ("lr", "steps", "seed")}])
    results = measure(jobs, workers, "rates")
    rows = [row | {name: r.metrics[name] for name in SCORES} for (row, _), r in zip(asked, results, strict=True)]
    alone = [
        {"setting": name, "way": "pruned only", **pruned_only(pruned)} for name, pruned in settings.prunings.items()
    ]
    return {"recovery_rates": alone + rows}, seconds_of(results)


def pruned_only(pruned: Pruning) -> dict[str, float]:
    """What a pruned model scores on the search's examples before any recovery."""
    found = subject(pruned.base).evaluate("search", load_pruned(pruned))
    return {"search_loss": found["loss"], "search_accuracy": found["accuracy"]}


def _run(pruned: Pruning, way: str, rank: int) -> tuple[str, dict]:
    """The stage of a way, and its parameters but for rate, length and seed."""
    if way == "all weights":
        return "retrain", {"pruned": pruned}
    return "recover", {"pruned": pruned, "ranks": rank, "method": way}

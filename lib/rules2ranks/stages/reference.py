"""The reference results in `data/reference/`: read them, or remake them.

`python -m rules2ranks.stages.reference [TABLE ...] [--workers N] [--profile NAME]` remakes tables at a profile's
settings. Every measurement is a stage result in `runs/`, so an interrupted run goes on where it was.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from rules2ranks import runs, stages
from rules2ranks.published import data_folder
from rules2ranks.stages import edge
from rules2ranks.stages.many import measure, seconds_of, stage_jobs


class Reference(NamedTuple):
    """A table, and beside it how it was made: `settings`, `command`, `seconds` (one thread), versions, machine."""

    table: pd.DataFrame
    note: dict[str, Any]


def _place(name: str) -> Path:
    return data_folder() / "reference" / f"{name}.csv"


def read(name: str) -> Reference:
    """A committed reference table and its note.

    Raises:
        FileNotFoundError: there is no such table; the message says how to make it.
    """
    place = _place(name)
    if not place.is_file():
        raise FileNotFoundError(f"{place} is not there: `make reference` makes it")
    return Reference(pd.read_csv(place), json.loads(place.with_suffix(".json").read_text()))


def among(name: str, asked: Any, available: Sequence[Any]) -> None:
    """Refuse what a table does not have: a notebook that remakes a part of it can only remake what is there.

    Raises:
        ParameterError: `asked` (a value, or a list of them) is not among `available`; says what is.
    """
    for value in asked if isinstance(asked, list) else [asked]:
        if value not in available:
            has = ", ".join(map(str, available))
            raise runs.ParameterError(f"parameter {name!r} = {value!r}: the reference table has {has}")


def _write(name: str, maker: str, rows: Sequence[dict], settings: dict, seconds: float, profile: str) -> None:
    """Only the laptop profile's tables carry a plain name: another profile's stand beside them, under its own."""
    table = pd.DataFrame(rows).convert_dtypes()
    place = _place(name if profile == "laptop" else f"{name}_{profile}")
    place.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(place, index=False)
    command = f"python -m rules2ranks.stages.reference {maker} --profile {profile}"
    note = {"command": command, "settings": settings, "seconds": round(seconds), "rows": len(table), **runs.where()}
    runs.write_json(place.with_suffix(".json"), note)


# --- the tables -------------------------------------------------------------------------------------------------


def compression(settings: dict, workers: int) -> tuple[dict[str, list[dict]], float]:
    """Models of rules × seeds, pruned at several shares without recovery: how fast does each fall?"""
    bases = [
        {"source": rule, "seed": seed, **settings["pretrain"]}
        for rule in settings["rules"]
        for seed in settings["seeds"]
    ]
    asked = [{"base": base, "seed": base["seed"], **settings["fragility"]} for base in bases]
    results = measure(stage_jobs("fragility", asked), workers, "pruning the models of rules")
    rows = [
        {
            "rule": result.params["base"]["source"],
            "seed": result.params["seed"],
            **point,
            "untrained_loss": result.metrics["untrained_loss"],
        }
        for result in results
        for point in result.metrics["curve"]
    ]
    return {"compression": rows}, seconds_of(results)


def search(kind: str, seed: int, settings: dict) -> list[dict]:
    """One search for a rank vector, measured by the search loss of `recover` with this seed: its whole history."""
    from rules2ranks import allocation, training  # bring torch along, which who only reads tables does not need

    space = rank_space(settings)

    def objective(ranks: tuple[int, ...]) -> float:
        return stages.recover(**_recovery(settings, ranks, seed)).metrics["search_loss"]

    sizes = {name: settings[name] for name in ("offline", "rounds", "candidates")}
    with training.reproducible(seed):
        if kind == "random search":
            history = allocation.random_search(space, objective, sizes["offline"] + sizes["rounds"], seed).history
        else:
            history = allocation.rank_adaptor(space, objective, seed=seed, **sizes).history
    return [
        {"allocator": kind, "search_seed": seed, "order": order, **entry._asdict()}
        for order, entry in enumerate(history)
    ]


def rank_space(settings: dict) -> Any:
    """The rank vectors of the pruned model at the budget of a uniform rank; protected layers keep that rank."""
    from rules2ranks import allocation, recovery
    from rules2ranks.stages import compressing

    model = compressing.load_pruned(stages.prune.Params.check(settings["pruned"]))
    cost = recovery.cost_per_rank(model)
    first, last = settings["pruned"].get("protect", (1, 1))
    outside = [*range(first), *range(len(cost) - last, len(cost))]
    rank = settings["mean_rank"]
    return allocation.Space(tuple(cost), rank, fixed={layer: rank for layer in outside})


def rank_adaptor(settings: dict, workers: int) -> tuple[dict[str, list[dict]], float]:
    """RankAdaptor beside uniform, random and closed-form rank vectors of the same budget, on fresh report seeds."""
    measure(stage_jobs("prune", [settings["pruned"]]), 1, "pruning")
    kinds = [(kind, seed) for kind in ("RankAdaptor", "random search") for seed in settings["search_seeds"]]
    jobs = [(search, {"kind": kind, "seed": seed, "settings": settings}) for kind, seed in kinds]
    searched = [entry for history in measure(jobs, workers, "searches") for entry in history]
    space = rank_space(settings)
    searched += _uniform_under_search(space, settings)
    chosen = _chosen(space, searched, settings)
    pairs = [(which, seed) for which in chosen for seed in settings["report_seeds"]]
    results = measure(
        stage_jobs("recover", [_recovery(settings, ranks, seed) for (_, _, ranks), seed in pairs]), workers, "report"
    )
    rows = []
    for ((allocator, which, ranks), seed), result in zip(pairs, results, strict=True):
        row = {"allocator": allocator, "which": which, "ranks": " ".join(map(str, ranks)), "report_seed": seed}
        kept = {name: value for name, value in result.metrics.items() if isinstance(value, int | float)}
        rows.append({**row, "budget_used": space.used(ranks) / space.budget, **kept})
    measured = {(tuple(entry["ranks"]), entry["search_seed"]) for entry in searched}
    seconds = seconds_of([*results, *(stages.recover(**_recovery(settings, *which)) for which in measured)])
    found = [{**entry, "ranks": " ".join(map(str, entry["ranks"]))} for entry in searched]
    return {"rank_adaptor": rows, "rank_search": found}, seconds


def _uniform_under_search(space: Any, settings: dict) -> list[dict]:
    """The uniform rank on the search examples under each search's seed: what a search has to get below."""
    from rules2ranks import allocation

    ranks = allocation.uniform(space)
    return [
        {
            **{"allocator": "uniform", "search_seed": seed, "order": 0, "ranks": ranks},
            "measured": stages.recover(**_recovery(settings, ranks, seed)).metrics["search_loss"],
            **{"predicted": None, "phase": "control"},
        }
        for seed in settings["search_seeds"]
    ]


def _recovery(settings: dict, ranks: Sequence[int], seed: int) -> dict[str, Any]:
    """The parameters of one recovery."""
    return {"pruned": settings["pruned"], "ranks": list(ranks), "seed": seed, **settings["recover"]}


def _chosen(space: Any, searched: Sequence[dict], settings: dict) -> list[tuple[str, int | None, tuple[int, ...]]]:
    """Who chose (with which search seed, where one did) and what: the controls, then the best of every search."""
    from rules2ranks import allocation

    drawn = allocation.random(space, settings["random"], seed=0)
    chosen = [
        ("uniform", None, allocation.uniform(space)),
        ("ends high", None, allocation.ends_high(space)),
        ("middle high", None, allocation.middle_high(space)),
        *(("random vectors", k, ranks) for k, ranks in enumerate(drawn)),
    ]
    for kind in ("RankAdaptor", "random search"):
        for seed in settings["search_seeds"]:
            own = [e for e in searched if (e["allocator"], e["search_seed"]) == (kind, seed)]
            chosen.append((kind, seed, tuple(min(own, key=lambda entry: entry["measured"])["ranks"])))
    for seed in settings["search_seeds"]:
        # The additive model sees what both searches of its seed have measured.
        own = [e for e in searched if e["search_seed"] == seed and e["allocator"] != "uniform"]
        seen = [(tuple(e["ranks"]), e["measured"]) for e in own]
        chosen.append(("additive", seed, allocation.additive(space, *zip(*seen, strict=True))[0]))
    return chosen


def language_suite(settings: dict, workers: int) -> tuple[dict[str, list[dict]], float]:
    """Train the language-suite model anew and ship it: on request only, as all results on it would be new too."""
    (result,) = measure(stage_jobs("language", [settings]), 1, "language suite")
    shipped = data_folder() / "models" / "language_suite"
    shipped.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(result.file(name), shipped / name)
    history = result.metrics["history"]
    rows = {step: {"step": step, "training_loss": loss} for step, loss in history["loss"]}
    for scores in history["evaluations"]:
        rows.setdefault(scores["step"], {}).update(scores)
    return {"language_suite": [rows[step] for step in sorted(rows)]}, result.provenance["seconds"]


TABLES = {
    "edge_of_chaos": edge.edge_of_chaos,
    "edge_ablations": edge.edge_ablations,
    "compression": compression,
    "rank_adaptor": rank_adaptor,
}
ON_REQUEST = {"language_suite": language_suite}


def profile_settings(profile: str) -> dict[str, Any]:
    """The `reference` part of `profiles/<profile>.yaml`."""
    return yaml.safe_load((data_folder().parent / "profiles" / f"{profile}.yaml").read_text())["reference"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m rules2ranks.stages.reference", description=__doc__)
    parser.add_argument(
        "tables",
        nargs="*",
        metavar="TABLE",
        help=f"of {', '.join(TABLES)} (all), or on request: {', '.join(ON_REQUEST)}",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes at a time")
    parser.add_argument("--profile", default="laptop")
    asked = parser.parse_args(arguments)
    makers = TABLES | ON_REQUEST
    if unknown := set(asked.tables) - set(makers):
        parser.error(f"unknown table {', '.join(sorted(unknown))}: choose from {', '.join(makers)}")
    settings = profile_settings(asked.profile)
    if missing := set(asked.tables) - set(settings):
        parser.error(f"profile {asked.profile} has no settings for {', '.join(sorted(missing))}")
    for name in asked.tables or [name for name in TABLES if name in settings]:
        begin = time.monotonic()
        tables, seconds = makers[name](settings[name], asked.workers)
        for table, rows in tables.items():
            _write(table, name, rows, settings[name], seconds, asked.profile)
        minutes = (time.monotonic() - begin) / 60
        print(f"{name}: {sum(map(len, tables.values()))} rows in {minutes:.1f} min", flush=True)


if __name__ == "__main__":
    main()

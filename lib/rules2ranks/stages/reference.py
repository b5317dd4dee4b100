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

from rules2ranks import runs
from rules2ranks.published import data_folder
from rules2ranks.stages import edge, rank_tables
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
    "rank_adaptor": rank_tables.rank_adaptor,
    "rank_settings": rank_tables.rank_settings,
    "recovery_rates": rank_tables.recovery_rates,
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

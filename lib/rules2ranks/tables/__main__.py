"""Remake tables of `data/reference/` at a profile's settings, in one process.

Every measurement is a stage result in `runs/`, so an interrupted run goes on where it was. `make reference` makes the
same tables with many processes, of this machine or of a cluster: each measures a part of what is missing.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd
import yaml

from rules2ranks import runs, tables
from rules2ranks.published import data_folder
from rules2ranks.tables import (
    Rows,
    compression,
    edge,
    fresh_rules,
    interventions,
    language_suite,
    lenses,
    levels,
    many,
    plans,
    ranks,
    recoveries,
)

#: Each takes typed settings, and gives tables by name and the one-thread seconds behind them.
Maker = Callable[[Any], tuple[dict[str, Rows], float]]
MAKERS: dict[str, Maker] = {
    "edge_of_chaos": edge.edge_of_chaos,
    "edge_ablations": edge.edge_ablations,
    "compression": compression.compression,
    "fresh_rules": fresh_rules.fresh_rules,
    "sizes": edge.sizes,
    "chess": edge.chess,
    "interventions": interventions.interventions,
    "lenses": lenses.lenses,
    "recovery_rates": recoveries.recovery_rates,
    "rank_adaptor": ranks.rank_adaptor,
    "rank_settings": ranks.rank_settings,
    "recoveries": recoveries.recoveries,
    "mixed_bits": ranks.mixed_bits,
    "bits_and_ranks": ranks.bits_and_ranks,
    "levels": levels.levels,
    "joint": levels.joint,
    "mending_rates": recoveries.mending_rates,
    "mendings": recoveries.mendings,
}
ON_REQUEST: dict[str, Maker] = {
    "language_suite": language_suite.language_suite,
    "real_model": levels.real_model,
    "real_shares": levels.real_shares,
    "real_ranks": ranks.real_ranks,
}
#: Tables that are made from another one.
READS = {"recoveries": "recovery_rates", "mendings": "mending_rates"}


def profile_settings(profile: str) -> dict[str, Any]:
    """The `reference` part of `profiles/<profile>.yaml`, as it stands there.

    Raises:
        FileNotFoundError: there is no such profile, or a plan that it names is not there.
        ParameterError: a setting that its table does not know, or an impossible value.
    """
    file = data_folder().parent / "profiles" / f"{profile}.yaml"
    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
        raise FileNotFoundError(f"there is no profile {profile!r}; there are {there}")
    settings = yaml.safe_load(file.read_text()).get("reference", {})
    for name, given in settings.items():
        checked(name, given)
    return settings


def planned(given: Any) -> tuple[Any, dict[str, str]]:
    """Settings as a table's maker takes them, and what its note says of their plan: `{plan: name}` names one."""
    if not isinstance(given, dict) or set(given) != {"plan"}:
        return given, {}
    name = given["plan"]
    return plans.read(name).run, {"plan": f"data/plans/{name}.yaml", "plan_sha256": plans.digest(name)}


def checked(name: str, given: Any) -> runs.Params:
    """A table's settings as its maker takes them."""
    makers = MAKERS | ON_REQUEST
    if name not in makers:
        raise runs.ParameterError(f"unknown table {name!r}: choose from {', '.join(makers)}")
    try:
        return get_type_hints(makers[name])["settings"].check(planned(given)[0] or {})
    except runs.ParameterError as error:
        raise runs.ParameterError(f"settings of the table {name}: {error}") from None


def write(name: str, maker: str, rows: Rows, about: dict[str, Any], seconds: float, profile: str) -> None:
    """Only the laptop profile's tables carry a plain name: another profile's stand beside them, under its own.

    `about`: the settings, and the plan if there was one.
    """
    table = pd.DataFrame(rows).convert_dtypes()
    file = tables.place(name if profile == "laptop" else f"{name}_{profile}")
    command = f"python -m rules2ranks.tables {maker} --profile {profile}"
    tables.write(file, table, {"command": command, **about}, seconds)


def make(name: str, given: Any, profile: str) -> None:
    """Make all tables of one maker, from its settings as the profile has them."""
    begin = time.monotonic()
    settings, plan = planned(given)  # as they are when the run begins
    made, seconds = (MAKERS | ON_REQUEST)[name](checked(name, given))
    for table, rows in made.items():
        write(table, name, rows, plan | {"settings": settings}, seconds, profile)
    minutes = (time.monotonic() - begin) / 60
    print(f"{name}: {sum(map(len, made.values()))} rows in {minutes:.1f} min", flush=True)


def make_found(names: Sequence[str], settings: dict[str, Any], profile: str) -> tuple[list[str], list[many.Job]]:
    """Make those tables whose measurements are all there: the names of the others, and what these need next."""
    left: list[str] = []
    missing: list[many.Job] = []
    for name in names:
        if READS.get(name) in left:
            left.append(name)
            continue
        try:
            with runs.only_found():
                make(name, settings[name], profile)
        except (runs.Missing, many.Unmeasured) as need:
            left.append(name)
            one = isinstance(need, runs.Missing)
            missing += many.stage_jobs(need.name, [need.params]) if one else need.jobs
    return left, missing


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m rules2ranks.tables", description=__doc__)
    said = f"of {', '.join(MAKERS)} (all), or on request: {', '.join(ON_REQUEST)}"
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=said)
    parser.add_argument("--profile", default="laptop")
    workflow = parser.add_argument_group("for the workflow, which makes what is missing with many processes")
    workflow.add_argument("--missing", type=Path, metavar="FILE", help="measure nothing, and list what is missing")
    workflow.add_argument("--measured", type=Path, metavar="FILE", help="the list before, all of which is measured")
    workflow.add_argument("--part", type=int, default=30, help="results in a part of the list, at most")
    workflow.add_argument("--at-once", type=int, default=1, help="parts that can run at a time")
    asked = parser.parse_args(arguments)
    makers = MAKERS | ON_REQUEST
    if unknown := set(asked.tables) - set(makers):
        parser.error(f"unknown table {', '.join(sorted(unknown))}: choose from {', '.join(makers)}")
    try:
        settings = profile_settings(asked.profile)
    except (OSError, runs.ParameterError) as error:
        parser.error(str(error))
    if missing := set(asked.tables) - set(settings):
        parser.error(f"profile {asked.profile} has no settings for {', '.join(sorted(missing))}")
    names = asked.tables or [name for name in MAKERS if name in settings]
    if asked.missing:
        list_missing(asked, names, settings)
    else:
        for name in names:
            make(name, settings[name], asked.profile)


def list_missing(asked: argparse.Namespace, names: Sequence[str], settings: dict[str, Any]) -> None:
    """Make the tables that can be made without measuring, and list the next measurements of the others in a file.

    Raises:
        SystemExit: what counts as measured is not found.
    """
    before = json.loads(asked.measured.read_text(encoding="utf-8")) if asked.measured else {"left": names, "parts": []}
    left, missing = make_found(before["left"], settings, asked.profile)
    parts = many.parts(missing, asked.part, asked.at_once)
    known = [json.dumps(job) for part in before["parts"] for job in part]
    if again := [job for part in parts for job in part if json.dumps(job) in known]:
        raise SystemExit(
            f"{len(again)} measurements were made and are not found in {runs.root()}, {again[0][0]} of them: do all "
            "machines write into this folder (RULES2RANKS_RUNS)?"
        )
    runs.write_json(asked.missing, {"left": left, "parts": parts})


if __name__ == "__main__":
    main()

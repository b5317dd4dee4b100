"""Remake tables of `data/reference/` at a profile's settings.

Every measurement is a stage result in `runs/`, so an interrupted run goes on where it was.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
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
    plans,
    ranks,
    recoveries,
)

#: Each takes typed settings and a number of workers, and gives tables by name and the one-thread seconds behind them.
Maker = Callable[[Any, int], tuple[dict[str, Rows], float]]
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
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False)
    command = f"python -m rules2ranks.tables {maker} --profile {profile}"
    note = {"command": command, **about, "seconds": round(seconds), "rows": len(table), **runs.where()}
    runs.write_json(file.with_suffix(".json"), note)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m rules2ranks.tables", description=__doc__)
    said = f"of {', '.join(MAKERS)} (all), or on request: {', '.join(ON_REQUEST)}"
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=said)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes at a time")
    parser.add_argument("--profile", default="laptop")
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
    for name in asked.tables or [name for name in MAKERS if name in settings]:
        begin = time.monotonic()
        given, plan = planned(settings[name])  # as they are when the run begins
        made, seconds = makers[name](checked(name, given), asked.workers)
        for table, rows in made.items():
            write(table, name, rows, plan | {"settings": given}, seconds, asked.profile)
        minutes = (time.monotonic() - begin) / 60
        print(f"{name}: {sum(map(len, made.values()))} rows in {minutes:.1f} min", flush=True)


if __name__ == "__main__":
    main()

"""A plan beside its run: what was stated before, what the table holds, and where they differ."""

import math
from typing import Any

import pandas as pd
import yaml

from rules2ranks import tables
from rules2ranks.search.searchers.darwin_lm import DarwinLM
from rules2ranks.tables import plans
from rules2ranks.tables.levels import WHOLE

#: An earlier comparison, whose run did not keep to its plan: both as settings of a table of ranks.
SUPERSEDED = "superseded"


def deviations(table: str) -> pd.DataFrame:
    """What the plan of a table says beside what the table holds, by (setting, what); `differs` marks deviations."""
    return _beside(_stated(plans.read(table).run), _held(table))


def superseded() -> pd.DataFrame:
    """The same of the earlier comparison, from the settings of its plan and of its run."""
    both = yaml.safe_load(plans.place(SUPERSEDED).read_text())
    return _beside(_stated(both["planned"]), _stated(both["ran"]))


def as_committed(table: str) -> bool:
    """Whether the plan's hash in the table's note is that of the committed plan."""
    return tables.read(table).note["plan_sha256"] == plans.digest(table)


def _beside(planned: dict[str, dict], ran: dict[str, dict]) -> pd.DataFrame:
    rows = {
        (setting, what): [planned.get(setting, {}).get(what, "not planned"), ran.get(setting, {}).get(what, "not run")]
        for setting in [*planned, *(name for name in ran if name not in planned)]
        for what in planned.get(setting) or ran[setting]
    }
    found = pd.DataFrame.from_dict(rows, orient="index", columns=["planned", "run"])
    found.index = pd.MultiIndex.from_tuples(found.index, names=["setting", "what"])
    return found.assign(differs=found.planned.astype(str) != found.run.astype(str))


def _stated(run: dict[str, Any]) -> dict[str, dict]:
    """What settings of a table come to, by setting."""
    shared, found = {name: value for name, value in run.items() if name != "settings"}, {}
    for name, own in run["settings"].items():
        given = shared | own
        kinds = ("slices", "controls", "searchers", "variants", "others")
        whole = [WHOLE] if given.get("whole") else []
        found[name] = {
            "allocators": sorted([each for kind in kinds for each in given.get(kind, ())] + whole),
            "report seeds": len(given["report_seeds"]),
            "searches": len(given["search_seeds"]) if given.get("searchers") or given.get("variants") else 0,
            **(_of_levels(given) if "limit" in given else _of_ranks(given)),
            "steps": given["recover"]["steps"],
        }
    return found


def _of_ranks(given: dict[str, Any]) -> dict[str, Any]:
    return {
        "measurements a search": given["offline"] + given["rounds"],
        "random vectors": given["random"],
        "seeds of these": len(given.get("random_seeds") or given["report_seeds"]),
        "learning rate": float(given["recover"]["lr"]),
    }


def _of_levels(given: dict[str, Any]) -> dict[str, Any]:
    searches = sorted(given["variants"].items())
    return {
        "trainings a search": ", ".join(f"{name} {given['limit'] - own.get('spent', 0)}" for name, own in searches),
        "neighbours": given["many"] if "neighbours" in given["controls"] else 0,
    }


def _held(table: str) -> dict[str, dict]:
    """The same, counted in the table and in its searches."""
    frame, searched, found = tables.read(table).table, tables.read(f"{table}_search").table, {}
    for setting, part in frame.groupby("setting", sort=False):
        history = searched[(searched.setting == setting) & (searched.allocator != "uniform")]
        found[setting] = {
            "allocators": sorted(set(part.allocator) - {tables.ALONE}),
            "report seeds": part.groupby("allocator").report_seed.nunique().max(),
            "searches": history.search_seed.nunique(),
            **(_levels_held(part, history) if "levels" in part else _ranks_held(part, history)),
            "steps": int(part.steps.max()),
        }
    return found


def _ranks_held(part: pd.DataFrame, history: pd.DataFrame) -> dict[str, Any]:
    random = part[part.allocator == "random vectors"]
    return {
        "measurements a search": _measurements(history),
        "random vectors": random.which.nunique(),
        "seeds of these": random.report_seed.nunique(),
        "learning rate": float(part[part.allocator == "uniform"].lr.iloc[0]),
    }


def _levels_held(part: pd.DataFrame, history: pd.DataFrame) -> dict[str, Any]:
    """A judging counts beside the training, but for a whole one."""
    spent = history.fidelity + DarwinLM.judging * (history.fidelity < 1)
    most = spent.groupby([history.allocator, history.search_seed]).sum().groupby(level=0).max()
    return {
        "trainings a search": ", ".join(f"{name} {math.ceil(round(value, 6))}" for name, value in most.items()),
        "neighbours": part[part.allocator == "neighbours"].which.nunique(),
    }


def _measurements(history: pd.DataFrame) -> int:
    """Trainings of the longest search: one that was promoted counts once, a share of the schedule as that share."""
    own = history[history.phase != "exact"]  # the additive model's own choice comes on top
    shares = own.fidelity.fillna(1.0) if "fidelity" in own else pd.Series(1.0, own.index)
    spent = shares.groupby([own.allocator, own.search_seed, own.ranks]).max()
    return round(spent.groupby(level=["allocator", "search_seed"]).sum().max())

"""The reference table of interventions: one thing changed within each rule, and what its network then bears."""

from typing import Any

from pydantic import Field

from rules2ranks import probes, runs
from rules2ranks.stages.ranges import Rule, Seed
from rules2ranks.tables import Rows
from rules2ranks.tables.edge import pretraining
from rules2ranks.tables.many import measure, seconds_of, stage_jobs


class Interventions(runs.Params):
    """Rules × seeds × conditions, each of which changes parameters of pretraining; `limits` are those of its stage."""

    rules: list[Rule]
    seeds: list[Seed]
    conditions: dict[str, dict[str, Any]]
    pretrain: dict[str, Any] = Field(default_factory=dict)
    limits: dict[str, Any] = Field(default_factory=dict)


def interventions(settings: Interventions) -> tuple[dict[str, Rows], float]:
    """A row a network: how it learnt, and what it bears."""
    asked = [
        (name, pretraining(rule, seed, settings.pretrain | own))
        for name, own in settings.conditions.items()
        for rule in settings.rules
        for seed in settings.seeds
    ]
    bodies = [body for _, body in asked]
    # What is wrong with the limits is told here, before anything is trained.
    jobs = stage_jobs("limits", [{"base": body, "seed": body.seed, **settings.limits} for body in bodies])
    learnt = measure(stage_jobs("pretrain", bodies), "pretraining")
    found = measure(jobs, "what networks bear")
    rows = [
        {"condition": name, "rule": body.source, "seed": body.seed, **_learnt(one), **_borne(two)}
        for (name, body), one, two in zip(asked, learnt, found, strict=True)
    ]
    return {"interventions": rows}, seconds_of([*learnt, *found])


def _learnt(result: runs.Result) -> dict[str, Any]:
    m, limit = result.metrics, result.params["excess"]
    return {
        "loss": m["loss"],
        "floor": m["floor"],
        "reached": m["loss"] - m["floor"] <= limit,
        "steps": m["steps"],
        "weight_rms": m["weight_rms"],
        "epiplexity": probes.epiplexity(m["history"]["loss"], m["loss"]),
    }


def _borne(result: runs.Result) -> dict[str, Any]:
    """The last value that stayed within what is allowed, and what the next one left where one did not."""
    m, allowed = result.metrics, result.params["allowed"]
    row: dict[str, Any] = {}
    for kind, curve in m["pruned"].items():
        fine = [point["removed"] for point in curve if point["excess"] <= allowed]
        beyond = [point["removed"] for point in curve if point["excess"] > allowed]
        row |= {f"share_{kind}": fine[-1] if fine else 0.0, f"beyond_{kind}": beyond[0] if beyond else None}
    fine = [point["bits"] for point in m["quantised"] if point["excess"] <= allowed]
    mended = [point["rank"] for point in m["mended"] if point["excess"] <= allowed]
    row |= {"bits": fine[-1] if fine else 16, "rank": mended[0] if mended else None}
    row |= {"cut": m["mended"][0]["excess"]} | {f"only_{part}": excess for part, excess in m["where"].items()}
    return row | {name: m[name] for name in ("importance_late", "importance_mlp")}

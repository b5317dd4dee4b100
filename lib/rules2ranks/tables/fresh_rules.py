"""The reference table that tests, on rules not used before, what was found on the others after the fact."""

from typing import Any

from pydantic import Field

from rules2ranks import runs
from rules2ranks.stages.ranges import Rule, Seed
from rules2ranks.tables import Rows
from rules2ranks.tables.compression import curves
from rules2ranks.tables.edge import downstream_row, pretraining
from rules2ranks.tables.many import measure, seconds_of, stage_jobs

#: What is noted of how a network learnt its rule.
LEARNT = ("loss", "floor", "learnt", "steps", "weight_rms")


class FreshRules(runs.Params):
    """Networks of `rules` and of `complex_rules`, which may be among them, with `seeds`: each served and pruned."""

    rules: list[Rule]
    complex_rules: list[Rule]
    seeds: list[Seed]
    pretrain: dict[str, Any] = Field(default_factory=dict)
    downstream: dict[str, Any] = Field(default_factory=dict)
    fragility: dict[str, Any] = Field(default_factory=dict)


def fresh_rules(settings: FreshRules) -> tuple[dict[str, Rows], float]:
    """A row a network: what it is worth elsewhere, and how it learnt; and its curve under pruning."""
    rules = sorted({*settings.rules, *settings.complex_rules})
    taught = [pretraining(rule, seed, settings.pretrain) for rule in rules for seed in settings.seeds]
    # What is wrong with these is told before anything is trained.
    served = stage_jobs("downstream", [{"body": each, "seed": each.seed, **settings.downstream} for each in taught])
    pruned = stage_jobs("fragility", [{"base": each, "seed": each.seed, **settings.fragility} for each in taught])
    learnt = measure(stage_jobs("pretrain", taught), "pretraining")
    results = measure(served, "downstream task")
    fallen = measure(pruned, "pruning the models of rules")
    rows = [
        {"rule": each.source, **downstream_row(result)} | {f"pretrain_{name}": known.metrics[name] for name in LEARNT}
        for each, result, known in zip(taught, results, learnt, strict=True)
    ]
    return {"fresh_rules": rows, "fresh_rules_pruned": curves(fallen)}, seconds_of([*learnt, *results, *fallen])

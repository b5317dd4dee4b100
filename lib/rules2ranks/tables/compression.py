"""The reference table of pruned rule models: how fast does each fall, without recovery?"""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from rules2ranks import runs
from rules2ranks.stages.ranges import Rule, Seed
from rules2ranks.tables import Rows
from rules2ranks.tables.many import measure, seconds_of, stage_jobs


class Compression(runs.Params):
    """Models of rules × seeds; `pretrain` and `fragility` are parameters of these stages that differ from theirs."""

    rules: list[Rule]
    seeds: list[Seed]
    pretrain: dict[str, Any] = Field(default_factory=dict)
    fragility: dict[str, Any] = Field(default_factory=dict)


def compression(settings: Compression) -> tuple[dict[str, Rows], float]:
    """Every model pruned at several shares: a row for each model and share, 0 first."""
    asked = [
        {"base": {"source": rule, "seed": seed, **settings.pretrain}, "seed": seed, **settings.fragility}
        for rule in settings.rules
        for seed in settings.seeds
    ]
    results = measure(stage_jobs("fragility", asked), "pruning the models of rules")
    return {"compression": curves(results)}, seconds_of(results)


def curves(results: Sequence[runs.Result]) -> Rows:
    """A row for each model and share, 0 first."""
    return [
        {
            "rule": result.params["base"]["source"],
            "seed": result.params["seed"],
            **point,
            "untrained_loss": result.metrics["untrained_loss"],
        }
        for result in results
        for point in result.metrics["curve"]
    ]

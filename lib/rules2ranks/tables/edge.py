"""The reference tables of *Intelligence at the Edge of Chaos*: rules × seeds × tasks, with their baselines."""

from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import Any

from pydantic import Field

from rules2ranks import runs
from rules2ranks.stages.learning import Pretraining
from rules2ranks.stages.ranges import Rule, Seed
from rules2ranks.stages.transfer import Downstream
from rules2ranks.tables import Rows
from rules2ranks.tables.many import measure, seconds_of, stage_jobs
from rules2ranks.tasks import Name as Task

#: Parameters of a stage that differ from its defaults.
Changes = dict[str, Any]


class EdgeOfChaos(runs.Params):
    """Rules × seeds × tasks. Random weights have seeds of their own; one rule's weights are shuffled as a control."""

    rules: list[Rule]
    seeds: list[Seed]
    random_seeds: list[Seed]
    shuffled_rule: Rule
    tasks: dict[Task, Changes]
    pretrain: Changes = Field(default_factory=dict)
    from_scratch: Changes = Field(default_factory=dict)


class Variant(runs.Params):
    """What one variant of the experiment changes."""

    pretrain: Changes = Field(default_factory=dict)
    downstream: Changes = Field(default_factory=dict)


class EdgeAblations(Variant):
    """Rules × seeds × variants; what a variant does not change is as said here."""

    rules: list[Rule]
    seeds: list[Seed]
    variants: dict[str, Variant]


def edge_of_chaos(settings: EdgeOfChaos) -> tuple[dict[str, Rows], float]:
    """What frozen bodies that learnt from a rule are worth elsewhere, what was learnt, and how alike it is."""
    taught = [
        pretraining(source, seed, settings.pretrain) for source in [*settings.rules, "coin"] for seed in settings.seeds
    ]
    asked = _core(settings, taught)
    learnt = measure(stage_jobs("pretrain", taught), "pretraining")
    results = measure(stage_jobs("downstream", asked), "downstream tasks")
    looked = measure(stage_jobs("inspect", [{"body": body} for body in taught]), "looking inside")
    tables = {
        "edge_of_chaos": [downstream_row(result) for result in results],
        "pretraining": [_pretraining_row(*pair) for pair in zip(learnt, looked, strict=True)],
    }
    if len(settings.seeds) > 1:  # likeness is that of unlike seeds
        tables["similarity"] = _similarity(settings)
    return tables, seconds_of([*learnt, *results, *looked])


def _core(settings: EdgeOfChaos, taught: list[Pretraining]) -> list[Downstream]:
    """Every network on every task: those that learnt, random weights, shuffled ones, and trained from scratch."""
    first, shuffled = settings.rules[0], settings.shuffled_rule
    scratch = {"train": "all", **settings.from_scratch}
    kinds: list[tuple[str, Pretraining, Changes]] = [
        *(("pretrained", body, {}) for body in taught),
        *(("random", pretraining(first, seed, settings.pretrain), {}) for seed in settings.random_seeds),
        *(("shuffled", pretraining(shuffled, seed, settings.pretrain), {}) for seed in settings.seeds),
        *(("random", pretraining(first, seed, settings.pretrain), scratch) for seed in settings.seeds),
    ]
    return [
        Downstream.check({"body": body, "start": start, "seed": body.seed, **how, "task": task, **own})
        for start, body, how in kinds
        for task, own in settings.tasks.items()
    ]


def edge_ablations(settings: EdgeAblations) -> tuple[dict[str, Rows], float]:
    """Twelve rules named beforehand, each choice of the experiment changed by itself."""
    legal = _legality()
    rows, seconds = _variants(settings)
    return {"edge_ablations": [row | {"legal": legal(result)} for row, result in rows]}, seconds


def sizes(settings: EdgeAblations) -> tuple[dict[str, Rows], float]:
    """Twenty rules in networks of other sizes, and with other rows to learn from."""
    rows, seconds = _variants(settings)
    return {"sizes": [row for row, _ in rows]}, seconds


def chess(settings: EdgeAblations) -> tuple[dict[str, Rows], float]:
    """Thirty rules at chess, with all weights trained, so that networks are better than an n-gram."""
    rows, seconds = _variants(settings)
    return {"chess": [row for row, _ in rows]}, seconds


def _variants(settings: EdgeAblations) -> tuple[list[tuple[dict[str, Any], runs.Result]], float]:
    """A row for each network of each variant, with what it was made from; the seconds that all took."""
    asked = [(name, each) for name, variant in settings.variants.items() for each in _variant(settings, variant)]
    learnt = measure(stage_jobs("pretrain", [each.body for _, each in asked if each.start != "random"]), "pretraining")
    results = measure(stage_jobs("downstream", [each for _, each in asked]), "downstream tasks")
    known = {runs.key(result.params): result.metrics for result in learnt}
    rows = []
    for (name, _), result in zip(asked, results, strict=True):
        row = {"variant": name, **downstream_row(result)}
        own = known.get(runs.key(result.params["body"])) if row["source"] != "none" else None
        row |= {f"pretrain_{what}": own[what] if own else None for what in ("loss", "floor", "learnt", "steps")}
        rows.append((row, result))
    return rows, seconds_of([*learnt, *results])


def _variant(settings: EdgeAblations, variant: Variant) -> list[Downstream]:
    """A variant's networks: those of the rules, with coin flips and random weights as far as they make sense."""
    pretrain = settings.pretrain | variant.pretrain
    down = settings.downstream | variant.downstream
    start = down.pop("start", "pretrained")
    kinds = [(start, source) for source in settings.rules] if start != "random" else []
    if start == "pretrained":
        kinds.append((start, "coin"))
    if start != "shuffled":
        kinds.append(("random", settings.rules[0]))
    return [
        Downstream.check({"body": pretraining(source, seed, pretrain), "start": begin, "seed": seed, **down})
        for begin, source in kinds
        for seed in settings.seeds
    ]


def pretraining(source: int | str, seed: int, changes: Changes) -> Pretraining:
    """A network and what it learns."""
    return Pretraining.check({"source": source, "seed": seed, **changes})


def downstream_row(result: runs.Result) -> dict[str, Any]:
    """One measurement of `downstream`, at its last step."""
    p, m = result.params, result.metrics
    return {
        "start": "scratch" if p["train"] == "all" and p["start"] == "random" else p["start"],
        "source": "none" if p["start"] == "random" else p["body"]["source"],
        "seed": p["seed"],
        "task": p["task"],
        "step": m["history"]["steps"],
        "accuracy": m["accuracy"],
        "loss": m["loss"],
        "failures_mean": m["failures"]["mean"],
        "failures_variance": m["failures"]["variance"],
        "failures_alpha": m["failures"]["alpha"],
        "failures_level": m["failures"]["level"],
        "step_at_80": m["step_at_80"],
    }


def _pretraining_row(learnt: runs.Result, looked: runs.Result) -> dict[str, Any]:
    """How well one network learnt its rule, and what is to be seen inside."""
    m, inside = learnt.metrics, looked.metrics
    names = ("loss", "floor", "accuracy", "determined", "row_accuracy", "majority", "copy", "learnt", "steps")
    attention = inside["attention"] or {"last_10": None, "untrained": None}
    return {
        "source": learnt.params["source"],
        "seed": learnt.params["seed"],
        **{name: m[name] for name in (*names, "weight_rms")},
        "epiplexity": inside["epiplexity"],
        "attention_last_10": attention["last_10"],
        "attention_untrained": attention["untrained"],
    }


def _similarity(settings: EdgeOfChaos) -> Rows:
    from rules2ranks.stages import inspecting

    rules = settings.rules
    found = inspecting.similarity(
        [[pretraining(rule, seed, settings.pretrain) for seed in settings.seeds] for rule in rules]
    )
    pairs = combinations_with_replacement(range(len(rules)), 2)
    return [{"a": rules[a], "b": rules[b], "cka": float(found[a, b] + found[b, a]) / 2} for a, b in pairs]


def _legality() -> Callable[[runs.Result], float | None]:
    """A function that gives the share of legal moves among those that a result predicted; None if it is not of chess.

    Raises:
        ImportError: python-chess, an optional extra, is not there; asked before any work starts.
    """
    from rules2ranks.tasks import chess

    chess.legal_share([["e4"]], [["e4"]])
    task = chess.Chess()

    def legal(result: runs.Result) -> float | None:
        if result.params["task"] != "chess":
            return None
        from safetensors.numpy import load_file

        from rules2ranks.stages.transfer import PREDICTIONS, validation_draw

        games = task.moves(*validation_draw(result.params["seed"]))
        predicted = load_file(result.file(PREDICTIONS))["predicted"]
        guesses = [[task.words[t] for t in row[: len(game)]] for row, game in zip(predicted, games, strict=True)]
        return chess.legal_share(games, guesses)

    return legal

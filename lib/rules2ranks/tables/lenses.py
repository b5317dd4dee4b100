"""The reference table of networks that are told their rule by the rows above: four lenses on them."""

import numpy as np
from pydantic import Field

from rules2ranks import automata, complexity, runs
from rules2ranks.stages.contexts import InContext
from rules2ranks.stages.ranges import Seed, Size, Steps
from rules2ranks.tables import Rows
from rules2ranks.tables.many import measure, seconds_of, stage_jobs

#: What a network learns: the simpler or the more complex half of the 88 kinds of rules, or a half as complex as the
#: other.
SIMPLE, COMPLEX, HALVES = "simple", "complex", ("half 0", "half 1")


class Lenses(runs.Params):
    """Networks by what they learn, with `seeds`; halves in networks of `layers`, and with a `horizon` of rows."""

    seeds: list[Seed]
    layers: list[Size]
    shipped: Size
    horizon: Size
    steps: Steps
    steps_ahead: Steps = Field(description="steps of networks that look further ahead")


def kinds(what: str, seed: int) -> list[int]:
    """The smallest rules of the kinds that a network learns, as many as it does not.

    Kinds stand in the order of their LZ76 (100 cells × 11 rows). Of two neighbours in it a coin, tossed with the seed,
    gives one to each half, so that both halves are equally complex.
    """
    table = complexity.table(automata.representatives(), seeds=range(20), measures=["lz76"])
    order = table.lz76.sort_values(kind="stable").index.to_numpy()
    if what in (SIMPLE, COMPLEX):
        return sorted(order[: len(order) // 2] if what == SIMPLE else order[len(order) // 2 :])
    first = np.random.Generator(np.random.Philox(seed)).integers(0, 2, len(order) // 2)
    return sorted(order.reshape(-1, 2)[np.arange(len(first)), (first + HALVES.index(what)) % 2])


def network(settings: Lenses, what: str, seed: int, *, layers: int, horizon: int = 1) -> InContext:
    """A network and the rules that it learns: all members of its kinds."""
    own = set(kinds(what, seed))
    rules = [rule for rule in range(256) if automata.representative(rule) in own]
    steps = settings.steps if horizon == 1 else settings.steps_ahead
    return InContext.check({"rules": rules, "seed": seed, "layers": layers, "horizon": horizon, "steps": steps})


def lenses(settings: Lenses) -> tuple[dict[str, Rows], float]:
    """A row for each network and kind of rule, and one for each network, layer and thing to be read off."""
    shapes = [(half, layers, 1) for half in HALVES for layers in settings.layers]
    shapes += [(what, settings.shipped, 1) for what in (SIMPLE, COMPLEX)]
    shapes += [(half, settings.shipped, settings.horizon) for half in HALVES]
    asked = {
        (what, layers, horizon, seed): network(settings, what, seed, layers=layers, horizon=horizon)
        for what, layers, horizon in shapes
        for seed in settings.seeds
    }
    results = measure(stage_jobs("in_context", asked.values()), "rules in context")
    rows, depths = [], []
    for (what, layers, horizon, seed), result in zip(asked, results, strict=True):
        about = {"learns": what, "layers": layers, "horizon": horizon, "seed": seed}
        own = set(kinds(what, seed))
        for each in result.metrics["rules"]:
            right = {"right": each["right"][0], "right_last": each["right"][-1]}
            rest = {name: each[name] for name in ("step", "sound", "steady")}
            rows.append({**about, "rule": each["rule"], "own": each["rule"] in own, **right, **rest})
        depths += [
            {**about, "network": name, "asked": question, "layer": layer, "score": score}
            for name, answers in result.metrics["depth"].items()
            for question, scores in answers.items()
            for layer, score in enumerate(scores)
        ]
    return {"lenses": rows, "lenses_depth": depths}, seconds_of(results)

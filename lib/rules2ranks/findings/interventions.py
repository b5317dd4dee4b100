"""Does complexity decide what a network bears? What the table of interventions says, by the criteria of its plan."""

import numpy as np
import pandas as pd

from rules2ranks import automata, complexity, evaluation, tables
from rules2ranks.findings import mechanism
from rules2ranks.tables import plans

TABLE, UNCHANGED = "interventions", "unchanged"
#: What is changed within rules, and what it would show to decide; the other conditions stand beside, untested.
TESTED = {"three steps": "complexity", "flips of .15": "entropy", "weight decay": "scale"}
OUTCOMES = ("share", "rank", "bits", "place")
#: The ranks of the plan, in order; a network that none of them mends comes behind.
RANKS = (0, 1, 2, 4, 8, 16)
#: Losses below this (nats per cell) are as good as none, and their logarithm says nothing.
LEAST = 1e-4


def outcomes(condition: str = UNCHANGED, importance: str = "taylor") -> dict[str, pd.DataFrame]:
    """What networks of a condition bear, a row a rule and a column a seed each.

    `share` removed by an importance; `rank`, its place among `RANKS` (their number where none mends); `bits`; `place`,
    the logarithm of what an adapter in the early half of the layers leaves over what one in the late half leaves.
    """
    table = _rows(condition)
    place = np.log(table["only_early layers"].clip(LEAST) / table["only_late layers"].clip(LEAST))
    found = {
        "share": table[f"share_{importance}"],
        "rank": table["rank"].map(RANKS.index, na_action="ignore").fillna(len(RANKS)),
        "bits": table.bits,
        "place": place,
    }
    wide = table.assign(**{name: values.astype(float) for name, values in found.items()})
    return {name: wide.pivot(index="rule", columns="seed", values=name) for name in OUTCOMES}


def _rows(condition: str) -> pd.DataFrame:
    table, _ = tables.read(TABLE)
    return table[table.condition == condition]


def learnt() -> pd.DataFrame:
    """How networks learnt, a row a condition: the share that `reached` the excess, steps, scale of weights, and what
    they bear: means.
    """
    table, _ = tables.read(TABLE)
    found = table.groupby("condition", sort=False)[["reached", "steps", "weight_rms"]].mean()
    for name in OUTCOMES:
        found[name] = [outcomes(condition)[name].to_numpy().mean() for condition in found.index]
    return found


def about() -> pd.DataFrame:
    """What outcomes are held against, by rule: LZ76, linear loss, and of the unchanged networks epiplexity and the
    logarithm of the weights' scale, means over seeds.
    """
    mean = _rows(UNCHANGED).groupby("rule")[["epiplexity", "weight_rms"]].mean()
    own = {"epiplexity": mean.epiplexity, "log weight scale": np.log(mean.weight_rms)}
    return mechanism.measured(tuple(mean.index)).assign(**own)


def over_rules() -> pd.DataFrame:
    """By outcome: Spearman's `rho` of LZ76; given the others `partial`, `p`, `holm`; beside it linear loss's."""
    x, rows = about(), {}
    for name, values in outcomes().items():
        values = values.loc[x.index]
        found = {
            measure: evaluation.partial_correlation(x[measure], values, x.drop(columns=measure))
            for measure in (mechanism.LZ76, mechanism.LINEAR)
        }
        lz, linear = found.values()
        whole = evaluation.correlation(x[mechanism.LZ76], values)
        rows[name] = {"rho": f"{whole:.2f}", "partial": f"{lz:.2f}", "p": lz.p, "linear loss, partial": f"{linear:.2f}"}
    found = pd.DataFrame.from_dict(rows, orient="index")
    return found.assign(holm=evaluation.holm(found.p))


def within_rules(importance: str = "taylor") -> pd.DataFrame:
    """By (condition, outcome): the mean difference to the unchanged network of the same rule and seed, its 95 % and
    90 % intervals, `p`, and `holm` over the four outcomes of a condition.
    """
    base, rows = outcomes(importance=importance), {}
    for condition in plans.read(TABLE).run["conditions"]:
        if condition == UNCHANGED:
            continue
        for name, values in outcomes(condition, importance).items():
            difference = values - base[name]
            found = evaluation.crossed(difference)
            inner = evaluation.crossed(difference, level=0.9)
            rows[condition, name] = [*found[:3], inner.low, inner.high, found.p]
    columns = ["estimate", "low", "high", "low 90", "high 90", "p"]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    found.index = pd.MultiIndex.from_tuples(found.index, names=["condition", "outcome"])
    holm = found.groupby("condition", sort=False).p.transform(lambda p: evaluation.holm(p))
    return found.assign(holm=holm)


def verdict() -> pd.DataFrame:
    """By outcome: whether complexity, entropy and scale decide it, by the plan."""
    level, lz, moved = plans.read(TABLE).level, over_rules(), within_rules()
    rows = {}
    for name in OUTCOMES:
        moves = {what: moved.holm[condition, name] < level for condition, what in TESTED.items()}
        moves["complexity"] &= lz.holm[name] < level
        rows[name] = {what: "decides" if it else "not shown" for what, it in moves.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def no_effect() -> pd.Series:
    """Whether the share that can go is shown to be the same, within the margin, by condition."""
    margin, moved = plans.read(TABLE).margin, within_rules().xs("share", level="outcome")
    return (moved["low 90"] > -margin) & (moved["high 90"] < margin)


def farther() -> evaluation.Correlation:
    """Three steps at once make a rule's function nearer to linear or farther: does the share that can go follow?

    Spearman's correlation over rules of the change of linear loss and the mean change of the share; after the fact.
    """
    change = outcomes("three steps")["share"] - outcomes()["share"]
    return evaluation.correlation([_linear(rule, 3) - _linear(rule, 1) for rule in change.index], change)


def _linear(rule: int, k: int) -> float:
    """Linear loss k steps ahead, on 1000 cells × 40 rows, the mean over 20 starts."""
    runs = (automata.simulate(rule, automata.random_states((), 1000, seed=seed), 40) for seed in range(20))
    return float(np.mean([complexity.linear_loss(rule, run, k) for run in runs]))

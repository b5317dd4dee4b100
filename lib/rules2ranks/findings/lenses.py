"""Four lenses on networks that are told their rule by the rows above: what their table says, by the plan's criteria."""

import functools

import numpy as np
import pandas as pd

from rules2ranks import evaluation, tables
from rules2ranks.findings import edge
from rules2ranks.tables import plans
from rules2ranks.tables.lenses import COMPLEX, SIMPLE

TABLE = "lenses"
#: What is read off layers, from the concrete to the abstract.
ASKED = ("next cell", "rule's table", "class III or IV")


def settings() -> dict:
    """What the plan's run was made with."""
    return plans.read(TABLE).run


def level() -> float:
    """The level of each of the plan's tests."""
    plan = plans.read(TABLE)
    return plan.level / len(plan.confirmatory)


@functools.cache
def lz76() -> pd.Series:
    """LZ76 of the rules in the table (100 cells × 11 rows)."""
    return edge.lz76(sorted(tables.read(TABLE).table.rule.unique()))


def _rows(horizon: int, layers: int | None = None) -> pd.DataFrame:
    table = tables.read(TABLE).table
    return table[(table.horizon == horizon) & (table.layers == (layers or settings()["shipped"]))]


def _wide(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """A row a rule, a column a seed."""
    return rows.pivot(index="rule", columns="seed", values=column)


def right(layers: int | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The share of known cells predicted right, a row a rule and a column a seed: by networks that learnt a half with
    the rule, and by those that learnt the other, equally complex half.
    """
    halves = _rows(1, layers)
    halves = halves[halves.learns.str.startswith("half")]
    return _wide(halves[halves.own], "right"), _wide(halves[~halves.own], "right")


def transfer() -> pd.DataFrame:
    """Complexity-OoD: rules of one half of the complexities, for networks that learnt the other half (`transfer`), an
    equally mixed half without the rule (`mixed`), and this half itself (`learnt`); the first `difference` as tested.
    """
    _, mixed = right()
    plan, here, rows = plans.read(TABLE), _rows(1), {}
    asked = {"complex rules from simple ones": (SIMPLE, COMPLEX), "simple rules from complex ones": (COMPLEX, SIMPLE)}
    for name, (learns, half) in asked.items():
        other = _wide(here[(here.learns == learns) & ~here.own], "right")
        own = _wide(here[(here.learns == half) & here.own], "right")
        difference = evaluation.crossed(other - mixed.loc[other.index], level=1 - level())
        rows[name] = {
            "transfer": other.to_numpy().mean(),
            "mixed": mixed.loc[other.index].to_numpy().mean(),
            "learnt": own.to_numpy().mean(),
            "difference": f"{difference:.3f}",
            "verdict": "falls short"
            if difference.high < 0
            else "serves as well"
            if -plan.margin < difference.low and difference.high < plan.margin
            else "undecided",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def layers_of(what: str, network: str = "trained") -> pd.DataFrame:
    """How well something is read off each layer of the deepest networks by network and layer; chance is .5."""
    table = tables.read(f"{TABLE}_depth").table
    deepest = table[(table.layers == max(settings()["layers"])) & (table.horizon == 1) & (table.network == network)]
    here = deepest[(deepest.asked == what) & deepest.learns.str.startswith("half")]
    return here.pivot(index=["learns", "seed"], columns="layer", values="score")


def depth(scores: pd.DataFrame) -> pd.Series:
    """The mean layer at which something is gained, a row a network: the sum over layers of what is still to come."""
    best, before = scores.max(axis=1), scores[0]
    return scores.rsub(best, axis=0).clip(lower=0).div(best - before, axis=0).sum(axis=1)


def depths() -> pd.DataFrame:
    """Concept depth: for each thing the score before the first layer and the best, untrained and trained, its depth,
    and how much deeper it lies than the thing before it, as tested.
    """
    rows, last = {}, None
    for what in ASKED:
        scores, blank = layers_of(what), layers_of(what, "untrained")
        found = depth(scores)
        row = {"before": scores[0].mean(), "untrained": blank.max(axis=1).mean(), "best": scores.max(axis=1).mean()}
        row |= {"depth": found.mean(), "deeper": "", "verdict": ""}
        if last is not None:
            difference = evaluation.crossed((found - last).unstack("seed"), level=1 - level())
            verdict = "deeper" if difference.low > 0 else "shallower" if difference.high < 0 else "undecided"
            row |= {"deeper": f"{difference:.2f}", "verdict": verdict}
        rows[what], last = row, found
    return pd.DataFrame.from_dict(rows, orient="index")


def gap(layers: int | None = None) -> pd.DataFrame:
    """Scylla: `right` of the network that learnt the rule less that of the one that did not, a row a rule."""
    own, other = right(layers)
    return own - other.loc[own.index]


def valley() -> pd.DataFrame:
    """Scylla: by number of layers, the mean gap, where two lines over LZ76 part, their slopes' p, and the verdict.

    The verdict is the plan's for the size that it names; the other sizes stand beside, untested.
    """
    rows = {}
    for layers in settings()["layers"]:
        found = gap(layers)
        lines = evaluation.two_lines(lz76().loc[found.index], found)
        own, other = right(layers)
        row = {"learnt": own.to_numpy().mean(), "not learnt": other.to_numpy().mean()}
        row |= {
            "gap": f"{evaluation.crossed(found):.3f}",
            "parts at LZ76": lines.break_at,
            "p of the rise": lines.p_rise,
        }
        row |= {"p of the fall": lines.p_fall, "verdict": ""}
        if layers == settings()["shipped"]:
            row["verdict"] = "a valley" if max(lines.p_rise, lines.p_fall) < level() else "undecided"
        rows[f"{layers} layer{'s' * (layers > 1)}"] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def steps() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """COAST, on rules that were not learnt, a row a rule and a column a seed: the mean step in rows, the share of cells
    at that step that are right, and the step's correlation with what there is in the rows before (NaN: none).
    """
    here = _rows(settings()["horizon"])
    here = here[~here.own]
    return tuple(_wide(here, column) for column in ("step", "sound", "steady"))


def shorter() -> pd.DataFrame:
    """COAST, as tested: the step's correlation over rules and within them."""
    step, _, steady = steps()
    over = evaluation.correlation(lz76().loc[step.index], step, level=1 - level())
    steady = steady.dropna()
    within = evaluation.crossed(steady, level=1 - level())
    rows = {
        "over rules": {"correlation": f"{over:.2f}", "rules": len(step), "p": over.p},
        "within rules": {"correlation": f"{within:.2f}", "rules": len(steady), "p": np.nan},
    }
    met = {"over rules": over.estimate < 0 and over.p < level(), "within rules": within.high < 0}
    found = pd.DataFrame.from_dict(rows, orient="index")
    return found.assign(verdict=["shorter steps" if met[name] else "undecided" for name in found.index])

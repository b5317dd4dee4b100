"""What the tables of recoveries say: rates and lengths, and each way to recover at its best."""

import math

import numpy as np
import pandas as pd

from rules2ranks import evaluation, tables
from rules2ranks.findings import ranks
from rules2ranks.tables import plans

BASE = "lora"


def tuned(setting: str, way: str = BASE, table: str = "recovery_rates") -> pd.DataFrame:
    """Mean loss on the search's examples in nats, a row a learning rate, a column a number of steps."""
    frame = tables.read(table).table
    own = frame[(frame.setting == setting) & (frame.way == way)].astype({"steps": int})
    return own.groupby(["lr", "steps"]).search_loss.mean().unstack("steps")


def pruned_only(setting: str, table: str = "recovery_rates") -> float:
    """The loss on the search's examples before any recovery."""
    frame = tables.read(table).table
    return frame[(frame.setting == setting) & (frame.way == tables.ALONE)].search_loss.item()


def ways(table: str = "recoveries") -> pd.DataFrame:
    """Each way at its best, by (setting, way), on the report's examples.

    Means of `loss` in nats and `accuracy`, `parameters` trained, the `lr`, `steps` and number of `seeds`; and against
    LoRA under the same seeds the share by which the loss is higher, with its 95 % interval: `estimate`, `low`, `high`
    (NaN where fewer than three seeds are shared).
    """
    frame, rows = tables.read(table).table, {}
    for setting, part in frame.groupby("setting", sort=False):
        for way, own in part.groupby("way", sort=False):
            effect = _against_base(part, way)
            against = evaluation.crossed(effect)[:3] if way != BASE and len(effect) > 2 else [math.nan] * 3
            scores = [own.loss.mean(), own.accuracy.mean(), own.trained_parameters.mean(), own.lr.iloc[0]]
            rows[setting, way] = [*scores, own.steps.iloc[0], own.seed.nunique(), *np.expm1(against)]
    columns = ["loss", "accuracy", "parameters", "lr", "steps", "seeds", "estimate", "low", "high"]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    found.index = pd.MultiIndex.from_tuples(found.index, names=["setting", "way"])
    return found


def tested(table: str = "mendings") -> pd.DataFrame:
    """What the plan of a table tests against LoRA, by (setting, way), corrected over all of it: see
    `ranks.comparisons`; with the `verdict`.
    """
    plan, frame = plans.read(table), tables.read(table).table
    found = {
        (setting, way): evaluation.crossed(_against_base(part, way))
        for setting, part in frame.groupby("setting", sort=False)
        for way in plan.confirmatory
    }
    effect = ranks.by_key(
        {key: [math.expm1(each.estimate), ""] for key, each in found.items()}, ["estimate", "verdict"]
    )
    judged = ranks.judged(effect.join(ranks.corrected(found, plan)), plan)
    return judged.drop(columns="estimate").rename_axis(["setting", "way"])


def _against_base(part: pd.DataFrame, way: str) -> pd.Series:
    """log(loss / LoRA's) of one setting by seed, where both have it."""
    base, own = (part[part.way == each].set_index("seed").loss for each in (BASE, way))
    return np.log(own / base).dropna()

"""What the tables of recoveries say: rates and lengths, and each way to recover at its best."""

import math

import numpy as np
import pandas as pd

from rules2ranks import evaluation, tables

BASE = "lora"


def tuned(setting: str, way: str = BASE) -> pd.DataFrame:
    """Mean loss on the search's examples in nats, a row a learning rate, a column a number of steps."""
    frame = tables.read("recovery_rates").table
    own = frame[(frame.setting == setting) & (frame.way == way)].astype({"steps": int})
    return own.groupby(["lr", "steps"]).search_loss.mean().unstack("steps")


def pruned_only(setting: str) -> float:
    """The loss on the search's examples before any recovery."""
    frame = tables.read("recovery_rates").table
    return frame[(frame.setting == setting) & (frame.way == tables.ALONE)].search_loss.item()


def ways() -> pd.DataFrame:
    """Each way at its best, by (setting, way), on the report's examples.

    Means of `loss` in nats and `accuracy`, `parameters` trained, the `lr`, `steps` and number of `seeds`; and against
    LoRA under the same seeds the share by which the loss is higher, with its 95 % interval: `estimate`, `low`, `high`
    (NaN where fewer than three seeds are shared).
    """
    frame, rows = tables.read("recoveries").table, {}
    for setting, part in frame.groupby("setting", sort=False):
        base = part[part.way == BASE].set_index("seed").loss
        for way, own in part.groupby("way", sort=False):
            effect = np.log(own.set_index("seed").loss / base).dropna()
            against = evaluation.crossed(effect)[:3] if way != BASE and len(effect) > 2 else [math.nan] * 3
            scores = [own.loss.mean(), own.accuracy.mean(), own.trained_parameters.mean(), own.lr.iloc[0]]
            rows[setting, way] = [*scores, own.steps.iloc[0], own.seed.nunique(), *np.expm1(against)]
    columns = ["loss", "accuracy", "parameters", "lr", "steps", "seeds", "estimate", "low", "high"]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    found.index = pd.MultiIndex.from_tuples(found.index, names=["setting", "way"])
    return found

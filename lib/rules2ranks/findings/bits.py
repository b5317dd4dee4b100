"""What the table of bits and ranks together says, beside what `ranks` says of every table of choices."""

import math

import numpy as np
import pandas as pd

from rules2ranks import evaluation, tables
from rules2ranks.findings.ranks import effects
from rules2ranks.tables import plans

TABLE = "bits_and_ranks"
#: Weights that are not quantised, at the rank whose best rate a setting has.
FULL = {"best rate": "16 bits, rank 2", "lower rate": "16 bits, rank 8"}
#: What the grid of uniform choices is called there, and what takes of each choice the rate that is better.
GRID, BETTER = "uniform grid", "better rate of each"


def grid(what: str = "loss") -> pd.DataFrame:
    """Every width with every rank, the same for all matrices: rows (setting, bits, rank), a column a report seed.

    The setting `BETTER` takes each choice at the rate that has the lower mean loss on the search's examples.
    """
    frame = tables.read(TABLE).table
    frame = frame[frame.allocator == GRID].astype({"report_seed": int})
    # A uniform choice has the same for every layer.
    options = frame.ranks.str.split().str[0].str.split(":", expand=True).astype(int)
    frame = frame.assign(bits=options[0], rank=options[1])
    values, judged = (
        frame.pivot(index=["setting", "bits", "rank"], columns="report_seed", values=name).astype(float)
        for name in (what, "search_loss")
    )
    at = judged.mean(axis=1).unstack("setting").idxmin(axis=1)
    best = pd.concat({BETTER: pd.DataFrame({cell: values.loc[(rate, *cell)] for cell, rate in at.items()}).T})
    best.index.names = values.index.names
    return pd.concat([values, best])


def interactions(trained: bool = False) -> pd.DataFrame:
    """Whether bits and ranks add up in the logarithm of the loss, by setting: an `evaluation.Interaction` a row.

    trained: leave out rank 0, where nothing is trained and no seed makes a difference.
    """
    losses, rows = np.log(grid()), {}
    if trained:
        losses = losses[losses.index.get_level_values("rank") > 0]
    for setting, part in losses.groupby("setting", sort=False):
        shape = [part.index.unique(level).size for level in ("bits", "rank")]
        rows[setting] = evaluation.interaction(part.sort_index().to_numpy().reshape(*shape, -1))
    return pd.DataFrame.from_dict(rows, orient="index", columns=evaluation.Interaction._fields).rename_axis("setting")


def close_to_full(allocator: str = "AutoQRA") -> pd.DataFrame:
    """An allocator against weights that are not quantised, by setting: shares with interval, and `equivalence`.

    That is p of two one-sided tests against the plan's margin, not corrected.
    """
    plan, frame = plans.read(TABLE), tables.read(TABLE).table
    margin, rows = (math.log(1 - plan.margin), math.log(1 + plan.margin)), {}
    for setting, full in FULL.items():
        found = evaluation.crossed(effects(frame[frame.setting == setting], allocator, baseline=full))
        rows[setting] = [full, *(math.expm1(x) for x in found[:3]), found.p, found.within(*margin)]
    columns = ["against", "estimate", "low", "high", "p", "equivalence"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("setting")


def foresight() -> pd.DataFrame:
    """How well what AutoQRA measured in full was foreseen: Spearman's ρ, the mean over searches, least and most.

    By setting, allocator and what foresaw it: the `low fidelity` of what was promoted, the `surrogate` that promoted it
    (once it had enough to learn from), the `Gaussian process` of the trust region; with the mean number of points.
    Searches with fewer than three such points are left out.
    """
    searched = tables.read(f"{TABLE}_search").table
    rows = []
    for (setting, name, _), part in searched.groupby(["setting", "allocator", "search_seed"], sort=False):
        low = part[part.fidelity < 1].drop_duplicates("ranks").set_index("ranks").measured
        promoted, local = part[part.phase == "promoted"], part[part.phase == "trust region"]
        before = promoted.ranks.map(low)
        foreseen = {
            "low fidelity": (before, promoted.measured),
            # Before there is enough to learn from, what was predicted is the low fidelity itself.
            "surrogate": (promoted.predicted[promoted.predicted != before], promoted.measured),
            "Gaussian process": (local.predicted, local.measured),
        }
        for by, (guess, truth) in foreseen.items():
            if len(guess) > 2:
                rho = guess.astype(float).corr(truth.astype(float), method="spearman")
                rows.append({"setting": setting, "allocator": name, "by": by, "rho": rho, "points": len(guess)})
    grouped = pd.DataFrame(rows).groupby(["setting", "allocator", "by"], sort=False)
    return grouped.agg(rho=("rho", "mean"), least=("rho", "min"), most=("rho", "max"), points=("points", "mean"))

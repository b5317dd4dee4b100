"""What the table of levels says, beside what `ranks` says of every table of choices."""

import math
from collections.abc import Mapping

import pandas as pd
from scipy import stats

from rules2ranks import evaluation, tables
from rules2ranks.findings.ranks import comparisons, effects, percent
from rules2ranks.stages.subjects import subject
from rules2ranks.tables import plans
from rules2ranks.tables.levels import MANY, WHOLE, read

TABLE, JOINT, REAL, SHARES = "levels", "joint", "real_model", "real_shares"
#: DarwinLM and the plain evolution that it is tested against, by where they start.
PAIRS = {
    "the same share of every part": ("DarwinLM", "evolution"),
    "divergences": ("DarwinLM, from divergences", "evolution, from divergences"),
}


def trained_or_not() -> pd.DataFrame:
    """DarwinLM's loss after recovery against plain evolution's, by (setting, start): see `_paired`."""
    return _paired(TABLE, PAIRS).rename_axis(["setting", "start"])


def joint_or_in_turn() -> pd.DataFrame:
    """Levels, bits and ranks all at once against one after the other, by setting: see `_paired`."""
    return _paired(JOINT, {"": ("joint", "in turn")}).droplevel(1).rename_axis("setting")


def _paired(table: str, pairs: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """By which share the loss of the first of each pair is higher, with interval, p and p of equivalence.

    Under the same report seeds, search by search; not corrected.
    """
    plan, frame = plans.read(table), tables.read(table).table
    margin, rows = (math.log(1 - plan.margin), math.log(1 + plan.margin)), {}
    for setting, part in frame.groupby("setting", sort=False):
        for name, pair in pairs.items():
            one, other = (effects(part, each, baseline=plan.baseline[setting]) for each in pair)
            found = evaluation.crossed(one - other)
            rows[setting, name] = [*(math.expm1(x) for x in found[:3]), found.p, found.within(*margin)]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=["estimate", "low", "high", "p", "equivalence"])
    found.index = pd.MultiIndex.from_tuples(found.index)
    return found


def orders() -> pd.DataFrame:
    """How well a divergence after a share of the schedule foretells the loss after recovery, by (among, share).

    Spearman's ρ with a 95 % interval over the choices, of one setting; `among`: random levels, or neighbours.
    """
    judged, report = tables.read(f"{TABLE}_judged").table, tables.read(TABLE).table
    after = report.groupby(["setting", "allocator", "which"]).loss.mean()
    rows = {}
    for (setting, among, share), part in judged.groupby(["setting", "allocator", "share"], sort=False):
        if among in MANY and len(part) > 3:
            own = part.set_index("which").kl
            found = evaluation.correlation(own, after[setting, among][own.index])
            rows[among, share] = [found.estimate, found.low, found.high, len(part)]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=["rho", "low", "high", "choices"])
    found.index = pd.MultiIndex.from_tuples(found.index, names=["among", "share"])
    return found


def as_cut(table: str = TABLE) -> pd.DataFrame:
    """The choices before any training, means of an allocator's: divergence and loss, by (setting, allocator)."""
    judged = tables.read(f"{table}_judged").table
    judged = judged[judged.share == 0]
    return judged.groupby(["setting", "allocator"], sort=False)[["kl", "loss", "removed"]].mean()


#: Settings of the real model and of the small one whose orders are compared, and what the same choice is called there.
BESIDE = {"50 % of the layers": "50 %", "30 % of the layers": "30 %", "20 % of the layers": "30 %"}
SAME = {"global": "global, all layers"}


def orders_alike() -> pd.DataFrame:
    """Spearman's ρ of losses after recovery, the real model's and the small one's, over the choices that both have.

    By the real model's setting, with a 95 % bootstrap interval over so few `choices`.
    """
    *reals, small = (
        tables.read(name).table.groupby(["setting", "allocator"]).loss.mean() for name in (REAL, SHARES, TABLE)
    )
    rows = {}
    for setting, other in BESIDE.items():
        real = next(table for table in reals if setting in table)
        both = {
            name: SAME.get(name, name) for name in real[setting].index if SAME.get(name, name) in small[other].index
        }
        found = evaluation.correlation(
            real[setting][list(both)], small[other][list(both.values())].set_axis(list(both))
        )
        rows[setting] = [other, found.estimate, found.low, found.high, len(both)]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["small", "rho", "low", "high", "choices"])


def real(table: str = REAL) -> pd.DataFrame:
    """A table of the real model in words, by (setting, way): loss as cut and recovered in nats, the difference from
    importance spread evenly after recovery with the verdict, and of `real_model` the share of BLiMP's pairs that are
    right, with 95 % intervals.
    """
    frame, found = tables.read(table).table, comparisons(table)
    after = frame.groupby(["setting", "allocator"], sort=False).loss.mean()
    said = (percent(found) + ": " + found.verdict.fillna("")).str.rstrip(": ")
    columns = {
        "loss as cut": as_cut(table).loss.map("{:.3f}".format),
        "recovered": after.map("{:.3f}".format),
        "recovered − uniform's, % [95 %]": said,
    }
    if table == REAL:
        pairs = blimp()
        columns |= {
            f"BLiMP {state}, % [95 %]": pairs.xs(state, level="state").said for state in ("as cut", "recovered")
        }
    return pd.DataFrame(columns).reindex(after.index).rename_axis(["setting", "way"]).fillna("")


def by_share() -> pd.DataFrame:
    """The real model by way and by share of its layers removed: loss as cut → recovered, in nats, and of what the plans
    test the difference from uniform's in % with its 95 % interval.
    """
    cells: dict[str, dict[str, str]] = {}
    for name in (REAL, SHARES):
        cut, found = as_cut(name).loss, comparisons(name)
        after = tables.read(name).table.groupby(["setting", "allocator"], sort=False).loss.mean()
        said = percent(found[found.holm.notna()]) if "holm" in found else pd.Series(dtype=str)
        for (setting, way), loss in after.items():
            text = f"{cut[setting, way]:.2f} → {loss:.2f}"
            more = f" ({said[setting, way]})" if (setting, way) in said.index else ""
            cells.setdefault(setting, {}).setdefault(way, text + more)
    shares = sorted(cells, key=lambda setting: int(setting.split()[0]))
    found = pd.DataFrame(cells)[shares].fillna("")
    ways = [way for way in found.index if way != WHOLE]
    return found.loc[[*ways, WHOLE]].rename_axis("way")


def blimp() -> pd.DataFrame:
    """The share of BLiMP's pairs whose good sentence is likelier, by (setting, allocator, state), with Wilson's 95 %
    interval: `share`, `low`, `high`, `pairs`; and in words.
    """
    counted = tables.read("blimp").table.fillna({"setting": ""})
    counted = counted.groupby(["setting", "allocator", "state"], sort=False)[["right", "pairs"]].sum()
    rows = {}
    for key, row in counted.iterrows():
        ends = stats.binomtest(int(row.right), int(row.pairs)).proportion_ci(method="wilson")
        share = row.right / row.pairs
        rows[key] = [
            share,
            ends.low,
            ends.high,
            row.pairs,
            f"{100 * share:.1f} [{100 * ends.low:.1f}, {100 * ends.high:.1f}]",
        ]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=["share", "low", "high", "pairs", "said"])
    found.index = pd.MultiIndex.from_tuples(found.index, names=counted.index.names)
    return found


def shape(setting: str, allocator: str, which: int | None = None) -> dict[str, int]:
    """The levels of an allocator's choice, by part; of one search, where there were several."""
    frame = tables.read(TABLE).table
    own = frame[(frame.setting == setting) & (frame.allocator == allocator)]
    own = own if which is None else own[own.which == which]
    return read(own.levels.iloc[0], subject("language").shapes).levels


def made_up() -> pd.DataFrame:
    """What the choices within bytes are made of, by (allocator, search): the share of all parameters removed, the mean
    bits and rank of the matrices that are left, the bytes, and the loss after recovery in nats.
    """
    frame, whole, rows = tables.read(JOINT).table, subject("language").shapes, {}
    for (allocator, which), part in frame.groupby(["allocator", frame.which.fillna(0)], sort=False):
        first, choice = part.iloc[0], read(part.levels.iloc[0], whole)
        gone = {part for part, level in choice.levels.items() if level == whole.groups[part]}
        left = [name for name, each in whole.matrices.items() if each.part not in gone]
        bits, rank = ([of.get(name, none) for name in left] for of, none in ((choice.bits, 16), (choice.ranks, 0)))
        means = [sum(values) / len(left) for values in (bits, rank)]
        rows[allocator, which] = [100 * first.removed, *means, first.memory / 1e3, part.loss.mean()]
    columns = ["removed, %", "bits, mean", "rank, mean", "kB", "loss, nats"]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    found.index = pd.MultiIndex.from_tuples(found.index, names=["choice", "search"])
    return found

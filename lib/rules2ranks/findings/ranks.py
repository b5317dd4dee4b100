"""What the tables of ranks and of bits say: who beats the uniform choice, who is as good, and what is not decided.

An effect is the logarithm of a loss over the baseline's (uniform, unless the plan says so) under the same seed: its
mean says by which share the loss is higher, and is comparable over settings. What was drawn beside the seeds (searches,
random vectors) is drawn again in the interval too: `evaluation.crossed`.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from rules2ranks import evaluation, search, tables
from rules2ranks.evaluation.intervals import MIN_POINTS
from rules2ranks.tables import ALONE, plans

TABLES = ("rank_adaptor", "rank_settings")
UNIFORM, RANDOM = "uniform", "random vectors"
#: Not at equal parameters, and not at this setting's rate: they show what more rank or a better rate would bring.
DOUBLE, BEST = "uniform, twice the rank", "uniform, best rate"


def _wide(part: pd.DataFrame, allocator: str, what: str) -> pd.DataFrame:
    """An allocator's scores in one setting: a row a vector (a search, a random one), a column a report seed."""
    own = part[part.allocator == allocator].astype({"report_seed": int})
    return own.assign(which=own.which.fillna(0)).pivot(index="which", columns="report_seed", values=what).astype(float)


def effects(part: pd.DataFrame, allocator: str, what: str = "loss", baseline: str = UNIFORM) -> pd.DataFrame:
    """Vectors × report seeds of one setting: log(loss / baseline's); of an accuracy the difference to it."""
    own, other = _wide(part, allocator, what), _wide(part, baseline, what).iloc[0]
    return np.log(own / other[own.columns]) if what == "loss" else own - other[own.columns]


def comparisons(table: str = "rank_adaptor") -> pd.DataFrame:
    """Every allocator against the baseline of its setting (uniform, unless the plan says so), by (setting, allocator).

    `baseline`: its mean loss in nats; `estimate`, `low`, `high`: the share by which the allocator's loss is higher,
    with the 95 % interval; `p` two-sided. Of what the plan names as confirmatory also `holm` (corrected over all of
    them), `equivalence` (p of two one-sided tests against the plan's margin, corrected too), `smallest` (the share that
    could have been shown with the plan's power at the first step of the correction) and the `verdict`. What cannot
    differ from the baseline, or has the very vectors of another allocator, says so instead and is not counted.
    """
    plan, frame = plans.read(table), tables.read(table).table
    rows, found = {}, {}
    for setting, part in frame.groupby("setting", sort=False):
        baseline = plan.baseline.get(setting, UNIFORM)
        loss = _wide(part, baseline, "loss").to_numpy().mean()
        for name in part.allocator.unique():
            if name not in (baseline, ALONE):
                effect = effects(part, name, baseline=baseline)
                same = _same(part, name, baseline, plan.confirmatory)
                if effect.shape[1] < MIN_POINTS:  # shown beside, under so few seeds that no interval can be had
                    rows[setting, name] = [loss, math.expm1(effect.to_numpy().mean()), *[math.nan] * 3, same]
                    continue
                found[setting, name] = here = evaluation.crossed(effect)
                rows[setting, name] = [loss, *(math.expm1(x) for x in here[:3]), here.p, same]
    effect = by_key(rows, ["baseline", "estimate", "low", "high", "p", "verdict"])
    tested = [key for key in effect.index if key[1] in plan.confirmatory and not effect.verdict[key]]
    return judged(effect.join(corrected({key: found[key] for key in tested}, plan)), plan) if tested else effect


def by_key(rows: dict[tuple[str, str], list], columns: list[str]) -> pd.DataFrame:
    found = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    found.index = pd.MultiIndex.from_tuples(found.index, names=["setting", "allocator"])
    return found


def _same(part: pd.DataFrame, name: str, baseline: str, confirmatory: Sequence[str]) -> str:
    """Why an allocator is no test of its own: its vectors are the baseline's or an earlier allocator's; else empty."""
    chosen = "levels" if "levels" in part else "ranks"
    vectors = part.groupby("allocator", sort=False)[chosen].agg(lambda some: tuple(sorted(set(some.dropna()))))
    before = [baseline, *(other for other in confirmatory if other in vectors and other != baseline)]
    earlier = before[: before.index(name)] if name in before else before[:1]
    return next((f"the same as {other}" for other in earlier if vectors[other] == vectors[name] != ()), "")


def corrected(found: dict[tuple[str, str], evaluation.Crossed], plan: plans.Plan) -> pd.DataFrame:
    """The tests of what is confirmatory, corrected over all of it."""
    margin, level = (math.log(1 - plan.margin), math.log(1 + plan.margin)), plan.level / len(found)
    rows = {
        key: [each.p, each.within(*margin), math.expm1(each.smallest(plan.power, level))] for key, each in found.items()
    }
    tests = by_key(rows, ["holm", "equivalence", "smallest"])
    return tests.assign(holm=evaluation.holm(tests.holm), equivalence=evaluation.holm(tests.equivalence))


def judged(effect: pd.DataFrame, plan: plans.Plan) -> pd.DataFrame:
    """Effects with a verdict where they were tested."""
    differs, alike = effect.holm < plan.level, effect.equivalence < plan.level
    side = np.where(effect.estimate < 0, "better", "worse")
    verdict = np.select(
        [differs & alike, differs, alike, effect.holm.notna()],
        [side + f", by less than {100 * plan.margin:.0f} %", side, "equivalent", "undecided"],
        default=effect.verdict,
    )
    return effect.assign(verdict=verdict)


def over_settings(where: dict[str, Sequence[str]], allocators: Sequence[str]) -> pd.DataFrame:
    """The mixed-effects estimate of each allocator over settings (tables: their settings) that share report seeds.

    Searches are averaged; settings and seeds are random, so the interval speaks of other settings like these. Columns
    as `comparisons` has them, corrected over these allocators, with the number of `settings` and `seeds`.
    """
    parts = [(tables.read(name).table, setting) for name, settings in where.items() for setting in settings]
    found, sizes = {}, {}
    for name in allocators:
        means = [effects(frame[frame.setting == setting], name).mean() for frame, setting in parts]
        wide = pd.concat(means, axis=1).dropna().T
        found["over settings", name], sizes["over settings", name] = evaluation.crossed(wide), wide.shape
    plan = plans.read(TABLES[1])
    rows = {key: [*(math.expm1(x) for x in each[:3]), each.p, *sizes[key], ""] for key, each in found.items()}
    effect = by_key(rows, ["estimate", "low", "high", "p", "settings", "seeds", "verdict"])
    return judged(effect.join(corrected(found, plan)), plan).droplevel("setting")


def percent(found: pd.DataFrame) -> pd.Series:
    """Effects with their intervals to read: by how many per cent of uniform's the loss is higher."""
    ends = ["" if math.isnan(r.low) else f" [{100 * r.low:+.1f}, {100 * r.high:+.1f}]" for r in found.itertuples()]
    texts = [f"{100 * estimate:+.1f}{end}" for estimate, end in zip(found.estimate, ends, strict=True)]
    return pd.Series(texts, index=found.index, dtype=object)


def in_words(table: str) -> pd.DataFrame:
    """A table of choices by (setting, choice): mean loss in nats after recovery, trained parameters, bytes where they
    are what is shared out, and the difference from uniform's with its interval and verdict.
    """
    frame, found = tables.read(table).table, comparisons(table)
    frame = frame[frame.allocator != ALONE]
    mean = frame.groupby(["setting", "allocator"], sort=False)[["loss", "trained_parameters", "memory"]].mean()
    said = (percent(found) + ": " + found.verdict.fillna("")).str.rstrip(": ")
    columns = {
        "loss": mean.loss.map("{:.3f}".format),
        "trained parameters": mean.trained_parameters.map("{:,.0f}".format),
        "MB": (mean.memory / 1e6).map("{:.1f}".format).where(mean.memory.notna(), ""),
        "loss − uniform's, % [95 %]": said,
    }
    return pd.DataFrame(columns).reindex(mean.index).rename_axis(["setting", "choice"]).fillna("")


def points(table: str, setting: str, allocator: str) -> evaluation.Crossed:
    """An allocator's accuracy minus the uniform rank's, in points."""
    frame = tables.read(table).table
    return evaluation.crossed(100 * effects(frame[frame.setting == setting], allocator, "accuracy"))


def baselines(table: str = "rank_adaptor") -> pd.DataFrame:
    """Mean losses by setting: the pruned model as it is, the uniform rank here, at its best rate, and doubled."""
    frame = tables.read(table).table
    mean = frame.groupby(["setting", "allocator"], sort=False).loss.mean().unstack("allocator")
    mean[BEST] = mean[BEST].fillna(mean[UNIFORM]) if BEST in mean else mean[UNIFORM]
    return mean.loc[frame.setting.unique(), [ALONE, UNIFORM, BEST, DOUBLE]]


def curse(table: str = "rank_adaptor") -> pd.DataFrame:
    """What searches promised and what was left, by (setting, allocator, search seed), as shares of uniform's loss.

    `promised`: of the chosen vector on the search's examples under the search's own seed; `kept`: of the same vector on
    the report's examples under fresh seeds.
    """
    searched, report = tables.read(f"{table}_search").table, tables.read(table).table
    rows = {}
    for (setting, seed), part in searched.groupby(["setting", "search_seed"], sort=False):
        uniform = part[part.allocator == UNIFORM].measured.item()
        for name, history in part[part.allocator != UNIFORM].groupby("allocator", sort=False):
            own = history[history.phase == "exact"]  # what a searcher chose for other reasons than its score
            chosen = own.measured.item() if len(own) else history.measured.min()
            fresh = effects(report[report.setting == setting], name).loc[seed].mean()
            rows[setting, name, seed] = [chosen / uniform - 1, math.expm1(fresh)]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=["promised", "kept"]).astype(float)
    found.index = pd.MultiIndex.from_tuples(found.index, names=["setting", "allocator", "search seed"])
    return found


def best_of_n(setting: str, table: str = "rank_adaptor") -> pd.DataFrame:
    """The best of N random vectors by one report seed, against uniform: under that seed, and under the others.

    A row for each N, the mean effect over seeds and over the orders in which the vectors are drawn: what taking the
    best of many noisy measurements shows, and what it is worth.
    """
    frame = tables.read(table).table
    gain = effects(frame[frame.setting == setting], RANDOM).to_numpy()
    elsewhere = (gain.sum(1, keepdims=True) - gain) / (gain.shape[1] - 1)
    randomness = np.random.Generator(np.random.Philox(0))
    orders = np.stack([randomness.permutation(len(gain)) for _ in range(500)])
    rows = {}
    for n in range(1, len(gain) + 1):
        first = gain[orders[:, :n]]  # (orders, n, seeds)
        pick = np.take_along_axis(orders[:, :n, None], first.argmin(1)[:, None], 1)[:, 0]
        seeds = np.arange(gain.shape[1])
        rows[n] = [gain[pick, seeds].mean(), elsewhere[pick, seeds].mean()]
    return np.expm1(
        pd.DataFrame.from_dict(rows, orient="index", columns=["as selected", "on other seeds"]).rename_axis("N")
    )


def explained(table: str = "rank_adaptor") -> pd.DataFrame:
    """How much of the loss a model of the ranks explains on vectors that it has not seen, and how much it could.

    By setting, on the same random vectors under the same seeds: five-fold cross-validated R² under one seed, the mean
    over seeds, of RankAdaptor's MLP and of the additive concave model; and the ceiling, the share of the variance under
    one seed that is the vectors' (analysis of variance), beside the standard deviations behind it, in nats.
    """

    def mlp(train, values, test):
        return search.PerformanceModel(int(np.max(train))).fit(train, values, seed=0).predict(test)

    def additive(train, values, test):
        return search.AdditiveModel.fit(train, values).predict(test)

    frame, rows = tables.read(table).table, {}
    for setting, part in frame[frame.allocator == RANDOM].groupby("setting", sort=False):
        wide = _wide(part, RANDOM, "loss")
        vectors = _vectors(part.drop_duplicates("which").set_index("which").ranks[wide.index])
        r2 = [
            np.mean([search.cross_validated_r2(fit, vectors, wide[seed], folds=5, seed=0) for seed in wide])
            for fit in (mlp, additive)
        ]
        spread = evaluation.two_way(wide)
        rows[setting] = [*wide.shape, *r2, spread.explained, spread.rows, spread.seeds, spread.noise]
    columns = ["vectors", "seeds", "five-layer MLP", "additive concave", "ceiling", "sd of vectors", "sd of seeds"]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=[*columns, "noise"])
    return found.astype({"vectors": int, "seeds": int}).rename_axis("setting")


def _vectors(written: pd.Series) -> list[tuple[int, ...]]:
    """Rank vectors of one length: by layer, or by every matrix that some vector names."""
    read = [tables.read_ranks(text) for text in written]
    names = sorted({name for ranks in read if isinstance(ranks, dict) for name in ranks})
    return [tuple(ranks.get(name, 0) for name in names) if isinstance(ranks, dict) else tuple(ranks) for ranks in read]

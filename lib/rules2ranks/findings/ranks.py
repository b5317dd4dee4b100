"""What the reference tables of ranks say: who beats uniform, by how much, and how much could be gained at all."""

import numpy as np
import pandas as pd

from rules2ranks import evaluation, search, tables

TABLES = ("rank_adaptor", "rank_settings")
#: Not at equal parameters: it shows what more rank would bring.
DOUBLE = "uniform, twice the rank"


def differences(table: str = "rank_adaptor", what: str = "loss") -> pd.DataFrame:
    """Every allocator minus the uniform rank, by (setting, allocator), paired by report seed.

    Several vectors of one allocator (two searches, some random ones) are averaged first. Columns: `uniform` its mean,
    `estimate`, `low`, `high` of the paired difference, the sign-flip `p`, `holm` corrected over all allocators at equal
    parameters in the table, `smallest` effect that would have been found with a power of 0.8, and `vectors`.
    """
    rows = {}
    frame, _ = tables.read(table)
    for setting, part in frame.groupby("setting", sort=False):
        mean = part.groupby(["allocator", "report_seed"], sort=False)[what].mean().unstack("allocator").astype(float)
        vectors = part.groupby("allocator").ranks.nunique()
        for name in part.allocator.unique():
            if name != "uniform":
                found = evaluation.paired(mean[name], mean.uniform)
                smallest = evaluation.smallest_effect(mean[name] - mean.uniform) if name != DOUBLE else np.nan
                rows[setting, name] = [mean.uniform.mean(), *found[:4], smallest, vectors[name]]
    columns = ["uniform", "estimate", "low", "high", "p", "smallest", "vectors"]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    found.index = pd.MultiIndex.from_tuples(found.index, names=["setting", "allocator"])
    equal = found.index.get_level_values("allocator") != DOUBLE
    found["holm"] = np.nan
    found.loc[equal, "holm"] = evaluation.holm(found.p[equal].tolist())
    return found.astype({"vectors": int})


def beats_uniform(found: pd.DataFrame, better: int = -1) -> pd.Series:
    """The criterion that notebook 32 stated: all of the interval on the better side of zero, and Holm's p below 0.05.

    `found` as `differences` gives it; `better` is -1 for a loss, 1 for an accuracy.
    """
    edge = found.high if better < 0 else -found.low
    return (edge < 0) & (found.holm < 0.05)


def curse(table: str = "rank_adaptor") -> pd.DataFrame:
    """What searches promised and what was left: a row for each (setting, allocator, search seed), in nats to uniform.

    `promised`: the chosen vector minus the uniform rank on the search's examples under the search's own seed;
    `kept`: the same vectors on the report's examples under fresh seeds.
    """
    searched, _ = tables.read(f"{table}_search")
    report, _ = tables.read(table)
    mean = report.groupby(["setting", "allocator", "which"], dropna=False).loss.mean()
    rows = {}
    for (setting, seed), part in searched.groupby(["setting", "search_seed"], sort=False):
        uniform = part[part.allocator == "uniform"].measured.item()
        for name, history in part[part.allocator != "uniform"].groupby("allocator", sort=False):
            own = history[history.phase == "exact"]  # what a searcher chose for other reasons than its score
            chosen = own.measured.item() if len(own) else history.measured.min()
            fresh = mean[setting, name, seed] - mean[setting, "uniform"].item()
            rows[setting, name, seed] = [chosen - uniform, fresh]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=["promised", "kept"]).astype(float)
    found.index = pd.MultiIndex.from_tuples(found.index, names=["setting", "allocator", "search seed"])
    return found


def best_of_n(setting: str, table: str = "rank_adaptor") -> pd.DataFrame:
    """The best of N equal-parameter vectors by one report seed, minus uniform: under that seed, and under the others.

    A row for each N, the mean over seeds and over the orders in which the vectors are drawn: what taking the best of
    many noisy measurements shows, and what it is worth.
    """
    frame, _ = tables.read(table)
    part = frame[(frame.setting == setting) & (frame.allocator != DOUBLE) & ~frame.allocator.str.startswith("uniform,")]
    wide = part.drop_duplicates(["ranks", "report_seed"]).pivot(index="ranks", columns="report_seed", values="loss")
    uniform = part[part.allocator == "uniform"].ranks.iloc[0]
    gain = (wide - wide.loc[uniform]).drop(index=uniform).to_numpy(float)
    elsewhere = (gain.sum(1, keepdims=True) - gain) / (gain.shape[1] - 1)
    randomness = np.random.Generator(np.random.Philox(0))
    orders = np.stack([randomness.permutation(len(gain)) for _ in range(500)])
    rows = {}
    for n in range(1, len(gain) + 1):
        first = gain[orders[:, :n]]  # (orders, n, seeds)
        pick = np.take_along_axis(orders[:, :n, None], first.argmin(1)[:, None], 1)[:, 0]
        seeds = np.arange(gain.shape[1])
        rows[n] = [gain[pick, seeds].mean(), elsewhere[pick, seeds].mean()]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["as selected", "on other seeds"]).rename_axis("N")


def spread_of_vectors(table: str = "rank_adaptor") -> pd.DataFrame:
    """By setting, standard deviations of the loss between rank vectors, between seeds, and of what neither explains.

    All reported vectors at equal parameters under the same report seeds; `ceiling` is the share of the variance under
    one seed that a model of the ranks could explain.
    """
    frame, _ = tables.read(table)
    rows = {}
    for setting, part in frame.groupby("setting", sort=False):
        part = part[(part.allocator != DOUBLE) & ~part.allocator.str.startswith("uniform,")]
        wide = part.drop_duplicates(["ranks", "report_seed"]).pivot(index="ranks", columns="report_seed", values="loss")
        found = evaluation.two_way(wide)
        rows[setting] = [len(wide), *found, found.explained]
    columns = ["vectors", "sd of vectors", "sd of seeds", "noise", "F", "p", "ceiling"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("setting")


def explained(table: str = "rank_adaptor") -> pd.DataFrame:
    """How much of the loss a model explains on rank vectors that it has not seen: five-fold cross-validated R².

    A row for each (setting, search seed), over the random vectors that were measured under that seed; RankAdaptor's
    MLP, and the additive concave model.
    """

    def mlp(train, values, test):
        return search.PerformanceModel(int(np.max(train))).fit(train, values, seed=0).predict(test)

    def additive(train, values, test):
        return search.AdditiveModel.fit(train, values).predict(test)

    searched, _ = tables.read(f"{table}_search")
    drawn = searched[searched.phase.isin(["random", "offline"])].drop_duplicates(["setting", "search_seed", "ranks"])
    rows = {}
    for (setting, seed), part in drawn.groupby(["setting", "search_seed"], sort=False):
        vectors, scores = _vectors(part.ranks), part.measured.tolist()
        r2 = [search.cross_validated_r2(fit, vectors, scores, folds=5, seed=0) for fit in (mlp, additive)]
        rows[setting, seed] = [len(vectors), *r2]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=["vectors", "five-layer MLP", "additive concave"])
    found.index = pd.MultiIndex.from_tuples(found.index, names=["setting", "search seed"])
    return found.astype({"vectors": int})


def _vectors(written: pd.Series) -> list[tuple[int, ...]]:
    """Rank vectors of one length: by layer, or by every matrix that some vector names."""
    read = [tables.read_ranks(text) for text in written]
    names = sorted({name for ranks in read if isinstance(ranks, dict) for name in ranks})
    return [tuple(ranks.get(name, 0) for name in names) if isinstance(ranks, dict) else tuple(ranks) for ranks in read]

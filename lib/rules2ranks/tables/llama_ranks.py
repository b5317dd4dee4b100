"""What RankAdaptor's authors measured on LLaMA-7B and Vicuna-7B, asked again: the table `llama_ranks`.

    python -m rules2ranks.tables.llama_ranks FILE

FILE is the reader's own copy of `dataset/merged_file_v4.json` of github.com/yuhua-zhou/LaRA, which has no licence and
is not shipped here. `data/reference/llama_ranks.csv` holds what is derived from it, and no record of it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from rules2ranks import evaluation, runs, search, tables
from rules2ranks.evaluation.benchmarks import SEVEN
from rules2ranks.evaluation.intervals import philox
from rules2ranks.tables import Rows
from rules2ranks.tables.replay import best_so_far

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SHA256 = "8af8b3a2167c52e685590ac71848a1f8988d4b505df0fe79eceb7535d6f8dc30"
#: Questions in the public sets that each task is scored on, in the order of `SEVEN`.
ITEMS = (3270, 1838, 10042, 1267, 2376, 1172, 500)
#: The file is these of the authors' `dataset/raw_data/`, one after the other: the row at which each begins. That of 28
#: July holds the one of 22 July once more, and that one the 50 % rows of 13 July.
PARTS = {0: "data_20240621", 101: "data_20240713", 128: "data_20241029", 548: "data_20240722", 629: "data_20240728"}
UNIFORM = 8
#: The groups in which searches are replayed, each with the sample that they choose from.
REPLAYED = {("LLaMA-7B", 50): ("each vector once", "one raw file"), ("LLaMA-7B", 20): ("each vector once",)}
SEARCHERS = {"random search": 200, "additive": 200, "TPE": 50, "RankAdaptor": 50}
MEASURED = (5, 10, 15, 20, 30, 40)
Fit = Callable[[Floats, Floats, Floats], Floats]


class Sample(NamedTuple):
    """Rank vectors (n, layers), accuracies (n, 7) in %, and the row of the file at which each first stands (n,)."""

    ranks: Integers
    accuracies: Floats
    rows: Integers

    @property
    def average(self) -> Floats:
        return self.accuracies.mean(axis=1)


def read(path: str | Path) -> dict[tuple[str, int], Sample]:
    """The measurements by model and share removed (%), as they stand in the file. ValueError for another file."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if (found := runs.sha256(path)) != SHA256:
        raise ValueError(f"{path} is not the file that the table was made from: wanted sha256 {SHA256}, found {found}")
    return grouped(json.loads(path.read_text(encoding="utf-8")))


def grouped(records: Sequence[dict]) -> dict[tuple[str, int], Sample]:
    """Records as the file has them, by model and share removed."""
    found: dict[tuple[str, int], list[int]] = {}
    for row, record in enumerate(records):
        model, _, rate = record["name"].partition("_")
        name = {"llama-7b": "LLaMA-7B", "vicuna-7b": "Vicuna-7B"}[model]
        found.setdefault((name, round(100 * float(rate))), []).append(row)
    ranks = np.array([record["rank_list"] for record in records]).astype(np.int64)
    scores = np.array([[100 * record["performance"][task] for task in SEVEN] for record in records])
    return {key: Sample(ranks[rows], scores[rows], np.array(rows)) for key, rows in sorted(found.items())}


def samples(group: Sample) -> dict[str, Sample]:
    """A group as published, with each vector once (the mean of its rows), and of these its largest raw file."""
    _, first, which = np.unique(group.ranks, axis=0, return_index=True, return_inverse=True)
    which = which.ravel()
    mean = np.stack([group.accuracies[which == vector].mean(axis=0) for vector in range(len(first))])
    order = np.argsort(first)
    once = Sample(group.ranks[first[order]], mean[order], group.rows[first[order]])
    part = _part(once)
    largest = part == np.bincount(part).argmax()
    return {"all rows": group, "each vector once": once, "one raw file": Sample(*(column[largest] for column in once))}


def _part(sample: Sample) -> Integers:
    return np.searchsorted(list(PARTS), sample.rows, "right") - 1


def uniform(sample: Sample) -> Floats:
    """The accuracies of uniform rank 8: the mean of its rows (7,)."""
    return sample.accuracies[(sample.ranks == UNIFORM).all(axis=1)].mean(axis=0)


def rerun(groups: dict[tuple[str, int], Sample]) -> tuple[float, float, float, int]:
    """Standard deviation of the average over runs of one and the same vector, its 95 % interval, degrees of freedom."""
    squares, free = 0.0, 0
    for group in groups.values():
        for vector in np.unique(group.ranks, axis=0):
            runs_of_it = np.unique(group.accuracies[(group.ranks == vector).all(axis=1)], axis=0).mean(axis=1)
            squares += ((runs_of_it - runs_of_it.mean()) ** 2).sum()
            free += len(runs_of_it) - 1
    low, high = stats.chi2.ppf([0.975, 0.025], free)
    return (squares / free) ** 0.5, (squares / low) ** 0.5, (squares / high) ** 0.5, free


def sampling_error(accuracies: ArrayLike) -> Floats:
    """Binomial standard errors (8,) of seven accuracies (7,) in %, and of their mean, in points."""
    share = np.asarray(accuracies, dtype=np.float64) / 100
    each = 100 * np.sqrt(share * (1 - share) / np.array(ITEMS))
    return np.append(each, np.sqrt((each**2).sum()) / len(each))


def best_of(n: int, levels: ArrayLike) -> Floats:
    """Quantiles of the largest of n standard normal draws: Φ⁻¹(level^(1/n))."""
    return stats.norm.ppf(np.asarray(levels) ** (1 / n))


def shrinkage(values: Floats, noise: float) -> float:
    """James and Stein's factor, positive part, towards the mean: max(0, 1 − (n − 3)·noise² / Σ(y − ȳ)²)."""
    return max(0.0, 1 - (len(values) - 3) * noise**2 / ((values - values.mean()) ** 2).sum())


def _row(analysis: str, pool: str, what: str, x: object, values: Sequence[float], n: int, how: str = "") -> dict:
    value, low, high = (*values, np.nan, np.nan)[:3]
    numbers = {"value": value, "low": low, "high": high}
    return {"analysis": analysis, "pool": pool, "what": what, "x": x, **numbers, "n": n, "how": how}


def spread(group: Sample) -> Rows:
    """How far the records differ, by task and part of the file, beside the sampling error."""
    found = []
    for pool, sample in samples(group).items():
        n, average = len(sample.ranks), sample.average
        found += [_row("spread", pool, "mean", "average", [average.mean()], n)]
        found += [_row("spread", pool, "sd", "average", [average.std(ddof=1)], n)]
        shares = [np.cov(column, average)[0, 1] / 7 / average.var(ddof=1) for column in sample.accuracies.T]
        errors = sampling_error(sample.accuracies.mean(axis=0))
        for task, column, share, error in zip(SEVEN, sample.accuracies.T, shares, errors[:7], strict=True):
            found += [_row("spread", pool, "sd", task, [column.std(ddof=1)], n)]
            found += [_row("spread", pool, "share of the variance", task, [share], n, "covariance with the average")]
            found += [_row("spread", pool, "sampling error", task, [error], n, "binomial")]
        found += [_row("spread", pool, "sampling error", "average", [errors[7]], n, "binomial")]
        total = sample.ranks.sum(axis=1)
        for what, other in (("place in the file", sample.rows), ("total rank", total)):
            known = evaluation.correlation(other, average, resamples=2000)
            found += [_row("spread", pool, f"Spearman's r with {what}", "", known[:3], n, f"p = {known.p:.2g}")]
    once = samples(group)["each vector once"]
    for part, name in enumerate(PARTS.values()):
        here = once.average[_part(once) == part]
        if len(here) >= 5:  # fewer would tell single records
            deviation = here.std(ddof=1)
            values = [here.mean(), here.mean() - deviation, here.mean() + deviation]
            found += [_row("parts", "each vector once", "mean", name, values, len(here), "± one sd")]
    return found


def best(group: Sample, noise: tuple[float, float, float]) -> Rows:
    """Whether the best of n is more than a best of n, and what is left of it; noise: sd of reruns and its interval."""
    found, base = [], uniform(group)
    for pool, sample in samples(group).items():
        n, y = len(sample.ranks), sample.average
        top = y.max() - y.mean()
        below = 100 * ((y < base.mean()).sum() + (y == base.mean()).sum() / 2) / n
        found += [_row("best", pool, "uniform's percentile", "", [below], n)]
        found += [_row("best", pool, "best − uniform", "", [y.max() - base.mean()], n)]
        drawn = y.max() - np.quantile(y, [0.975, 0.025])
        found += [_row("best", pool, "best − a vector at random", "", [top, *drawn], n, "mean, 95 % of vectors")]
        sizes = {"its own sd": y.std(ddof=1), "reruns": noise[0], "sampling": sampling_error(y.mean() * np.ones(7))[7]}
        for name, size in sizes.items():
            middle = best_of(n, (np.arange(2000) + 0.5) / 2000).mean()
            expected = size * np.append(middle, best_of(n, [0.025, 0.975]))
            p = -np.expm1(n * stats.norm.logcdf(top / size))
            found += [_row("best", pool, "best − mean by noise alone", name, expected, n, f"p = {p:.2g}")]
        factors = [shrinkage(y, sd) for sd in (noise[0], noise[2], noise[1])]
        found += [_row("best", pool, "shrinkage", "", factors, n, "James-Stein; interval from that of the noise")]
        kept = [factors[0] * (y.max() - base.mean()), *sorted(f * (y.max() - base.mean()) for f in factors[1:])]
        found += [_row("best", pool, "best − uniform, shrunk", "", kept, n, "James-Stein")]
    most = group.accuracies[:, 0].argmax()
    there = group.accuracies[most] - base
    found += [_row("best", "all rows", "best BoolQ − uniform's", "boolq", [there[0]], len(group.ranks))]
    found += [_row("best", "all rows", "best BoolQ − uniform's", "average", [there.mean()], len(group.ranks))]
    return found


def layers(group: Sample, resamples: int = 2000) -> Rows:
    """Where in depth the ranks go: each layer's correlation with the average, and the best tenth's mean rank."""
    found = []
    for pool in ("each vector once", "one raw file"):
        sample = samples(group)[pool]
        searched = np.flatnonzero(np.ptp(sample.ranks, axis=0))
        ranks, y, n = sample.ranks[:, searched].astype(np.float64), sample.average, len(sample.ranks)

        def correlations(places: Integers, scores: Floats, ranks: Floats = ranks) -> Floats:
            x = ranks[places] - ranks[places].mean(axis=0)
            z = scores - scores.mean()
            return z @ x / np.sqrt((x**2).sum(axis=0) * (z**2).sum()).clip(1e-12)

        def tenth(places: Integers, ranks: Floats = ranks, y: Floats = y) -> Floats:
            top = places[np.argsort(-y[places], kind="stable")[: max(2, round(len(places) / 10))]]
            return ranks[top].mean(axis=0) - ranks[places].mean(axis=0)

        everyone, randomness = np.arange(n), philox(0)
        picks = randomness.integers(0, n, (resamples, n))
        estimate = correlations(everyone, y)
        null = np.array([np.abs(correlations(everyone, randomness.permutation(y))).max() for _ in range(resamples)])
        ends = np.quantile([correlations(pick, y[pick]) for pick in picks], [0.025, 0.975], axis=0)
        tenths = np.quantile([tenth(pick) for pick in picks], [0.025, 0.975], axis=0)
        for place, layer in enumerate(searched.tolist()):
            p = (1 + (null >= abs(estimate[place])).sum()) / (1 + resamples)
            values = [estimate[place], *ends[:, place]]
            found += [_row("layers", pool, "correlation", layer, values, n, f"p = {p:.2g} over all layers")]
            values = [tenth(everyone)[place], *tenths[:, place]]
            found += [_row("layers", pool, "rank of the best tenth − mean rank", layer, values, n, "bootstrap")]
    return found


def models(largest: int) -> dict[str, Fit]:
    """What is fitted, each as fit and predict. The ridge of the linear ones is chosen on the training folds alone."""

    def mlp(train: Floats, scores: Floats, test: Floats) -> Floats:
        return search.PerformanceModel(largest).fit(train, scores, seed=0).predict(test)

    def additive(train: Floats, scores: Floats, test: Floats) -> Floats:
        return search.AdditiveModel.fit(train, scores).predict(test)

    def ridge(train: Floats, scores: Floats, test: Floats) -> Floats:
        # The additive model is linear in log(1 + x).
        return additive(np.expm1(train / largest), scores, np.expm1(test / largest))

    return {"MLP": mlp, "additive": additive, "ridge": ridge}


def explained(sample: Sample, fit: Fit, *, repeats: int, shuffles: int, folds: int = 10) -> tuple[Floats, Floats]:
    """Cross-validated R² under other foldings (repeats,), and with the scores shuffled between vectors (shuffles,)."""
    x, (_, which) = sample.ranks.astype(np.float64), np.unique(sample.ranks, axis=0, return_inverse=True)
    which = which.ravel()
    by_vector = np.bincount(which, sample.average) / np.bincount(which)
    randomness = philox(1)
    real = [search.cross_validated_r2(fit, x, sample.average, folds=folds, seed=seed) for seed in range(repeats)]
    null = [
        search.cross_validated_r2(fit, x, randomness.permutation(by_vector)[which], folds=folds, seed=seed)
        for seed in range(shuffles)
    ]
    return np.array(real), np.array(null)


def r2(group: Sample) -> Rows:
    """What the ranks explain of the average, and what the same models seem to explain where nothing is to be."""
    found = []
    for pool, sample in samples(group).items():
        for name, fit in models(int(group.ranks.max())).items():
            repeats, shuffles = (5, 40) if name == "MLP" else (20, 200)
            real, null = explained(sample, fit, repeats=repeats, shuffles=shuffles)
            p, n = (1 + (null >= real.mean()).sum()) / (1 + shuffles), len(sample.ranks)
            values = [real.mean(), *np.quantile(real, [0.025, 0.975])]
            found += [_row("R²", pool, name, "", values, n, f"{repeats} foldings; p = {p:.2g}")]
            values = [null.mean(), *np.quantile(null, [0.025, 0.975])]
            found += [_row("R²", pool, f"{name}, scores shuffled", "", values, n, f"{shuffles} shuffles")]
    return found


def replays(pool: str, sample: Sample, searchers: dict[str, int] = SEARCHERS) -> Rows:
    """Best in the sample minus best found, after some measurements: mean over seeds with its interval."""
    found = []
    for name, seeds in searchers.items():
        if name == "additive":  # its model sees all but the last
            of = [[best_so_far(*_scored(sample), name, limit=n, seed=s)[-1] for n in MEASURED] for s in range(seeds)]
        else:
            most = max(MEASURED)
            whole = [best_so_far(*_scored(sample), name, limit=most, seed=seed) for seed in range(seeds)]
            of = np.array(whole)[:, np.array(MEASURED) - 1]
        for n, values in zip(MEASURED, (sample.average.max() - np.array(of)).T, strict=True):
            interval = evaluation.mean_interval(values)
            found += [_row("replay", pool, name, n, interval, len(sample.ranks), f"{seeds} seeds")]
    return found


def _scored(sample: Sample) -> tuple[Integers, Floats]:
    return sample.ranks, sample.average


def make(groups: dict[tuple[str, int], Sample], only: Sequence[str] = (), *, say: Callable = print) -> pd.DataFrame:
    """The table; `only` some of its analyses: spread, best, layers, R², replay (the last two take an hour together)."""
    noise = rerun(groups)
    rows = [
        {"model": "all", "removed": 0}
        | _row("spread", "all rows", "sd of reruns", "average", noise[:3], noise[3], "n: degrees of freedom")
    ]
    steps: dict[str, Callable[[tuple[str, int]], Rows]] = {
        "spread": lambda key: spread(groups[key]),
        "best": lambda key: best(groups[key], noise[:3]),
        "layers": lambda key: layers(groups[key]),
        "R²": lambda key: r2(groups[key]),
        "replay": lambda key: [
            row for pool in REPLAYED.get(key, ()) for row in replays(pool, samples(groups[key])[pool])
        ],
    }
    for number, name in enumerate(only or steps, 1):
        for key in groups:
            begin = time.monotonic()
            rows += [{"model": key[0], "removed": key[1]} | row for row in steps[name](key)]
            say(f"{number}/{len(only or steps)} {name}: {key[0]}, {key[1]} %, {time.monotonic() - begin:.0f} s")
    return pd.DataFrame(rows).round(6).astype({"x": str})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m rules2ranks.tables.llama_ranks", description=__doc__)
    parser.add_argument("file", metavar="FILE", type=Path)
    asked = parser.parse_args(arguments)
    begin = time.monotonic()
    try:
        groups = read(asked.file)
    except ValueError as error:
        parser.error(str(error))
    table = make(groups, say=lambda text: print(text, flush=True))
    about = {"command": "python -m rules2ranks.tables.llama_ranks FILE", "settings": {"sha256": SHA256}}
    tables.write(tables.place("llama_ranks"), table, about, time.monotonic() - begin)


if __name__ == "__main__":
    main()

"""Scores over seeds: bootstrap intervals, correlations over rules, paired comparisons, and a bridge to lm-eval.

Everything resamples from an explicit seed, so the same data give the same interval. Nothing here imports torch,
except `benchmark`, which needs the optional extra ``llm``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from importlib import metadata
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Kind = Literal["spearman", "pearson"]

MIN_POINTS = 3


def _show(numbers: Sequence[float], spec: str) -> str:
    estimate, low, high = (format(number, spec or ".2f") for number in numbers)
    return f"{estimate} [{low}, {high}]"


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval; ``f"{interval:.3f}"`` sets the digits."""

    estimate: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return _show(self, spec)

    def __str__(self) -> str:
        return format(self)


class Paired(NamedTuple):
    """The mean difference over `n` shared seeds, its interval, and the two-sided p of the sign-flip test."""

    estimate: float
    low: float
    high: float
    sign_flip_p: float
    n: int

    def __format__(self, spec: str) -> str:
        return _show(self[:3], spec)

    def __str__(self) -> str:
        return f"{format(self)} (p = {self.sign_flip_p:.2g}, n = {self.n})"


class Correlation(NamedTuple):
    """A correlation over `n` points, its interval and permutation p; `reason` says why it is NaN, where it is."""

    estimate: float
    low: float
    high: float
    p: float
    n: int
    reason: str = ""

    def __format__(self, spec: str) -> str:
        return _show(self[:3], spec)

    def __str__(self) -> str:
        return f"undefined: {self.reason}" if self.reason else f"{format(self)} (p = {self.p:.2g}, n = {self.n})"


def mean_interval(values: ArrayLike, *, seed: int = 0, resamples: int = 10_000, level: float = 0.95) -> Interval:
    """Mean of a sample (one value per seed) with an expanded percentile bootstrap interval.

    The plain percentile interval is too narrow for a handful of seeds: it takes the sample's variance with n instead
    of n-1 and normal instead of t quantiles. Here both are put right by taking wider percentiles (Hesterberg 2015,
    "What Teachers Should Know About the Bootstrap", section 3.3). At 3 or 4 values that is their whole range.

    `values` (n,) finite, n >= 3. Raises ValueError for fewer points, NaN, infinities, or a level outside (0, 1).
    """
    sample = _vector(values, "values")
    _check_resampling(len(sample), resamples, level, "values")
    picks = _generator(seed).integers(0, len(sample), (resamples, len(sample)))
    n = len(sample)
    tail = float(stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf((1 - level) / 2, n - 1)))
    low, high = np.quantile(sample[picks].mean(axis=1), [tail, 1 - tail])
    return Interval(float(sample.mean()), float(low), float(high))


def paired(
    a: ArrayLike | pd.Series, b: ArrayLike | pd.Series, *, seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> Paired:
    """Mean of a - b over shared seeds: bootstrap interval as in `mean_interval`, and a two-sided sign-flip test.

    `a`, `b`: (n,) with the same seed at the same place, or two pandas Series indexed by seed, of which the seeds that
    both have are compared. The test asks how often random signs of the differences give a mean as far from zero; all
    2^n signs are taken where they are no more than `resamples`. With n seeds its p cannot be below 2 / 2^n.

    Raises ValueError for unequal lengths, fewer than 3 shared seeds, a seed that stands twice, NaN or infinities.
    """
    if isinstance(a, pd.Series) and isinstance(b, pd.Series):
        for name, series in (("a", a), ("b", b)):
            if not series.index.is_unique:
                raise ValueError(f"{name} must hold each seed once, got {series.index.tolist()}")
        shared = a.index.intersection(b.index)
        a, b = a.loc[shared], b.loc[shared]
    first, second = _vector(a, "a"), _vector(b, "b")
    _same_length(first, second, "a", "b")
    difference = first - second
    interval = mean_interval(difference, seed=seed, resamples=resamples, level=level)
    n = len(difference)
    if 2**n <= resamples:
        signs = np.array(list(itertools.product((1, -1), repeat=n)))
    else:
        signs = _generator(seed, stream=1).choice((1, -1), (resamples, n))
    return Paired(*interval, _two_sided(signs @ difference, difference.sum(), exact=2**n <= resamples), n)


def correlation(
    x: ArrayLike,
    y: ArrayLike | pd.DataFrame,
    *,
    kind: Kind = "spearman",
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
) -> Correlation:
    """Correlation of x with the mean of y over seeds, with a hierarchical bootstrap interval and a permutation p.

    The points are *rules*: runs of one rule with several seeds are no more than one point. The interval resamples
    rules, then within each drawn rule its seeds (percentiles; resamples in which a side is constant are left out).
    p is two-sided: how often does shuffling the rules give as strong a correlation (all n! orders for n <= 7).

    `x` (n,); `y` (n,) or (n, seeds), a DataFrame too. Or one entry per run: `x` and `y` (runs,) and `clusters`
    (runs,), the rule of each; x must be the same in all runs of a rule, and rules may have unequal numbers of seeds.
    A constant side gives a NaN estimate and a `reason`. Raises ValueError for an unknown kind, unequal lengths,
    fewer than 3 points, NaN or infinities.
    """
    if kind not in ("spearman", "pearson"):
        raise ValueError(f"kind must be 'spearman' or 'pearson', got {kind!r}")
    points, scores, seeds = _points(x, y, clusters)
    n = len(points)
    _check_resampling(n, resamples, level, "points")
    means = scores.sum(axis=1) / seeds
    for name, side in (("x", points), ("y", means)):
        if _constant(side):
            reason = f"{name} is constant ({side[0]:g} at all {n} points)"
            return Correlation(math.nan, math.nan, math.nan, math.nan, n, reason)

    standard_x, standard_y = _standardise(points, kind), _standardise(means, kind)
    estimate = float(standard_x @ standard_y)
    orders = _orders(n, seed, resamples)
    p = _two_sided(standard_x[orders] @ standard_y, estimate, exact=len(orders) == math.factorial(n))

    generator = _generator(seed, stream=1)
    picks = generator.integers(0, n, (resamples, n))
    total, count = np.zeros(picks.shape), seeds[picks]
    for place in range(scores.shape[1]):
        total += np.where(place < count, scores[picks, generator.integers(0, count)], 0)
    drawn = (_standardise(points[picks], kind) * _standardise(total / count, kind)).sum(axis=1)
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Correlation(estimate, float(low), float(high), p, n)


def _points(
    x: ArrayLike, y: ArrayLike | pd.DataFrame, clusters: Sequence[Hashable] | None
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """x per rule (n,), scores (n, most seeds) with zeros behind each rule's own, and the number of seeds (n,)."""
    points = _vector(x, "x")
    scores = np.asarray(y, dtype=np.float64)
    if scores.ndim not in (1, 2) or (scores.ndim == 2 and (scores.shape[1] == 0 or clusters is not None)):
        expected = "(runs,) beside clusters" if clusters is not None else "(rules,) or (rules, seeds)"
        raise ValueError(f"y must have the shape {expected}, got {scores.shape}")
    _same_length(points, scores, "x", "y")
    _finite(scores, "y")
    if clusters is None:
        scores = scores.reshape(len(points), -1)
        return points, scores, np.full(len(points), scores.shape[1], dtype=np.int64)

    if len(clusters) != len(points):
        raise ValueError(f"clusters must have one label per run ({len(points)}), got {len(clusters)}")
    labels, names = pd.factorize(pd.Series(list(clusters)))
    if (labels < 0).any():
        raise ValueError(f"clusters must hold a label for every run, none at place {int(labels.argmin())}")
    seeds = np.bincount(labels)
    first = points[np.unique(labels, return_index=True)[1]]
    uneven = np.flatnonzero(points != first[labels])
    if uneven.size:
        name = names[labels[uneven[0]]]
        raise ValueError(f"x must be the same in all runs of one cluster, but differs within {name}")
    padded = np.zeros((len(seeds), seeds.max()))
    for cluster in range(len(seeds)):
        padded[cluster, : seeds[cluster]] = scores[labels == cluster]
    return first, padded, seeds


def _constant(values: Floats) -> NDArray[np.bool_]:
    """Whether rows hold one value, up to the rounding of a mean over seeds."""
    return np.ptp(values, axis=-1) <= 1e-12 * np.abs(values).max(axis=-1)


def _standardise(values: Floats, kind: Kind) -> Floats:
    """Rows (or ranks of rows) with mean 0 and length 1, so that a product of two is their correlation; else NaN."""
    constant = _constant(values)[..., None]
    if kind == "spearman":
        values = stats.rankdata(values, axis=-1)
    centred = values - values.mean(axis=-1, keepdims=True)
    length = np.sqrt((centred**2).sum(axis=-1, keepdims=True))
    return np.divide(centred, length, out=np.full_like(centred, np.nan), where=~constant)


def _orders(n: int, seed: int, resamples: int) -> NDArray[np.int64]:
    """All n! orders where they are few (n <= 7), random ones otherwise."""
    if n <= 7:
        return np.array(list(itertools.permutations(range(n))))
    return _generator(seed).permuted(np.broadcast_to(np.arange(n), (resamples, n)), axis=1)


def _two_sided(null: Floats, observed: float, *, exact: bool) -> float:
    """Share of the null at least as far from zero; with random draws the observed one counts as a draw of its own."""
    # Equal values may differ in the last bits when summed in another order.
    extreme = np.count_nonzero(np.abs(null) >= abs(observed) * (1 - 1e-12) - 1e-14)
    return extreme / len(null) if exact else (extreme + 1) / (len(null) + 1)


def _generator(seed: int, stream: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream])))


def _finite(values: Floats, name: str) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"{name} must be finite, got {values[tuple(bad[0])]} at place {tuple(bad[0].tolist())}")


def _vector(values: ArrayLike, name: str) -> Floats:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got the shape {vector.shape}")
    _finite(vector, name)
    return vector


def _same_length(first: Floats, second: Floats, a: str, b: str) -> None:
    if len(first) != len(second):
        raise ValueError(f"{a} and {b} must have the same length, got {len(first)} and {len(second)}")


def _check_resampling(n: int, resamples: int, level: float, name: str) -> None:
    if n < MIN_POINTS:
        raise ValueError(f"at least {MIN_POINTS} {name} are needed for an interval, got {n}")
    if resamples < 100:
        raise ValueError(f"resamples must be at least 100, got {resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")


class Benchmark(NamedTuple):
    """Scores per task (acc, acc_norm and their standard errors, n, few-shot examples, the task's version), and the
    versions of the libraries that made them."""

    scores: pd.DataFrame
    versions: dict[str, str]


def benchmark(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str | dict[str, Any]],
    *,
    fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> Benchmark:
    """Public language-model benchmarks through lm-eval, on a transformers model in memory (pruned or not).

    `tasks` are lm-eval's names or task configurations; `fewshot` None leaves each task's own number; `limit` takes
    the first examples only; `seed` draws the few-shot examples. Both acc and acc_norm (likelihood per character of
    the answer) are returned, NaN where a task does not define one. The model stays where it is, in evaluation mode.
    Raises ValueError for no tasks, ImportError without the extra ``llm``.
    """
    if isinstance(tasks, str) or not tasks:
        raise ValueError(f"tasks must be a list with at least one task, got {tasks!r}")
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ImportError(
            "the public benchmarks need lm-eval: pip install -e '.[llm]' in the project's folder"
        ) from error
    results = lm_eval.simple_evaluate(
        HFLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=batch_size),
        tasks=list(tasks),
        num_fewshot=fewshot,
        limit=limit,
        log_samples=False,
        # Global random states are the caller's.
        random_seed=None,
        numpy_random_seed=None,
        torch_random_seed=None,
        fewshot_random_seed=seed,
    )
    metrics = ("acc", "acc_norm", "acc_stderr", "acc_norm_stderr")
    rows = {
        name: {metric: _number(scores.get(f"{metric},none")) for metric in metrics}
        | {
            "n": results["n-samples"][name]["effective"],
            "fewshot": results["n-shot"][name],
            "version": str(results["versions"][name]),
        }
        for name, scores in results["results"].items()
        if name in results["n-samples"]
    }
    versions = {package: metadata.version(package) for package in ("lm_eval", "transformers", "torch")}
    return Benchmark(pd.DataFrame.from_dict(rows, orient="index").rename_axis("task"), versions)


def _number(value: Any) -> float:
    """lm-eval writes a standard error that it cannot tell as the text "N/A"."""
    return float(value) if isinstance(value, int | float) else math.nan

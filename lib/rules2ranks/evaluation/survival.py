"""How long until something was learnt, and how many failures until the right answer.

`time_to_reach` and `parametric_fits` are survival analysis of training steps, where runs that never got there within
their budget are *censored*: all that is known is that it takes longer. `failures` and `survival_game` count how often
a model would be wrong before it is right.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from rules2ranks.evaluation.intervals import Floats, as_vector

IGNORED = -100
# With fewer answers there is no tail, and with fewer failures no more than a guess at one.
MIN_ANSWERS = 11
MIN_TAIL = 50
MIN_REACHED = 1 / 3
#: The shapes of waiting: scipy's law of (shape, scale), and how many of scale and shape are free; shape is 1 if not.
_FAMILIES = {
    "weibull": (stats.weibull_min, 2),
    "exponential": (stats.weibull_min, 1),
    "log_normal": (stats.lognorm, 2),
    "log_logistic": (stats.fisk, 2),
}


class TimeToReach(NamedTuple):
    """When groups get there.

    `groups`: per group the number `watched` and `reached`, the Kaplan-Meier `median` with `low` and `high` (in steps;
    infinite where fewer than half got there), and the `restricted_mean`: mean steps needed where no more than `horizon`
    are counted, which is the shortest of the groups' longest watches. `p`: of the log-rank test that all groups are
    alike; NaN where `reason` says why. `curves`: group, step, share_not_yet, low, high.
    """

    groups: pd.DataFrame
    p: float
    horizon: float
    curves: pd.DataFrame
    reason: str = ""


class SurvivalGame(NamedTuple):
    """`mean` and `variance` of all `n` failure counts; `alpha` of P(failures >= k) ~ k^-alpha over the `n_tail` in the
    tail, with its standard `error`; and the `level`, empty where `reason` says why alpha cannot be told.
    """

    mean: float
    variance: float
    alpha: float
    error: float
    level: Literal["limited", "capable", "autonomous", ""]
    n: int
    n_tail: int
    reason: str = ""


def time_to_reach(steps: ArrayLike, reached: ArrayLike, groups: ArrayLike | pd.Series) -> TimeToReach:
    """Kaplan-Meier curves per group and the log-rank test between them (Kaplan and Meier 1958; Mantel 1966).

    Intervals are at 95 %: for the curve by Greenwood's formula on log(-log), for the median where those ends cross one
    half (Brookmeyer and Crowley 1982). Where runs are looked at every k steps only, steps are late by up to k in all
    groups alike: the curves are of the check at which it was first seen.

    `steps` (n,) not negative: the step at which it was reached, or at which watching ended; `reached` (n,) bool, False
    for the latter (censored); `groups` (n,) labels. With one group, or none that reached it, p is NaN and `reason`
    says so. Raises ValueError for unequal lengths, no entries, negative steps, NaN, or a missing label.
    """
    times, events = _watched(steps, reached)
    labels = pd.Series(list(groups))
    if len(labels) != len(times) or labels.isna().any():
        raise ValueError(f"groups must hold a label for each of the {len(times)} entries, got {labels.notna().sum()}")
    members = {label: (labels == label).to_numpy() for label in labels.unique()}
    horizon = min(float(times[own].max()) for own in members.values())
    rows, curves = {}, []
    for label, own in members.items():
        curve = _kaplan_meier(times[own], events[own])
        # The first step at which a column is down to one half; shares are products, hence the margin for rounding.
        quantiles = (curve.step[curve[name] <= 0.5 + 1e-12].min() for name in ("share_not_yet", "low", "high"))
        halves = [math.inf if math.isnan(step) else float(step) for step in quantiles]
        ends = np.append(curve.step[curve.step < horizon], horizon)
        area = float(np.diff(ends) @ curve.share_not_yet[: len(ends) - 1])
        rows[label] = (int(own.sum()), int(events[own].sum()), *halves, area)
        curves.append(curve.assign(group=label)[["group", *curve]])
    reason = "only one group" if len(rows) == 1 else "" if events.any() else "nobody reached it"
    p = math.nan if reason else _log_rank(times, events, list(members.values()))
    names = ["watched", "reached", "median", "low", "high", "restricted_mean"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=names).rename_axis("group")
    return TimeToReach(table, p, horizon, pd.concat(curves, ignore_index=True), reason)


def parametric_fits(steps: ArrayLike, reached: ArrayLike, *, checked_every: float | None = None) -> pd.DataFrame:
    """Four shapes of waiting, fitted by maximum likelihood and compared by AIC (lower is better).

    The share not there yet at step t is, with `scale` in steps:

    - weibull: exp(-(t / scale)^shape); - exponential: the same with shape 1
    - log_normal: 1 - Φ(ln(t / scale) / shape); - log_logistic: 1 / (1 + (t / scale)^shape)

    `steps` (n,) positive, `reached` (n,) bool, as in `time_to_reach`. `checked_every` k: runs were looked at every k
    steps only, so one first seen at step t got there in (t - k, t]; the likelihood is then of such intervals, and its
    AIC is not to be compared with one without.

    Returns a table with the index `model` and the columns aic, median (steps), scale, shape. Raises ValueError where
    less than a third reached it, as a fit would then be all extrapolation, and for unequal lengths, steps or
    `checked_every` not above zero, arrivals all at the last step watched, or NaN.
    """
    times, events = _watched(steps, reached)
    if times.min() <= 0:
        raise ValueError(f"steps must be above zero, got {times.min():g}")
    if checked_every is not None and not checked_every > 0:
        raise ValueError(f"checked_every must be above zero, got {checked_every!r}")
    if events.mean() < MIN_REACHED:
        raise ValueError(f"a third must have reached it for a parametric fit, got {events.mean():.0%}")
    if times[events].min() == times.max():
        raise ValueError(f"a fit needs steps that differ, got arrivals at {times.max():g} only")
    rows = {name: _fit(*family, times, events, checked_every) for name, family in _FAMILIES.items()}
    names = ["aic", "median", "scale", "shape"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=names).rename_axis("model")


def failures(scores: ArrayLike, right: ArrayLike) -> Floats:
    """Failures before success: how many other answers a model would try before the right one.

    Answers are tried from the highest score down (Zhan et al. 2025, "Evaluating Intelligence via Trial and Error",
    arXiv 2502.18858). Answers that tie with the right one count one half each: a model that gives all answers the same
    score fails as often as one that guesses, (classes - 1) / 2 times; in the paper's code ties count nothing.

    `scores` (..., classes) any increasing function of the probability; `right` (...) integers in [0, classes), or -100
    where no answer is asked for: those are left out. Returns (asked,) in [0, classes - 1], in C order. Raises
    ValueError for other shapes, integers outside the range, or NaN scores where an answer is asked for.
    """
    values, answers = np.asarray(scores), np.asarray(right)
    if values.ndim == 0 or values.shape[:-1] != answers.shape:
        raise ValueError(f"scores must have the shape of right and classes, got {values.shape} and {answers.shape}")
    if not np.issubdtype(answers.dtype, np.integer):
        raise ValueError(f"right must hold integers, got {answers.dtype}")
    asked = answers != IGNORED
    values, answers = values[asked], answers[asked]
    outside = answers[(answers < 0) | (answers >= values.shape[-1])]
    if outside.size:
        raise ValueError(f"right must lie in [0, {values.shape[-1]}) or be {IGNORED}, got {outside[0]}")
    if np.isnan(values).any():
        raise ValueError("scores must not be NaN where an answer is asked for")
    own = np.take_along_axis(values, answers[:, None], axis=-1)
    return (values > own).sum(axis=-1) + ((values == own).sum(axis=-1) - 1) / 2


def survival_game(failures: ArrayLike, *, answers: int | None = None, smallest: int = 5) -> SurvivalGame:
    """How heavy the tail of the failures is, and the level of the Survival Game that goes with it.

    After Zhan et al. 2025, "Evaluating Intelligence via Trial and Error" (arXiv 2502.18858): "limited" (alpha <= 1,
    the mean of such a tail diverges), "capable" (1 < alpha <= 2, a mean but no variance), "autonomous" (alpha > 2).
    With finitely many answers all moments are finite: the level is about the tail as far as it was seen, no more.

    alpha is the maximum-likelihood exponent of a discrete power law on the failures from `smallest` on (Clauset,
    Shalizi and Newman 2009, "Power-law distributions in empirical data", with a fixed start), cut off at the largest
    possible number: blind guessing is flat up to there, which without the cut would read as a steep tail. Its density
    is k^-(alpha + 1), so flat failures have alpha = -1. `answers` is the number of possible answers; without it the
    largest number of failures seen is the cut (Aban, Meerschaert and Panorska 2006), which lowers alpha by less than
    its standard error. A power law is assumed, not tested.

    `failures` (n,) not negative, as from `failures`. alpha is NaN, with a `reason`, for at most 10 (possible) answers
    or fewer than 50 failures in the tail. Raises ValueError for no entries, negative or infinite ones, NaN, more
    failures than answers, or `smallest` below 1.
    """
    counts = as_vector(failures, "failures")
    if not counts.size or counts.min() < 0:
        raise ValueError(f"failures must be one or more numbers from zero on, got {counts[:3]}")
    if smallest < 1:
        raise ValueError(f"smallest must be at least 1, got {smallest}")
    if answers is not None and counts.max() > answers - 1:
        raise ValueError(f"{answers} answers allow {answers - 1} failures, got {counts.max():g}")
    largest = math.ceil(counts.max()) if answers is None else answers - 1
    mean, variance = float(counts.mean()), float(counts.var(ddof=1)) if len(counts) > 1 else math.nan
    tail = counts[counts >= smallest]
    reason = ""
    if largest + 1 < MIN_ANSWERS:
        reason = f"no tail among {largest + 1} answers"
    elif len(tail) < MIN_TAIL:
        reason = f"only {len(tail)} of {len(counts)} reach {smallest} failures"
    elif largest < smallest + 2:
        reason = f"no tail between {smallest} and {largest} failures"
    if reason:
        return SurvivalGame(mean, variance, math.nan, math.nan, "", len(counts), len(tail), reason)
    alpha, error = _exponent(tail, smallest, largest)
    level = "limited" if alpha <= 1 else "capable" if alpha <= 2 else "autonomous"
    return SurvivalGame(mean, variance, alpha, error, level, len(counts), len(tail))


def _watched(steps: ArrayLike, reached: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    times, events = as_vector(steps, "steps"), np.asarray(reached)
    if times.shape != events.shape or not times.size:
        raise ValueError(f"steps and reached must have the same length, not zero, got {times.shape} and {events.shape}")
    if times.min() < 0:
        raise ValueError(f"steps must not be negative, got {times.min():g}")
    if not np.isin(events, (0, 1)).all():
        raise ValueError("reached must be True or False everywhere")
    return times, events.astype(bool)


def _arrivals(times: Floats, events: NDArray[np.bool_], steps: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """At each of `steps` how many were still under way, and how many of them got there just then."""
    return (times >= steps[:, None]).sum(axis=1), ((times == steps[:, None]) & events).sum(axis=1)


def _kaplan_meier(times: Floats, events: NDArray[np.bool_]) -> pd.DataFrame:
    """The curve of one group with its 95 % interval: step (from 0 on), share_not_yet, low, high."""
    steps = np.union1d(0, times)
    under_way, arrived = _arrivals(times, events, steps)
    share = np.cumprod((under_way - arrived) / under_way)
    # Before the first arrival 0 / 0, and where all got there inf / inf: there the ends are the share itself.
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.cumsum(arrived / (under_way * (under_way - arrived)))
        factor = np.exp(special.ndtri(0.975) * np.sqrt(variance) / -np.log(share))
    low, high = (np.where((share > 0) & (share < 1), share**power, share) for power in (factor, 1 / factor))
    return pd.DataFrame({"step": steps, "share_not_yet": share, "low": low, "high": high})


def _log_rank(times: Floats, events: NDArray[np.bool_], members: list[NDArray[np.bool_]]) -> float:
    """p of arrivals in each group minus those expected if all were alike, against their covariance: chi-squared."""
    steps = np.unique(times[events])
    counts = [_arrivals(times[own], events[own], steps) for own in members]
    under_way, arrived = (np.array(side, dtype=np.float64) for side in zip(*counts, strict=True))  # (groups, steps)
    everybody, arrivals = under_way.sum(axis=0), arrived.sum(axis=0)
    share = under_way / everybody
    excess = (arrived - share * arrivals).sum(axis=1)
    weighted = share * arrivals * (everybody - arrivals) / np.maximum(everybody - 1, 1)
    covariance = np.diag(weighted.sum(axis=1)) - weighted @ share.T
    # Excesses sum to zero, so one direction at least has no variance but rounding.
    statistic = excess @ np.linalg.pinv(covariance, rcond=1e-10, hermitian=True) @ excess
    return float(stats.chi2.sf(statistic, len(members) - 1))


def _fit(
    family: stats.rv_continuous, free: int, times: Floats, events: NDArray[np.bool_], checked_every: float | None
) -> tuple[float, float, float, float]:
    """aic, median, scale and shape of the most likely law of a family."""
    arrived, unit = times[events], float(np.median(times[events]))

    def parameters(logs: Floats) -> tuple[float, float, float]:
        """shape, 0 and scale from log(scale / unit) and, where it is free, log(shape): logs may take any value."""
        scale, shape = np.exp(np.append(logs, 0.0)[:2]).tolist()
        return shape, 0.0, unit * scale

    def minus_log_likelihood(logs: Floats) -> float:
        law = parameters(logs)
        with np.errstate(all="ignore"):  # far off, likelihoods are zero
            if checked_every is None:
                reached = family.logpdf(arrived, *law)
            else:
                before, after = (family.logsf(ends, *law) for ends in (np.maximum(arrived - checked_every, 0), arrived))
                reached = before + np.log(-np.expm1(after - before))
            total = float(reached.sum() + family.logsf(times[~events], *law).sum())
        return math.inf if math.isnan(total) else -total

    search = {"method": "Nelder-Mead", "options": {"xatol": 1e-8, "fatol": 1e-8}}
    found = optimize.minimize(minus_log_likelihood, np.zeros(free), **search)
    shape, _, scale = law = parameters(found.x)
    return 2 * free + 2 * found.fun, float(family.median(*law)), scale, shape


def _exponent(tail: Floats, smallest: int, largest: int) -> tuple[float, float]:
    """alpha and its standard error where P(k) ~ k^-(alpha + 1) for k = smallest .. largest."""
    values, widths = _places(smallest, largest)
    logs, seen = np.log(values), float(np.log(tail).mean())

    def moments(alpha: float) -> tuple[float, float]:
        weights = np.log(widths) - (alpha + 1) * logs
        shares = np.exp(weights - weights.max())
        shares /= shares.sum()
        mean = float(shares @ logs)
        return mean, float(shares @ (logs - mean) ** 2)

    bounds = -50.0, 50.0
    if moments(bounds[1])[0] >= seen:
        return math.inf, math.nan
    if moments(bounds[0])[0] <= seen:
        return -math.inf, math.nan
    alpha = optimize.brentq(lambda guess: moments(guess)[0] - seen, *bounds, xtol=1e-10)
    return alpha, 1 / math.sqrt(len(tail) * moments(alpha)[1])


def _places(smallest: int, largest: int) -> tuple[Floats, Floats]:
    """The numbers from smallest to largest, and beyond 10,000 blocks of 0.1 % of them: middle and width."""
    exact = min(largest, smallest + 10_000)
    starts = np.arange(smallest, exact + 1, dtype=np.float64)
    if largest > exact:
        blocks = np.geomspace(exact + 1, largest + 1, max(2, math.ceil(math.log(largest / exact) * 1000)))
        starts = np.concatenate([starts, np.unique(np.round(blocks))])
    else:
        starts = np.append(starts, exact + 1)
    return (starts[:-1] + starts[1:] - 1) / 2, np.diff(starts)

"""How long until something was learnt, and how many failures until the right answer.

`time_to_reach` and `parametric_fits` are survival analysis of training steps, where runs that never got there within
their budget are *censored*: all that is known is that it takes longer. `failures` and `survival_game` count how often
a model would be wrong before it is right.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from rules2ranks.evaluation.intervals import Floats, as_vector

IGNORED = -100
# With fewer answers there is no tail, and with fewer failures no more than a guess at one.
MIN_ANSWERS = 11
MIN_TAIL = 50
MIN_REACHED = 1 / 3


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
    from lifelines import KaplanMeierFitter
    from lifelines.statistics import multivariate_logrank_test
    from lifelines.utils import median_survival_times, restricted_mean_survival_time

    times, events = _watched(steps, reached)
    labels = _labels(groups, len(times))
    horizon = min(float(times[labels == label].max()) for label in labels.unique())
    rows, curves = {}, []
    with _quiet():
        for label in labels.unique():
            own = (labels == label).to_numpy()
            fitted = KaplanMeierFitter().fit(times[own], events[own])
            low, high = median_survival_times(fitted.confidence_interval_).to_numpy()[0]
            mean = restricted_mean_survival_time(fitted, t=horizon)
            median = fitted.median_survival_time_
            rows[label] = (int(own.sum()), int(events[own].sum()), median, low, high, mean)
            curves.append(_curve(label, fitted))
        reason = "only one group" if len(rows) == 1 else "" if events.any() else "nobody reached it"
        p = math.nan if reason else float(multivariate_logrank_test(times, labels.to_numpy(), events).p_value)
    names = ["watched", "reached", "median", "low", "high", "restricted_mean"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=names).rename_axis("group")
    return TimeToReach(table, p, horizon, pd.concat(curves, ignore_index=True), reason)


def parametric_fits(
    steps: ArrayLike,
    reached: ArrayLike,
    *,
    groups: ArrayLike | pd.Series | None = None,
    checked_every: float | None = None,
) -> pd.DataFrame:
    """Four shapes of waiting, fitted by maximum likelihood and compared by AIC (lower is better).

    The share not there yet at step t is, with `scale` in steps:

    - weibull: exp(-(t / scale)^shape); - exponential: the same with shape 1
    - log_normal: 1 - Φ(ln(t / scale) / shape); - log_logistic: 1 / (1 + (t / scale)^shape)

    `steps` (n,) positive, `reached` (n,) bool, as in `time_to_reach`; `groups` (n,) labels fits each by itself.
    `checked_every` k: runs were looked at every k steps only, so one first seen at step t got there in (t - k, t]; the
    likelihood is then of such intervals, and its AIC is not to be compared with one without.

    Returns a table with the index `model` (or `group`, `model`) and the columns aic, median (steps), scale, shape.
    Raises ValueError where less than a third (of a group) reached it, as a fit would then be all extrapolation, and
    for unequal lengths, steps or `checked_every` not above zero, or NaN.
    """
    times, events = _watched(steps, reached)
    if times.min() <= 0:
        raise ValueError(f"steps must be above zero, got {times.min():g}")
    if checked_every is not None and not checked_every > 0:
        raise ValueError(f"checked_every must be above zero, got {checked_every!r}")
    if groups is None:
        return _fits(times, events, checked_every, "")
    labels = _labels(groups, len(times))
    tables = {
        label: _fits(*(side[(labels == label).to_numpy()] for side in (times, events)), checked_every, f" of {label}")
        for label in labels.unique()
    }
    return pd.concat(tables, names=["group"])


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


def _labels(groups: ArrayLike | pd.Series, n: int) -> pd.Series:
    labels = pd.Series(list(groups))
    if len(labels) != n or labels.isna().any():
        raise ValueError(f"groups must hold a label for each of the {n} entries, got {labels.notna().sum()}")
    return labels


@contextmanager
def _quiet() -> Iterator[None]:
    """lifelines 0.30 calls pandas in ways that the next major version of pandas will refuse."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


def _curve(label: Any, fitted: Any) -> pd.DataFrame:
    low, high = fitted.confidence_interval_.to_numpy().T
    share = fitted.survival_function_
    columns = {"step": share.index.to_numpy(), "share_not_yet": share.to_numpy()[:, 0], "low": low, "high": high}
    return pd.DataFrame({"group": [label] * len(share)} | columns)


def _fits(times: Floats, events: NDArray[np.bool_], checked_every: float | None, whose: str) -> pd.DataFrame:
    """The four fits of one group."""
    share = events.mean()
    if share < MIN_REACHED:
        raise ValueError(f"a third must have reached it for a parametric fit, got {share:.0%}{whose}")
    # lifelines starts its search near 1, whatever the unit.
    unit = float(np.median(times[events]))
    rows = {}
    for name, (fitter, parameters) in _fitters().items():
        with _quiet():
            if checked_every is None:
                fitted = fitter().fit(times / unit, events)
                # Densities are per step: each that reached it brings one.
                aic = fitted.AIC_ + 2 * events.sum() * math.log(unit)
            else:
                before = np.where(events, np.maximum(times - checked_every, 0), times)
                fitted = fitter().fit_interval_censoring(before / unit, np.where(events, times / unit, np.inf))
                aic = fitted.AIC_
        scale, shape = parameters(fitted)
        rows[name] = (float(aic), unit * float(fitted.median_survival_time_), unit * float(scale), float(shape))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["aic", "median", "scale", "shape"]).rename_axis(
        "model"
    )


def _fitters() -> dict[str, tuple[type, Callable[[Any], tuple[float, float]]]]:
    """lifelines' classes, and the scale and shape of each when fitted."""
    from lifelines import ExponentialFitter, LogLogisticFitter, LogNormalFitter, WeibullFitter

    return {
        "weibull": (WeibullFitter, lambda fitted: (fitted.lambda_, fitted.rho_)),
        "exponential": (ExponentialFitter, lambda fitted: (fitted.lambda_, 1.0)),
        "log_normal": (LogNormalFitter, lambda fitted: (math.exp(fitted.mu_), fitted.sigma_)),
        "log_logistic": (LogLogisticFitter, lambda fitted: (fitted.alpha_, fitted.beta_)),
    }


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

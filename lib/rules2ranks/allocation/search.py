"""Searches that measure: RankAdaptor's offline and online phases, and random search as its control."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from rules2ranks.allocation.predictors import PerformanceModel, additive
from rules2ranks.allocation.space import Ranks, Space, draw, generator, neighbours, random

Objective = Callable[[Ranks], float]
Phase = Literal["given", "offline", "online", "random", "exact"]


class Measurement(NamedTuple):
    """One measured rank vector; `predicted` is what the performance model said of it before, in the online phase."""

    ranks: Ranks
    measured: float
    predicted: float | None = None
    phase: Phase = "given"


class Search(NamedTuple):
    """The best measured rank vector, its score, and every measurement in order."""

    ranks: Ranks
    score: float
    history: tuple[Measurement, ...]


Given = Sequence[Measurement | tuple[Ranks, float]]
Progress = Callable[[Measurement], None]


def rank_adaptor(
    space: Space,
    objective: Objective,
    *,
    offline: int = 8,
    rounds: int = 8,
    candidates: int = 64,
    tolerance: float | None = None,
    seed: int = 0,
    measured: Given = (),
    progress: Progress | None = None,
) -> Search:
    """RankAdaptor's search (arXiv 2406.15734): the rank vector with the lowest measured score.

    Offline, `offline` random vectors are measured. Online, in each of `rounds`: fit the performance model to all
    measurements, predict `candidates` unmeasured vectors (half random, half neighbours of the best one), measure the
    one with the best prediction, add it. Stops early when a prediction was within `tolerance` of its measurement (in
    the unit of the score), or when no unmeasured vector is found.

    `measured` holds what is known already, as (ranks, score) or as `Measurement`. Plain pairs count as offline
    measurements. The history of an interrupted search, handed back with its phases, goes on exactly where it was.
    `objective` is called once per new vector and returns a finite score, lower is better; `progress` gets each new
    measurement. Raises ValueError for counts out of range, measurements outside the space or measured twice, and a
    score that is not finite.
    """
    if offline < 2 or rounds < 0 or candidates < 2:
        got = f"{offline=}, {rounds=}, {candidates=}"
        raise ValueError(f"offline and candidates must be at least 2, rounds at least 0, got {got}")
    history = _given(space, measured)
    done = sum(entry.phase == "online" for entry in history)
    known = {entry.ranks for entry in history}
    missing = max(offline - len(history) + done, 0)
    fresh = [ranks for ranks in random(space, offline, seed) if ranks not in known] if missing else []
    for ranks in fresh[:missing]:
        _measure(objective, history, ranks, None, "offline", progress)

    for turn in range(done, rounds):
        if tolerance is not None and history[-1].phase == "online" and _surprise(history[-1]) <= tolerance:
            break
        proposal = propose(space, history, candidates, seed=seed, turn=turn)
        if proposal is None:
            break
        _measure(objective, history, *proposal, "online", progress)
    return _best(history)


def propose(
    space: Space, history: Sequence[Measurement], candidates: int, *, seed: int, turn: int
) -> tuple[Ranks, float] | None:
    """One online step without its measurement: the unmeasured candidate with the best prediction, and that."""
    known = {entry.ranks for entry in history}
    randomness = generator(seed, 1, turn)
    pool = neighbours(space, _best(history).ranks, candidates // 2, randomness)
    pool += draw(space, candidates - candidates // 2, randomness)
    pool = [ranks for ranks in dict.fromkeys(pool) if ranks not in known]
    if not pool:
        return None
    model = PerformanceModel(max(*space.grid, *space.fixed.values()))
    model.fit(
        [entry.ranks for entry in history], [entry.measured for entry in history], int(randomness.integers(2**31))
    )
    predicted = model.predict(pool)
    first = int(np.argmin(predicted))
    return pool[first], float(predicted[first])


def random_search(
    space: Space,
    objective: Objective,
    n: int,
    seed: int,
    *,
    measured: Given = (),
    progress: Progress | None = None,
) -> Search:
    """The best of n random vectors, RankAdaptor's control with as many measurements.

    With the same seed its first vectors are those of RankAdaptor's offline phase. `measured` as in `rank_adaptor`;
    those measurements count towards n. Raises ValueError like it, and for n below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    history = _given(space, measured)
    known = {entry.ranks for entry in history}
    missing = max(n - len(history), 0)
    fresh = [ranks for ranks in random(space, n, seed) if ranks not in known] if missing else []
    for ranks in fresh[:missing]:
        _measure(objective, history, ranks, None, "random", progress)
    return _best(history)


def additive_search(
    space: Space,
    objective: Objective,
    n: int,
    seed: int,
    *,
    measured: Given = (),
    progress: Progress | None = None,
) -> Search:
    """The best vector of an additive concave model of n random vectors, solved exactly, then measured too.

    The vectors are those of `random_search` at the same seed. What is returned is the model's choice, whether or not
    a random vector was measured lower: the smallest of many noisy numbers says less than a fit to all of them.
    `measured` as in `rank_adaptor`; raises ValueError like it, and for n below 3.
    """
    if n < 3:
        raise ValueError(f"n must be at least 3, got {n}")
    given = [Measurement(*entry) for entry in measured]
    # The model's own choice may be one of those that it was fitted to, and then stands twice in the history.
    fitted = [entry for entry in given if entry.phase != "exact"]
    history = list(random_search(space, objective, n, seed, measured=fitted, progress=progress).history)
    ranks, model = additive(space, [entry.ranks for entry in history], [entry.measured for entry in history])
    known = {tuple(entry.ranks): entry.measured for entry in [*given, *history]}
    predicted = float(model.predict([ranks])[0])
    if ranks in known:
        history.append(Measurement(ranks, known[ranks], predicted, "exact"))
    else:
        _measure(objective, history, ranks, predicted, "exact", progress)
    return Search(ranks, history[-1].measured, tuple(history))


def _given(space: Space, measured: Given) -> list[Measurement]:
    history: list[Measurement] = []
    known: set[Ranks] = set()
    for entry in measured:
        ranks, score, *rest = entry
        measurement = Measurement(tuple(int(rank) for rank in ranks), float(score), *rest)
        if not space.contains(measurement.ranks):
            raise ValueError(
                f"the measured ranks {measurement.ranks} are off the grid, over the budget, or not as fixed"
            )
        if measurement.ranks in known:
            raise ValueError(f"the ranks {measurement.ranks} stand twice among the measured ones")
        if not math.isfinite(measurement.measured):
            raise ValueError(f"the score of {measurement.ranks} must be finite, got {measurement.measured}")
        known.add(measurement.ranks)
        history.append(measurement)
    return history


def _measure(
    objective: Objective,
    history: list[Measurement],
    ranks: Ranks,
    predicted: float | None,
    phase: Phase,
    progress: Progress | None,
) -> None:
    score = float(objective(ranks))
    if not math.isfinite(score):
        raise ValueError(f"the objective must be finite, got {score} for the ranks {ranks}")
    history.append(Measurement(ranks, score, predicted, phase))
    if progress is not None:
        progress(history[-1])


def _surprise(entry: Measurement) -> float:
    return math.inf if entry.predicted is None else abs(entry.predicted - entry.measured)


def _best(history: Iterable[Measurement]) -> Search:
    history = tuple(history)
    best = min(history, key=lambda entry: entry.measured)
    return Search(best.ranks, best.measured, history)

"""The one loop of every search: ask, measure, tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from rules2ranks.configuration import Configuration
from rules2ranks.search import searchers  # noqa: F401  (they enter themselves in SEARCHERS)
from rules2ranks.search.searcher import SEARCHERS, Searcher
from rules2ranks.search.space import Point, Space
from rules2ranks.search.trials import Proposal, Scores, Search, Trial

Measure = Callable[[Configuration, float], float | Sequence[float]]
#: Gives a function's scores of proposals, in their order: `map` does, one proposal after the other.
Workers = Callable[[Callable[[Proposal], Scores], Sequence[Proposal]], Iterable[Scores]]
Known = Sequence[Trial | tuple[Point, float | Scores]]


def search(
    space: Space,
    measure: Measure,
    searcher: str | Searcher,
    *,
    limit: int,
    seed: int = 0,
    known: Known = (),
    progress: Callable[[Trial], None] | None = None,
    workers: Workers = map,
) -> Search:
    """Let a searcher look for the point of the space with the lowest score, or for the front of several scores.

    searcher: its name in `SEARCHERS`, or one with settings of its own. limit: how many points it may measure (a
    searcher says how it counts). measure: gets a configuration and a fidelity (1: in full), and returns one score or
    several, finite, of which lower is better; called once per new point and fidelity. known: what was measured before,
    as trials or as (point, score); the trials of an interrupted search go on exactly where it was. progress: gets each
    newly measured trial. workers: what measures proposals that need not wait for each other, in place of `map`: that of
    a pool of threads, say, or `Shared`, which divides them among processes. The trials are the same.

    Raises:
        ValueError: an unknown searcher or a limit too low for it; known points outside the space or given twice; scores
            that are not finite, of another number than before, or more than the searcher takes.
    """
    begun = _searcher(searcher).begin(space, limit, seed)
    trials: list[Trial] = []

    def note(trial: Trial) -> None:
        trials.append(trial)
        if len(trial.scores) != len(trials[0].scores):
            raise ValueError(f"expected {len(trials[0].scores)} scores, got {trial.scores} for {trial.point}")
        begun.tell(trial)

    for trial in _known(space, known):
        note(trial)
    found = {(trial.point, trial.fidelity): trial.scores for trial in trials}

    def measured(proposal: Proposal) -> Scores:
        return _scores(measure(space.configuration(proposal.point), proposal.fidelity), proposal.point)

    while asked := begun.ask():
        new = dict.fromkeys(each for each in asked if (each.point, each.fidelity) not in found)
        scores = iter(workers(measured, list(new)))
        for proposal in asked:
            point, fidelity, predicted, proposer = proposal
            if proposal in new:
                found[point, fidelity] = next(scores)
            note(Trial(point, found[point, fidelity], fidelity, predicted, proposer))
            if proposal in new and progress is not None:
                progress(trials[-1])
    return Search(tuple(trials), begun.choice)


def _searcher(searcher: str | Searcher) -> Searcher:
    if isinstance(searcher, Searcher):
        return searcher
    if searcher not in SEARCHERS:
        raise ValueError(f"unknown searcher {searcher!r}: choose one of {', '.join(SEARCHERS)}")
    return SEARCHERS[searcher]()


def _known(space: Space, known: Known) -> list[Trial]:
    """The known ones as trials, whatever sequences they are spelt in (lists, from JSON)."""
    trials: dict[tuple[Point, float], Trial] = {}
    listed = []
    for place, scores, *rest in known:
        point = tuple(int(knob) for knob in place)
        trial = Trial(point, _scores(scores, point), *rest)
        listed.append(trial._replace(predicted=trial.predicted and tuple(trial.predicted)))
        if not space.contains(point):
            raise ValueError(f"the known point {point} is not within the space")
        # A searcher may propose what it knows and then has the same scores; other repeats would count twice.
        before = trials.setdefault((point, trial.fidelity), trial)
        if before is not trial and (trial.proposer == "given" or trial.scores != before.scores):
            raise ValueError(f"the point {point} stands twice among the known ones")
    return listed


def _scores(value: float | Sequence[float], point: Point) -> Scores:
    scores = tuple(np.atleast_1d(np.asarray(value, dtype=np.float64)).tolist())
    if not scores or not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite, got {value} for the point {point}")
    return scores

"""One search among several workers: what each measures goes to all, by way of a storage of Optuna's (MIT)."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from rules2ranks.search.trials import Proposal, Scores

# Optuna takes a second to import, which only who uses it should pay.
if TYPE_CHECKING:
    import optuna

#: How often a worker gives a sign, or looks for those of others, while one of them would count as dead.
SIGNS = 10


Answer = TypeVar("Answer")


class Shared:
    """What `search` takes as its `workers`: each proposal is measured by one of all the workers of this name.

    Every worker runs the whole search, with the same space, searcher, limit and seed: the scores come from whoever
    measured them, so all end with the trials that one alone would have made, in the same order. A worker may join, be
    killed and come back at any time; what it was at is taken up when it gave no sign for `patience` seconds, by the
    clock of who waits. A worker that was only asleep for so long then finds what it measured done by another. For so
    long, too, is a database waited for that goes away.

    storage: see `storages.connect`. name: the study's, which has to say what is measured and how, for scores are found
    again by it. scores: how many a measurement has.

    Raises:
        ValueError: a study of this name has another number of scores.
    """

    def __init__(
        self, storage: optuna.storages.BaseStorage, name: str, *, scores: int = 1, patience: float = 60.0
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.patience, self.scores, self._storage = patience, scores, storage
        self._study = optuna.create_study(
            storage=storage, study_name=name, directions=["minimize"] * scores, load_if_exists=True
        )
        if len(self._study.directions) != scores:
            raise ValueError(f"the study {name!r} has {len(self._study.directions)} scores, not {scores}")
        self._id = storage.get_study_id_from_name(name)
        self._signs: dict[int, tuple[int, float]] = {}

    def __call__(self, measure: Callable[[Proposal], Scores], proposals: Sequence[Proposal]) -> Iterator[Scores]:
        """The scores of all in their order, each as soon as it is there."""
        waiting = list(proposals)
        while waiting:
            trials = self._trials()
            first = trials.get(_key(waiting[0]))
            if first is not None and first.values is not None:
                yield tuple(first.values)
                del waiting[0]
                continue
            free = next((each for each in waiting if _key(each) not in trials), None)
            if free is not None:
                self._take(free, measure)
            elif not any(self._gave_up(trials[_key(each)]) for each in waiting):
                time.sleep(min(1.0, self.patience / SIGNS))

    def _trials(self) -> dict[str, optuna.trial.FrozenTrial]:
        """Of each point and fidelity the first trial that has not failed: whoever began it measures."""
        from optuna.trial import TrialState

        found: dict[str, optuna.trial.FrozenTrial] = {}
        for trial in self._waiting(lambda: self._study.get_trials(deepcopy=False)):
            if trial.state != TrialState.FAIL:
                found.setdefault(trial.user_attrs["what"], trial)
        return found

    def _take(self, proposal: Proposal, measure: Callable[[Proposal], Scores]) -> None:
        """Measure a proposal, unless another worker began to at the same moment and is before us."""
        mine = uuid.uuid4().hex
        number = self._waiting(lambda: self._begun(proposal, mine))
        first = self._trials().get(_key(proposal))
        if first is None or first.number != number:
            self._end(number)
            return
        try:
            with self._giving_signs(number):
                scores = measure(proposal)
            if len(scores) != self.scores:
                raise ValueError(f"expected {self.scores} scores, got {scores} for {proposal.point}")
        except BaseException:  # the others need not wait
            self._end(number)
            raise
        self._end(number, scores)

    def _begun(self, proposal: Proposal, mine: str) -> int:
        """The number of the trial of this mark, begun now unless a database took it before it went away."""
        from optuna.trial import TrialState, create_trial

        def numbers() -> list[int]:
            return [t.number for t in self._study.get_trials(deepcopy=False) if t.user_attrs["worker"] == mine]

        if not numbers():
            about = {"what": _key(proposal), "worker": mine}
            self._study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs=about))
        return numbers()[0]

    def _end(self, number: int, scores: Scores | None = None) -> None:
        """With scores, or as failed; nothing where another worker has given it up before."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        state = TrialState.FAIL if scores is None else TrialState.COMPLETE
        with contextlib.suppress(UpdateFinishedTrialError):
            self._waiting(lambda: self._storage.set_trial_state_values(self._trial_id(number), state, scores))

    def _waiting(self, ask: Callable[[], Answer]) -> Answer:
        """What a storage answers; one that is away is asked again, for `patience` seconds in all."""
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        until = time.monotonic() + self.patience
        while True:
            try:
                return ask()
            except (StorageInternalError, SQLAlchemyError):
                if time.monotonic() > until:
                    raise
                time.sleep(min(1.0, self.patience / SIGNS))

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)

    @contextlib.contextmanager
    def _giving_signs(self, number: int) -> Iterator[None]:
        done, trial = threading.Event(), self._waiting(lambda: self._trial_id(number))

        def beat() -> None:
            sign = 0
            while not done.wait(self.patience / SIGNS):
                sign += 1
                with contextlib.suppress(Exception):  # a storage that is away for a moment; the next sign may arrive
                    self._storage.set_trial_user_attr(trial, "sign", sign)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _gave_up(self, trial: optuna.trial.FrozenTrial) -> bool:
        """Whether a trial was given up just now, because its worker has given no sign for too long."""
        if trial.values is not None:
            return False
        sign, now = trial.user_attrs.get("sign", 0), time.monotonic()
        before, since = self._signs.get(trial.number, (sign, now))
        self._signs[trial.number] = (sign, since if before == sign else now)
        if before != sign or now - since <= self.patience:
            return False
        self._end(trial.number)
        return True


def _key(proposal: Proposal) -> str:
    """Text, because that comes back from every storage as it was."""
    return f"{','.join(map(str, proposal.point))} at {proposal.fidelity!r}"

"""Many measurements: made one after the other, or only looked up, and those that are missing as jobs of many machines.

A measurement is a stage with its parameters, or a function of a table, such as a search, whose measurements are results
of stages. Either is plain data too, so that any process that shares `runs/` can make it.
"""

import importlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from tqdm import tqdm

from rules2ranks import runs, stages


class Job(NamedTuple):
    """One measurement: what makes it, and of which parameters."""

    make: Callable[[Any], Any]
    given: runs.Params

    @property
    def name(self) -> str:
        """That of the stage, or `module.function` of a table's."""
        if isinstance(self.make, runs.Stage):
            return self.make.name
        return f"{self.make.__module__.rpartition('.')[2]}.{self.make.__name__}"

    def plain(self) -> list[Any]:
        """The same as JSON holds it."""
        return [self.name, self.given.model_dump(mode="json")]


class Unmeasured(Exception):
    """Measurements that were only to be found, and are not there: `jobs`, each as often as it was asked for."""

    def __init__(self, jobs: Sequence[Job]):
        super().__init__(f"{len(jobs)} measurements are missing, the first is {jobs[0].name}")
        self.jobs = jobs


def measure(jobs: Sequence[Job], label: str) -> list[Any]:
    """What each job gives, in order, with progress; small networks learn side by side where there is a GPU.

    Raises:
        Unmeasured: within `runs.only_found`, where results of some jobs are not there; names all these jobs.
    """
    if runs.only_finds():
        return _found(jobs)
    _side_by_side(jobs)
    return [make(given) for make, given in tqdm(jobs, desc=label, unit="run")]


def _found(jobs: Sequence[Job]) -> list[Any]:
    found, missing = [], []
    for job in jobs:
        try:
            found.append(job.make(job.given))
        except runs.Missing:
            missing.append(job)
    if missing:
        raise Unmeasured(missing)
    return found


def _side_by_side(jobs: Sequence[Job]) -> None:
    bodies = [given for make, given in jobs if isinstance(make, runs.Stage) and make.name == "pretrain"]
    if not bodies:
        return
    from rules2ranks import training
    from rules2ranks.stages import learning

    if training.device().type == "cuda":
        learning.pretrain_together([body for body in bodies if learning.side_by_side(body) > 1])


def stage_jobs(name: str, parameters: Iterable[runs.Params | Mapping[str, Any]]) -> list[Job]:
    """A job for each set of parameters; all are checked first (ParameterError), before any work starts."""
    stage = getattr(stages, name)
    return [Job(stage, stage.Params.check(each)) for each in parameters]


def seconds_of(results: Sequence[runs.Result]) -> float:
    """One-thread seconds that these results took when they were made; a result that stands twice counts once."""
    return sum({result.folder: result.provenance["seconds"] for result in results}.values())


# --- for many machines ------------------------------------------------------------------------------------------


def read_job(plain: Sequence[Any]) -> Job:
    """What `Job.plain` gave. Raises ParameterError for what it could not have given."""
    name, given = plain
    if name in stages.HOMES:
        return stage_jobs(name, [given])[0]
    module, _, function = name.partition(".")
    try:
        make = getattr(importlib.import_module(f"rules2ranks.tables.{module}"), function)
        kind = get_type_hints(make)["given"]
    except (ImportError, AttributeError, KeyError, TypeError, ValueError):
        raise runs.ParameterError(f"there is no measurement of the name {name!r}") from None
    return Job(make, kind.check(given))


def parts(jobs: Sequence[Job], size: int, at_once: int = 1) -> list[list[Any]]:
    """Jobs as plain data, each once, in parts of at most `size` results and of as like a number as can be.

    There are as many parts as can run `at_once`, if there are so many jobs. What is not one result, but a search, is
    counted as a whole part.
    """
    each = {json.dumps(job.plain(), sort_keys=True): 1 if isinstance(job.make, runs.Stage) else size for job in jobs}
    number = min(len(each), max(at_once, math.ceil(sum(each.values()) / size)))
    found: list[list[Any]] = [[] for _ in range(number)]
    weights = [0] * number
    for text in sorted(each, key=each.__getitem__, reverse=True):
        least = weights.index(min(weights))
        found[least].append(json.loads(text))
        weights[least] += each[text]
    return found


def read_part(file: Path, part: int) -> list[Job]:
    """The measurements of one part, from 0, of a list that `python -m rules2ranks.tables --missing` wrote.

    Raises:
        ValueError: it is no such list, or has no such part; ParameterError: what it names cannot be measured.
    """
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))["parts"]
    except (ValueError, KeyError, TypeError):
        raise ValueError("no list of measurements") from None
    if not 0 <= part < len(listed):
        raise ValueError(f"there is no part {part} of {len(listed)}")
    return [read_job(plain) for plain in listed[part]]

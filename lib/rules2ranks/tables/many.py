"""Many stage results at once: over processes, or side by side on a GPU."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import connection
from typing import Any

from tqdm import tqdm

from rules2ranks import runs, stages

Job = tuple[Callable, dict[str, Any]]


def run_stage(name: str, given: runs.Params) -> runs.Result:
    """One stage's result: what the workers are asked for."""
    return getattr(stages, name)(given)


def measure(jobs: Sequence[Job], workers: int, label: str) -> list[Any]:
    """Results of `function(**arguments)` for each job, in order, `workers` processes at a time, with progress."""
    os.environ["TQDM_DISABLE"] = "1"  # for the workers: one bar, not one for each
    os.environ["OMP_NUM_THREADS"] = "1"
    done: dict[int, Any] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent) as pool:
        waiting = {pool.submit(function, **arguments): place for place, (function, arguments) in enumerate(jobs)}
        try:
            for future in tqdm(as_completed(waiting), total=len(jobs), desc=label, unit="run", disable=False):
                done[waiting[future]] = future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what was finished stays in runs/
            raise
    return [done[place] for place in range(len(jobs))]


def _end_with_parent() -> None:
    """End this process as soon as the one that started it is gone: a killed run leaves nothing behind that computes."""

    def watch() -> None:
        connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def stage_jobs(name: str, parameters: Sequence[runs.Params | dict[str, Any]]) -> list[Job]:
    """A job for each set of parameters; all are checked first (ParameterError), before any work starts."""
    check = getattr(stages, name).Params.check
    return [(run_stage, {"name": name, "given": check(each)}) for each in parameters]


def pretrainings(bodies: Sequence[runs.Params | dict[str, Any]], workers: int) -> list[runs.Result]:
    """Results of `pretrain`: small networks side by side where there is a GPU, all others over processes."""
    from rules2ranks import training
    from rules2ranks.stages import learning

    asked = [learning.Pretraining.check(body) for body in bodies]
    if training.device().type == "cuda":
        learning.pretrain_together([body for body in asked if learning.side_by_side(body) > 1])
    return measure(stage_jobs("pretrain", asked), workers, "pretraining")


def seconds_of(results: Sequence[runs.Result]) -> float:
    """One-thread seconds that these results took when they were made; a result that stands twice counts once."""
    return sum({result.folder: result.provenance["seconds"] for result in results}.values())

"""Many results at once: in order, checked beforehand, and side by side where there is a GPU."""

import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rules2ranks import training
from rules2ranks.runs import ParameterError
from rules2ranks.stages import learning
from rules2ranks.stages.learning import Pretraining
from rules2ranks.tables import many


def test_measurements_of_processes_come_back_in_order_and_a_failure_is_told():
    """One of the two tests that start processes."""
    assert many.measure([(str, {"object": k}) for k in (3, 1, 2)], 2, "counting") == ["3", "1", "2"]
    with pytest.raises(TypeError, match="divmod"):
        many.measure([(divmod, {}), (str, {"object": 1})], 1, "failing")
    assert not multiprocessing.active_children()


PARENT = """
import sys, time
from rules2ranks.tables import many

if __name__ == "__main__":
    many.measure([(__import__("noted").note, {"folder": sys.argv[1], "number": n}) for n in range(2)], 2, "sleeping")
"""
CHILD = """
import os, pathlib, time

def note(folder, number):
    (pathlib.Path(folder) / f"{number}.pid").write_text(str(os.getpid()))
    time.sleep(600)
"""


def alive(pid):
    """Whether a process runs; what only waits to be buried does not."""
    state = Path(f"/proc/{pid}/stat")
    try:
        return state.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_process_that_started_them(how, tmp_path):
    for name, text in (("parent", PARENT), ("noted", CHILD)):
        (tmp_path / f"{name}.py").write_text(text)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    parent = subprocess.Popen([sys.executable, "parent.py", str(tmp_path)], **quiet)
    end = time.monotonic() + 60
    while len(noted := [file for file in tmp_path.glob("*.pid") if file.read_text()]) < 2:
        assert time.monotonic() < end and parent.poll() is None, "the workers never began"
        time.sleep(0.1)
    workers = [int(file.read_text()) for file in noted]
    assert all(map(alive, workers))
    parent.send_signal(how)
    parent.wait(20)
    end = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < end, "a worker goes on without its parent"
        time.sleep(0.1)


def test_all_parameters_are_checked_before_any_work():
    jobs = many.stage_jobs("pretrain", [{"source": 30}, {"source": "110", "steps": 3}])
    assert jobs == [
        (many.run_stage, {"name": "pretrain", "given": Pretraining(source=30)}),
        (many.run_stage, {"name": "pretrain", "given": Pretraining(source=110, steps=3)}),
    ]
    with pytest.raises(ParameterError, match="did you mean 'source'"):
        many.stage_jobs("pretrain", [{"source": 30}, {"sourc": 30}])


def test_a_gpu_trains_small_networks_side_by_side(monkeypatch):
    """What is too large for that is trained by processes, which then find the small ones."""
    together, found = [], []
    monkeypatch.setattr(training, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(learning, "pretrain_together", together.append)
    monkeypatch.setattr(many, "measure", lambda jobs, workers, label: found.append(jobs) or ["found"])
    bodies = [Pretraining(source=30), Pretraining(source="coin", hidden=512, layers=4)]
    assert many.pretrainings([bodies[0], bodies[1].model_dump()], 2) == ["found"]
    assert together == [bodies[:1]] and found == [many.stage_jobs("pretrain", bodies)]
    with pytest.raises(ParameterError, match="did you mean 'source'"):
        many.pretrainings([{"sourc": 30}], 2)

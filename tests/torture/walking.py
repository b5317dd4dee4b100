"""Programs under way: begun, watched by the processor time that they have used, ended from outside, and looked over."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from filelock import FileLock

from rules2ranks import runs

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
#: The notebooks of the walk that is disturbed; none takes long.
NOTEBOOKS = ("10_automata", "20_pretrain")
#: Seconds that whatever was ended has to be gone in, on a machine that is busy with other things.
PATIENCE = 60


def command(name: str, clone: Path) -> list[str]:
    if name == "walk":
        return [sys.executable, str(clone / "workflow" / "reproduce.py"), "fast", "2"]
    return [sys.executable, str(HERE / "workloads.py"), name]


def small_clone(place: Path) -> Path:
    """The repository with `NOTEBOOKS` alone."""
    for name in ("workflow", "profiles", "notebooks"):
        shutil.copytree(REPOSITORY / name, place / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("lib", "data", "pyproject.toml"):
        (place / name).symlink_to(REPOSITORY / name)
    for notebook in (place / "notebooks").glob("*.ipynb"):
        if notebook.stem not in NOTEBOOKS:
            notebook.unlink()
    return place


def environment(store: Path, **more: str) -> dict[str, str]:
    """A run's, with results of its own, and as little of the tests' own as possible."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "MAKE", "TORTURE"))}
    path = os.pathsep.join(filter(None, [str(REPOSITORY / "lib"), os.environ.get("PYTHONPATH")]))
    return kept | {"RULES2RANKS_RUNS": str(store), "TQDM_DISABLE": "1", "PYTHONPATH": path} | more


def begin(name: str, store: Path, clone: Path, **more: str) -> subprocess.Popen[str]:
    said = subprocess.PIPE
    how = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command(name, clone), env=environment(store, **more), start_new_session=True, **how)


def finish(name: str, store: Path, clone: Path, **more: str) -> str:
    """Run to the end; what was said."""
    with begin(name, store, clone, **more) as run:
        said, _ = run.communicate(timeout=600)
    assert run.returncode == 0, said
    return said


def family(number: int) -> list[psutil.Process]:
    """A process and all that it started, whatever sessions these have."""
    try:
        first = psutil.Process(number)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def used(members: list[psutil.Process]) -> float:
    """Seconds of processor time that these have used, and those of theirs that ended."""
    total = 0.0
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = member.cpu_times()
            total += times.user + times.system
    return total


def end_at(run: subprocess.Popen[str], seconds: float, number: signal.Signals, victim: str) -> list[psutil.Process]:
    """Send a signal once a run has used so much processor time; returns all that ran then (none: it was through)."""
    while True:
        members = family(run.pid)
        if not members or run.poll() is not None:
            return []
        if used(members) >= seconds and (chosen := _chosen(victim, members)):
            break
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        if victim == "group":
            os.killpg(run.pid, number)
        else:
            chosen.send_signal(number)
    return members


def _chosen(victim: str, members: list[psutil.Process]) -> psutil.Process | None:
    """The process itself, or one that it started: Snakemake, a kernel."""
    if victim in ("main", "group"):
        return members[0]
    sign = {"snakemake": "bin/snakemake", "kernel": "ipykernel_launcher"}[victim]
    for member in members[1:]:
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(sign in word for word in member.cmdline()):
                return member
    return None


def gone(members: list[psutil.Process]) -> bool:
    """Whether all of these are gone in time."""
    return not psutil.wait_procs(members, PATIENCE)[1]


def content(store: Path) -> dict[str, str]:
    """What results are: the parameters, metrics and tensors of each, by name, after all were found whole."""
    found = {}
    for note in sorted(store.rglob("provenance.json")):
        folder = note.parent
        if any(part.startswith(".") for part in folder.relative_to(store).parts):
            continue
        result = runs.load(folder)
        for name in result.provenance["sha256"]:
            if name.endswith(("metrics.json", "params.json", ".safetensors", ".csv")):
                digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
                found[(folder / name).relative_to(store).as_posix()] = digest
    return found


def undisturbed(name: str, shared: Path, clone: Path) -> tuple[dict[str, str], float]:
    """The content of a run that nothing befell, and the seconds of processor time that it took; made once."""
    note = shared / f"{name}.json"
    with FileLock(shared / f"{name}.lock"):
        if not note.is_file():
            before = os.times()
            finish(name, shared / name, clone)
            after = os.times()
            spent = after.children_user + after.children_system - before.children_user - before.children_system
            runs.write_json(note, [content(shared / name), spent])
    found, seconds = json.loads(note.read_text())
    return found, seconds

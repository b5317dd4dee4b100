"""Runs every notebook of a profile that is not up to date, and says where the results lie.

    python workflow/reproduce.py PROFILE CORES [EXECUTOR]

EXECUTOR is a folder of workflow/profiles, "local" if none is said; what is not local takes the number of jobs from its
profile there, and CORES say nothing. However it is ended, Snakemake and the kernels end with it.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import psutil

import results
from rules2ranks import runs
from rules2ranks.stages import parameters

# Snakemake's talk about itself is left out; errors and the notebooks' own lines are not. (Its `--quiet all` would hide
# a mistake in a profile too.)
TALK = re.compile(
    "Using profile|Using shell|Assuming unrestricted|Building DAG|Select jobs|Execute [0-9]+ jobs|Complete log|"
    "Elapsed time|Nothing to be done|Creating specified working directory|DAG of jobs will|Touching output|"
    "Updating checkpoint dependencies"
)
#: Seconds that a process has to end when it is told to.
PATIENCE = 5


class Stopped(Exception):
    """A signal came that ends the walk; its only argument is the signal."""


def mistake(profile: str, cores: str, executor: str) -> str | None:
    """What is wrong with the arguments, and what is allowed."""
    if profile not in results.profiles():
        hint = f"; to run on it, say EXECUTOR={profile}" if profile in results.executors() else ""
        return f"There is no profile '{profile}'; there are: {', '.join(results.profiles())}{hint}"
    if executor not in results.executors():
        return f"There is no workflow/profiles/{executor}; EXECUTOR is one of: {', '.join(results.executors())}"
    if not (cores.isascii() and cores.isdigit() and int(cores)):
        return f"CORES must be a number of processor cores, not '{cores}'"
    return None


def listen() -> None:
    """Let Ctrl-C, `kill`, a closed terminal and a reader that goes away raise `Stopped`; `nohup` stays what it is."""

    def stop(number: int, _frame: object) -> None:
        raise Stopped(signal.Signals(number))

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, stop)
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    """Hang up when nobody reads the output any more, or when the make that started this is gone, however it ended."""
    reader = select.poll()
    reader.register(sys.stdout.fileno(), 0)
    while os.getppid() == parent or "MAKELEVEL" not in os.environ:
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in reader.poll(0)):
            break
        time.sleep(1)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGHUP)


def walk(targets: Sequence[str], cores: str, executor: str, config: Sequence[str]) -> int:
    """Run Snakemake, in a session of its own so that only this process hears Ctrl-C, and return its exit status."""
    command = ["snakemake", *targets, "--snakefile", "workflow/Snakefile", "--profile", f"workflow/profiles/{executor}"]
    command += ["--cores", cores] if executor == "local" else []
    command += ["--config", *config]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # Kernels run in notebooks/, so a relative path would mean another place there.
    place = os.environ | {"RULES2RANKS_RUNS": str(runs.root())}
    process = subprocess.Popen(command, cwd=results.REPOSITORY, env=place, start_new_session=True, **pipes)
    guard = _guard(process.pid)
    try:
        for line in process.stdout:
            if not TALK.match(line):
                print(line, end="", flush=True)
        return process.wait()
    except BaseException:
        _end(process.pid)
        raise
    finally:
        with contextlib.suppress(BrokenPipeError):
            guard.communicate("ended")


def _guard(session: int) -> subprocess.Popen[str]:
    """A process that ends Snakemake where this one cannot, because it was killed: then it hears nothing more of it."""
    quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "text": True}
    return subprocess.Popen([sys.executable, __file__, "--guard", str(session)], start_new_session=True, **quiet)


def _end(session: int) -> None:
    """End Snakemake, its jobs, and their kernels, which have sessions of their own."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(session), *psutil.Process(session).children(recursive=True)]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(number)
        _, family = psutil.wait_procs(family, PATIENCE)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # what began while the others were told
        os.killpg(session, signal.SIGKILL)


def show(profile: str) -> None:
    """Print each executed notebook with its figures, then the scorecard."""
    top = runs.root() / "notebooks"
    print(f"\nExecuted notebooks and their figures, below {top}/")
    scorecard = "none in this profile"
    for name, checked in results.values(profile).items():
        place = parameters.folder(name, checked)
        figures = " ".join(path.name for path in sorted(place.glob("*.png"))) or "no figures"
        print(f"  {place.relative_to(top)}/{name}.ipynb  {figures}")
        if name == "90_scorecard":
            scorecard = place / f"{name}.ipynb"
    print(f"The scorecard: {scorecard}")


def run(targets: Sequence[str], cores: str, executor: str, config: Sequence[str]) -> int:
    """Run Snakemake until it ends or is ended; say which if it did not do all, and return the exit status."""
    begin = time.monotonic()
    try:
        listen()
        code, ended = walk(targets, cores, executor, config), "FAILED"
    except (Stopped, BrokenPipeError) as error:
        number = error.args[0] if isinstance(error, Stopped) else signal.SIGHUP
        code, ended = 128 + number, f"Stopped by {number.name}"
    if code:
        seconds = round(time.monotonic() - begin)
        with contextlib.suppress(OSError):
            print(f"{ended} after {seconds} s. The same command goes on with what is missing.", file=sys.stderr)
    return code


def main(profile: str, cores: str, executor: str = "local") -> int:
    if said := mistake(profile, cores, executor):
        print(said, file=sys.stderr)
        return 2
    begin = time.monotonic()
    if code := run([], cores, executor, [f"profile={profile}"]):
        return code
    if (runs.root() / ".progress").exists():
        print(f"All notebooks are done, {round(time.monotonic() - begin)} s.")
    else:
        print(f"Nothing to do: every notebook of profile {profile} is up to date.")
    show(profile)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--guard"]:
        if not sys.stdin.read():
            _end(int(sys.argv[2]))
        sys.exit()
    sys.exit(main(*sys.argv[1:]))

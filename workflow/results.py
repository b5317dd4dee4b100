"""Knows which notebooks a profile runs, with which parameters, and whether what each of them wrote is whole.

python workflow/results.py FOLDER     # notes the checksums of what a notebook wrote there
"""

from __future__ import annotations

import fcntl
import os
import platform
import sys
import time
from pathlib import Path
from typing import IO, Any

import yaml

from rules2ranks import runs
from rules2ranks.stages import parameters

REPOSITORY = Path(__file__).resolve().parents[1]


def profiles() -> list[str]:
    """The names of the profiles that there are."""
    return sorted(path.stem for path in (REPOSITORY / "profiles").glob("*.yaml"))


def executors() -> list[str]:
    """The names of the workflow profiles, each of which says where and how jobs run."""
    return sorted(path.parent.name for path in (REPOSITORY / "workflow" / "profiles").glob("*/config.yaml"))


def tables(profile: str) -> list[str]:
    """The reference tables that a profile has settings for; some of them are made on request only."""
    return list(_settings(profile).get("reference") or {})


def _settings(profile: str) -> dict[str, Any]:
    if profile not in profiles():
        raise ValueError(f"no profile {profile!r}; there are {', '.join(profiles())}")
    return yaml.safe_load((REPOSITORY / "profiles" / f"{profile}.yaml").read_text(encoding="utf-8"))


def values(profile: str) -> dict[str, dict[str, Any]]:
    """The checked parameters of every notebook in `notebooks/`, in order, as plain values.

    `profiles/fast.yaml` names all notebooks with all their parameters; another profile changes some of them. Its
    entry `reference` is not a notebook: it holds the settings of `make reference`.

    Raises:
        ValueError: there is no such profile, `fast` leaves a notebook out, the profile names one that `fast` does not,
            or it gives a parameter that the notebook does not take.
    """
    names = sorted(notebook.stem for notebook in (REPOSITORY / "notebooks").glob("*.ipynb"))
    base, changes = _settings("fast"), _settings(profile)
    if missing := sorted(set(names) - set(base)):
        raise ValueError(f"profiles/fast.yaml has no entry for {missing}")
    if unknown := sorted(set(changes) - set(base) - {"reference"}):
        raise ValueError(f"profiles/{profile}.yaml names {unknown}, which profiles/fast.yaml does not")
    return {
        name: parameters.NOTEBOOKS[name].check(base[name] | (changes.get(name) or {})).model_dump(mode="json")
        for name in names
    }


def seal(place: Path) -> None:
    """Note the checksum of every file of a notebook that ran to its end, the executed notebook among them."""
    runs.seal(place, {"notebook": place.parent.name})


def only_walk(profile: str) -> IO[str]:
    """A lock on `runs/`, held as long as the file is open: the system lets it go with the process, however that ends.

    Raises:
        SystemExit: another walk goes on there; the message says which.
    """
    lock = (runs.root() / ".walk").open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise SystemExit(
            f"Another walk writes into {runs.root()}: {lock.read()}.\n"
            "Wait for its end, or give this one a folder of its own in RULES2RANKS_RUNS."
        ) from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}, profile {profile}, since {time.strftime('%H:%M, %d %B')}")
    lock.flush()
    return lock


def forget_damaged() -> None:
    """Make those notebooks run again whose files are no longer as they were noted, whatever profile they ran with."""
    for note in sorted((runs.root() / "notebooks").glob("*/*/provenance.json")):
        try:
            runs.load(note.parent)
        except ValueError as damage:
            print(f"{damage}: {note.parents[1].name} counts as not run", file=sys.stderr)
            for sign in (note.with_name("metrics.json"), note):
                sign.unlink(missing_ok=True)


if __name__ == "__main__":
    seal(Path(sys.argv[1]))

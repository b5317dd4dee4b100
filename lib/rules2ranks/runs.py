"""Where results live: parameters checked once, results written whole or not at all, and found again.

A *stage* is a function of typed parameters. Its result is a folder `runs/<stage>/<key>/` with `params.json`,
`metrics.json`, `provenance.json` and whatever files the stage made; the key follows from the parameters and from the
versions of the stage and of those it builds on. `runs/` lies beside `pyproject.toml`; the environment variable
RULES2RANKS_RUNS moves it.
"""

import contextlib
import contextvars
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from filelock import FileLock, Timeout

from rules2ranks.parameters import OfFiles, ParameterError, Params

__all__ = [
    "Missing",
    "OfFiles",
    "ParameterError",
    "Params",
    "Result",
    "Stage",
    "find_or_make",
    "key",
    "load",
    "only_finds",
    "only_found",
    "only_one",
    "root",
    "seal",
    "sha256",
    "stage",
    "threads",
    "where",
    "write_json",
]

_OWN_FILES = ("params.json", "metrics.json")
_READABLE = 0o666
#: Files of more bytes are not read again at every look-up.
LARGE = 64 * 2**20
_PACKAGES = ("numpy", "numba", "torch", "transformers", "peft", "safetensors", "rules2ranks")


def root() -> Path:
    """The folder that holds all results: RULES2RANKS_RUNS, or `runs/` beside `pyproject.toml`, or `./runs`."""
    if moved := os.environ.get("RULES2RANKS_RUNS"):
        return Path(moved).expanduser().resolve()
    repository = Path(__file__).resolve().parents[2]
    return (repository if (repository / "pyproject.toml").is_file() else Path.cwd()) / "runs"


# --- results ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """A finished result: its folder, and the three records in it."""

    folder: Path
    params: dict[str, Any]
    metrics: dict[str, Any]
    provenance: dict[str, Any]

    def file(self, name: str) -> Path:
        """The path of a file that the stage made.

        Raises:
            FileNotFoundError: the result has no such file; the message lists those that it has.
        """
        if name not in self.provenance["sha256"]:
            raise FileNotFoundError(f"{self.folder} has no {name!r}, only {', '.join(self.provenance['sha256'])}")
        return self.folder / name


def key(params: Mapping[str, Any], versions: str = "") -> str:
    """A folder name, safe in any shell, from the parameters: the readable ones first, then a digest of all."""
    text = json.dumps([versions, params], sort_keys=True)
    simple = (f"{name}{value}" for name, value in params.items() if isinstance(value, int | float | str))
    readable = re.sub(r"[^A-Za-z0-9._-]+", "", "_".join(simple))[:60].strip("._-")
    return f"{readable or 'all'}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all: beside its place first, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(beside, path)


def sha256(path: Path, again: bool = False) -> str:
    """The sha256 of a file, in hexadecimal.

    That of a file above `LARGE` is remembered with size, inode and time, and made anew when one of these has changed,
    or when asked for `again`.
    """
    stat = path.stat()
    if stat.st_size <= LARGE:
        return _digest(path)
    note, now = root() / ".seen" / f"{stat.st_dev}-{stat.st_ino}.json", [stat.st_size, stat.st_mtime_ns]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        seen = json.loads(note.read_text())
        if seen["size and time"] == now and not again:
            return seen["sha256"]
    digest = _digest(path)
    write_json(note, {"file": str(path), "size and time": now, "sha256": digest})
    return digest


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    """What a stage wrote: hidden files are a file system's or a file browser's, or of an interrupted write."""
    found = (path for path in folder.rglob("*") if path.is_file() and path != folder / "provenance.json")
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def load(folder: Path, again: bool = False) -> Result:
    """The result in a folder, after every file was compared with the checksum noted when it was written.

    Files that are not noted are nobody's business. Large files are read only if they seem to have changed, or if asked
    to be read `again` (see `sha256`).

    Raises:
        ValueError: a file is missing, torn or altered; the message names it.
        OSError: a file that is there cannot be read, which says nothing of what is in it.
    """
    provenance = _provenance(folder / "provenance.json")
    for name, noted in provenance["sha256"].items():
        path = folder / name
        try:
            same = path.is_file() and noted == sha256(path, again)
        except FileNotFoundError:
            same = False
        except OSError as error:
            raise OSError(f"{path} cannot be read ({error.strerror}); the result was left as it is") from error
        if not same:
            raise ValueError(f"{path} is missing, torn or altered")
    params, metrics = (json.loads((folder / name).read_text()) for name in _OWN_FILES)
    return Result(folder, params, metrics, provenance)


def _provenance(path: Path) -> dict[str, Any]:
    """What was noted of a result, with the checksum of each of its files by name, and if it is not too old its own."""
    try:
        found = json.loads(path.read_bytes())
        noted = found["sha256"]
        whole = _checked(found) and all(isinstance(digest, str) and _inside(name) for name, digest in noted.items())
    except FileNotFoundError:
        whole = False
    except OSError as error:
        raise OSError(f"{path} cannot be read ({error.strerror}); the result was left as it is") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole or not set(_OWN_FILES) <= noted.keys():
        raise ValueError(f"{path} is missing, torn or altered")
    return found


def _checked(note: Mapping[str, Any]) -> bool:
    """Whether the checksum in a note is its own. Older notes have none: then nothing there may look like one either."""
    if "checksum" in note:
        return sealed(note) == note
    return not any(isinstance(value, str) and len(value) == 64 for value in note.values())


def sealed(note: Mapping[str, Any]) -> dict[str, Any]:
    """What is noted, and as its `checksum` a digest of all the rest."""
    rest = {name: value for name, value in note.items() if name != "checksum"}
    return rest | {"checksum": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def _inside(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


@functools.cache
def _commit() -> str:
    """The commit of code and data, `-dirty` where either was changed since; 'unknown' outside a git checkout."""
    package = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(package), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", ":/data")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def where() -> dict[str, Any]:
    """What a number's provenance says of the place it was made in: versions, commit, machine, threads."""
    torch = sys.modules.get("torch")  # never imported just to be asked
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    cuda = bool(torch) and torch.cuda.is_available()
    return {
        "commit": _commit(),
        "versions": versions,
        "machine": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": threads(),
    }


def threads() -> int:
    """How many threads compute a result: one, unless the environment variable RULES2RANKS_THREADS says more.

    With one, the same parameters give the same bits on one machine; with others the last digits can differ.

    Raises:
        ValueError: the variable is no whole number from 1 up.
    """
    said = os.environ.get("RULES2RANKS_THREADS", "1")
    if not said.isascii() or not said.isdigit() or not int(said):
        raise ValueError(f"RULES2RANKS_THREADS must be a number of threads from 1 up, got {said!r}")
    return int(said)


@contextlib.contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """One maker at a time, by a lock on this file; a second comer says that it waits, and then finds what was made."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    turn = FileLock(lock)
    try:
        turn.acquire(timeout=1)
    except Timeout:
        print(f"waiting for another process that makes {lock.stem.lstrip('.')}", file=sys.stderr)
        turn.acquire()
    try:
        yield
    finally:
        turn.release()


class Missing(LookupError):
    """A result that was only to be found is not there: its stage's `name`, and its `params`."""

    def __init__(self, name: str, params: Mapping[str, Any]):
        super().__init__(f"there is no result of {name} in {root()} for {dict(params)}")
        self.name, self.params = name, params


_ONLY_FOUND = contextvars.ContextVar("only_found", default=False)


@contextlib.contextmanager
def only_found() -> Iterator[None]:
    """Within it no result is made: a stage whose result is not there raises `Missing`."""
    before = _ONLY_FOUND.set(True)
    try:
        yield
    finally:
        _ONLY_FOUND.reset(before)


def only_finds() -> bool:
    """Whether this is within `only_found`."""
    return _ONLY_FOUND.get()


def find_or_make(name: str, params: Mapping[str, Any], versions: str, make: Callable[[Path], dict]) -> Result:
    """The result of a stage for these parameters, taken from `runs/` or made there.

    `make` gets a working folder, which a killed run leaves behind for the next to go on from, writes its files there
    and returns its metrics. Only when all is written is the folder renamed to its final place.

    Raises:
        Missing: within `only_found`, where there is none.
        Whatever `make` raises; nothing finished is lost by it.
    """
    folder = root() / name / key(params, versions)
    if folder.is_dir() and (found := _load_or_none(folder)):
        return found
    if only_finds():
        raise Missing(name, params)
    with only_one(folder.with_name(f".{folder.name}.lock")):
        if folder.is_dir():
            if found := _load_or_none(folder):
                return found
            _put_aside(folder)
        work = folder.with_name(f".{folder.name}.partial")
        resumed = work.is_dir()
        work.mkdir(exist_ok=True)
        begin = time.monotonic()
        metrics = make(work)
        write_json(work / "params.json", params)
        write_json(work / "metrics.json", metrics)
        seconds = round(time.monotonic() - begin, 2)
        seal(work, {"stage": name, "stage_versions": versions, "seconds": seconds, "resumed": resumed, **where()})
        os.replace(work, folder)
        return load(folder)


def seal(folder: Path, note: Mapping[str, Any]) -> None:
    """Write `provenance.json`: what is to be noted of a result, and the checksum of each of its files."""
    sums = {}
    for path in _files(folder):
        path.chmod(_READABLE & ~_umask())  # safetensors writes for its owner alone; a shared disk has others
        sums[str(path.relative_to(folder))] = sha256(path)
    write_json(folder / "provenance.json", sealed({**note, "sha256": sums}))


def _load_or_none(folder: Path) -> Result | None:
    try:
        return load(folder)
    except ValueError as damage:
        print(f"{damage}: this result is made again", file=sys.stderr)
        return None


def _put_aside(folder: Path) -> None:
    """Move a damaged result, or a link to one, out of the way; nothing is ever deleted."""
    number = 1
    while os.path.lexists(aside := folder.with_name(f".{folder.name}.damaged{number}")):
        number += 1
    folder.rename(aside)
    print(f"what was there lies in {aside} now", file=sys.stderr)


def _umask() -> int:
    os.umask(now := os.umask(0o077))
    return now


# --- stages -----------------------------------------------------------------------------------------------------


class Stage:
    """A function `(work: Path, given: SomeParams) -> metrics` whose results are kept.

    Call it with its parameters by name, or with them as `Params`, the class that the function declares.
    """

    def __init__(self, function: Callable[[Path, Any], dict], version: int):
        functools.update_wrapper(self, function)
        self.name, self.version, self._function = function.__name__, version, function
        self.Params: type[Params] = get_type_hints(function)["given"]
        self.Params.stage = self

    def versions(self, given: Params) -> str:
        """Part of the key: this stage's version, the files that it reads for these parameters, and the versions of
        the stages whose parameters are among them."""
        files = [f"{path.name}={sha256(path)[:12]}" for path in given.reads()]
        below = [part.stage.versions(part) for _, part in given if isinstance(part, Params) and part.stage]
        return ",".join([f"{self.name}={self.version}", *files, *below])

    def __call__(self, given: Params | None = None, /, **parameters: Any) -> Result:
        given = self._checked(given, parameters)
        return self.keep(given, lambda work: self._function(work, given))

    def keep(self, given: Params, make: Callable[[Path], dict]) -> Result:
        """The result for these parameters, or else what another maker of the same result writes: see `find_or_make`."""
        return find_or_make(self.name, given.model_dump(mode="json"), self.versions(given), make)

    def find(self, given: Params | None = None, /, **parameters: Any) -> Result | None:
        """The finished result for these parameters, or None: never makes one."""
        given = self._checked(given, parameters)
        folder = root() / self.name / key(given.model_dump(mode="json"), self.versions(given))
        return _load_or_none(folder) if folder.is_dir() else None

    def _checked(self, given: Params | None, parameters: dict[str, Any]) -> Params:
        return self.Params.check(parameters) if given is None else given


def stage(version: int) -> Callable[[Callable[[Path, Any], dict]], Stage]:
    """Make a stage of a function; raise `version` whenever the same parameters would give another result."""
    return lambda function: Stage(function, version)

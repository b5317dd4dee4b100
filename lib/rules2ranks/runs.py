"""Where results live: parameters checked once, results written whole or not at all, and found again.

A *stage* is a function of plain parameters. Its result is a folder `runs/<stage>/<key>/` with `params.json`,
`metrics.json`, `provenance.json` and whatever files the stage made; the key follows from the parameters and from the
versions of the stage and of those it builds on. `runs/` lies beside `pyproject.toml`; the environment variable
RULES2RANKS_RUNS moves it.
"""

import contextlib
import difflib
import functools
import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_type_hints

import yaml
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError, create_model, field_validator

_OWN_FILES = ("params.json", "metrics.json")
_PACKAGES = ("numpy", "numba", "torch", "transformers", "peft", "safetensors", "rules2ranks")


def root() -> Path:
    """The folder that holds all results: RULES2RANKS_RUNS, or `runs/` beside `pyproject.toml`, or `./runs`."""
    if moved := os.environ.get("RULES2RANKS_RUNS"):
        return Path(moved).expanduser().resolve()
    repository = Path(__file__).resolve().parents[2]
    return (repository if (repository / "pyproject.toml").is_file() else Path.cwd()) / "runs"


# --- parameters -------------------------------------------------------------------------------------------------


class ParameterError(ValueError):
    """A parameter has an unknown name, a wrong type or an impossible value; the message says what is allowed."""


class Params(BaseModel):
    """Typed parameters that refuse unknown names. Values that papermill hands over as text are read as YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _read_text(cls, value: Any, info: Any) -> Any:
        # `papermill -p rates '[.2, .3]'` and YAML's `1e-4` both arrive as text.
        if isinstance(value, str) and cls.model_fields[info.field_name].annotation is not str:
            with contextlib.suppress(yaml.YAMLError):
                return yaml.safe_load(value)
        return value

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> Self:
        """The parameters with every value checked, or a ParameterError that names each mistake and its mending."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise ParameterError("\n".join(_explain(cls, item) for item in error.errors())) from None


def _explain(model: type[Params], item: Mapping[str, Any]) -> str:
    allowed = list(model.model_fields)
    name = ".".join(str(part) for part in item["loc"])
    if not name:  # parameters that do not go together
        return f"{item['msg'].removeprefix('Value error, ')}."
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, allowed, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown parameter {name!r}: {hint}Allowed are {', '.join(allowed)}."
    if item["type"] == "missing":
        return f"parameter {name!r} is missing. Allowed are {', '.join(allowed)}."
    return f"parameter {name!r} = {item['input']!r}: {item['msg']}."


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / "provenance.json")


def load(folder: Path) -> Result:
    """The result in a folder, after every file was compared with the checksum noted when it was written.

    Raises:
        ValueError: a file is missing, torn, altered or not accounted for; the message names it.
    """
    try:
        provenance = json.loads((folder / "provenance.json").read_text())
        noted = provenance["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'provenance.json'} is missing or torn") from error
    for path in {folder / name for name in noted} | set(_files(folder)):
        name = str(path.relative_to(folder))
        if not path.is_file() or noted.get(name) != _sha256(path):
            raise ValueError(f"{path} is missing, torn or altered")
    params, metrics = (json.loads((folder / name).read_text()) for name in _OWN_FILES)
    return Result(folder, params, metrics, provenance)


@functools.cache
def _commit() -> str:
    """The commit of the code, `-dirty` where the library was changed since; 'unknown' outside a git checkout."""
    package = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(package), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
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
        "threads": torch.get_num_threads() if torch else 1,
    }


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """One maker per key; a second comer says that it waits, and then finds the result."""
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


def find_or_make(name: str, params: Mapping[str, Any], versions: str, make: Callable[[Path], dict]) -> Result:
    """The result of a stage for these parameters, taken from `runs/` or made there.

    `make` gets a working folder, which a killed run leaves behind for the next to go on from, writes its files there
    and returns its metrics. Only when all is written is the folder renamed to its final place.

    Raises:
        Whatever `make` raises; nothing finished is lost by it.
    """
    folder = root() / name / key(params, versions)
    if folder.is_dir() and (found := _load_or_none(folder)):
        return found
    with _only_one(folder.with_name(f".{folder.name}.lock")):
        if folder.is_dir():
            if found := _load_or_none(folder):
                return found
            shutil.rmtree(folder)
        work = folder.with_name(f".{folder.name}.partial")
        resumed = work.is_dir()
        work.mkdir(exist_ok=True)
        begin = time.monotonic()
        metrics = make(work)
        write_json(work / "params.json", params)
        write_json(work / "metrics.json", metrics)
        sums = {str(path.relative_to(work)): _sha256(path) for path in _files(work)}
        seconds = round(time.monotonic() - begin, 2)
        note = {"stage": name, "stage_versions": versions, "seconds": seconds, "resumed": resumed, **where()}
        write_json(work / "provenance.json", {**note, "sha256": sums})
        os.replace(work, folder)
    return load(folder)


def _load_or_none(folder: Path) -> Result | None:
    try:
        return load(folder)
    except ValueError as damage:
        print(f"{damage}: this result is made again", file=sys.stderr)
        return None


# --- stages -----------------------------------------------------------------------------------------------------


class Stage:
    """A function whose results are kept. Call it with keyword parameters; `Params` is its typed model."""

    def __init__(self, function: Callable[..., dict], version: int, uses: tuple["Stage", ...], reads: tuple[Path, ...]):
        functools.update_wrapper(self, function)
        self.name, self.version, self.uses, self.reads = function.__name__, version, uses, reads
        self._function = function
        hints = get_type_hints(function, include_extras=True)
        _, *parameters = inspect.signature(function).parameters.values()
        fields = {p.name: (hints[p.name], ... if p.default is p.empty else p.default) for p in parameters}
        self.Params = create_model(f"{self.name}.Params", __base__=Params, **fields)

    @property
    def versions(self) -> str:
        """This stage's version, those of all stages it builds on and the files it reads: part of every key."""
        files = (f"{path.name}={_sha256(path)[:12]}" for path in self.reads)
        return ",".join([f"{self.name}={self.version}", *files, *(used.versions for used in self.uses)])

    def __call__(self, **parameters: Any) -> Result:
        checked = self.Params.check(parameters)
        arguments = {name: getattr(checked, name) for name in type(checked).model_fields}
        plain = checked.model_dump(mode="json")
        return find_or_make(self.name, plain, self.versions, lambda work: self._function(work, **arguments))

    def keep(self, make: Callable[[Path], dict], **parameters: Any) -> Result:
        """The result for these parameters, or else what another maker of the same result writes: see `find_or_make`."""
        plain = self.Params.check(parameters).model_dump(mode="json")
        return find_or_make(self.name, plain, self.versions, make)

    def find(self, **parameters: Any) -> Result | None:
        """The finished result for these parameters, or None: never makes one."""
        folder = root() / self.name / key(self.Params.check(parameters).model_dump(mode="json"), self.versions)
        return _load_or_none(folder) if folder.is_dir() else None


def stage(
    version: int, uses: tuple[Stage, ...] = (), reads: tuple[Path, ...] = ()
) -> Callable[[Callable[..., dict]], Stage]:
    """Make a stage of `function(work: Path, **typed parameters) -> metrics`.

    Raise `version` whenever the same parameters would give another result; `uses` names the stages it builds on,
    `reads` the shipped files whose content decides its result.
    """
    return lambda function: Stage(function, version, uses, reads)

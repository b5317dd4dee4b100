"""The papers' numbers, each with its source, and the folder of small data files they live in."""

import hashlib
from functools import cache
from pathlib import Path

import pandas as pd

COLUMNS = ("paper", "quantity", "setting", "value", "unit", "source", "how_sure")

# From the most to the least certain; data/README.md says what each word stands for.
HOW_SURE = ("from code", "figure", "abstract", "secondary")


def data_folder() -> Path:
    """The folder `data/` beside `pyproject.toml`.

    Raises:
        FileNotFoundError: the package was installed without its clone, so no data came with it.
    """
    root = Path(__file__).resolve().parents[2]
    folder = root / "data"
    if not (root / "pyproject.toml").is_file() or not folder.is_dir():
        raise FileNotFoundError(
            f"no folder data/ beside pyproject.toml in {root}: the data ship with a clone of the project, "
            "not with the installed package; clone it and install with `pip install -e .`"
        )
    return folder


@cache
def shipped(name: str) -> Path:
    """A file of `data/` by its name there, after it was compared, once a process, with its line in `SHA256SUMS`.

    Raises:
        ValueError: it is missing, torn or altered.
    """
    folder = data_folder()
    lines = (line.split(maxsplit=1) for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines())
    noted = {file: digest for digest, file in lines}
    path = folder / name
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != noted.get(name):
        raise ValueError(
            f"{path} is missing, torn or altered: `git restore data/{name}` brings it back (if it was meant to change, "
            "its line in data/SHA256SUMS has to)"
        )
    return path


def names() -> list[str]:
    """Names of the published tables, in alphabetical order."""
    return sorted(file.stem for file in (data_folder() / "published").glob("*.csv"))


def table(name: str) -> pd.DataFrame:
    """One published table, a row per number, with the columns of `COLUMNS`.

    `value` is a float in the stated `unit`; `source` names paper, arXiv number and figure, table or raw data;
    `how_sure` is one of `HOW_SURE`.

    Raises:
        ValueError: there is no table of that name.
    """
    return _read(name).copy()


@cache
def _read(name: str) -> pd.DataFrame:
    if name not in names():
        raise ValueError(f"no published table {name!r}: expected one of {names()}")
    return pd.read_csv(shipped(f"published/{name}.csv"), dtype={"value": float, "setting": str})

"""Measurements that were made elsewhere: read from a table of rank vectors and scores."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rules2ranks.allocation.search import Measurement
from rules2ranks.allocation.space import Space


def read_measurements(
    path: str | Path, space: Space, *, score: str = "score", higher_is_better: bool = False
) -> list[Measurement]:
    """The offline part of a search, from a CSV or JSON table that the user brings.

    A row is a measurement. Its ranks are one column `ranks` (numbers apart by blanks or commas; in JSON also a list)
    or one column for each unit of the space, `rank_0` … ; its score is the column `score`, of which lower is better
    unless `higher_is_better` (an accuracy), which turns its sign. JSON is a list of objects. A vector that stands in
    several rows (other seeds) counts once, with the mean of its scores.

    Raises:
        ValueError: a missing file, another format, missing or unknown columns (says which and what is expected), ranks
            or scores that are no numbers, or a vector outside the space (names the row).
    """
    path = Path(path)
    table = _table(path)
    columns = [f"rank_{unit}" for unit in range(len(space.cost))]
    wanted = ["ranks"] if "ranks" in table else columns
    expected = f"expected `ranks` (or {columns[0]} … {columns[-1]}) and `{score}`"
    if missing := [name for name in [*wanted, score] if name not in table]:
        raise ValueError(f"{path} has no column {', '.join(missing)}: {expected}, it has {', '.join(table)}")
    if unknown := [name for name in table if name not in [*wanted, score]]:
        raise ValueError(f"{path} has unknown columns {', '.join(map(str, unknown))}: {expected}")
    found: dict[tuple[int, ...], list[float]] = {}
    for number, row in enumerate(table.to_dict("records"), 1):
        try:
            ranks = _ranks(row["ranks"] if wanted == ["ranks"] else [row[name] for name in wanted])
            value = float(row[score])
            inside = space.contains(ranks)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, row {number}: {error}") from None
        if not inside:
            raise ValueError(
                f"{path}, row {number}: the ranks {ranks} are off the grid {space.grid}, over the budget of "
                f"{space.budget} trainable parameters, or not as fixed ({dict(space.fixed)})"
            )
        if not -float("inf") < value < float("inf"):
            raise ValueError(f"{path}, row {number}: the score must be finite, got {value}")
        found.setdefault(ranks, []).append(-value if higher_is_better else value)
    return [Measurement(ranks, sum(scores) / len(scores)) for ranks, scores in found.items()]


def _table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if path.suffix not in (".csv", ".json"):
        raise ValueError(f"{path} must be a .csv or .json file")
    try:
        if path.suffix == ".csv":
            return pd.read_csv(path, dtype=str, keep_default_na=False)
        rows = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} must hold a list of objects, one a measurement")
    return pd.DataFrame(rows).astype(object)


def _ranks(value: Any) -> tuple[int, ...]:
    """Whole numbers from a list, or from text with blanks or commas between them."""
    parts: Sequence[Any] = value.replace(",", " ").split() if isinstance(value, str) else value
    numbers = [float(part) for part in parts]
    if not all(number.is_integer() for number in numbers):
        raise ValueError(f"ranks must be whole numbers, got {value!r}")
    return tuple(int(number) for number in numbers)

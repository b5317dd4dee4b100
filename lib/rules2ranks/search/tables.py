"""Trials that were made elsewhere: read from a table of ranks and scores."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rules2ranks.search.space import Point, Space
from rules2ranks.search.trials import Trial


def read_trials(path: str | Path, space: Space, *, score: str = "score", higher_is_better: bool = False) -> list[Trial]:
    """The known part of a search over ranks, from a CSV or JSON table that the user brings.

    A row is a trial. Its ranks are one column `ranks` (numbers apart by blanks or commas; in JSON also a list) or one
    column for each knob of the space, `rank_0` … ; its score is the column `score`, of which lower is better unless
    `higher_is_better` (an accuracy), which turns its sign. JSON is a list of objects. A point that stands in several
    rows (other seeds) counts once, with the mean of its scores.

    Raises:
        ValueError: a space of more than ranks, a missing file, another format, missing or unknown columns (says which
            and what is expected), ranks or scores that are no numbers, or ranks outside the space (names the row).
    """
    if any(len({option[:2] for option in knob.options}) > 1 for knob in space.knobs):
        raise ValueError("a table of ranks cannot say bits or levels: give such trials as `known`")
    path = Path(path)
    table = _table(path)
    columns = [f"rank_{knob}" for knob in range(sum(bool(knob.matrices) for knob in space.knobs))]
    wanted = ["ranks"] if "ranks" in table else columns
    expected = f"expected `ranks` (or {columns[0]} … {columns[-1]}) and `{score}`"
    if missing := [name for name in [*wanted, score] if name not in table]:
        raise ValueError(f"{path} has no column {', '.join(missing)}: {expected}, it has {', '.join(table)}")
    if unknown := [name for name in table if name not in [*wanted, score]]:
        raise ValueError(f"{path} has unknown columns {', '.join(map(str, unknown))}: {expected}")
    found: dict[Point, list[float]] = {}
    for number, row in enumerate(table.to_dict("records"), 1):
        try:
            point = _point(space, row["ranks"] if wanted == ["ranks"] else [row[name] for name in wanted])
            value = float(row[score])
            if not np.isfinite(value):
                raise ValueError(f"the score must be finite, got {value}")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, row {number}: {error}") from None
        found.setdefault(point, []).append(-value if higher_is_better else value)
    return [Trial(point, (sum(scores) / len(scores),)) for point, scores in found.items()]


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
        raise ValueError(f"{path} must hold a list of objects, one a trial")
    return pd.DataFrame(rows).astype(object)


def _point(space: Space, ranks: Any) -> Point:
    """The point with these ranks: whole numbers from a list, or from text with blanks or commas between them."""
    numbers = [float(part) for part in (ranks.replace(",", " ").split() if isinstance(ranks, str) else ranks)]
    needed = sum(bool(knob.matrices) for knob in space.knobs)
    if len(numbers) != needed:
        raise ValueError(f"one rank for each of {needed} knobs is needed, got {len(numbers)}")
    point, left = (), list(numbers)
    for place, knob in enumerate(space.knobs):
        if not knob.matrices:  # what stands outside all matrices has no rank
            point += (0,)
            continue
        known, rank = [option.rank for option in knob.options], left.pop(0)
        if rank not in known:
            raise ValueError(f"knob {place} has no rank {rank:g}, it has {known}")
        point += (known.index(rank),)
    if not space.contains(point):
        raise ValueError(f"the ranks {ranks} are over the budget of {space.budgets[0]} parameters")
    return point

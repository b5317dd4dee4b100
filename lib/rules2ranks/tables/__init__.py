"""The reference tables in `data/reference/`: read here, remade by `python -m rules2ranks.tables`.

Each table is a sweep over stage results, in a module of its own, with typed settings.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from rules2ranks import runs
from rules2ranks.configuration import Configuration
from rules2ranks.published import data_folder

#: A table in the making: a dictionary a row.
Rows = list[dict[str, Any]]
#: What the row of a pruned model that was not recovered is called.
ALONE = "pruned only"


class Reference(NamedTuple):
    """A table, and beside it how it was made: `settings`, `command`, `seconds` (one thread), versions, machine."""

    table: pd.DataFrame
    note: dict[str, Any]


def place(name: str) -> Path:
    """Where a table lies; its note has the ending .json."""
    return data_folder() / "reference" / f"{name}.csv"


def read(name: str) -> Reference:
    """A committed reference table and its note.

    Raises:
        FileNotFoundError: there is no such table; the message says how to make it.
        ValueError: it is not what was written, or its note is torn.
    """
    file = place(name)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there: `make reference` makes it")
    try:
        note = json.loads(file.with_suffix(".json").read_text())
        whole = note["sha256"] == runs.sha256(file) and runs.sealed(note) == note
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{file} or its note is torn or altered: `git restore` both, or `make reference` makes them")
    return Reference(pd.read_csv(file), note)


def write(file: Path, table: pd.DataFrame, about: Mapping[str, Any], seconds: float) -> None:
    """Write a table and its note: what is said `about` it, and whatever is noted of all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False)
    made = {"seconds": round(seconds), "rows": len(table), "sha256": runs.sha256(file)}
    runs.write_json(file.with_suffix(".json"), runs.sealed({**about, **made, **runs.where()}))


def shared_settings(values: Mapping[str, Any], kind: type[runs.Params]) -> dict[str, Any]:
    """A table's `settings` by name, each with what stands beside them once for all, unless it says otherwise."""
    shared = {name: value for name, value in values.items() if name != "settings"}
    return {"settings": {name: kind.nested(shared | own) for name, own in values.get("settings", {}).items()}}


def among(name: str, asked: Any, available: Sequence[Any]) -> None:
    """Refuse what a table does not have: a notebook that remakes a part of it can only remake what is there.

    Raises:
        ParameterError: `asked` (a value, or a list of them) is not among `available`; says what is.
    """
    for value in asked if isinstance(asked, list) else [asked]:
        if value not in available:
            has = ", ".join(map(str, available))
            raise runs.ParameterError(f"parameter {name!r} = {value!r}: the reference table has {has}")


def written(choice: Configuration | int, layers: list[list[str]]) -> str:
    """A choice as a table holds it: one number for all, one for each layer, or `matrix=number`, apart by blanks.

    A number is a rank, or, where any matrix has fewer than 16 bits, `bits:rank`.
    """
    if isinstance(choice, int):
        return str(choice)
    bits, ranks = choice.bits, choice.ranks

    def said(name: str) -> str:
        return f"{bits.get(name, 16)}:{ranks.get(name, 0)}" if bits else str(ranks.get(name, 0))

    by_layer = [{said(name) for name in layer} for layer in layers]
    if all(len(layer) == 1 for layer in by_layer):
        return " ".join(layer.pop() for layer in by_layer)
    return " ".join(f"{name}={said(name)}" for layer in layers for name in layer if name in ranks or name in bits)


def read_choice(text: str, layers: list[list[str]]) -> Configuration:
    """What `written` wrote, as a configuration."""
    parts = text.split()
    if "=" in text:
        given = dict(part.split("=") for part in parts)
    else:
        parts = parts * len(layers) if len(parts) == 1 else parts
        given = {name: part for part, layer in zip(parts, layers, strict=True) for name in layer}
    numbers = {name: [int(number) for number in f"16:{part}".split(":")[-2:]] for name, part in given.items()}
    return Configuration(
        bits={name: bits for name, (bits, _) in numbers.items()},
        ranks={name: rank for name, (_, rank) in numbers.items()},
    )


def read_ranks(text: str) -> int | list[int] | dict[str, int]:
    """The ranks that `written` wrote, where there are no bits, as `Recovery` takes them."""
    if "=" not in text:
        ranks = [int(rank) for rank in text.split()]
        return ranks if len(ranks) > 1 else ranks[0]
    return {name: int(rank) for name, _, rank in (part.partition("=") for part in text.split())}

"""Remakes a slice of every reference table and compares it with the committed one, to the last digit.

    pytest tests/check_tables.py

Takes some ten minutes on one core, so it is no part of `make test`; `make slices` runs it. Another processor or another
version of a library may round sums otherwise: then the rows differ in their last digits, and this says where.
"""

from __future__ import annotations

import io

import pandas as pd
import pytest

from rules2ranks import tables
from rules2ranks.stages import language
from rules2ranks.tables.__main__ import MAKERS, checked

FEW = {"rules": [110, 204], "seeds": [0, 1], "random_seeds": [0]}
LOW_RATE = "50 %, per kind, low rate"


def _some(settings: dict, name: str, **changes) -> dict:
    """One of a table's settings, with fewer searches and seeds."""
    return settings | {"settings": {name: settings["settings"][name]}} | changes


#: From a table's committed settings, those of a slice.
SLICES = {
    "edge_of_chaos": lambda s: s | FEW,
    "edge_ablations": lambda s: (
        s
        | {"rules": s["rules"][:1], "seeds": [0], "variants": {k: v for k, v in s["variants"].items() if "80" not in k}}
    ),
    "compression": lambda s: s | {"rules": [110, 204], "seeds": [0]},
    "rank_adaptor": lambda s: _some(s, "50 %, uniform", search_seeds=[0], report_seeds=[100]),
    "rank_settings": lambda s: _some(s, LOW_RATE, report_seeds=[100]),
    "recovery_rates": lambda s: s | {"ranks": [1, 2], "rates": s["rates"][-1:], "seeds": [0]},
}
#: What tells the rows of a table apart.
KEYS = {
    "edge_of_chaos": ["start", "source", "seed", "task"],
    "pretraining": ["source", "seed"],
    "edge_ablations": ["variant", "start", "source", "seed", "task"],
    "compression": ["rule", "seed", "ratio"],
    "rank_adaptor": ["setting", "allocator", "which", "report_seed"],
    "rank_adaptor_search": ["setting", "allocator", "search_seed", "order"],
    "rank_settings": ["setting", "allocator", "which", "report_seed"],
    "rank_settings_search": ["setting", "allocator", "search_seed", "order"],
    "recovery_rates": ["method", "ranks", "lr", "seed"],
}


def differences(name: str, rows: list[dict]) -> list[str]:
    """A line for every row that the committed table lacks or has otherwise."""
    made = pd.read_csv(io.StringIO(pd.DataFrame(rows).convert_dtypes().to_csv(index=False)), dtype=str).fillna("")
    known = pd.read_csv(tables.place(name), dtype=str).fillna("").set_index(KEYS[name])
    wrong = []
    for row in made.set_index(KEYS[name]).itertuples():
        if row.Index not in known.index:
            wrong.append(f"{row.Index}: not in the table")
            continue
        there = known.loc[row.Index].iloc[0] if isinstance(known.loc[row.Index], pd.DataFrame) else known.loc[row.Index]
        pairs = [(column, there[column], made_) for column, made_ in zip(there.index, row[1:], strict=True)]
        wrong += [f"{row.Index}: {column} was {a}, is {b}" for column, a, b in pairs if not _same(a, b)]
    return wrong


def _same(a: str, b: str) -> bool:
    """The same text, or the same number written in another way (1 and 1.0)."""
    try:
        return a == b or float(a) == float(b)
    except ValueError:
        return False


@pytest.mark.parametrize("maker", SLICES)
def test_a_slice_comes_out_as_committed(maker: str) -> None:
    settings = SLICES[maker](tables.read(maker).note["settings"])
    made, _ = MAKERS[maker](checked(maker, settings), 2)
    for name, rows in made.items():
        if name in KEYS:  # likeness is relative to all the rules of its table
            wrong = differences(name, rows)
            assert not wrong, f"{name}: {len(wrong)} of {len(rows)} rows and columns differ\n" + "\n".join(wrong[:20])


def test_likeness_of_two_rules_comes_out_as_committed() -> None:
    settings = tables.read("edge_of_chaos").note["settings"]
    made, _ = MAKERS["edge_of_chaos"](checked("edge_of_chaos", settings | FEW | {"seeds": settings["seeds"]}), 2)
    known = tables.read("similarity").table.set_index(["a", "b"]).cka
    for row in made["similarity"]:
        # The same sums in another order: products of more rules at a time.
        assert row["cka"] == pytest.approx(known[row["a"], row["b"]], rel=1e-12)


def test_the_first_steps_of_the_shipped_model_come_out_as_committed() -> None:
    known = tables.read("language_suite").table.set_index("step")
    found = language(stop=80).metrics["history"]
    assert [step for step, _ in found["loss"]][:2] == [32, 64]
    assert [loss for _, loss in found["loss"]][:2] == known.training_loss[[32, 64]].tolist()
    assert found["evaluations"][0]["accuracy"] == known.accuracy[80]

"""Compares every notebook's `metrics.json` in the runs folder with `data/expected/`; run after the notebooks.

    RULES2RANKS_RUNS=runs/test pytest tests/check_metrics.py

`data/expected/<notebook>.json` gives each metric a value and an absolute tolerance; text and integers without a
tolerance must be equal. The tolerance of what was trained comes from its spread over seeds.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

import results
from rules2ranks.stages import parameters

EXPECTED = results.REPOSITORY / "data" / "expected"
VALUES = results.values("fast")


def compare(expected: dict[str, dict[str, Any]], found: dict[str, Any]) -> list[str]:
    """One line for each metric that is missing, unexpected or further from its value than its tolerance."""
    wrong = [f"{key}: missing" for key in sorted(expected.keys() - found.keys())]
    wrong += [f"{key}: not expected" for key in sorted(found.keys() - expected.keys())]
    for key in sorted(expected.keys() & found.keys()):
        value, tolerance = expected[key]["value"], expected[key].get("tolerance", 0)
        # Written so that nan, which is near nothing, counts as wrong.
        number = isinstance(value, int | float) and isinstance(found[key], int | float)
        if not (math.isclose(found[key], value, rel_tol=0, abs_tol=tolerance) if number else found[key] == value):
            wrong.append(f"{key}: found {found[key]!r}, expected {value!r} ± {tolerance}")
    return wrong


@pytest.mark.parametrize("name", VALUES)
def test_metrics_are_as_expected(name: str) -> None:
    path = parameters.folder(name, VALUES[name]) / "metrics.json"
    assert path.is_file(), f"{name} has not run to its end: no {path}"
    expected = json.loads((EXPECTED / f"{name}.json").read_text(encoding="utf-8"))
    assert expected, f"data/expected/{name}.json expects nothing"
    wrong = compare(expected, json.loads(path.read_text(encoding="utf-8")))
    assert not wrong, f"{name}\n" + "\n".join(wrong)


def test_nothing_is_expected_of_notebooks_that_do_not_exist() -> None:
    assert {path.stem for path in EXPECTED.glob("*.json")} == set(VALUES)

"""How nbval runs and compares the notebooks: strictly where every output is exact, else the cells that ask for it."""

from __future__ import annotations

import pytest

# Integers, shapes and rounded exact values only: all their outputs must come out again, to the character.
STRICT = ("10_automata", "11_complexity")


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Compare what a reader relies on: not progress bars, nor the styled copy of a table's plain text."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr", "text/html")
        if collector.path.stem in STRICT:
            collector.compare_outputs = True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Wait longer than nbval's fixed five seconds for a message from a kernel on a busy machine."""
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = 120

"""The table of `make torture`: what was done to whom, how often, and how often it was survived.

A test says by `@pytest.mark.fault("what is done")` that it belongs here, wherever it stands, and by the property
`attempts` how often it does that. `long=True` leaves it to `make torture`, which sets TORTURE.
"""

import os
from collections import Counter

import pytest

ALL = bool(os.environ.get("TORTURE"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left = []
    for item in items:
        for mark in item.iter_markers("fault"):
            item.user_properties.append(("fault", mark.args[0]))
            if mark.kwargs.get("long") and not ALL:
                left.append(item)
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not ALL:
        return
    tried, survived, undone = Counter(), Counter(), Counter()
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            about = dict(report.user_properties)
            if "fault" not in about or (report.when != "call" and outcome not in ("error", "skipped")):
                continue
            count = about.get("attempts", 1)
            (undone if outcome == "skipped" else tried)[about["fault"]] += count
            survived[about["fault"]] += count if outcome == "passed" else 0
    terminalreporter.section("make torture")
    lines = [f"{'what was done':<58}{'attempts':>10}{'survived':>10}"]
    for fault in sorted({*tried, *undone}):
        note = f"  ({undone[fault]} skipped)" if undone[fault] else ""
        lines.append(f"{fault:<58}{tried[fault]:>10}{survived[fault]:>10}{note}")
    lines.append(f"{'all':<58}{tried.total():>10}{survived.total():>10}")
    terminalreporter.write("\n".join(lines) + "\n")

"""The scorecard as pictures: its questions by group, with estimates, intervals and, on the same scale, the paper's."""

import re
from textwrap import fill
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from rules2ranks import figures


class Group(NamedTuple):
    """Questions that share an axis: those in which `asks` is found and that no group before it took.

    `notebook` is the number of the one that tells of them; of a question's words `leave_out` goes without saying.
    """

    title: str
    notebook: str
    axis: str
    asks: str
    leave_out: str = "$^"
    level: str = "95 %"


_LOSS = "loss against"
#: Of seven tests at 5 % together.
_SEVENTH = "99.3 %"
#: In the order in which they are asked whether a question is theirs.
GROUPS = (
    Group("Complexity-OoD", "42", "difference in known cells right", "^Complexity-OoD", "^.*: |, cells.*", _SEVENTH),
    Group("Concept depth", "42", "layers", "^Concept depth", "^.*: ", _SEVENTH),
    Group("COAST", "42", "correlation", "^COAST", "^.*: ", _SEVENTH),
    Group("The order of ways on a real model", "39", "rank correlation", "order of ways", "^The order.* small Llama, "),
    Group("What networks bear", "40", "change when one thing is changed", "networks bear", "^Criterion: "),
    Group(
        "What pruning leaves", "40", "correlation over rules", "share kept", " of complexity and share kept in pruning"
    ),
    Group("Which ranks", "32", f"{_LOSS} the uniform rank's", "the uniform rank", " against the uniform rank"),
    Group("Which bits", "34", f"{_LOSS} the other's", "bits.* a number$", " a number$"),
    Group("Bits and ranks", "35", f"{_LOSS} the other's", "AutoQRA|best uniform bits"),
    Group("A real model", "39", f"{_LOSS} uniform's", "Gemma", " against uniform, Gemma"),
    Group("Other ways to mend", "38", f"{_LOSS} LoRA's", "against LoRA", " against LoRA of rank 2"),
    Group(
        "How much of each part goes", "37", f"{_LOSS} that of divergences added up", "single parts", " against .* up"
    ),
    Group("Judged after training", "37", f"{_LOSS} as cut", "judged after", "^.* as cut, "),
    Group("Levels, bits and ranks", "37", f"{_LOSS} the other's", "^Levels, bits", "^Levels, bits and ranks[,:] "),
    Group(
        "What about a rule teaches",
        "22",
        "correlation over rules",
        "ρ|Pearson|order of rules",
        " of complexity and score",
    ),
)
_NUMBER = r"([-+]?\d+(?:\.\d+)?)"
_INTERVAL = re.compile(rf"{_NUMBER} \[{_NUMBER}, {_NUMBER}\]")
_THEIRS = re.compile(rf"\br = {_NUMBER}")
#: Characters of a label's line.
_WIDTH = 40
#: Where an axis of losses may have a tick, per cent.
_TICKS = (-90, -75, -50, -30, -20, -10, -5, -2, 0, 2, 5, 10, 20, 30, 50, 100, 200, 400, 900)


def group(question: str) -> Group:
    """The group of a question.

    Raises:
        ValueError: no group takes it; `GROUPS` needs one that does.
    """
    for one in GROUPS:
        if re.search(one.asks, question):
            return one
    raise ValueError(f"no group of findings.forests takes the question {question!r}")


def intervals(card: pd.DataFrame) -> pd.DataFrame:
    """The scorecard's rows that have an interval, in its order: the first that `here` holds.

    Columns: `title` of the group; `label`, what the question says beyond it, in lines; `estimate`, `low`, `high`,
    losses in per cent; `theirs`, the paper's number on the same scale, or NaN.
    """
    rows = []
    for question, row in card.iterrows():
        if found := _INTERVAL.search(row.here):
            one, theirs = group(question), _THEIRS.search(row.paper)
            label = fill(re.sub(one.leave_out, "", question), _WIDTH)
            numbers = [*map(float, found.groups()), float(theirs[1]) if theirs else np.nan]
            rows.append((one.title, label, *numbers))
    return pd.DataFrame(rows, columns=["title", "label", "estimate", "low", "high", "theirs"])


def height(rows: pd.DataFrame) -> float:
    """Inches that the rows of one group need, each as high as the one with the most lines."""
    return 0.9 + len(rows) * (0.1 + 0.17 * max(label.count("\n") + 1 for label in rows.label))


def forest(ax: Axes, rows: pd.DataFrame) -> Axes:
    """Draw the rows of one group of `intervals`: ours as a dot and a bar, the paper's number as a diamond.

    Losses are drawn by their ratio on a logarithmic axis, marked in per cent: half and twice are equally far off.
    """
    (title,) = rows.title.unique()
    one = next(each for each in GROUPS if each.title == title)
    percent = one.axis.startswith(_LOSS)
    numbers = rows[["estimate", "low", "high"]].to_numpy()
    figures.dots_with_intervals(ax, list(rows.label), 1 + numbers / 100 if percent else numbers)
    place = np.arange(len(rows))[::-1]
    ax.plot(rows.theirs, place, "D", color=figures.PALETTE["red"], ms=6)
    beside = ", ◆ the paper's number" if rows.theirs.notna().any() else ""
    ax.axvline(1 if percent else 0, color=figures.PALETTE["ink"], ls=":", lw=1.2)
    ax.set(xlabel=f"{one.axis}{', %' if percent else ''} [{one.level}]", title=f"{title} → {one.notebook}{beside}")
    return _in_percent(ax) if percent else ax


def _in_percent(ax: Axes) -> Axes:
    """A logarithmic axis of ratios whose ticks, not too close to each other, say per cent more or less."""
    ax.set_xscale("log")
    low, high = np.log(ax.get_xlim())
    ticks: list[int] = []
    for tick in sorted(_TICKS, key=abs):  # zero first, and then what is nearest to it
        at = np.log1p(tick / 100)
        if low <= at <= high and all(abs(at - np.log1p(x / 100)) > (high - low) / 9 for x in ticks):
            ticks.append(tick)
    ax.xaxis.set_major_locator(FixedLocator([1 + tick / 100 for tick in ticks]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{100 * (ratio - 1):+.0f}".replace("+0", "0")))
    return ax

"""Forest plots of the scorecard: every interval is drawn, in one group, where its numbers say."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from rules2ranks import findings
from rules2ranks.findings import forests

CARD = findings.scorecard()
ROWS = forests.intervals(CARD)


def test_every_interval_of_the_scorecard_is_drawn_once_as_it_stands_there():
    with_interval = CARD[CARD.here.str.contains(r"\[[-+.\d]+, ")]
    assert len(ROWS) == len(with_interval) > 100
    for (_, row), here in zip(ROWS.iterrows(), with_interval.here, strict=True):
        before, _, bounds = here.partition(" [")
        assert float(before.split()[-1]) == row.estimate
        assert [float(bound) for bound in bounds.partition("]")[0].split(", ")] == [row.low, row.high]
        assert row.low <= row.estimate <= row.high
    assert not ROWS.duplicated(["title", "label"]).any()


def test_the_papers_numbers_are_those_on_the_same_scale():
    theirs = ROWS.dropna(subset="theirs")
    assert dict(zip(theirs.label.str.replace("\n", " "), theirs.theirs, strict=True)) == {
        "Pearson r, hard boards": 0.35,
        "Pearson r, hard boards, complex rules only": -0.16,
        "Pearson r, easy boards (ours)": 0.73,
        "Pearson r, chess": 0.43,
    }


def test_a_question_without_a_group_is_told():
    card = pd.DataFrame({"paper": [""], "here": ["1 [0, 2]"]}, index=["How long is a piece of string?"])
    with pytest.raises(ValueError, match="piece of string"):
        forests.intervals(card)


@pytest.mark.parametrize("title", ROWS.title.unique())
def test_a_group_stands_at_its_values_with_ticks_that_can_be_read(title: str):
    rows = ROWS[ROWS.title == title]
    fig, ax = plt.subplots(figsize=(8, forests.height(rows)))
    forests.forest(ax, rows)
    losses = ax.get_xlabel().startswith("loss")
    dots = ax.lines[0].get_xdata()
    np.testing.assert_allclose(dots, 1 + rows.estimate / 100 if losses else rows.estimate)
    assert (ax.get_xscale() == "log") == losses
    fig.canvas.draw()
    low, high = ax.get_xlim()
    ticks = [tick for tick in ax.get_xticks() if low <= tick <= high]
    assert len(ticks) >= 3
    if losses:
        assert 1 in ticks and ax.xaxis.get_major_formatter()(1.1) == "+10" and ax.xaxis.get_major_formatter()(1) == "0"
    plt.close(fig)

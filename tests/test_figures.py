"""Figures: the conventions that a picture has to keep."""

import matplotlib

matplotlib.use("agg")

import math

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from matplotlib.figure import Figure

from rules2ranks import figures


@pytest.fixture
def ax():
    fig, ax = plt.subplots()
    yield ax
    plt.close(fig)


def test_ones_are_dark_and_time_runs_downwards(ax):
    figures.spacetime(ax, np.array([[0, 1], [0, 0]]), "title")
    (image,) = ax.images
    white, ink = (image.cmap(image.norm(value))[:3] for value in (0, 1))
    assert sum(white) == 3
    assert sum(ink) < 0.6
    low, high = ax.get_ylim()
    assert low > high
    with pytest.raises(ValueError, match=r"\(T, W\)"):
        figures.spacetime(ax, np.zeros(3))


def test_intervals_stand_at_their_values_first_on_top(ax):
    figures.dots_with_intervals(ax, ["a", "b"], [(1.0, 0.5, 2.0), (3.0, 2.5, 3.5)])
    points = ax.lines[0].get_xydata()
    assert points.tolist() == [[1.0, 1.0], [3.0, 0.0]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    with pytest.raises(ValueError, match="1 labels for 2"):
        figures.dots_with_intervals(ax, ["a"], [(1, 0, 2), (1, 0, 2)])


def test_every_class_has_its_colour_and_only_those_that_occur_a_legend(ax):
    figures.by_class(ax, [1, 2, 3], [1, 2, 3], [2, 4, 4])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["II periodic", "IV complex"]
    assert len(set(figures.CLASS_COLOURS.values())) == 4


def test_a_table_is_told_in_words_and_loses_nothing():
    frame = pd.DataFrame(
        {
            "n": [14734, -2],
            "loss_mean": [0.00012, 12345.678],
            "p": [0.0, math.nan],
            "said": ["as it is", None],
            "met": [True, False],
            "growth": [math.inf, -math.inf],
        },
        index=pd.Index(["taylor2", "l1"], name="importance"),
    )
    said = figures.table(frame, {"n": "trained parameters", "taylor2": "second order", "importance": "score"}, {"p": 1})
    assert list(said) == ["trained parameters", "loss mean", "p", "said", "met", "growth"]
    assert said.index.tolist() == ["second order", "l1"] and said.index.name == "score"
    assert said.T.to_numpy().tolist() == [
        ["14,734", "-2"],
        ["0.0001", "12,345.678"],
        ["0.0", ""],
        ["as it is", ""],
        ["yes", "no"],
        ["∞", "-∞"],
    ]


def test_a_table_of_several_levels_is_told_at_each_of_them():
    frame = pd.DataFrame({("a_b", "c"): [1.0]}, index=pd.MultiIndex.from_tuples([("x_y", 1)], names=["u_v", "w"]))
    said = figures.table(frame, {"c": "loss (nats)"}, digits=1)
    assert said.columns.tolist() == [("a b", "loss (nats)")]
    assert said.index.tolist() == [("x y", 1)] and list(said.index.names) == ["u v", "w"]
    assert said.iloc[0, 0] == "1.0"


def test_live_draws_again_at_every_change():
    slider, choice = ipywidgets.IntSlider(3, 0, 9), ipywidgets.Dropdown(options=["a", "b"])
    box = figures.live(lambda number, letter: f"{number}{letter}", number=slider, letter=choice)
    assert box.children[:2] == (slider, choice) and box.children[2].value == "3a"
    slider.value, choice.value = 7, "b"
    assert box.children[2].value == "7b"

    def picture(number):
        fig = Figure(figsize=(1, 1))
        fig.subplots().plot([0, number])
        return fig

    drawn = figures.live(picture, number=slider).children[1]
    before = drawn.value
    assert before.startswith('<img src="data:image/png;base64,iVBOR')
    slider.value = 2
    assert drawn.value != before


def test_the_same_data_give_the_same_picture():
    """Points are jittered, from numpy's global generator."""

    def drawn() -> list:
        figures.use_style()
        fig, ax = plt.subplots()
        sns.stripplot(x=["a"] * 20, y=range(20), ax=ax)
        plt.close(fig)
        return ax.collections[0].get_offsets().tolist()

    assert drawn() == drawn()

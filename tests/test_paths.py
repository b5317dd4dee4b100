"""Triangles of measures: what is drawn is what was measured, and what is left of a measure is found."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from rules2ranks import evaluation, figures
from rules2ranks.findings import edge, mechanism, paths


@pytest.fixture(scope="module")
def chain() -> paths.Triangle:
    """The outcome follows the other measure alone, with which `x` goes."""
    rng = np.random.default_rng(0)
    other = pd.Series(rng.normal(size=200))
    x = other + 0.5 * rng.normal(size=200)
    y = pd.DataFrame({seed: other + 0.3 * rng.normal(size=200) for seed in range(3)})
    return paths.triangle(x, other, y, ("x", "between", "outcome"))


def test_a_measure_that_only_goes_along_is_left_nothing(chain: paths.Triangle):
    assert chain.x_alone > 0.7 and chain.x.low < 0 < chain.x.high
    assert chain.other.low > 0.6 and chain.together.low > 0.7


def test_the_drawing_says_what_was_measured(chain: paths.Triangle):
    fig, ax = plt.subplots()
    paths.draw(ax, chain)
    said = [text.get_text() for text in ax.texts]
    assert {"x", "between", "outcome", f"{chain.together:.2f}", f"{chain.x:.2f}\nalone {chain.x_alone:.2f}"} <= {*said}
    arrows = [text.arrow_patch for text in ax.texts if getattr(text, "arrow_patch", None)]
    told, _, left = [(to_hex(arrow.get_edgecolor()), arrow.get_linestyle()) for arrow in arrows]
    assert told == (figures.PALETTE["blue"].lower(), "-") and left == (figures.PALETTE["grey"].lower(), "--")
    fig.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    assert not [(a, b) for n, a in enumerate(boxes) for b in boxes[:n] if a.overlaps(b)], "no label on another"
    plt.close(fig)


def test_rules_have_to_be_the_same(chain: paths.Triangle):
    x = pd.Series([1.0, 2, 3, 4])
    with pytest.raises(ValueError, match="same rules"):
        paths.triangle(x, x, pd.DataFrame({0: x}, index=[1, 2, 3, 4]), ("a", "b", "c"))


def test_what_was_planned_is_what_the_plan_found():
    fresh = paths.measured(mechanism.BOARDS)["76 fresh rules"][0]
    confirmed = mechanism.confirmed()
    assert fresh.names["other"] == mechanism.LINEAR
    assert fresh.other.estimate == confirmed.partial[mechanism.LINEAR, mechanism.BOARDS]
    assert fresh.x.estimate == confirmed.partial[mechanism.LZ76, mechanism.BOARDS]


def test_the_88_are_those_of_the_table():
    scores = edge.scores("reasoning-hard")
    linear, scale = paths.measured(mechanism.BOARDS)["88 kinds of rules"]
    assert linear.x_alone == scale.x_alone == evaluation.correlation(edge.lz76(list(scores.index)), scores).estimate


def test_one_hot_boards_are_solved_and_numbers_are_not():
    ways = paths.how_boards_go_in()
    assert list(ways) == list(paths.WAYS_IN)
    numbers, one_hot = ways.values()
    assert numbers.index.equals(one_hot.index) and len(numbers) == 12
    assert one_hot.to_numpy().min() > numbers.to_numpy().max()

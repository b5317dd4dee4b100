"""Two measures that go together, and what each of them says of an outcome once the other is held fixed: drawn."""

import functools
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from rules2ranks import evaluation, figures
from rules2ranks.findings import compression, edge, mechanism

#: What a reader calls the scale of a network's weights.
SCALE = "weight scale"
#: How the cells of boards reach a network, and the variant of `edge_ablations` in which they do.
WAYS_IN = {"cells as numbers": "as in the core", "cells one-hot": "one-hot input"}
#: Where the three names stand in a panel whose sides are 1, and where what is said of a side does.
_PLACES = {"x": (0.15, 0.25), "other": (0.5, 0.88), "y": (0.82, 0.25)}
_SAID = {("x", "other"): (0.17, 0.58), ("other", "y"): (0.84, 0.58), ("x", "y"): (0.48, 0.09)}


class Triangle(NamedTuple):
    """Spearman's correlations over rules of an outcome `y` with a measure `x` and an `other` that goes with it."""

    names: dict[str, str]
    """What the three are called, by "x", "other" and "y"."""
    together: evaluation.Correlation
    """`x` with `other`."""
    x: evaluation.Correlation
    """`x` with the outcome, `other` held fixed."""
    other: evaluation.Correlation
    """`other` with the outcome, `x` held fixed."""
    x_alone: float
    """`x` with the outcome, nothing held fixed."""
    other_alone: float
    """`other` with the outcome, nothing held fixed."""


def triangle(x: pd.Series, other: pd.Series, y: pd.DataFrame, names: tuple[str, str, str]) -> Triangle:
    """Measure a triangle: `x` and `other` have a number a rule, `y` a column a seed.

    Raises:
        ValueError: rules differ, or are too few (see `evaluation.partial_correlation`).
    """
    if not (x.index.equals(other.index) and x.index.equals(y.index)):
        raise ValueError("the two measures and the outcome are not of the same rules")
    return Triangle(
        names=dict(zip(_PLACES, names, strict=True)),
        together=evaluation.correlation(x, other),
        x=evaluation.partial_correlation(x, y, other),
        other=evaluation.partial_correlation(other, y, x),
        x_alone=evaluation.correlation(x, y).estimate,
        other_alone=evaluation.correlation(other, y).estimate,
    )


@functools.cache  # some seconds of resampling
def measured(outcome: str) -> dict[str, list[Triangle]]:
    """LZ76 beside linear loss, and beside the scale of the weights: on the 88 kinds of rules and on the 76 fresh ones.

    `outcome` is one of `mechanism.outcomes`. Only what is said of linear loss on fresh rules was planned.
    """
    first = {mechanism.BOARDS: edge.scores("reasoning-hard"), mechanism.KEPT: compression.robustness()}[outcome]
    fresh = mechanism.outcomes()[outcome]
    scales = (edge.learnt().weight_rms[first.index], mechanism.scale(list(fresh.index)))
    found = {}
    for which, y, scale in zip(("kinds of rules", "fresh rules"), (first, fresh), scales, strict=True):
        about = mechanism.measured(tuple(y.index))
        others = {mechanism.LINEAR: about[mechanism.LINEAR], SCALE: scale}
        found[f"{len(y)} {which}"] = [
            triangle(about[mechanism.LZ76], other, y, (mechanism.LZ76, name, outcome)) for name, other in others.items()
        ]
    return found


def draw(ax: Axes, found: Triangle) -> Axes:
    """Draw a triangle: arrows to the outcome, each as thick as its correlation with the other measure held fixed.

    Where that interval includes zero the arrow is grey and dashed. Between the measures there is a line and no arrow.
    """
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.set_axis_off()
    frame = {"boxstyle": "round,pad=0.45", "fc": "white", "ec": figures.PALETTE["ink"]}
    boxes = {
        corner: ax.text(*place, found.names[corner], ha="center", va="center", weight="bold", bbox=frame)
        for corner, place in _PLACES.items()
    }
    sides = {
        ("x", "other"): (found.together, None),
        ("other", "y"): (found.other, found.other_alone),
        ("x", "y"): (found.x, found.x_alone),
    }
    for (start, end), (what, alone) in sides.items():
        told = what.low > 0 or what.high < 0
        look = {"color": figures.PALETTE["blue" if told else "grey"], "ls": "-" if told else "--"}
        look |= {"arrowstyle": "-" if alone is None else "-|>", "lw": 0.8 + 4 * abs(what.estimate)}
        ends = {"patchA": boxes[start].get_bbox_patch(), "patchB": boxes[end].get_bbox_patch()}
        ends |= {"shrinkA": 4, "shrinkB": 4, "mutation_scale": 16}
        ax.annotate("", _PLACES[end], _PLACES[start], arrowprops=look | ends)
        said = f"{what:.2f}" if alone is None else f"{what:.2f}\nalone {alone:.2f}"
        ax.text(*_SAID[start, end], said, ha="center", va="center", fontsize=10)
    return ax


def how_boards_go_in() -> dict[str, pd.DataFrame]:
    """Accuracy on hard boards of the same frozen networks, by `WAYS_IN`: a row a rule, a column a seed."""
    variants = edge.variants()
    return {way: variants[name] for way, name in WAYS_IN.items()}

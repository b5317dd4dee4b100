"""Pictures of what is built: a network on rows, its masks, new ends, a pruned group, a low-rank correction, a search.

Each function gives a figure six inches wide, whose words can be read on a telephone too. Places are in inches, from the
lower left corner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from rules2ranks.figures import PALETTE, spacetime

WIDTH = 6.0
#: What is trained, what stays as it was, and what goes, in every picture.
TRAINED, FROZEN, GONE = PALETTE["orange"], PALETTE["grey"], PALETTE["red"]


class Part(NamedTuple):
    """A part of a network: what it is called, how many parameters it has, whether they are trained."""

    name: str
    parameters: int
    trained: bool


# --- what all are drawn with ------------------------------------------------------------------------------------


def canvas(height: float) -> tuple[Figure, Axes]:
    """An empty sheet, an inch to a unit."""
    fig = plt.figure(figsize=(WIDTH, height), layout="none")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(0, height))
    ax.axis("off")
    return fig, ax


def box(ax: Axes, x: float, y: float, wide: float, high: float, text: str, colour: str = PALETTE["blue"]) -> None:
    """A box with words in its middle; `x` and `y` are its lower left corner."""
    style = {"facecolor": (colour, 0.14), "edgecolor": colour, "linewidth": 1.4}
    ax.add_patch(FancyBboxPatch((x, y), wide, high, boxstyle="round,pad=0,rounding_size=0.08", **style))
    _say(ax, x + wide / 2, y + high / 2, text)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], bent: float = 0) -> None:
    """An arrow from one place to another; `bent` (-1 to 1) makes a curve of it."""
    style = {"arrowstyle": "-|>", "mutation_scale": 12, "linewidth": 1.2, "color": PALETTE["ink"]}
    ax.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bent}", shrinkA=0, shrinkB=0, **style))


def _say(ax: Axes, x: float, y: float, text: str, **how: str | float) -> None:
    ax.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 11, "color": PALETTE["ink"], **how})


def _matrix(ax: Axes, x: float, y: float, wide: float, high: float, colour: str, filled: float = 0.3) -> None:
    ax.add_patch(Rectangle((x, y), wide, high, facecolor=(colour, filled), edgecolor=colour, linewidth=1.2))


def _key(ax: Axes, y: float, stays: str = "frozen", changes: str = "trained", colour: str = TRAINED) -> None:
    for x, shade, text in ((1.2, FROZEN, stays), (3.4, colour, changes)):
        _matrix(ax, x, y - 0.08, 0.28, 0.16, shade, 1 if shade == GONE else 0.3)
        _say(ax, x + 0.38, y, text, ha="left")


# --- the pictures -----------------------------------------------------------------------------------------------


def row_gpt(rows: np.ndarray, layers: int, hidden: int) -> Figure:
    """How rows `(T, W)` of 0 and 1, four of which are drawn, go through a `RowGPT`: each to the row after it.

    Raises:
        ValueError: fewer than five rows.
    """
    if len(rows) < 5:
        raise ValueError(f"five rows are drawn: four that go in and those after them; there are {len(rows)}")
    fig, ax = canvas(4.3)
    cells, each = rows.shape[1], (WIDTH - 0.3) / 4
    levels = ((0.95, f"linear: {cells} cells → {hidden} numbers"), (2.95, f"linear: {hidden} numbers → {cells} cells"))
    for y, text in levels:
        box(ax, 0.15, y, WIDTH - 0.3, 0.4, text, PALETTE["sky"])
    box(ax, 0.15, 1.65, WIDTH - 0.3, 1.0, "", PALETTE["blue"])
    blocks = "block" if layers == 1 else "blocks"
    _say(ax, WIDTH / 2, 2.45, f"{layers} transformer {blocks}: a row looks at those before it")
    for t in range(4):
        x = 0.15 + each * (t + 0.5)
        _strip(fig, rows[t], x, 0.5, each - 0.25)
        _say(ax, x, 0.22, f"row {t}")
        _strip(fig, rows[t + 1], x, 3.78, each - 0.25)
        _say(ax, x, 4.1, f"row {t + 1}?")
        for start, end in ((0.62, 0.93), (1.37, 1.63), (2.67, 2.93), (3.37, 3.66)):
            arrow(ax, (x, start), (x, end))
        for before in range(t):
            arrow(ax, (0.15 + each * (before + 0.5), 1.78), (x, 2.2))
        arrow(ax, (x, 1.78), (x, 2.2))
    return fig


def _strip(fig: Figure, row: np.ndarray, x: float, y: float, wide: float) -> None:
    """One row of cells, its middle at a place of the sheet."""
    height, high = fig.get_size_inches()[1], wide / len(row)
    spacetime(fig.add_axes(((x - wide / 2) / WIDTH, (y - high / 2) / height, wide / WIDTH, high / height)), row[None])


def masks(added: Mapping[str, np.ndarray]) -> Figure:
    """Attention masks `(T, T)` by name: what they add to scores and, in colour, the attention if these are equal."""
    fig, axes = plt.subplots(1, len(added), figsize=(WIDTH, 3.6), squeeze=False)
    for ax, (name, mask) in zip(axes[0], added.items(), strict=True):
        weights = np.exp(mask) / np.exp(mask).sum(1, keepdims=True)
        ax.imshow(weights, cmap="Blues", vmin=0, vmax=0.8)
        for (here, there), value in np.ndenumerate(mask):
            text = "−∞" if np.isneginf(value) else f"{value:.0f}"
            colour = "white" if weights[here, there] > 0.5 else PALETTE["ink"]
            ax.text(there, here, text, ha="center", va="center", fontsize=11, color=colour)
        ax.set(xticks=range(len(mask)), yticks=range(len(mask)), xlabel="row looked at", title=name)
        ax.tick_params(length=0)
    axes[0, 0].set_ylabel("row predicted from")
    return fig


def new_ends(bodies: Mapping[str, Sequence[Part]]) -> Figure:
    """Networks for two kinds of tasks side by side, each from below upwards: what is trained and what is frozen."""
    most = max(map(len, bodies.values()))
    fig, ax = canvas(0.95 + 0.82 * most)
    wide = WIDTH / len(bodies)
    _key(ax, 0.2)
    for column, (title, parts) in enumerate(bodies.items()):
        x = wide * column + 0.15
        for level, part in enumerate(parts):
            y = 0.5 + 0.82 * level
            text = f"{part.name}\n{part.parameters:,} parameters"
            box(ax, x, y, wide - 0.3, 0.58, text, TRAINED if part.trained else FROZEN)
            if level:
                arrow(ax, (x + wide / 2 - 0.15, y - 0.24), (x + wide / 2 - 0.15, y))
        _say(ax, x + wide / 2 - 0.15, 0.58 + 0.82 * len(parts), title, weight="bold")
    return fig


def pruned_group(hidden: int, head_dim: int, groups: int, shared: int, channels: int) -> Figure:
    """What goes with one key/value head, shared by `shared` query heads, and with one channel; matrices out × in."""
    queries, keys = groups * shared * head_dim, groups * head_dim
    attention = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries)}
    mlp = {"gate": (channels, hidden), "up": (channels, hidden), "down": (hidden, channels)}
    scale = 1.9 / max(hidden, queries, channels)
    fig, ax = canvas(2.5 + scale * (queries + channels))
    top = fig.get_size_inches()[1]
    taken = {"q": shared * head_dim, "k": head_dim, "v": head_dim, "o": shared * head_dim}
    one = "its query head" if shared == 1 else f"its {shared} query heads"
    _side_by_side(ax, f"One of {groups} key/value heads, with {one}", attention, taken, top, scale)
    top -= 1.15 + scale * queries
    _side_by_side(ax, f"One of {channels} channels of the MLP", mlp, dict.fromkeys(mlp, 1), top, scale)
    _key(ax, 0.2, stays="stays", changes="goes", colour=GONE)
    return fig


def _side_by_side(
    ax: Axes, title: str, matrices: Mapping[str, tuple[int, int]], taken: Mapping[str, int], top: float, scale: float
) -> None:
    """Matrices to scale, with what is taken out of each: rows, or of the last one, which leads back, columns."""
    _say(ax, 0.15, top - 0.2, title, ha="left", weight="bold")
    x, y, last = 0.15, top - 0.75, list(matrices)[-1]
    for name, (outputs, inputs) in matrices.items():
        wide, high, thick = scale * inputs, scale * outputs, max(scale * taken[name], 0.04)
        _matrix(ax, x, y - high, wide, high, FROZEN)
        corner, size = ((x, y - high), (thick, high)) if name == last else ((x, y - thick), (wide, thick))
        _matrix(ax, *corner, *size, GONE, 1)
        _say(ax, x, y + 0.15, f"{name}: {outputs} × {inputs}", ha="left")
        x += max(wide, 1.25) + 0.15


def low_rank(outputs: int, inputs: int, rank: int) -> Figure:
    """A matrix with LoRA beside it, and with PiSSA: what is frozen, what is trained, and what it starts from."""
    fig, ax = canvas(5.2)
    scale, thinnest = 1.3 / max(outputs, inputs), 0.1
    high, wide, thick = scale * outputs, scale * inputs, max(scale * rank, thinnest)
    _key(ax, 0.2)
    starts = (("LoRA", "W", "B: zero", "A: random"), ("PiSSA", "the rest of W", "", "B · A: main part of W"))
    for number, (name, frozen, left, right) in enumerate(starts):
        top = 5.0 - 2.4 * number
        middle = top - 1.15
        _say(ax, 0.15, top, name, ha="left", weight="bold")
        for x, y, breadth, height, colour, shape, below in (
            (0.4, middle, wide, high, FROZEN, f"{outputs} × {inputs}", frozen),
            (2.85, middle, thick, high, TRAINED, f"{outputs} × {rank}", left),
            (3.85, middle, wide, thick, TRAINED, f"{rank} × {inputs}", right),
        ):
            _matrix(ax, x, y - height / 2, breadth, height, colour)
            _say(ax, x + breadth / 2, y + height / 2 + 0.17, shape)
            _say(ax, x + breadth / 2, y - height / 2 - 0.18, below)
        _say(ax, 2.2, middle, "+  α/r ·")
        _say(ax, 3.4, middle, "·")
    return fig


def search_loop(offline: int, online: int, candidates: int) -> Figure:
    """RankAdaptor's search: `offline` measured random vectors, then `online` turns of a loop."""
    fig, ax = canvas(4.5)
    left, right, wide = 0.1, 3.0, 2.5
    _say(ax, left + wide / 2, 4.3, "Offline", weight="bold")
    _say(ax, right + wide / 2, 4.3, f"Online: {online} times", weight="bold")
    box(ax, left, 3.3, wide, 0.75, f"{offline} random rank vectors\nthat fill the budget", PALETTE["blue"])
    box(ax, left, 2.2, wide, 0.75, "recover with each,\nmeasure its loss", PALETTE["green"])
    box(ax, right, 3.3, wide, 0.75, "fit the performance model\nto all that was measured", PALETTE["purple"])
    box(ax, right, 2.2, wide, 0.75, f"predict the loss of\n{candidates:,} candidates", PALETTE["purple"])
    box(ax, right, 1.1, wide, 0.75, "recover with the best of\nthem, measure its loss", PALETTE["green"])
    box(ax, left, 0.15, wide, 0.6, "the best that was measured", PALETTE["orange"])
    arrow(ax, (left + wide / 2, 3.28), (left + wide / 2, 2.97))
    arrow(ax, (left + wide + 0.02, 2.7), (right - 0.02, 3.6))
    arrow(ax, (right + wide / 2, 3.28), (right + wide / 2, 2.97))
    arrow(ax, (right + wide / 2, 2.18), (right + wide / 2, 1.87))
    arrow(ax, (right + wide + 0.02, 1.45), (right + wide + 0.02, 3.65), 0.3)
    arrow(ax, (right + wide / 2, 1.08), (left + wide + 0.02, 0.45), -0.2)
    return fig

"""One style, one palette, and the plots that recur."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from ipywidgets import ValueWidget, VBox

# Okabe and Ito's colours, told apart by colour-blind readers too.
PALETTE = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "red": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "grey": "#8A8F98",
    "ink": "#22262B",
}
#: Wolfram's four classes, from uniform to complex.
CLASS_COLOURS = {1: PALETTE["grey"], 2: PALETTE["sky"], 3: PALETTE["orange"], 4: PALETTE["red"]}
CLASS_NAMES = {1: "I uniform", 2: "II periodic", 3: "III chaotic", 4: "IV complex"}
_CELLS = ListedColormap(["#FFFFFF", PALETTE["ink"]])


def use_style() -> None:
    """Set the project's style for every figure that follows, and let the same data give the same picture.

    A notebook stores its pictures at twice the resolution at which it shows them, sharp on any screen.
    """
    if "inline" in mpl.get_backend():
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("retina")
    np.random.seed(0)  # noqa: NPY002 - seaborn's jitter draws from numpy's global generator
    sns.set_theme(context="notebook", style="ticks", palette=list(PALETTE.values()))
    mpl.rcParams.update(
        {
            "figure.dpi": 100,
            "savefig.dpi": 200,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.titlesize": 12,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": PALETTE["ink"],
            "legend.frameon": False,
            "legend.fontsize": 10,
            "lines.linewidth": 1.8,
        }
    )


def spacetime(ax: Axes, rows: np.ndarray, title: str | None = None) -> Axes:
    """Draw rows `(T, W)` of 0 and 1 with time downwards and 1 in black."""
    rows = np.asarray(rows)
    if rows.ndim != 2:
        raise ValueError(f"a space-time diagram has shape (T, W), not {rows.shape}")
    ax.imshow(rows, cmap=_CELLS, vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=True, linewidth=0.6)
    if title:
        ax.set_title(title)
    return ax


def dots_with_intervals(
    ax: Axes, labels: Sequence[str], intervals: Sequence[tuple[float, float, float]], colour: str = PALETTE["blue"]
) -> Axes:
    """One row a label, first label on top: a dot at the estimate and a bar from low to high."""
    if len(labels) != len(intervals):
        raise ValueError(f"{len(labels)} labels for {len(intervals)} intervals")
    place = np.arange(len(labels))[::-1]
    middle, low, high = np.asarray([tuple(interval)[:3] for interval in intervals], float).T
    ax.errorbar(middle, place, xerr=[middle - low, high - middle], fmt="o", color=colour, capsize=3, markersize=6)
    ax.set_yticks(place, labels)
    ax.set_ylim(-0.6, len(labels) - 0.4)
    return ax


def by_class(ax: Axes, x: Sequence[float], y: Sequence[float], classes: Sequence[int]) -> Axes:
    """Scatter of rules coloured by Wolfram class, with a legend of the classes that occur."""
    x, y, classes = map(np.asarray, (x, y, classes))
    for number, colour in CLASS_COLOURS.items():
        if (here := classes == number).any():
            ax.scatter(
                x[here], y[here], color=colour, label=CLASS_NAMES[number], s=36, edgecolor="white", linewidth=0.6
            )
    ax.legend(title="Wolfram class")
    return ax


def table(
    frame: pd.DataFrame, names: Mapping[str, str] | None = None, digits: int | Mapping[str, int] = 3
) -> pd.DataFrame:
    """A table to be read, as text: what is counted with separators, what is measured rounded, nothing where nothing is.

    `names` says what a reader calls columns, rows and their headings, with units; of others a low line becomes a blank.
    `digits`: how many stand after the point, in all or by column; fewer than none are lost: what would read as zero and
    is not keeps one figure.
    """

    def called(name: Any) -> Any:
        return (names or {}).get(name, name.replace("_", " ")) if isinstance(name, str) else name

    after = digits if isinstance(digits, Mapping) else dict.fromkeys(frame, digits)
    said = frame.apply(lambda column: column.map(lambda value: _in_words(value, after.get(column.name, 3))))
    return said.rename(index=called, columns=called).rename_axis(index=called, columns=called)


def _in_words(value: Any, digits: int) -> str:
    if isinstance(value, str):
        return value
    if value is None or value is pd.NA or value != value:
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if np.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = f"{value:,.{digits}f}"
    return f"{value:.1g}" if value and not float(text.replace(",", "")) else text


def live(draw: Callable[..., Figure | str], **controls: ValueWidget) -> VBox:
    """Controls, and below them what `draw` makes of their values, made again at every change: a figure or HTML.

    Not ipywidgets' own `interact`: that captures output, and then a notebook executed without a browser stops for good
    now and then (nbclient sends the captured output back on the channel on which it waits for the cell's end).
    """
    import ipywidgets

    shown = ipywidgets.HTML()

    def renew(_change: object = None) -> None:
        made = draw(**{name: control.value for name, control in controls.items()})
        shown.value = made if isinstance(made, str) else _as_html(made)

    for control in controls.values():
        control.observe(renew, "value")
    renew()
    return ipywidgets.VBox([*controls.values(), shown])


def _as_html(fig: Figure) -> str:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=100)
    return f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'

"""Diagrams: words that can be read, and areas that are what they say."""

import matplotlib

matplotlib.use("agg")

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch, Rectangle

from rules2ranks import diagrams, figures
from rules2ranks.diagrams import Part

ROWS = np.random.default_rng(0).integers(0, 2, (8, 20))
HIDE = np.where(np.tril(np.ones((6, 6))), 0, -np.inf)
PARTS = [Part("linear: 36 → 64", 2368, True), Part("2 blocks", 100096, False), Part("linear: 64 → 36 × 5", 11700, True)]
DRAWN = {
    "rows": lambda: diagrams.row_gpt(ROWS, 2, 64),
    "rows, the paper's": lambda: diagrams.row_gpt(np.tile(ROWS, 5), 12, 768),
    "masks": lambda: diagrams.masks(
        {"causal: hides the future": HIDE, "published: adds to the past": np.tril(np.ones((6, 6)))}
    ),
    "ends": lambda: diagrams.new_ends({"Boards": PARTS, "Nim and chess": PARTS}),
    "group": lambda: diagrams.pruned_group(64, 16, 4, 2, 192),
    "group without sharing": lambda: diagrams.pruned_group(64, 16, 4, 1, 256),
    "low rank": lambda: diagrams.low_rank(128, 64, 2),
    "low rank, wide": lambda: diagrams.low_rank(64, 192, 8),
    "search": lambda: diagrams.search_loop(10, 6, 1000),
}


@pytest.fixture(params=DRAWN)
def fig(request):
    figures.use_style()
    fig = DRAWN[request.param]()
    fig.canvas.draw()
    yield fig
    plt.close(fig)


def words(fig):
    return [text for ax in fig.axes for text in ax.findobj(plt.Text) if text.get_text() and text.get_visible()]


def test_words_lie_on_the_sheet_and_apart(fig):
    places = {text: text.get_window_extent().padded(-1) for text in words(fig)}
    assert len(places) > 5
    for text, place in places.items():
        assert fig.bbox.x0 <= place.x0 and place.x1 <= fig.bbox.x1, text.get_text()
        assert fig.bbox.y0 <= place.y0 and place.y1 <= fig.bbox.y1, text.get_text()
    for (one, here), (other, there) in combinations(places.items(), 2):
        assert not here.overlaps(there), f"{one.get_text()!r} lies on {other.get_text()!r}"


def test_words_lie_within_their_box_or_outside_of_it(fig):
    boxes = [patch.get_window_extent() for ax in fig.axes for patch in ax.patches if isinstance(patch, FancyBboxPatch)]
    for text in words(fig):
        here = text.get_window_extent()
        for place in boxes:
            within = place.x0 < here.x0 and here.x1 < place.x1 and place.y0 < here.y0 and here.y1 < place.y1
            assert within or not place.overlaps(here), text.get_text()


def test_words_can_be_read_on_a_telephone(fig):
    """A figure of six inches is some 358 pixels wide there: eleven points become eight pixels and more."""
    wide = fig.get_size_inches()[0]
    assert wide <= 6
    assert min(text.get_fontsize() / 72 / wide * 358 for text in words(fig)) > 8


def test_what_a_group_takes_has_the_area_of_its_parameters():
    (ax,) = diagrams.pruned_group(64, 16, 4, 2, 192).axes
    scale = 1.9 / 192
    red = to_rgb(figures.PALETTE["red"])
    taken = [patch for patch in ax.patches if isinstance(patch, Rectangle) and patch.get_facecolor() == (*red, 1)]
    sizes = [patch.get_width() * patch.get_height() / scale**2 for patch in taken]
    assert np.allclose(sizes[:4], [2048, 1024, 1024, 2048])  # q, k, v, o: 6144 of notebook 30
    assert (
        len(sizes) == 4 + 3 + 1
    )  # and the key; a channel, one row or column thick, is drawn thicker so that it can be seen


def test_a_mask_is_coloured_by_the_attention_that_it_leaves():
    added = np.where(np.tril(np.ones((3, 3))), 0, -np.inf)
    ax = diagrams.masks({"causal": added}).axes[0]
    assert np.allclose(ax.images[0].get_array(), [[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]])
    assert [text.get_text() for text in ax.texts] == ["0", "−∞", "−∞", "0", "0", "−∞", "0", "0", "0"]


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="there are 4"):
        diagrams.row_gpt(ROWS[:4], 2, 64)

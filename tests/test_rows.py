"""Rows of automata as pretraining draws them, and the floor of what can be predicted of them."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules2ranks import automata
from rules2ranks.tasks.rows import crop_floor, rows_of


def next_row(rule: int, row: np.ndarray) -> np.ndarray:
    """One update of a ring, by the definition: cell by cell, a digit of the rule for each neighbourhood."""
    n = len(row)
    return np.array([rule >> (4 * row[i - 1] + 2 * row[i] + row[(i + 1) % n]) & 1 for i in range(n)], np.uint8)


def test_windows_obey_the_rule_inside_the_crop():
    window = rows_of(110, 3, 10, 6, ring=50, every=1, seed=4)
    assert window.shape == (3, 7, 10)
    assert window.dtype == np.uint8
    left, centre, right = (window[:, :-1, k : k + 8] for k in (0, 1, 2))
    assert np.array_equal(window[:, 1:, 1:9], 110 >> (4 * left + 2 * centre + right) & 1)


@given(
    rule=st.integers(0, 255),
    batch=st.sampled_from([1, 5, 64, 70]),
    every=st.integers(1, 4),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**40),
)
def test_rings_drawn_together_are_as_each_by_itself(rule, batch, every, width, seed):
    """Packed 64 to a word or one at a time: the same cells, the same start, the same time for the whole batch."""
    windows = rows_of(rule, batch, width, 5, ring=9, every=every, seed=seed)
    starts = automata.random_states(batch, 9, seed=seed)
    late = int(np.random.Generator(np.random.Philox(seed + 1)).integers(0, 995))
    for window, start in zip(windows, starts, strict=True):
        alone = automata.simulate(rule, start, 5, burn_in=late, every=every)
        assert np.array_equal(window, alone[:, :width])


@pytest.mark.parametrize("rule", [30, 110])
def test_every_third_row_is_every_third_row_of_the_full_run(rule):
    def late(seed: int, rows: int) -> int:
        return int(np.random.Generator(np.random.Philox(seed + 1)).integers(0, 1000 - rows))

    # The time is drawn below 1000 less the rows of a window: a seed that means the same time for 5 rows and for 15.
    seed = next(seed for seed in range(1000) if late(seed, 5) == late(seed, 15))
    dense = rows_of(rule, 4, 40, 15, ring=64, every=1, seed=seed)
    sparse = rows_of(rule, 4, 12, 5, ring=64, every=3, seed=seed)
    assert sparse.shape == (4, 6, 12)
    assert np.array_equal(sparse, dense[:, ::3, :12])
    assert not np.array_equal(sparse, dense[:, :6, :12])


@given(rule=st.integers(0, 255), ring=st.integers(3, 12), every=st.integers(1, 3), seed=st.integers(0, 1000))
def test_a_whole_ring_has_no_edge(rule, ring, every, seed):
    """Every row follows from the one above it, the first and the last cell included, so its floor is nothing."""
    for window in rows_of(rule, 2, ring, 4, ring=ring, every=every, seed=seed):
        for before, after in itertools.pairwise(window):
            for _ in range(every):
                before = next_row(rule, before)
            assert np.array_equal(before, after)
    assert crop_floor(rule, ring, ring=ring, every=every) == 0.0


def test_rings_of_a_batch_differ_and_coins_are_fair():
    windows = rows_of(30, 8, 40, 20, ring=40, every=1, seed=0)
    assert len({window.tobytes() for window in windows}) == 8
    coins = rows_of("coin", 200, 20, 9, ring=40, every=3, seed=0)
    assert coins.shape == (200, 10, 20)
    assert abs(coins.mean() - 0.5) < 5 * 0.5 / coins.size**0.5  # five standard errors of a fair share
    # Nothing above a cell tells of it: nor is it alike more often than by chance.
    assert abs((coins[:, 1:] == coins[:, :-1]).mean() - 0.5) < 5 * 0.5 / (200 * 9 * 20) ** 0.5


@pytest.mark.parametrize(
    ("source", "every", "cells"),
    [(204, 1, 0), (0, 3, 0), (60, 1, 1), (170, 1, 1), (170, 4, 4), (90, 1, 2), (150, 1, 2), (90, 2, 4), (30, 1, 1.5)],
)
def test_the_floor_of_rules_that_one_can_work_out(source, every, cells):
    """On rules that keep random cells random, a hidden parent that decides alone costs one coin flip."""
    # Rule 30's right edge is decided by the hidden cell where its own cell is 0: half a coin flip.
    assert crop_floor(source, 100, every=every) == pytest.approx(cells * math.log(2) / 100, abs=2e-5 * every)


def test_the_floor_is_an_entropy_counted_on_windows():
    # Crops of ten cells, 160,000 of them at forty times: 1024 contexts leave a bias of 3e-3 nats an edge cell, 1 %;
    # which times were drawn moves it by a few per cent.
    windows = np.concatenate([rows_of(54, 4_000, 10, 1, ring=1000, every=1, seed=s) for s in range(40)])
    seen = pd.DataFrame(
        {"context": windows[:, 0] @ 2 ** np.arange(10), "left": windows[:, 1, 0], "right": windows[:, 1, 9]}
    )
    lost = 0.0
    for edge in ("left", "right"):
        share = seen.groupby("context")[edge].mean().loc[seen["context"]].to_numpy()
        lost += -np.mean(np.log(np.where(seen[edge] == 1, share, 1 - share)))
    assert crop_floor(54, 10) == pytest.approx(lost / 10, rel=0.08)
    assert crop_floor(124, 50) == pytest.approx(crop_floor(110, 50), rel=0.05)  # mirror images
    assert crop_floor("coin", 50) == math.log(2)
    assert crop_floor("coin", 50, ring=50) == math.log(2)  # a ring of coins is as random as a crop
    for wrong in ({"every": 6}, {"width": 9}, {"every": 0}):
        with pytest.raises(ValueError, match="the floor is for every from 1 to 5 and crops of at least 10 cells"):
            crop_floor(**{"source": 110, "width": 20, **wrong})


def test_a_crop_wider_than_its_ring_is_refused():
    with pytest.raises(ValueError, match="a crop of 50 cells does not fit on a ring of 20"):
        rows_of(110, 2, 50, 5, ring=20, every=1, seed=0)


@pytest.mark.parametrize("flip", [0.05, 0.3])
def test_a_floor_with_flips_is_their_entropy_where_cells_are_determined(flip):
    """Rule 90's cell at an edge is a fair coin, turned over or not; all others are determined but for the turns."""
    sure = -flip * math.log(flip) - (1 - flip) * math.log(1 - flip)
    assert crop_floor(90, 20, flip=flip) == pytest.approx((2 * math.log(2) + 18 * sure) / 20, abs=1e-4)
    assert crop_floor(30, 20, ring=20, flip=flip) == pytest.approx(sure)

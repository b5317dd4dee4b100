"""Boards: the moves are exactly the rule's, and no validation board is ever trained on."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules2ranks.tasks import reasoning, splits
from rules2ranks.tasks.reasoning import Boards

seeds = st.integers(0, 2**63)


def next_board(board: np.ndarray, level: str) -> np.ndarray:
    """The rule once more, cell by cell, from the picture alone."""
    # Clockwise, written out as (row, column) of each ring cell.
    ring = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]
    blocks = board.reshape(4, 3, 3)
    result = np.zeros_like(blocks)
    for b in range(4):
        colour = blocks[(b - 1) % 4].max()
        source = blocks[(b + 1) % 4] if level == "hard" else blocks[b]
        shape = source > 0
        if level == "hard":
            moved = shape.copy()
            for here, there in zip(ring, ring[1:] + ring[:1], strict=True):
                moved[there] = shape[here]
            shape = moved
        result[b][shape] = colour
    return result.reshape(-1)


@pytest.mark.parametrize("level", reasoning.LEVELS)
@given(seed=seeds)
def test_each_target_is_the_board_that_follows(level, seed):
    x, y = Boards(level).batch(3, seed)
    for now, then in zip(x.reshape(-1, 36), y.reshape(-1, 36), strict=True):
        assert np.array_equal(next_board(now, level), then)


@given(seed=seeds, boards=st.integers(2, 20))
def test_shapes_types_and_values(seed, boards):
    task = Boards("hard", boards=boards)
    x, y = task.batch(5, seed)
    assert x.shape == y.shape == (5, task.length, task.cells) == (5, boards - 1, 36)
    assert x.dtype == y.dtype == np.int64
    assert 0 <= x.min() and x.max() < task.classes
    assert np.array_equal(x[:, 1:], y[:, :-1])
    # Every board shows all four colours, one to a block.
    assert np.array_equal(
        np.sort(x.reshape(5, -1, 4, 9).max(axis=-1), axis=-1), np.tile([1, 2, 3, 4], (5, boards - 1, 1))
    )


@pytest.mark.parametrize("level", reasoning.LEVELS)
def test_no_validation_board_is_trained_on(level):
    task = Boards(level)
    trained = {board.tobytes() for board in task.batch(60_000, 0)[0].reshape(-1, 36)}
    held_out = task.batch(2_000, 0, "validation")[0].reshape(-1, 36)
    assert not any(board.tobytes() in trained for board in held_out)


def test_there_are_as_many_hard_sequences_as_published():
    assert reasoning.SEQUENCES == 40_320
    task = Boards("hard")
    # A sequence is missed by so many draws with probability e**-12 in training and e**-10 in validation.
    trained = {x.tobytes() for seed in range(8) for x in task.batch(50_000, seed)[0][:, 0]}
    held_out = {x.tobytes() for seed in range(4) for x in task.batch(20_000, seed, "validation")[0][:, 0]}
    assert 0.999 * 40_320 < len(trained) + len(held_out) <= 40_320
    # The share held out is binomial over 10,080 groups: a standard deviation of 0.004.
    assert len(held_out) / 40_320 == pytest.approx(splits.HELD_OUT, abs=0.02)


@pytest.mark.parametrize("level", reasoning.LEVELS)
def test_a_sequence_comes_back_after_its_period_and_not_before(level):
    task = Boards(level, boards=20)
    x, _ = task.batch(50, 3)
    assert np.array_equal(x[:, task.period :], x[:, : -task.period])
    for lag in range(1, task.period):
        assert not (x[:, lag:] == x[:, :-lag]).all(axis=-1).any()


def test_shapes_are_no_turned_copies_of_themselves_or_each_other():
    turned = reasoning.masks(3).reshape(-1, 9)
    assert len(np.unique(turned, axis=0)) == reasoning.ANGLES * len(reasoning.SHAPES[3])


def test_eight_turns_by_45_degrees_and_two_are_a_quarter():
    block = np.arange(9).reshape(3, 3)
    assert np.array_equal(reasoning.turned(reasoning.turned(block)), np.rot90(block, -1))
    once_round = block
    for _ in range(8):
        once_round = reasoning.turned(once_round)
    assert np.array_equal(once_round, block)


@given(seed=seeds)
def test_same_seed_same_batch(seed):
    task = Boards("hard")
    assert np.array_equal(task.batch(4, seed)[0], task.batch(4, seed)[0])


def test_score_counts_whole_boards():
    task = Boards("hard")
    _, y = task.batch(10, 0)
    assert task.score(y, y) == 1.0
    spoilt = y.copy()
    spoilt[:5, 0, 7] = (spoilt[:5, 0, 7] + 1) % 5
    assert task.score(spoilt, y) == pytest.approx(1 - 5 / (10 * task.length))
    unscored = y.copy()
    unscored[:5, 0, 7] = -100
    assert task.score(spoilt, unscored) == 1.0
    with pytest.raises(ValueError, match="shape"):
        task.score(y[:5], y)


def test_baselines():
    hard, easy = Boards("hard").baselines(), Boards("easy").baselines()
    assert hard == {"majority": 0.0, "copy the last board": 0.0, "repeat": 0.0}
    # Targets 4 … 7 of the seven show a board seen before.
    assert easy == {"majority": 0.0, "copy the last board": 0.0, "repeat": pytest.approx(4 / 7)}
    assert Boards("hard", boards=16).baselines()["repeat"] == pytest.approx(8 / 15)


def test_a_batch_of_32_is_cheap():
    task = Boards("hard")
    start = time.perf_counter()
    for seed in range(20):
        task.batch(32, seed)
    # 0.1 ms each on one free core; the bound leaves room for a machine that does other things.
    assert (time.perf_counter() - start) / 20 < 0.005


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"level": "medium"}, "easy"), ({"size": 5}, "size"), ({"boards": 1}, "2 boards")],
)
def test_impossible_parameters_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Boards(**arguments)


def test_impossible_batches_are_refused():
    with pytest.raises(ValueError, match="n=0"):
        Boards().batch(0, 0)
    with pytest.raises(ValueError, match="seed"):
        Boards().batch(1, -1)
    with pytest.raises(ValueError, match="validation"):
        Boards().batch(1, 0, "test")

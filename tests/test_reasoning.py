"""Boards: the moves are exactly the rule's, and no validation board is ever trained on."""

import hashlib
import time
from collections import Counter, defaultdict
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules2ranks.tasks import reasoning, splits
from rules2ranks.tasks.reasoning import Boards

seeds = st.integers(0, 2**63)
PUBLISHED = Boards(*reasoning.PUBLISHED)
SIZES = tuple(reasoning.SHAPES)


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


def drawn(block: np.ndarray, degrees: float) -> np.ndarray:
    """A block turned clockwise, cell by cell: each shows the cell nearest to its own centre turned back."""
    size = len(block)
    middle = size // 2
    result = np.zeros_like(block)
    for row, column in product(range(size), repeat=2):
        # Rows count downwards, so turning back is the positive direction.
        place = complex(column - middle, middle - row) * np.exp(1j * np.deg2rad(degrees))

        def far(cell, place=place):
            centre = complex(cell[1] - middle, middle - cell[0])
            return round(abs(place - centre), 9), abs(centre)

        nearest = min(product(range(-1, size + 1), repeat=2), key=far)
        if all(0 <= index < size for index in nearest):
            result[row, column] = block[nearest]
    return result


@cache
def hashes(level: str, size: int, split: str) -> np.ndarray:
    """A 64-bit hash of each board (sequences, period) of all sequences of a split."""
    task = Boards(level, size, boards=Boards(level, size).period)
    weights = np.random.Generator(np.random.Philox(1)).integers(2**63, size=task.cells) * 2 + 1
    colours, shapes = task.everything(split)
    return np.concatenate(
        [task.sequence(colours[i : i + 1000], shapes[i : i + 1000]) @ weights for i in range(0, len(colours), 1000)]
    )


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


@given(seed=seeds)
def test_published_boards_show_moved_colours_and_turned_shapes(seed):
    rng = np.random.Generator(np.random.Philox(seed))
    colours, shapes = rng.permutation(4) + 1, rng.permutation(8)[:4]
    boards = PUBLISHED.sequence(colours[None], shapes[None])[0].reshape(61, 4, 5, 5)
    step, block = int(rng.integers(61)), int(rng.integers(4))
    picture = reasoning.SHAPES[5][shapes[(block + step) % 4]]
    shape = np.array([[cell == "#" for cell in row] for row in picture], dtype=int)
    assert np.array_equal(boards[step, block], colours[(block - step) % 4] * drawn(shape, 6 * step))


@pytest.mark.parametrize("size", SIZES)
def test_all_sequences_are_the_published_number_and_divided_80_to_20(size):
    task = Boards("hard", size, boards=2)
    parts = [np.concatenate(task.everything(split), axis=1) for split in splits.SPLITS]
    assert len(np.unique(np.concatenate(parts), axis=0)) == sum(map(len, parts)) == 40_320 == reasoning.SEQUENCES
    assert all(np.array_equal(part.shape, (len(part), 8)) and part.dtype == np.int64 for part in parts)
    assert all(np.array_equal(np.sort(part[:, :4]), np.tile([1, 2, 3, 4], (len(part), 1))) for part in parts)
    # The share held out is binomial over at least 2,520 groups: a standard deviation of 0.008.
    assert len(parts[1]) / 40_320 == pytest.approx(splits.HELD_OUT, abs=0.02)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("split", splits.SPLITS)
def test_batches_draw_from_all_sequences_of_their_split_and_from_no_others(size, split):
    task = Boards("hard", size, boards=2)
    listed = {board.tobytes() for board in task.sequence(*task.everything(split))[:, 0]}
    met = {x.tobytes() for seed in range(10) for x in task.batch(12_000, seed, split)[0][:, 0]}
    # Each is missed with a probability of e**-3.7 in training, 8,000 times less in validation.
    assert met <= listed
    assert len(met) > 0.96 * len(listed)


@pytest.mark.parametrize(("level", "size"), list(product(reasoning.LEVELS, SIZES)))
def test_no_validation_board_is_trained_on(level, size):
    assert not np.isin(hashes(level, size, "validation"), hashes(level, size, "train")).any()


@pytest.mark.parametrize(("level", "size"), [("easy", 3), ("hard", 3), ("easy", 5)])
def test_a_sequence_comes_back_after_its_period_and_not_before(level, size):
    task = Boards(level, size, boards=20)
    x, _ = task.batch(50, 3)
    assert np.array_equal(x[:, task.period :], x[:, : -task.period])
    for lag in range(1, task.period):
        assert not (x[:, lag:] == x[:, :-lag]).all(axis=-1).any()


def test_a_published_sequence_comes_back_after_60_steps_and_single_boards_around_quarter_turns():
    assert PUBLISHED.period == 60
    boards = Boards("hard", 5, boards=130).sequence(*(part[::101] for part in PUBLISHED.everything("train")))
    assert np.array_equal(boards[:, 60:], boards[:, :-60])
    for lag in range(1, 60):
        same = (boards[:, lag : lag + 60] == boards[:, :60]).all(axis=-1)
        # From 12° before to 12° after a quarter turn are 4 steps, the other way round 56.
        at = {4: [13, 28, 43, 58], 56: [2, 17, 32, 47]}.get(lag, [])
        assert np.array_equal(same, np.broadcast_to(np.isin(np.arange(60), at), same.shape))


def test_shapes_are_no_turned_copies_of_themselves_or_each_other():
    turned = reasoning.masks(3).reshape(-1, 9)
    assert len(np.unique(turned, axis=0)) == reasoning.ANGLES[3] * len(reasoning.SHAPES[3])


def test_published_shapes_have_40_looks_each_and_none_in_common():
    masks = reasoning.masks(5)
    assert masks.shape == (60, 8, 25)
    looks = [[mask.tobytes() for mask in masks[:, shape]] for shape in range(8)]
    assert [len(set(of_shape)) for of_shape in looks] == [40] * 8
    assert len({look for of_shape in looks for look in of_shape}) == 320
    alike = {angle: {angle} for angle in range(60)}
    for quarter in range(0, 60, 15):
        for group in ([-2, -1, 0, 1, 2], [7, 8]):
            angles = {(quarter + angle) % 60 for angle in group}
            alike |= dict.fromkeys(angles, angles)
    for of_shape in looks:
        assert {a: {b for b in range(60) if of_shape[a] == of_shape[b]} for a in range(60)} == alike


def test_a_published_board_alone_does_not_always_tell_the_next():
    # All sequences of one set of shapes and one colour cycle: no other shows any of their boards.
    colours, shapes = (part[:16] for part in PUBLISHED.everything("train"))
    assert len({frozenset(row) for row in shapes.tolist()}) == 1
    boards = PUBLISHED.sequence(colours, shapes)
    follow = defaultdict(Counter)
    for now, then in zip(boards[:, :-1].reshape(-1, 100), boards[:, 1:].reshape(-1, 100), strict=True):
        follow[now.tobytes()][then.tobytes()] += 1
    assert max(map(len, follow.values())) == 2
    assert sum(c.total() for c in follow.values() if len(c) == 2) == 28 * 16
    assert sum(max(c.values()) for c in follow.values()) == 52 * 16


@given(size=st.sampled_from([1, 3, 5, 7]), seed=seeds, quarters=st.integers(-4, 4), step=st.integers(0, 60))
def test_quarter_turns_are_exact_and_leave_other_turns_as_they_are(size, seed, quarters, step):
    blocks = np.random.Generator(np.random.Philox(seed)).integers(5, size=(2, size, size))
    assert np.array_equal(reasoning.turned(blocks, 90 * quarters), np.rot90(blocks, -quarters, axes=(1, 2)))
    turned = reasoning.turned(blocks, 6 * step)
    assert np.array_equal(reasoning.turned(blocks, 6 * step + 90), np.rot90(turned, -1, axes=(1, 2)))
    assert np.array_equal(turned[0], drawn(blocks[0], 6 * step))


def test_45_degrees_move_a_ring_of_eight_cells_on_by_one():
    block = np.arange(1, 10).reshape(3, 3)
    assert reasoning.turned(block, 45).tolist() == [[4, 1, 2], [7, 5, 3], [8, 9, 6]]
    once_round = block
    for _ in range(8):
        once_round = reasoning.turned(once_round, 45)
    assert np.array_equal(once_round, block)


def test_small_batches_are_the_bits_they_always_were():
    digest = hashlib.sha256()
    for level, split in product(reasoning.LEVELS, splits.SPLITS):
        for part in Boards(level).batch(20, 7, split):
            digest.update(part.astype("<i8").tobytes())
    assert digest.hexdigest() == "047e5c9cb8d49d30b40f866560feef886b859bfe053c1c8bcb82f9e5dccbf6b1"


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
    hard, easy, published = Boards("hard").baselines(), Boards("easy").baselines(), PUBLISHED.baselines()
    assert hard == {"majority": 0.0, "copy the last board": 0.0, "repeat": 0.0, "n-gram": 0.0}
    # Targets 4 … 7 of the seven show a board seen before, and three boards tell an n-gram the fourth colour.
    assert easy == {
        "majority": 0.0,
        "copy the last board": 0.0,
        "repeat": pytest.approx(4 / 7),
        "n-gram": pytest.approx(5 / 7, abs=0.01),
    }
    assert published == {"majority": 0.0, "copy the last board": 0.0, "repeat": pytest.approx(1 / 60), "n-gram": 0.0}
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
    [({"level": "medium"}, "easy"), ({"size": 4}, r"size must be one of \(3, 5\)"), ({"boards": 1}, "2 boards")],
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
    with pytest.raises(ValueError, match="validation"):
        Boards().everything("test")

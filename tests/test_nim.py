"""Nim: Bouton's rule against a brute-force solver, and games against the rules of the game."""

import time
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules2ranks import tasks
from rules2ranks.tasks import nim
from rules2ranks.tasks.nim import Nim

seeds = st.integers(0, 2**63)
positions = st.lists(st.integers(0, 5), min_size=1, max_size=4)


@cache
def wins(heaps: tuple[int, ...]) -> bool:
    """Whether the player to move wins, by trying every game."""
    return any(not wins(after) for after in replies(heaps))


def replies(heaps: tuple[int, ...]) -> list[tuple[int, ...]]:
    moves = [(heap, number) for heap, size in enumerate(heaps) for number in range(1, size + 1)]
    return [tuple(sorted((*heaps[:heap], heaps[heap] - number, *heaps[heap + 1 :]))) for heap, number in moves]


def texts(game: Nim, n: int, seed: int, split: str = "train") -> list[str]:
    x, y = game.batch(n, seed, split)
    whole = np.concatenate([x, np.where(y[:, -1:] == -100, 0, y[:, -1:])], axis=1)
    return [game.decode(tokens) for tokens in whole]


@given(positions)
def test_nim_sum_tells_who_wins(heaps):
    assert (nim.nim_sum(np.array(heaps)) != 0) == wins(tuple(sorted(heaps)))


@given(positions)
def test_winning_moves_are_those_after_which_the_opponent_loses(heaps):
    found = {(heap, int(number)) for heap, number in enumerate(nim.winning_moves(np.array(heaps))) if number}
    tried = {
        (heap, number)
        for heap, size in enumerate(heaps)
        for number in range(1, size + 1)
        if not wins(tuple(sorted((*heaps[:heap], size - number, *heaps[heap + 1 :]))))
    }
    assert found == tried
    assert nim.choices(np.array(heaps)) == (len(tried) or sum(heaps))


@given(seeds)
def test_games_are_legal_optimal_and_complete(seed):
    for text in texts(Nim(), 20, seed):
        nim.check(text)


@given(seeds)
def test_who_could_win_at_the_start_wins(seed):
    for text in texts(Nim(), 20, seed):
        words = text.split()
        start = words.index("Start:")
        first_wins = wins(tuple(sorted(int(word[1:]) for word in words[1:start])))
        assert words[-2].startswith("1" if first_wins else "2")


@given(st.lists(positions.filter(any), min_size=1, max_size=5), seeds)
def test_play_empties_the_heaps_and_leaves_its_input_alone(starts, seed):
    heaps = np.array([start + [0] * (4 - len(start)) for start in starts])
    before = heaps.copy()
    heap, number = nim.play(heaps, np.random.Generator(np.random.Philox(seed)))
    assert np.array_equal(heaps, before)
    taken = np.stack([(number * (heap == h)).sum(axis=1) for h in range(4)], axis=1)
    assert np.array_equal(taken, heaps)
    assert (np.diff((number > 0).astype(int), axis=1) <= 0).all()


def test_equally_good_moves_are_equally_likely():
    rng = np.random.Generator(np.random.Philox(5))
    # 7, 6, 5 has a winning move in every heap; 2, 2 has none, and four legal ones.
    heap, number = nim.play(np.tile([7, 6, 5], (6000, 1)), rng)
    assert set(zip(heap[:, 0].tolist(), number[:, 0].tolist(), strict=True)) == {(0, 4), (1, 4), (2, 4)}
    # Standard deviation of each share 0.006: five of them.
    assert np.bincount(heap[:, 0]) / 6000 == pytest.approx(1 / 3, abs=0.03)
    heap, number = nim.play(np.tile([2, 2], (6000, 1)), rng)
    shares = np.unique(np.stack([heap[:, 0], number[:, 0]]), axis=1, return_counts=True)[1] / 6000
    assert shares == pytest.approx(1 / 4, abs=0.03)


def test_labels_are_the_next_words_from_the_first_move_to_the_end():
    game = Nim()
    x, y = game.batch(50, 0)
    for now, then in zip(x, y, strict=True):
        scored = np.nonzero(then != -100)[0]
        assert game.words[now[scored[0]]] == "Start:"
        assert game.words[then[scored[-1]]] == "End"
        assert np.array_equal(scored, np.arange(scored[0], scored[-1] + 1))
        assert np.array_equal(now[scored[1:]], then[scored[:-1]])


def test_shapes_types_and_vocabulary():
    game = Nim()
    assert game.classes == 4 + 28 + 56 == len(set(game.words))
    x, y = game.batch(2000, 1)
    assert x.shape == y.shape == (2000, game.length)
    assert x.dtype == y.dtype == np.int64
    assert 0 <= x.min() and x.max() < game.classes


def test_the_longest_game_fits():
    game = Nim(fewest=2, most=2, largest=2)
    lengths = {len(text.split()) for text in texts(game, 500, 0)}
    # Heaps: A2 B2 Start: and four moves of one object, End.
    assert max(lengths) == 9 == game.length + 1


def test_published_size_works_and_has_the_published_vocabulary():
    published = Nim(fewest=5, most=15, largest=10)
    # The published 453 words, and our padding.
    assert published.classes == 454
    for text in texts(published, 20, 0):
        nim.check(text)


def test_impossible_heaps_are_refused():
    with pytest.raises(ValueError, match="fewest"):
        Nim(fewest=4, most=3)


def test_no_validation_game_starts_like_a_training_game():
    def starts(split):
        return {text.split(" Start:")[0] for seed in range(3) for text in texts(Nim(), 4000, seed, split)}

    assert not starts("train") & starts("validation")
    assert len(starts("train")) > 2000


def test_check_finds_what_is_wrong():
    nim.check("Heaps: A1 B2 Start: 1B1 2A1 1B1 End")
    for wrong, message in {
        "A1 Start: 1A1 End": "reads",
        "Heaps: A1 B2 Start: 1A1 2B2 End": "'1A1' is not optimal",
        "Heaps: A1 B2 Start: 1B3 End": "illegal move '1B3'",
        "Heaps: A1 B2 Start: 2B1 End": "illegal move '2B1'",
        "Heaps: A1 B2 Start: 1B1 2A1 End": "left",
    }.items():
        with pytest.raises(ValueError, match=message):
            nim.check(wrong)


def test_score_and_baselines():
    game = Nim()
    y = game.batch(500, 0)[1]
    assert game.score(y, y) == 1.0
    assert game.score(np.zeros_like(y), y) == 0.0
    with pytest.raises(ValueError, match="shape"):
        game.score(y[:5], y)
    scores = game.baselines()
    assert 0 < scores["majority"] < scores["bigram"] < scores["ceiling"] < 1
    # Three heaps, one object each: every player has free choice among 3, 2 and 1 heaps, then End.
    assert Nim(fewest=3, most=3, largest=1).ceiling(
        np.array([[1, 4, 5, 6, 2, 7, 11, 9]]), np.array([[-100] * 4 + [7, 11, 9, 3]])
    ) == pytest.approx((1 / 3 + 1 / 2 + 1 + 1) / 4)


def test_ceiling_is_reached_by_a_player_who_knows_the_rule():
    game = Nim()
    x, y = game.batch(3000, 7, "validation")
    hits = []
    for text in texts(game, 3000, 7, "validation"):
        words = text.split()
        start = words.index("Start:")
        left = np.array([int(word[1:]) for word in words[1:start]])
        for word in words[start + 1 : -1]:
            winning = nim.winning_moves(left)
            heap = int(np.argmax(winning)) if winning.any() else int(np.argmax(left > 0))
            guess = (heap, int(winning[heap]) or 1)
            move = ("ABCD".index(word[1]), int(word[2:]))
            hits.append(guess == move)
            left[move[0]] -= move[1]
        hits.append(True)
    # 20,000 words: a standard deviation of 0.003.
    assert np.mean(hits) == pytest.approx(game.ceiling(x, y), abs=0.012)


def test_a_batch_of_32_is_cheap():
    game = Nim()
    game.batch(32, 0)
    start = time.perf_counter()
    for seed in range(20):
        game.batch(32, seed)
    # 0.5 ms each on one free core.
    assert (time.perf_counter() - start) / 20 < 0.01


@pytest.mark.parametrize("name", tasks.NAMES)
def test_every_task_keeps_the_common_promises(name):
    task = tasks.get(name)
    assert task.name == name
    for split in ("train", "validation"):
        x, y = task.batch(6, 3, split)
        shape = (6, task.length, task.cells) if task.kind == "boards" else (6, task.length)
        assert x.shape == y.shape == shape
        assert x.dtype == y.dtype == np.int64
        assert task.score(y, y) == 1.0
        assert np.array_equal(x, task.batch(6, 3, split)[0])
        assert not np.array_equal(x, task.batch(6, 4, split)[0])


def test_unknown_task_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match="reasoning-hard"):
        tasks.get("chess960")

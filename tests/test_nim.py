"""Nim: Bouton's rule against a brute-force solver, and games against the rules of the game."""

import subprocess
import sys
import time
from functools import cache
from itertools import combinations_with_replacement
from string import ascii_uppercase

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules2ranks import tasks
from rules2ranks.tasks import nim, splits
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


@cache
def longest(heaps: tuple[int, ...]) -> int:
    """Moves of the longest game of optimal players, by trying every game."""
    best = [after for after in replies(heaps) if not wins(after)] or replies(heaps)
    return max((1 + longest(after) for after in best), default=0)


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
    for text in Nim().texts(20, seed):
        nim.check(text)


@given(seeds)
def test_who_could_win_at_the_start_wins(seed):
    for text in Nim().texts(20, seed):
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
    lengths = {len(text.split()) for text in game.texts(500, 0)}
    # Heaps: A2 B2 Start: and four moves of one object, End.
    assert max(lengths) == 9 == game.length + 1


@pytest.mark.parametrize(("heaps", "largest"), [(h, m) for h in range(1, 5) for m in range(1, 6)] + [(3, 7), (2, 10)])
def test_no_game_has_more_moves_than_promised_and_some_have_as_many(heaps, largest):
    starts = combinations_with_replacement(range(largest + 1), heaps)
    assert nim.most_moves(heaps, largest) == max(longest(start) for start in starts)


def test_published_size_has_the_published_vocabulary_and_legal_games():
    published = Nim(*nim.PUBLISHED)
    # The published 453 words, and our padding.
    assert published.classes == 454 == len(set(published.words))
    for split in splits.SPLITS:
        for text in published.texts(200, 0, split):
            nim.check(text)
            heaps = text.split(" Start:")[0].split()[1:]
            assert [word[0] for word in heaps] == list(ascii_uppercase[: len(heaps)])
            assert 5 <= len(heaps) <= 15
            assert all(1 <= int(word[1:]) <= 10 for word in heaps)


def test_the_longest_published_game_fits_exactly():
    published = Nim(*nim.PUBLISHED)
    # One object a move: A's first makes the nim-sum zero; O is emptied against A and B; then there are pairs of heaps.
    takers = "A" + "OA" + "OBOB" + "AB" * 8 + "".join(pair * 10 for pair in ("CD", "EF", "GH", "IJ", "KL", "MN"))
    heaps = " ".join(f"{letter}10" for letter in ascii_uppercase[:14])
    moves = " ".join(f"{1 + turn % 2}{letter}1" for turn, letter in enumerate(takers))
    text = f"Heaps: {heaps} O3 Start: {moves} End"
    nim.check(text)
    assert len(takers) == 143 == nim.most_moves(15, 10)
    assert len(text.split()) == published.length + 1


def test_texts_are_the_games_of_the_batch():
    game = Nim()
    x, y = game.batch(30, 4, "validation")
    for text, now, then in zip(game.texts(30, 4, "validation"), x, y, strict=True):
        words = text.split()
        assert game.decode(now) in (text, text.removesuffix(" End"))
        assert [game.words[token] for token in then if token != -100] == words[words.index("Start:") + 1 :]


def test_impossible_heaps_are_refused():
    with pytest.raises(ValueError, match="fewest"):
        Nim(fewest=4, most=3)


def test_no_validation_game_starts_like_a_training_game():
    def starts(split):
        return {text.split(" Start:")[0] for seed in range(3) for text in Nim().texts(4000, seed, split)}

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
    assert 0 < scores["majority"] < scores["bigram"] < scores["n-gram"] < scores["ceiling"] < 1
    # With 453 words, three words back are too rare to help.
    scores = Nim(*nim.PUBLISHED).baselines()
    assert 0 < scores["majority"] < scores["n-gram"] < scores["ceiling"] < 1
    # Three heaps, one object each: every player has free choice among 3, 2 and 1 heaps, then End.
    assert Nim(fewest=3, most=3, largest=1).ceiling(
        np.array([[1, 4, 5, 6, 2, 7, 11, 9]]), np.array([[-100] * 4 + [7, 11, 9, 3]])
    ) == pytest.approx((1 / 3 + 1 / 2 + 1 + 1) / 4)


def test_ceiling_is_reached_by_a_player_who_knows_the_rule():
    game = Nim()
    x, y = game.batch(3000, 7, "validation")
    hits = []
    for text in game.texts(3000, 7, "validation"):
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


@pytest.mark.parametrize(("game", "n", "seconds"), [(Nim(), 32, 0.01), (Nim(*nim.PUBLISHED), 64, 0.03)])
def test_a_batch_is_cheap(game, n, seconds):
    game.batch(n, 0)
    start = time.perf_counter()
    for seed in range(20):
        game.batch(n, seed)
    # 0.5 ms and 2 ms each on one free core.
    assert (time.perf_counter() - start) / 20 < seconds


@pytest.mark.parametrize("name", tasks.NAMES)
def test_every_task_keeps_the_common_promises(name):
    task = tasks.get(name)
    for split in ("train", "validation"):
        x, y = task.batch(6, 3, split)
        shape = (6, task.length, task.cells) if task.kind == "boards" else (6, task.length)
        assert x.shape == y.shape == shape
        assert x.dtype == y.dtype == np.int64
        # Rare moves of chess share a token that never counts as right.
        assert task.score(y, y) == (pytest.approx(1.0, abs=0.1) if name == "chess" else 1.0)
        assert np.array_equal(x, task.batch(6, 3, split)[0])
        assert not np.array_equal(x, task.batch(6, 4, split)[0])


def test_names_and_published_sizes():
    assert tasks.CORE == ("reasoning-hard", "reasoning-easy", "nim")
    assert len({entry.label for entry in tasks.TASKS.values()}) == len(tasks.NAMES)
    assert tasks.get("nim") is tasks.get("nim") == Nim()
    assert tasks.get("nim-published") == Nim(fewest=5, most=15, largest=10)
    boards = tasks.get("reasoning-hard-published")
    assert (boards.cells, boards.classes, boards.length) == (100, 5, 60)


def test_chess_is_loaded_for_those_who_ask_for_it_only():
    code = "import sys; from rules2ranks import tasks; sys.exit('rules2ranks.tasks.chess' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_unknown_task_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match="reasoning-hard"):
        tasks.get("chess960")

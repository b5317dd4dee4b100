"""Chess: shipped games against the rules, batches against the text they come from, PGN files good and broken."""

import hashlib
import json
import subprocess
import sys
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rules2ranks.published import data_folder
from rules2ranks.tasks.chess import Chess, legal_share, read_games

FOOLS_MATE = ["f3", "e5", "g4", "Qh4#"]
# Légal against Saint Brie, Paris 1750.
LEGAL = ["e4", "e5", "Nf3", "d6", "Bc4", "Bg4", "Nc3", "g6", "Nxe5", "Bxd1", "Bxf7+", "Ke7", "Nd5#"]
PGN = """[Event "Fool's mate"]
[Result "0-1"]

1. f3 e5 2. g4?? {the shortest loss} (2. e4 d5) Qh4# 0-1

[White "Legall de Kermeur"]
[Black "Saint Brie"]

1. e4 e5 2. Nf3 d6 3. Bc4 Bg4 4. Nc3 g6 5. Nxe5 Bxd1 6. Bxf7+ Ke7 7. Nd5# 1-0
"""
BROKEN = {
    "illegal move": [
        "1. f3 e5 2. g4 Qh5 3. Kf2 Qf3# 0-1",  # the queen cannot reach h5
        "1. e4 e5 2. Ke3 *",
        "1. e4 -- 2. d4 *",  # Black passes
        "1. Nf3 d5 2. Nc3 e6 3. Nd4 c6 4. Nb5 *",  # which knight?
    ],
    "not from the initial position": [
        '[FEN "4k3/8/8/8/8/8/4P3/4K3 w - - 0 1"]\n\n1. e4 *',
        '[FEN "nonsense"]\n\n1. e4 *',
        '[Variant "Horde"]\n\n1. e5 *',
    ],
    "no moves": ['[White "Nobody"]\n\n*'],
}
SHIPPED = Chess()
FILE = data_folder() / "games" / "stockfish.txt"

words = st.sampled_from(["e4", "d4", "Nf3", "c5", "Nf6", "O-O", "Qxd5+"])
some_games = st.lists(st.lists(words, min_size=1, max_size=7).map(tuple), min_size=8, max_size=30, unique=True)


@pytest.fixture
def chess():
    return pytest.importorskip("chess", reason="the extra chess is not installed")


@pytest.fixture
def pgn(tmp_path, chess):
    def write(text, encoding="utf-8"):
        path = tmp_path / "games.pgn"
        path.write_bytes(text.encode(encoding))
        return path

    return write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("games")


def task_of(folder: Path, games, **settings) -> Chess:
    path = folder / "games.txt"
    path.write_text("".join(" ".join(game) + "\n" for game in games))
    return Chess(path, **settings)


def parts(task: Chess) -> dict[str, set[tuple[str, ...]]]:
    """Every game of each split, found by drawing many."""
    return {split: {tuple(game) for game in task.moves(3000, 0, split)} for split in ("train", "validation")}


def parts_or_skip(task: Chess) -> dict[str, set[tuple[str, ...]]]:
    try:
        return parts(task)
    except ValueError as error:
        assert "split is empty" in str(error)
        assume(False)


# --- the task ---------------------------------------------------------------------------------------------------


@given(some_games)
def test_every_game_is_in_one_split_and_stays_there_when_games_are_added(folder, games):
    both = parts_or_skip(task_of(folder, games))
    assert not both["train"] & both["validation"]
    assert both["train"] | both["validation"] == set(games)
    more = parts(task_of(folder, [("h4", "h5"), *reversed(games), ("a4",)]))
    assert both["train"] <= more["train"] and both["validation"] <= more["validation"]


@given(some_games, st.integers(1, 4))
def test_vocabulary_is_the_training_games_moves_that_are_frequent_enough(folder, games, rarest):
    task = task_of(folder, games, rarest=rarest)
    counts = Counter(move for game in parts_or_skip(task)["train"] for move in game)
    assert set(task.words[3:]) == {move for move, count in counts.items() if count >= rarest}
    assert len(task.words) == len(set(task.words)) == task.classes
    seen = [counts[move] for move in task.words[3:]]
    assert seen == sorted(seen, reverse=True)


@given(some_games, st.integers(1, 8), st.integers(0, 2**63), st.sampled_from(["train", "validation"]))
def test_batches_spell_the_games_and_labels_are_the_next_moves(folder, games, length, seed, split):
    # Cut to a few moves, games may become equal, and a split may run empty.
    task = task_of(folder, games, length=length)
    parts_or_skip(task)
    x, y = task.batch(5, seed, split)
    assert x.shape == y.shape == (5, length) and x.dtype == y.dtype == np.int64
    assert np.array_equal(y[:, :-1][y[:, :-1] != -100], x[:, 1:][y[:, :-1] != -100])
    for now, then, game in zip(x, y, task.moves(5, seed, split), strict=True):
        shown = [move if move in task.words else "<unknown>" for move in game]
        assert any(game == list(whole[:length]) for whole in games)
        assert [task.words[token] for token in then if token != -100] == shown
        assert [task.words[token] for token in now] == (["<start>", *shown] + [""] * length)[:length]
        assert (then[len(game) :] == -100).all()
        assert task.decode(then) == " ".join(shown)


@given(some_games, st.integers(1, 4))
def test_n_grams_agree_with_counting_by_hand(folder, games, rarest):
    task = task_of(folder, games, rarest=rarest)

    def places(game):
        whole = ("", "", "<start>", *(move if move in task.words else "<unknown>" for move in game))
        return [(whole[:place], whole[place]) for place in range(3, len(whole))]

    follows = defaultdict(Counter)
    for game in parts_or_skip(task)["train"]:
        for before, move in places(game):
            for order in range(4 if move != "<unknown>" else 0):
                follows[before[len(before) - order :]][move] += 1
    # Of equally frequent moves the one with the smaller token is taken.
    best = {context: min(after, key=lambda m: (-after[m], task.words.index(m))) for context, after in follows.items()}

    def share(longest):
        hits = []
        for game in task.moves(200, 3, "validation"):
            for before, move in places(game):
                contexts = [before[len(before) - order :] for order in range(longest, -1, -1)]
                hits.append(move == next((best[context] for context in contexts if context in best), None))
        return np.mean(hits)

    expected = {"majority": share(0), "bigram": share(1), "n-gram": share(3)}
    assert task.baselines(200, 3) == pytest.approx(expected)


def test_an_unknown_move_is_scored_and_never_right(folder):
    # The seventh move of each game differs, so that none of them can have a token.
    games = [["e4", "e5", "Nf3", "Nc6", "Bb5", "a6", f"{piece}{file}{rank}"]
             for piece in "QR" for file in "abcdefgh" for rank in "12345678"]  # fmt: skip
    task = task_of(folder, games)
    assert set(task.words) == {"", "<start>", "<unknown>", "e4", "e5", "Nf3", "Nc6", "Bb5", "a6"}
    _, y = task.batch(20, 0, "validation")
    unknown = task.words.index("<unknown>")
    assert (y[:, 6] == unknown).all()
    assert task.score(y, y) == pytest.approx(6 / 7)
    assert task.score(np.full_like(y, unknown), y) == 0
    # Padding is not scored, whatever is predicted there.
    assert task.score(np.where(y == -100, 3, y), y) == pytest.approx(6 / 7)
    with pytest.raises(ValueError, match="shape"):
        task.score(y[:5], y)


def test_draws_depend_on_seed_and_split_alone():
    for split in ("train", "validation"):
        x, y = SHIPPED.batch(6, 3, split)
        again = Chess().batch(6, 3, split)
        assert np.array_equal(x, again[0]) and np.array_equal(y, again[1])
        assert not np.array_equal(x, SHIPPED.batch(6, 4, split)[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no games"),
        ("\n \n", "holds no games"),
        ("e4 e5\n", "split is empty: .* holds 1 games"),
        ("1. e4 e5 1-0\n", r"standard algebraic notation only, got \['1-0', '1.'\]"),
    ],
)
def test_files_that_cannot_serve_are_refused(tmp_path, content, message):
    path = tmp_path / "games.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        Chess(path).batch(1, 0)


def test_wrong_arguments_are_refused_before_any_file_is_read(tmp_path):
    nowhere = Chess(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="no file of games"):
        nowhere.batch(1, 0)
    with pytest.raises(ValueError, match="n=0"):
        nowhere.batch(0, 0)
    with pytest.raises(ValueError, match="split must be one of"):
        nowhere.batch(1, 0, "test")
    for wrong in ({"length": 0}, {"rarest": 0}, {"limit": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            Chess(**wrong)


def test_importing_reads_nothing_and_loads_no_heavy_package():
    code = (
        "import sys; from rules2ranks.tasks.chess import Chess; task = Chess();"
        "print(sorted({'torch', 'pandas', 'chess', 'zstandard'} & set(sys.modules)), list(vars(task)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] ['games', 'length', 'rarest', 'limit']"


# --- the shipped games ------------------------------------------------------------------------------------------


def test_the_record_describes_the_file():
    record = json.loads(FILE.with_suffix(".json").read_text(encoding="utf-8"))
    lines = FILE.read_text().splitlines()
    plies = [len(line.split()) for line in lines]
    assert record["sha256"] == hashlib.sha256(FILE.read_bytes()).hexdigest()
    assert record["games"] == len(lines) == len(set(lines)) == sum(record["results"].values())
    assert record["plies"] == {"all": sum(plies), "shortest": min(plies), "longest": max(plies)}
    assert max(plies) <= record["most_plies"]
    assert all(line.startswith(tuple(f"{opening} " for opening in record["openings"].values())) for line in lines)
    assert sum(line.endswith("#") for line in lines) <= record["results"]["1-0"] + record["results"]["0-1"]


def test_shipped_games_follow_the_rules(chess):
    for line in FILE.read_text().splitlines()[::15]:
        board, moves = chess.Board(), line.split()
        for move in moves:
            assert board.outcome() is None
            assert board.san_and_push(board.parse_san(move)) == move
        assert board.outcome() or board.is_repetition(3) or board.is_fifty_moves() or len(moves) == 120


def test_shipped_games_fill_the_splits_and_the_vocabulary_covers_most():
    both = parts(SHIPPED)
    lines = {tuple(line.split()[:60]) for line in FILE.read_text().splitlines()}
    assert not both["train"] & both["validation"]
    # Drawing 3000 times from some 550 games misses few of them.
    assert len(both["validation"]) / len(lines) == pytest.approx(0.2, abs=0.03)
    _, y = SHIPPED.batch(2000, 0, "validation")
    assert 0 < (y == SHIPPED.words.index("<unknown>")).sum() / (y != -100).sum() < 0.02


def test_longer_contexts_predict_better():
    start = time.perf_counter()
    scores = SHIPPED.baselines()
    # 0.1 s on one free core.
    assert time.perf_counter() - start < 2
    assert 0 < scores["majority"] < scores["bigram"] < scores["n-gram"] < 1


def test_true_moves_are_all_legal_and_unknown_words_are_not(chess):
    games = SHIPPED.moves(8, 0, "validation")
    assert legal_share(games, games) == 1
    _, y = SHIPPED.batch(8, 0, "validation")
    guesses = [[SHIPPED.words[token] for token in row[: len(game)]] for row, game in zip(y, games, strict=True)]
    known = np.mean([move in SHIPPED.words for game in games for move in game])
    assert legal_share(games, guesses) == pytest.approx(known)
    assert legal_share([FOOLS_MATE], [["<unknown>", "", "<start>", "Qh4#"]]) == 0.25


# --- PGN files --------------------------------------------------------------------------------------------------


def test_games_are_read_without_comments_and_variations(pgn):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_games(pgn(PGN)) == ([FOOLS_MATE, LEGAL], {})


def test_broken_games_are_skipped_counted_and_reported_once(pgn, capfd):
    broken = [game for games in BROKEN.values() for game in games]
    path = pgn("\n\n".join([*broken[:3], PGN, *broken[3:], PGN]))
    with pytest.warns(UserWarning) as caught:
        games = read_games(path)
    assert games.moves == [FOOLS_MATE, LEGAL] * 2
    assert games.skipped == {reason: len(of_it) for reason, of_it in BROKEN.items()}
    assert [str(w.message) for w in caught] == [
        "games.pgn: 8 games skipped (illegal move: 4, not from the initial position: 3, no moves: 1), 4 read"
    ]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("text", ["", *(game for games in BROKEN.values() for game in games)])
def test_a_file_without_a_usable_game_is_refused(pgn, text):
    reason = next((reason for reason, games in BROKEN.items() if text in games), "it is empty")
    with pytest.raises(ValueError, match=rf"games.pgn holds no game that can be used \({reason}"):
        read_games(pgn(text))


def test_names_in_another_encoding_do_no_harm(pgn):
    assert read_games(pgn(PGN.replace("Legall", "Légal"), "latin-1")).moves == [FOOLS_MATE, LEGAL]


def test_reading_ends_with_the_last_game_that_is_wanted(pgn):
    # The broken game behind it is not met, so nothing is reported.
    assert read_games(pgn(f"{PGN}\n\n1. Ke2 *"), limit=2) == ([FOOLS_MATE, LEGAL], {})
    with pytest.raises(ValueError, match="at least 1"):
        read_games(pgn(PGN), limit=0)


def test_little_that_unpacks_to_one_endless_line_is_refused(tmp_path):
    zstandard = pytest.importorskip("zstandard", reason="the extra chess is not installed")
    pytest.importorskip("chess", reason="the extra chess is not installed")
    packed = zstandard.ZstdCompressor().compressobj()
    with (tmp_path / "bomb.pgn.zst").open("wb") as file:
        file.write(packed.compress(b'[Event "'))
        for _ in range(64):
            file.write(packed.compress(b"x" * 2**20))
        file.write(packed.flush())
    assert (tmp_path / "bomb.pgn.zst").stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"bomb\.pgn\.zst has a line of 4,194,304 characters or more"):
        read_games(tmp_path / "bomb.pgn.zst")


def test_compressed_files_hold_the_same_games(pgn, tmp_path):
    zstandard = pytest.importorskip("zstandard", reason="the extra chess is not installed")
    path = tmp_path / "games.pgn.zst"
    # Two frames, as pzstd writes them.
    frames = [zstandard.compress(f"{PGN}\n\n".encode()), zstandard.compress(PGN.encode())]
    path.write_bytes(b"".join(frames))
    assert read_games(path) == read_games(pgn(f"{PGN}\n\n{PGN}"))
    assert read_games(path, limit=3).moves == [FOOLS_MATE, LEGAL, FOOLS_MATE]
    path.write_text(PGN)
    with pytest.raises(ValueError, match=r"games.pgn.zst cannot be decompressed"):
        read_games(path)


def test_a_pgn_file_serves_as_well_as_the_text(pgn, folder):
    games = [line.split() for line in FILE.read_text().splitlines()[:30]]
    from_text = task_of(folder, games)
    from_pgn = Chess(pgn("\n\n".join(f"{' '.join(game)} *" for game in games)))
    assert from_pgn.words == from_text.words
    for mine, other in zip(from_pgn.batch(9, 5), from_text.batch(9, 5), strict=True):
        assert np.array_equal(mine, other)


@pytest.mark.parametrize("module", ["chess", "zstandard"])
def test_without_the_extra_the_message_says_what_to_install(monkeypatch, pgn, tmp_path, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[chess\]'"):
        read_games(tmp_path / "games.pgn.zst")
    if module == "chess":
        with pytest.raises(ImportError, match=r"pip install -e '\.\[chess\]'"):
            legal_share([FOOLS_MATE], [FOOLS_MATE])
    assert Chess().batch(1, 0)[0].shape == (1, 60)


# --- legal moves ------------------------------------------------------------------------------------------------


def test_the_moves_that_were_played_are_legal_and_others_count_as_they_should(chess):
    assert legal_share([FOOLS_MATE, LEGAL], [FOOLS_MATE, LEGAL]) == 1
    # Legal, ambiguous-free, taken from the other side, unreadable: the first two of four.
    assert legal_share([FOOLS_MATE], [["Nf3", "d5", "Nf6", "castle"]]) == 0.5
    # After 1. e4 e5 2. Nf3 d6 3. Bc4: passing, a piece that is not there, an empty word.
    assert legal_share([LEGAL], [[*LEGAL[:5], "--", *LEGAL[6:11], "O-O", ""]]) == pytest.approx(10 / 13)


def test_predictions_must_fit_the_games(chess):
    with pytest.raises(ValueError, match=r"\[4\] in the games, got \[3\]"):
        legal_share([FOOLS_MATE], [FOOLS_MATE[:3]])
    with pytest.raises(ValueError, match="game 1 cannot be played"):
        legal_share([["e5"]], [["e4"]])

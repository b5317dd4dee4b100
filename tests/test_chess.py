"""Chess on two famous short games."""

import sys

import pytest

from rules2ranks.tasks.chess import legal_share, read_games

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


@pytest.fixture
def pgn(tmp_path):
    pytest.importorskip("chess", reason="the extra chess is not installed")

    def write(text):
        path = tmp_path / "games.pgn"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_games_are_read_without_comments_and_variations(pgn):
    assert read_games(pgn(PGN)) == [FOOLS_MATE, LEGAL]


def test_the_moves_that_were_played_are_legal_and_others_count_as_they_should(pgn):
    games = read_games(pgn(PGN))
    assert legal_share(games, games) == 1
    # Legal, ambiguous-free, taken from the other side, unreadable: the first two of four.
    assert legal_share([FOOLS_MATE], [["Nf3", "d5", "Nf6", "castle"]]) == 0.5
    # After 1. e4 e5 2. Nf3 d6 3. Bc4: passing, a piece that is not there, an empty word.
    assert legal_share([LEGAL], [[*LEGAL[:5], "--", *LEGAL[6:11], "O-O", ""]]) == pytest.approx(10 / 13)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no moves"),
        ("1. f3 e5 2. g4 Qh5 3. Kf2 Qf3# 0-1", "game 1 of games.pgn cannot be replayed"),
        ('[FEN "4k3/8/8/8/8/8/4P3/4K3 w - - 0 1"]\n\n1. e4 *', "must start from the initial position"),
    ],
)
def test_games_that_cannot_be_replayed_are_named(pgn, text, message):
    with pytest.raises(ValueError, match=message):
        read_games(pgn(text))


def test_predictions_must_fit_the_games(pgn):
    with pytest.raises(ValueError, match=r"\[4\] in the games, got \[3\]"):
        legal_share([FOOLS_MATE], [FOOLS_MATE[:3]])
    with pytest.raises(ValueError, match="game 1 cannot be played"):
        legal_share([["e5"]], [["e4"]])


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "chess", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[chess\]'"):
        legal_share([FOOLS_MATE], [FOOLS_MATE])

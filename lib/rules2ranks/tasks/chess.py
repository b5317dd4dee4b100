"""Chess games as moves in standard algebraic notation: read from PGN, and which predicted moves are legal.

Needs the optional extra ``chess`` (python-chess, GPL-3.0-or-later), which is imported only when a function is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType


def read_games(path: str | Path) -> list[list[str]]:
    """The moves of every game in a PGN file, in standard algebraic notation; comments and variations are left out.

    Raises ValueError for a file without games, a game with an illegal move, or one that does not start from the
    initial position; ImportError without the extra.
    """
    chess = _chess()
    games = []
    with open(path, encoding="utf-8-sig") as lines:
        while (game := chess.pgn.read_game(lines)) is not None:
            name = f"game {len(games) + 1} of {Path(path).name}"
            if game.errors:
                raise ValueError(f"{name} cannot be replayed: {game.errors[0]}")
            board = game.board()
            if board != chess.Board():
                raise ValueError(f"{name} must start from the initial position, got {board.fen()}")
            games.append([board.san_and_push(move) for move in game.mainline_moves()])
    if not any(games):
        raise ValueError(f"{Path(path).name} holds no moves, a PGN file was expected")
    return games


def legal_share(games: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Share (0..1) of predicted moves that are legal where they were predicted.

    `games`: the moves that were played. `predicted`: as many moves per game, the one at place t predicted for the
    position after the first t played moves. A move that cannot be read, or that fits two pieces, is not legal.
    Raises ValueError for unequal lengths, no moves, or a game that cannot be played; ImportError without the extra.
    """
    chess = _chess()
    lengths, expected = [len(moves) for moves in predicted], [len(moves) for moves in games]
    if lengths != expected or not sum(expected):
        raise ValueError(f"one prediction per played move is needed, {expected} in the games, got {lengths}")
    legal = 0
    for number, (played, guesses) in enumerate(zip(games, predicted, strict=True), start=1):
        board = chess.Board()
        for move, guess in zip(played, guesses, strict=True):
            try:
                # python-chess reads "--" as passing, which no rule of chess allows.
                legal += bool(board.parse_san(guess))
            except ValueError:
                pass
            try:
                board.push_san(move)
            except ValueError as error:
                raise ValueError(f"game {number} cannot be played: {error}") from error
    return legal / sum(expected)


def _chess() -> ModuleType:
    try:
        import chess
        import chess.pgn
    except ImportError as error:
        raise ImportError("chess games need python-chess: pip install -e '.[chess]' in the project's folder") from error
    return chess

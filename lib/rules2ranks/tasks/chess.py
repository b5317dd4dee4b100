"""Chess as text: predict the next move of a game in standard algebraic notation (SAN).

Published (Intelligence at the Edge of Chaos, arXiv 2410.02536, authors' code): games of the Lichess Elite database from
January to April 2016, split 80-10-10, one token per SAN move, windows of 60 moves; a new embedding and a new head are
trained, only the blocks stay frozen, and the score is the best validation accuracy of the next move. Ours differs in
the games, which an engine played (`data/games/`, see data/README.md) unless a PGN file is named; in the window, which
is the first 60 plies after a start token; in the split, 80-20 by game; and in rare moves, which share one token that
never counts as right.

PGN files and the rules of chess need the optional extra ``chess`` (python-chess, GPL-3.0-or-later, and zstandard),
which is imported only when a function needs it. The shipped games are plain text and need nothing.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from rules2ranks.tasks import ngram, splits

_PAD, _START, _UNKNOWN = range(3)
#: Characters of a line of a PGN file, at most: a whole game with comments takes some thousands.
LONGEST = 2**22
_MARKS = ("", "<start>", "<unknown>")
_SAN = re.compile(r"(O-O(-O)?|[KQRBN]?[a-h]?[1-8]?x?[a-h][1-8](=[QRBN])?)[+#]?")


@dataclass(frozen=True)
class Chess:
    """The first `length` plies of games, a token per move.

    Fields:
        games: a text file with a game per line, SAN moves separated by spaces; or a PGN file (`.pgn`, `.pgn.zst`),
            which needs the extra. None stands for the shipped text file. It is read when first needed, and once.
        length: plies of a game that are shown.
        rarest: a move needs so many places in the training games to get a token of its own.
        limit: reads so many games at most; None reads all.

    Raises:
        ValueError: a number below 1; and when the games are first needed, a file that is missing, holds no games or
            something else than moves, or too few games to train and validate with.
    """

    games: str | Path | None = None
    length: int = 60
    rarest: int = 2
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.length < 1 or self.rarest < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(f"length, rarest and limit must be at least 1, got {self}")

    @property
    def kind(self) -> str:
        return "tokens"

    @property
    def cells(self) -> int:
        """One token a position."""
        return 1

    @property
    def classes(self) -> int:
        """Size of the vocabulary."""
        return len(self.words)

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The vocabulary: padding, start, unknown, then the training games' moves, the most frequent first.

        A word's place is its token id.
        """
        counts = Counter(chain.from_iterable(self._games["train"]))
        moves = [move for move, count in counts.items() if count >= self.rarest]
        return (*_MARKS, *sorted(moves, key=lambda move: (-counts[move], move)))

    def batch(self, n: int, seed: int, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
        """Draws `n` games of the split, with replacement.

        Returns:
            x and y, both (n, length) int64: y[:, t] is the move after x[:, t], and -100 after a game's last move. x is
            the start token and the moves, padded with 0. No validation game has the moves of a training game.

        Raises:
            ValueError: for n < 1, a negative seed or an unknown split.
        """
        places = self._draw(n, seed, split)
        tokens = self._tokens[split][places].astype(np.int64)
        x, y = tokens[:, :-1], tokens[:, 1:].copy()
        y[y == _PAD] = -100
        return x, y

    def moves(self, n: int, seed: int, split: str = "train") -> list[list[str]]:
        """The games of `batch`, as SAN moves as they were played, with those that the vocabulary lacks."""
        return [list(self._games[split][place]) for place in self._draw(n, seed, split)]

    def decode(self, tokens: np.ndarray) -> str:
        """The moves among tokens or labels (T,) as text; padding and start are left out."""
        return " ".join(self.words[token] for token in tokens if token > _START)

    def score(self, predicted: np.ndarray, y: np.ndarray) -> float:
        """Share of scored moves (0 … 1) that are right; `predicted` and `y` are (n, length).

        A move that the vocabulary lacks is scored and never right, whatever was predicted.
        """
        if predicted.shape != y.shape:
            raise ValueError(f"predictions must have the shape of the moves {y.shape}, got {predicted.shape}")
        return float(((predicted == y) & (y != _UNKNOWN))[y != -100].mean())

    def baselines(self, n: int = 2000, seed: int = 0) -> dict[str, float]:
        """Scores of trivial predictors, counted on all training games and scored on `n` validation draws.

        "majority": the most frequent move; "bigram": the move that most often follows the current one; "n-gram": the
        last `ngram.ORDER` moves, or as many of them as training has seen, decide.
        """
        games = self._tokens["train"].astype(np.int64)
        # An unknown move is never right, so none of them should predict it.
        trained = games[:, :-1], np.where(games[:, 1:] > _UNKNOWN, games[:, 1:], -100)
        x, y = self.batch(n, seed, "validation")
        orders = {"majority": 0, "bigram": 1, "n-gram": ngram.ORDER}
        return {name: self.score(ngram.predict(trained, x, order), y) for name, order in orders.items()}

    @cached_property
    def _games(self) -> dict[str, list[tuple[str, ...]]]:
        """The first `length` moves of each game, by split. A hash of these moves decides, so the splits share none."""
        games = [tuple(game[: self.length]) for game in _read(self.games, self.limit)]
        held_out = splits.held_out(np.array([[zlib.crc32(" ".join(game).encode())] for game in games]))
        parts = {
            split: [game for game, out in zip(games, held_out, strict=True) if out == (split == "validation")]
            for split in splits.SPLITS
        }
        if empty := [split for split, part in parts.items() if not part]:
            source = self.games or "the shipped file"
            raise ValueError(f"the {empty[0]} split is empty: {source} holds {len(games)} games, more are needed")
        return parts

    @cached_property
    def _tokens(self) -> dict[str, np.ndarray]:
        """The games' tokens by split, each (games, length + 1) int32: the start and the moves, padded with 0."""
        ids = {word: token for token, word in enumerate(self.words)}
        tokens = {}
        for split, games in self._games.items():
            tokens[split] = np.full((len(games), self.length + 1), _PAD, dtype=np.int32)
            tokens[split][:, 0] = _START
            for row, game in zip(tokens[split], games, strict=True):
                row[1 : 1 + len(game)] = [ids.get(move, _UNKNOWN) for move in game]
        return tokens

    def _draw(self, n: int, seed: int, split: str) -> np.ndarray:
        """Places (n,) in the split's games."""
        rng = splits.generator(seed, split)
        if n < 1:
            raise ValueError(f"a batch needs at least one sequence, got n={n}")
        return rng.integers(len(self._games[split]), size=n)


def _read(path: str | Path | None, limit: int | None) -> list[list[str]]:
    if path is None:
        from rules2ranks.published import shipped  # it imports pandas, which nothing else here needs

        path = shipped("games/stockfish.txt")
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file of games {path}")
    if path.name.endswith((".pgn", ".pgn.zst")):
        return read_games(path, limit).moves
    games = [moves for line in path.read_text(encoding="utf-8").splitlines() if (moves := line.split())][:limit]
    if not games:
        raise ValueError(f"{path.name} holds no games, one per line was expected")
    if wrong := sorted(word for word in set(chain.from_iterable(games)) if not _SAN.fullmatch(word)):
        raise ValueError(f"{path.name} must hold moves in standard algebraic notation only, got {wrong[:3]}")
    return games


class Games(NamedTuple):
    """What a PGN file held."""

    moves: list[list[str]]
    """Of each game that can be used, in SAN."""
    skipped: dict[str, int]
    """Reason to how many games were left out for it."""


class _Lines:
    """The lines of a file of games, none longer than the memory: little that is packed may unpack to very much."""

    def __init__(self, file: io.TextIOBase, name: str):
        self.file, self.name = file, name

    def readline(self) -> str:
        line = self.file.readline(LONGEST)
        if len(line) == LONGEST:
            raise ValueError(f"{self.name} has a line of {LONGEST:,} characters or more: it holds no games")
        return line


def read_games(path: str | Path, limit: int | None = None) -> Games:
    """The moves of the games in a PGN file, plain or compressed (`.zst`), in standard algebraic notation.

    Comments and variations are left out. Games that cannot be replayed from the initial position, or that have no
    moves, are skipped, with one warning that says how many and why. The file is read as a stream, and only until
    `limit` games were found.

    Raises:
        ValueError: no game is left, the file is not what its name says, or `limit` is below 1.
        ImportError: the extra is not installed.
    """
    path = Path(path)
    pgn = _extra("chess.pgn")
    zstandard = _extra("zstandard") if path.suffix == ".zst" else None
    damage = zstandard.ZstdError if zstandard else ()
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    visitor = _mainline(_extra("chess"), pgn)
    games, skipped = [], Counter()
    with ExitStack() as stack:
        raw = stack.enter_context(open(path, "rb"))
        if zstandard:
            # A file may hold several frames, as pzstd writes them.
            raw = stack.enter_context(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True))
        # What is not UTF-8 stands in names and comments, which are left out.
        lines = _Lines(io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace"), path.name)
        try:
            while len(games) != limit and (game := pgn.read_game(lines, Visitor=visitor)) is not None:
                moves, fault = game
                if fault:
                    skipped[fault] += 1
                else:
                    games.append(moves)
        except damage as error:
            raise ValueError(f"{path.name} cannot be decompressed: {error}") from error
    why = ", ".join(f"{reason}: {count}" for reason, count in skipped.items())
    if not games:
        raise ValueError(f"{path.name} holds no game that can be used ({why or 'it is empty'})")
    if skipped:
        warnings.warn(f"{path.name}: {skipped.total()} games skipped ({why}), {len(games)} read", stacklevel=2)
    return Games(games, dict(skipped))


def legal_share(games: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Share (0 … 1) of predicted moves that are legal where they were predicted.

    Args:
        games: the moves that were played, as `Chess.moves` gives them.
        predicted: as many moves per game, the one at place t predicted for the position after the first t played moves.
            A word that cannot be read (a mark such as `<unknown>`), or that fits two pieces, is not legal.

    Raises:
        ValueError: unequal lengths, no moves, or a game that cannot be played.
        ImportError: the extra is not installed.
    """
    chess = _extra("chess")
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


def _mainline(chess: ModuleType, pgn: ModuleType) -> type:
    """A visitor for python-chess: each game's moves in SAN and what is wrong with it, or None.

    Its own errors are not handed to python-chess's, which logs every one.
    """

    class Mainline(pgn.BaseVisitor):
        def begin_game(self) -> None:
            self.moves: list[str] = []
            self.fault: str | None = None
            self.started = False

        def visit_board(self, board) -> None:
            if not self.started and board != chess.Board():
                self.fault = "not from the initial position"
            self.started = True

        def begin_variation(self):
            return pgn.SKIP

        def visit_move(self, board, move) -> None:
            if not move:  # passing, which PGN can write and no rule allows
                self.fault = self.fault or "illegal move"
            elif not self.fault:
                self.moves.append(board.san(move))

        def handle_error(self, error: Exception) -> None:
            self.fault = self.fault or ("illegal move" if self.started else "not from the initial position")

        def result(self) -> tuple[list[str], str | None]:
            return self.moves, self.fault or (None if self.moves else "no moves")

    return Mainline


def _extra(name: str) -> ModuleType:
    """A module of the extra ``chess``."""
    try:
        return import_module(name)
    except ImportError as error:
        hint = "pip install -e '.[chess]' in the project's folder"
        raise ImportError(f"PGN files and the rules of chess need the extra chess ({error}): {hint}") from error

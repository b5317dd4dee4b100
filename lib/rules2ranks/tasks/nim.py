"""Nim between optimal players, as text: predict the next word of the game.

A game is written as published (Intelligence at the Edge of Chaos, arXiv 2410.02536, authors' code), one token per
word: `Heaps: A5 B3 C6 Start: 1A2 2C4 … End`, where `2C4` means that player 2 takes four objects from heap C. Whoever
takes the last object wins. A player makes a move that leaves a nim-sum of zero whenever there is one (Bouton 1901: then
the opponent loses), each such move equally likely, and otherwise any legal move. The published games have 5–15 heaps of
1–10, `Nim(*PUBLISHED)`; ours 3–4 heaps of 1–7 unless said.
"""

from dataclasses import dataclass
from functools import cached_property
from string import ascii_uppercase

import numpy as np

from rules2ranks.tasks import ngram, splits

PUBLISHED = (5, 15, 10)
"""Fewest and most heaps and the largest heap of the published games."""

_PAD, _HEAPS, _START, _END = range(4)


def nim_sum(heaps: np.ndarray) -> np.ndarray:
    """Exclusive or over the last axis; zero means that the player to move loses against an optimal one."""
    return np.bitwise_xor.reduce(heaps, axis=-1)


def winning_moves(heaps: np.ndarray) -> np.ndarray:
    """How many objects to take from each heap (…, H) so that the nim-sum becomes zero; 0 where no number does."""
    target = heaps ^ nim_sum(heaps)[..., None]
    return np.where(target < heaps, heaps - target, 0)


def choices(heaps: np.ndarray) -> np.ndarray:
    """Number of moves (…) among which an optimal player chooses: the winning ones, or all if there are none."""
    winning = np.count_nonzero(winning_moves(heaps), axis=-1)
    return np.where(winning > 0, winning, heaps.sum(axis=-1))


def most_moves(heaps: int, largest: int) -> int:
    """No game of optimal players has more moves with up to `heaps` heaps of up to `largest` objects.

    At the start or after one move the nim-sum is zero, as who finds it otherwise makes it so. From there no more moves
    can follow than there are objects, so at most one more than the fullest heaps with a nim-sum of zero hold.
    """
    fullest = {0: 0}
    for _ in range(heaps):
        sums = [(nim_sum ^ heap, total + heap) for nim_sum, total in fullest.items() for heap in range(largest + 1)]
        # Ascending totals: of equal nim-sums the last, fullest one stays.
        fullest = dict(sorted(sums, key=lambda pair: pair[1]))
    return min(fullest[0] + 1, heaps * largest)


def play(heaps: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Plays many games at once between optimal players.

    Args:
        heaps: (n, H) sizes ≥ 0 at the start; not changed.
        rng: draws among equally good moves.

    Returns:
        heap and number, both (n, P) with P the moves of the longest game: each move's heap and how many objects it
        takes; a number of 0 after the end of a game.
    """
    left = heaps.copy()
    moves = []
    while left.any():
        winning = winning_moves(left)
        # One place per choice: a winning heap offers one move, an undecided position one move per object.
        places = np.where(winning.any(axis=1, keepdims=True), winning > 0, left)
        upto = places.cumsum(axis=1)
        # Finished games have no place at all; they draw the number 0 of heap 0.
        pick = (rng.random(len(left)) * upto[:, -1]).astype(np.int64)
        heap = (upto <= pick[:, None]).sum(axis=1) % left.shape[1]
        rows = np.arange(len(left))
        rest = pick - (upto - places)[rows, heap] + (upto[:, -1] > 0)
        number = np.where(winning[rows, heap] > 0, winning[rows, heap], rest)
        left[rows, heap] -= number
        moves.append((heap, number))
    return tuple(np.stack(part, axis=1) for part in zip(*moves, strict=True))


def check(text: str) -> None:
    """Checks that a written game is legal, optimal and complete.

    Raises:
        ValueError: naming the first word that is not.
    """
    words = text.split()
    if words[:1] != ["Heaps:"] or "Start:" not in words or words[-1] != "End":
        raise ValueError(f"a game reads 'Heaps: … Start: … End', got {text!r}")
    start = words.index("Start:")
    left = np.array([int(word[1:]) for word in words[1:start]])
    for turn, word in enumerate(words[start + 1 : -1]):
        player, heap, number = int(word[0]), ascii_uppercase.index(word[1]), int(word[2:])
        if player != turn % 2 + 1 or heap >= len(left) or not 1 <= number <= left[heap]:
            raise ValueError(f"illegal move {word!r} as move {turn + 1} with heaps {left.tolist()}")
        winning = winning_moves(left)
        if winning.any() and winning[heap] != number:
            raise ValueError(f"move {word!r} is not optimal with heaps {left.tolist()}")
        left[heap] -= number
    if left.any():
        raise ValueError(f"the game ends with heaps {left.tolist()} left")


@dataclass(frozen=True)
class Nim:
    """Games with `fewest` … `most` heaps of 1 … `largest` objects.

    Raises:
        ValueError: unless 1 ≤ fewest ≤ most ≤ 26 and largest ≥ 1.
    """

    fewest: int = 3
    most: int = 4
    largest: int = 7

    def __post_init__(self) -> None:
        if not (1 <= self.fewest <= self.most <= len(ascii_uppercase) and self.largest >= 1):
            raise ValueError(f"expected 1 ≤ fewest ≤ most ≤ 26 and largest ≥ 1, got {self}")

    @property
    def kind(self) -> str:
        return "tokens"

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The vocabulary: four marks, heaps `A1 …`, moves `1A1 …`; a word's place is its token id."""
        heaps = [f"{heap}{size}" for heap in ascii_uppercase[: self.most] for size in range(1, self.largest + 1)]
        return ("", "Heaps:", "Start:", "End", *heaps, *(f"{player}{heap}" for player in "12" for heap in heaps))

    @property
    def classes(self) -> int:
        """Size of the vocabulary."""
        return len(self.words)

    @property
    def cells(self) -> int:
        """One token a position."""
        return 1

    @cached_property
    def length(self) -> int:
        """Positions: what the longest possible game needs, without its last word."""
        return 2 + self.most + most_moves(self.most, self.largest)

    def batch(self, n: int, seed: int, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
        """Draws `n` games.

        Returns:
            x and y, both (n, length) int64: y[:, t] is the word after x[:, t], scored from the first move to `End`
            and -100 elsewhere. No validation game has the starting heaps of a training game.

        Raises:
            ValueError: for n < 1, a negative seed or an unknown split.
        """
        tokens = self._games(n, seed, split)
        x, y = tokens[:, :-1], tokens[:, 1:].copy()
        begun = np.cumsum(x == _START, axis=1) > 0
        y[~begun | (y == _PAD)] = -100
        return x, y

    def texts(self, n: int, seed: int, split: str = "train") -> list[str]:
        """The games of `batch` as written; one to a line they make a file as published. Raises as `batch` does."""
        return [self.decode(tokens) for tokens in self._games(n, seed, split)]

    def _games(self, n: int, seed: int, split: str) -> np.ndarray:
        rng = splits.generator(seed, split)

        def starts(m: int) -> np.ndarray:
            count = rng.integers(self.fewest, self.most + 1, size=(m, 1))
            return rng.integers(1, self.largest + 1, size=(m, self.most)) * (np.arange(self.most) < count)

        heaps = splits.draw(n, rng, split, starts)
        return self.encode(heaps, *play(heaps, rng))

    def encode(self, heaps: np.ndarray, heap: np.ndarray, number: np.ndarray) -> np.ndarray:
        """The games' tokens (n, length + 1), padded with 0.

        Args:
            heaps: (n, most) sizes at the start, 0 for a heap that is not there; those come last.
            heap, number: (n, P) the moves as `play` returns them.
        """
        n, plies = number.shape
        wide = np.zeros((n, self.length + 1), dtype=np.int64)
        first_heap, block = _END + 1, self.most * self.largest
        names = first_heap + np.arange(self.most) * self.largest
        wide[:, 0] = _HEAPS
        wide[:, 1 : 1 + self.most] = np.where(heaps > 0, names + heaps - 1, _PAD)
        player = np.arange(plies) % 2
        moves = names[heap] + block * (1 + player) + number - 1
        rows, count = np.arange(n), (heaps > 0).sum(axis=1)
        wide[rows, 1 + count] = _START
        ply = np.arange(plies)
        row, column = np.nonzero(number)
        wide[row, 2 + count[row] + ply[column]] = moves[row, column]
        wide[rows, 2 + count + (number > 0).sum(axis=1)] = _END
        return wide

    def decode(self, tokens: np.ndarray) -> str:
        """A game's tokens (T,) as text, up to the padding."""
        return " ".join(self.words[token] for token in tokens if token != _PAD)

    def score(self, predicted: np.ndarray, y: np.ndarray) -> float:
        """Share of scored words (0 … 1) that are right; `predicted` and `y` are (n, length)."""
        if predicted.shape != y.shape:
            raise ValueError(f"predictions must have the shape of the words {y.shape}, got {predicted.shape}")
        return float((predicted == y)[y != -100].mean())

    def baselines(self, n: int = 2000, seed: int = 0) -> dict[str, float]:
        """Scores of trivial predictors, counted on `n` training games and scored on `n` validation games.

        "majority": the most frequent scored word; "bigram": the word that most often follows the current one; "n-gram":
        the last `ngram.ORDER` words, or as many of them as training has seen, decide.
        "ceiling" is no baseline but the most that any predictor can expect, as equally good moves are drawn at random.
        """
        trained = self.batch(n, seed, "train")
        x, y = self.batch(n, seed, "validation")
        orders = {"majority": 0, "bigram": 1, "n-gram": ngram.ORDER}
        scores = {name: self.score(ngram.predict(trained, x, order), y) for name, order in orders.items()}
        return scores | {"ceiling": self.ceiling(x, y)}

    def ceiling(self, x: np.ndarray, y: np.ndarray) -> float:
        """Expected score on these games of a predictor that knows the players: the mean of 1 / `choices`."""
        first_move = _END + 1 + self.most * self.largest
        heaps = np.zeros((len(x), self.most), dtype=np.int64)
        chances = []
        for now in [*x.T, y[:, -1]]:
            is_heap = (now > _END) & (now < first_move)
            is_move = now >= first_move
            heap, size = np.divmod((now - _END - 1) % (self.most * self.largest), self.largest)
            np.add.at(heaps, (np.nonzero(is_heap)[0], heap[is_heap]), size[is_heap] + 1)
            np.subtract.at(heaps, (np.nonzero(is_move)[0], heap[is_move]), size[is_move] + 1)
            asked = is_move | (now == _START)
            chances.append(1 / np.maximum(choices(heaps[asked]), 1))
        return float(np.concatenate(chances).mean())

"""Boards of coloured shapes that move by a rule: predict the next board.

A board is four stacked blocks of size × size cells: 0 is background, 1 … 4 the colour of a cell of the block's shape.

- `hard` follows the published task (Intelligence at the Edge of Chaos, arXiv 2410.02536, authors' code): with each
  step the colours move one block down, the shapes one block up, and every block is drawn afresh, turned. The published
  sequences have 5 × 5 blocks, 6° a step and 61 boards; ours 3 × 3 blocks and 45° a step, where a turn is exact.
- `easy` is our own, as no generator for the paper's easy task is published: only the colours move.
"""

from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np

from rules2ranks.tasks import splits

BLOCKS = 4
COLOURS = 4
LEVELS = ("easy", "hard")

# No shape is a turned copy of another or of itself, so one look at a board tells shape and angle: no board occurs
# in two sequences, and a held-out sequence is held out in every one of its boards.
SHAPES = {
    3: (
        ("##.", "#..", "..."),
        ("#..", "#..", "##."),
        ("###", ".#.", ".#."),
        ("#.#", "#.#", "###"),
        ("#.#", ".#.", ".#."),
        ("###", "##.", "#.#"),
        ("##.", "..#", "..#"),
        ("#..", "###", "#.#"),
    )
}
ANGLES = 8


def turned(block: np.ndarray) -> np.ndarray:
    """A 3 × 3 block (…, 3, 3) turned clockwise by 45°: its ring of eight outer cells moves on by one cell."""
    rows, columns = np.array([0, 0, 0, 1, 2, 2, 2, 1]), np.array([0, 1, 2, 2, 2, 1, 0, 0])
    result = block.copy()
    result[..., rows, columns] = np.roll(block[..., rows, columns], 1, axis=-1)
    return result


@cache
def masks(size: int) -> np.ndarray:
    """The shapes at all angles: (angles, shapes, size²) int64 of 0 and 1."""
    shapes = np.array([[[cell == "#" for cell in row] for row in shape] for shape in SHAPES[size]], dtype=np.int64)
    angles = [shapes]
    while len(angles) < ANGLES:
        angles.append(turned(angles[-1]))
    return np.stack(angles).reshape(ANGLES, len(shapes), size * size)


# Colour orders up to their cyclic shifts: as the colours move, an order runs through all its shifts, so an order and
# its shifts must fall on the same side of the division.
_COLOUR_CYCLES = np.array([(1, *rest) for rest in permutations(range(2, COLOURS + 1))])
_SHAPE_ORDERS = np.array(list(permutations(range(8), BLOCKS)))
SEQUENCES = len(_COLOUR_CYCLES) * COLOURS * len(_SHAPE_ORDERS)
"""24 colour orders × 70 choices of four shapes × 24 shape orders = 40,320 sequences, as published."""


@dataclass(frozen=True)
class Boards:
    """The board task at one level.

    Args:
        level: "easy" (colours move) or "hard" (colours and shapes move in opposite directions, blocks turn).
        size: side of a block; 3 is the one drawn here.
        boards: boards in a sequence, at least 2. The first is given, each of the others is predicted. A hard sequence
            comes back to its first board after 8 steps, an easy one after 4.

    Raises:
        ValueError: for any other level, size or number of boards.
    """

    level: str = "hard"
    size: int = 3
    boards: int = 8

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level must be one of {LEVELS}, got {self.level!r}")
        if self.size not in SHAPES:
            raise ValueError(f"size must be one of {tuple(SHAPES)}, got {self.size}")
        if self.boards < 2:
            raise ValueError(f"a sequence needs at least 2 boards, got {self.boards}")

    @property
    def name(self) -> str:
        return f"reasoning-{self.level}"

    @property
    def kind(self) -> str:
        return "boards"

    @property
    def classes(self) -> int:
        """Values of a cell: the background and the colours."""
        return COLOURS + 1

    @property
    def cells(self) -> int:
        """Cells of a board."""
        return BLOCKS * self.size**2

    @property
    def length(self) -> int:
        """Positions of a sequence: each sees a board and predicts the next."""
        return self.boards - 1

    @property
    def period(self) -> int:
        """Steps after which a sequence comes back to its first board."""
        return ANGLES if self.level == "hard" else COLOURS

    def batch(self, n: int, seed: int, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
        """Draws `n` sequences.

        Returns:
            x and y, both (n, length, cells) int64 of 0 … 4: y[:, t] is the board that follows x[:, t]. No board of a
            validation sequence occurs in a training sequence.

        Raises:
            ValueError: for n < 1, a negative seed or an unknown split.
        """
        rng = splits.generator(seed, split)
        pairs = (len(_COLOUR_CYCLES), len(_SHAPE_ORDERS))
        cycle, order = splits.draw(n, rng, split, lambda m: rng.integers(pairs, size=(m, 2))).T
        shift = rng.integers(COLOURS, size=(n, 1))
        colours = np.take_along_axis(_COLOUR_CYCLES[cycle], (np.arange(COLOURS) + shift) % COLOURS, axis=1)
        boards = self.sequence(colours, _SHAPE_ORDERS[order])
        return boards[:, :-1], boards[:, 1:]

    def sequence(self, colours: np.ndarray, shapes: np.ndarray) -> np.ndarray:
        """The boards (n, boards, cells) that follow from the blocks' colours 1 … 4 and shapes 0 … 7, both (n, 4)."""
        step = np.arange(self.boards)[:, None]
        block = np.arange(BLOCKS)
        colour = colours[:, (block - step) % BLOCKS]
        if self.level == "hard":
            mask = masks(self.size)[step % ANGLES, shapes[:, (block + step) % BLOCKS]]
        else:
            mask = masks(self.size)[0, shapes][:, None]
        return (colour[..., None] * mask).reshape(len(colours), self.boards, self.cells)

    def score(self, predicted: np.ndarray, y: np.ndarray) -> float:
        """Share of boards (0 … 1) with every scored cell right; `predicted` and `y` are (n, length, cells)."""
        if predicted.shape != y.shape:
            raise ValueError(f"predictions must have the shape of the boards {y.shape}, got {predicted.shape}")
        return float(((predicted == y) | (y == -100)).all(axis=-1).mean())

    def baselines(self, n: int = 512, seed: int = 0) -> dict[str, float]:
        """Scores of predictors that learn nothing, measured on `n` validation sequences.

        "majority": each cell's most frequent value in training; "copy the last board"; "repeat": the board one period
        back where there is one, else the last board.
        """
        _, trained = self.batch(n, seed, "train")
        x, y = self.batch(n, seed, "validation")
        counts = (trained.reshape(-1, self.cells, 1) == np.arange(self.classes)).sum(axis=0)
        repeated = x.copy()
        repeated[:, self.period - 1 :] = x[:, : max(self.length - self.period + 1, 0)]
        return {
            "majority": self.score(np.broadcast_to(counts.argmax(axis=-1), y.shape), y),
            "copy the last board": self.score(x, y),
            "repeat": self.score(repeated, y),
        }

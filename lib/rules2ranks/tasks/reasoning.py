"""Boards of coloured shapes that move by a rule: predict the next board.

A board is four stacked blocks of size × size cells: 0 is background, 1 … 4 the colour of a cell of the block's shape.

- `hard` follows the published task (Intelligence at the Edge of Chaos, arXiv 2410.02536, authors' code): with each
  step the colours move one block down, the shapes one block up, and every block is drawn afresh, turned. The published
  sequences have 5 × 5 blocks, 6° a step and 61 boards, here with shapes of our own drawing: `Boards(*PUBLISHED)`. The
  small ones have 3 × 3 blocks and 45° a step, where every angle looks different.
- `easy` is our own, as no generator for the paper's easy task is published: only the colours move.

On 5 × 5 cells, 6° are less than a cell at some angles: the five from 12° before to 12° after a quarter turn look the
same, and so do 42° and 48° after one, whatever the shape. A shape has 40 looks, then, not 60, and a board by itself
does not always tell the next: 28 of the 60 steps start from a board that goes on in two ways, so that who sees one
board only can be right in 52 of 60. The number of the step (every sequence begins at 0°) and the boards before do tell.
"""

from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np

from rules2ranks.tasks import ngram, splits

BLOCKS = 4
COLOURS = 4
LEVELS = ("easy", "hard")

PUBLISHED = ("hard", 5, 61)
"""Level, size and boards of the published task."""

# No shape, however turned, looks like another or like itself at another angle, but for the angles of size 5 that look
# the same for every shape. So a board tells its shapes and, but for those, its angle.
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
    ),
    5: (
        ("#....", "##...", ".##..", "..##.", "...##"),
        ("###..", "#.###", "###.#", "....#", "....."),
        ("..#..", "..##.", "..#..", "#####", ".###."),
        ("####.", "#..##", "#..##", "####.", "####."),
        ("#..#.", "#..#.", "#####", "...#.", "...#."),
        ("#....", "#....", "####.", "#..#.", "#..##"),
        ("####.", "#...#", "####.", "#....", "#...."),
        ("..#..", ".####", "#####", ".#.##", ".#.##"),
    ),
}
ANGLES = {3: 8, 5: 60}
"""Steps of a full turn by size of a block: 45° and the published 6° a step."""


def turned(blocks: np.ndarray, degrees: float) -> np.ndarray:
    """Blocks (…, size, size), size odd, turned clockwise about their centre; multiples of 90° are exact.

    Each cell takes the value of the cell that its own centre, turned back, falls into, and 0 where that is outside.
    """
    middle, angle = blocks.shape[-1] // 2, np.deg2rad(degrees)
    row, column = np.indices(blocks.shape[-2:]) - middle
    exact = np.stack([row * np.cos(angle) - column * np.sin(angle), column * np.cos(angle) + row * np.sin(angle)])
    # At 30° and 60° some centres fall between two cells. The one nearer to the middle has them, which looks alike from
    # all four sides; the margin is for the rounding error of the cosine.
    nearest = (np.sign(exact) * np.ceil(np.abs(exact) - 0.5 - 1e-9)).astype(np.int64)
    inside = (np.abs(nearest) <= middle).all(axis=0)
    return np.where(inside, blocks[(..., *np.where(inside, nearest + middle, 0))], 0)


@cache
def masks(size: int) -> np.ndarray:
    """The shapes at all angles: (angles, shapes, size²) int64 of 0 and 1."""
    shapes = np.array([[[cell == "#" for cell in row] for row in shape] for shape in SHAPES[size]], dtype=np.int64)
    angles = [turned(shapes, 360 * step / ANGLES[size]) for step in range(ANGLES[size])]
    return np.stack(angles).reshape(ANGLES[size], len(shapes), size * size)


_COLOUR_ORDERS = np.array(list(permutations(range(1, COLOURS + 1))))
_SHAPE_ORDERS = np.array(list(permutations(range(8), BLOCKS)))
SEQUENCES = len(_COLOUR_ORDERS) * len(_SHAPE_ORDERS)
"""24 colour orders × 70 choices of four shapes × 24 shape orders = 40,320 sequences, as published."""


def _up_to_shifts(orders: np.ndarray) -> np.ndarray:
    """Of orders (n, k) those that begin with their smallest: one of each k that are cyclic shifts of each other."""
    return orders[orders[:, 0] == orders.min(axis=1)]


def _shifted(orders: np.ndarray, by: np.ndarray) -> np.ndarray:
    return np.take_along_axis(orders, (np.arange(orders.shape[1]) + by[:, None]) % orders.shape[1], axis=1)


# As the colours move, an order runs through all its shifts, so an order and its shifts must fall on the same side of
# the division.
_COLOUR_CYCLES = _up_to_shifts(_COLOUR_ORDERS)
# Shapes run through their shifts, too. Of size 3 a board tells its angle, so shifted orders never meet and are divided
# one by one; of size 5 two that are a step apart share boards at angles that look the same.
_SHAPE_GROUPS = {3: (_SHAPE_ORDERS, 1), 5: (_up_to_shifts(_SHAPE_ORDERS), BLOCKS)}


@dataclass(frozen=True)
class Boards:
    """The board task at one level.

    Args:
        level: "easy" (colours move) or "hard" (colours and shapes move in opposite directions, blocks turn).
        size: side of a block; shapes are drawn for 3 and, as published, 5.
        boards: boards in a sequence, at least 2. The first is given, each of the others is predicted. A hard sequence
            comes back to its first board after 8 steps (size 3) or 60 (size 5), an easy one after 4.

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
        return ANGLES[self.size] if self.level == "hard" else COLOURS

    def batch(self, n: int, seed: int, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
        """Draws `n` sequences.

        Returns:
            x and y, both (n, length, cells) int64 of 0 … 4: y[:, t] is the board that follows x[:, t]. No board of a
            validation sequence occurs in a training sequence.

        Raises:
            ValueError: for n < 1, a negative seed or an unknown split.
        """
        rng = splits.generator(seed, split)
        orders, shifts = _SHAPE_GROUPS[self.size]
        groups = (len(_COLOUR_CYCLES), len(orders))
        cycle, order = splits.draw(n, rng, split, lambda m: rng.integers(groups, size=(m, 2))).T
        colours = _shifted(_COLOUR_CYCLES[cycle], rng.integers(COLOURS, size=n))
        boards = self.sequence(colours, _shifted(orders[order], rng.integers(shifts, size=n)))
        return boards[:, :-1], boards[:, 1:]

    def everything(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """All sequences of a split, each once and in the same order in every run, as `sequence` takes them.

        Returns:
            colours 1 … 4 and shapes 0 … 7 of the blocks of the first boards, both (sequences, 4) int64. Training and
            validation together are the `SEQUENCES`, and `batch` draws all sequences of its split alike.

        Raises:
            ValueError: for an unknown split.
        """
        if split not in splits.SPLITS:
            raise ValueError(f"split must be one of {splits.SPLITS}, got {split!r}")
        orders, shifts = _SHAPE_GROUPS[self.size]
        groups = np.indices((len(_COLOUR_CYCLES), len(orders))).reshape(2, -1).T
        groups = groups[splits.held_out(groups) == (split == "validation")]
        shift = np.indices((COLOURS, shifts)).reshape(2, -1)
        cycle, order = np.repeat(groups, shift.shape[1], axis=0).T
        colour_shift, shape_shift = np.tile(shift, len(groups))
        return _shifted(_COLOUR_CYCLES[cycle], colour_shift), _shifted(orders[order], shape_shift)

    def sequence(self, colours: np.ndarray, shapes: np.ndarray) -> np.ndarray:
        """The boards (n, boards, cells) that follow from the blocks' colours 1 … 4 and shapes 0 … 7, both (n, 4)."""
        step = np.arange(self.boards)[:, None]
        block = np.arange(BLOCKS)
        colour = colours[:, (block - step) % BLOCKS]
        if self.level == "hard":
            mask = masks(self.size)[step % ANGLES[self.size], shapes[:, (block + step) % BLOCKS]]
        else:
            mask = masks(self.size)[0, shapes][:, None]
        return (colour[..., None] * mask).reshape(len(colours), self.boards, self.cells)

    def score(self, predicted: np.ndarray, y: np.ndarray) -> float:
        """Share of boards (0 … 1) with every scored cell right; `predicted` and `y` are (n, length, cells)."""
        if predicted.shape != y.shape:
            raise ValueError(f"predictions must have the shape of the boards {y.shape}, got {predicted.shape}")
        return float(((predicted == y) | (y == -100)).all(axis=-1).mean())

    def baselines(self, n: int = 512, seed: int = 0) -> dict[str, float]:
        """Scores of trivial predictors, measured on `n` validation sequences.

        "majority": each cell's most frequent value in training; "copy the last board"; "repeat": the board one period
        back where there is one, else the last board; "n-gram": what most often followed each cell's own last values in
        `n` training sequences.
        """
        trained = self.batch(n, seed, "train")
        x, y = self.batch(n, seed, "validation")
        repeated = x.copy()
        repeated[:, self.period - 1 :] = x[:, : max(self.length - self.period + 1, 0)]
        return {
            "majority": self.score(ngram.predict(trained, x, order=0), y),
            "copy the last board": self.score(x, y),
            "repeat": self.score(repeated, y),
            "n-gram": self.score(ngram.predict(trained, x), y),
        }

"""The downstream tasks: each draws batches, scores predictions and states its trivial baselines."""

from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple, Protocol

import numpy as np

from rules2ranks.tasks import nim, reasoning
from rules2ranks.tasks.nim import Nim
from rules2ranks.tasks.reasoning import Boards


class Task(Protocol):
    """What training and evaluation need to know of a task."""

    @property
    def kind(self) -> str:
        """Either "boards" (a position is `cells` integers, each one of `classes`) or "tokens" (one id of `classes`)."""

    @property
    def classes(self) -> int:
        """Values of a cell, or size of the vocabulary."""

    @property
    def cells(self) -> int:
        """Integers in a position; 1 for tokens."""

    @property
    def length(self) -> int:
        """Positions in a sequence."""

    def batch(self, n: int, seed: int, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
        """x and y, int64: boards (n, length, cells), tokens (n, length). y is what each position is to predict, already
        shifted, and -100 where nothing is scored."""

    def score(self, predicted: np.ndarray, y: np.ndarray) -> float:
        """Share of boards with every scored cell right, or of scored tokens that are right (0 … 1)."""

    def baselines(self, n: int = ..., seed: int = 0) -> dict[str, float]:
        """Scores of trivial predictors, measured on validation draws."""


def _chess() -> Task:
    # Only who asks for chess loads what reads games.
    from rules2ranks.tasks.chess import Chess

    return Chess()


class Entry(NamedTuple):
    """How to `make` a task, what a reader calls it (`label`) and what is to be predicted (`meaning`).

    `core` tasks are those that the reference table has for every rule.
    """

    make: Callable[[], Task]
    label: str
    meaning: str
    core: bool = False


#: All tasks, the core ones in the order in which tables show them.
TASKS: dict[str, Entry] = {
    "reasoning-hard": Entry(
        lambda: Boards("hard"), "hard boards", "the next board, as colours and shapes move and turn", core=True
    ),
    "reasoning-easy": Entry(
        lambda: Boards("easy"), "easy boards (ours)", "the next board, as colours alone move", core=True
    ),
    "reasoning-hard-published": Entry(
        lambda: Boards(*reasoning.PUBLISHED), "hard boards (published)", "hard boards of the published size"
    ),
    "nim": Entry(Nim, "Nim", "the next word of a game of Nim between optimal players", core=True),
    "nim-published": Entry(lambda: Nim(*nim.PUBLISHED), "Nim (published)", "games of the published size"),
    "chess": Entry(_chess, "chess", "the next move of a game of chess"),
}
NAMES = tuple(TASKS)
CORE = tuple(name for name, entry in TASKS.items() if entry.core)
Name = Literal[*NAMES]
CoreTask = Literal[*CORE]


@cache
def get(name: str) -> Task:
    """The task of that name: at the sizes of the small set-up, or as published where the name says so.

    Raises:
        ValueError: there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"task must be one of {NAMES}, got {name!r}")
    return TASKS[name].make()

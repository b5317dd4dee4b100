"""The downstream tasks: each draws batches, scores predictions and states its trivial baselines."""

from collections.abc import Callable
from functools import cache
from typing import Protocol

import numpy as np

from rules2ranks.tasks import nim, reasoning
from rules2ranks.tasks.nim import Nim
from rules2ranks.tasks.reasoning import Boards


class Task(Protocol):
    """What training and evaluation need to know of a task."""

    @property
    def name(self) -> str: ...

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


_TASKS: dict[str, Callable[[], Task]] = {
    "reasoning-easy": lambda: Boards("easy"),
    "reasoning-hard": lambda: Boards("hard"),
    "reasoning-hard-published": lambda: Boards(*reasoning.PUBLISHED),
    "nim": Nim,
    "nim-published": lambda: Nim(*nim.PUBLISHED),
    "chess": _chess,
}
NAMES = tuple(_TASKS)


@cache
def get(name: str) -> Task:
    """The task of that name: at the sizes of the small set-up, or as published where the name says so.

    Raises:
        ValueError: there is no such task.
    """
    if name not in _TASKS:
        raise ValueError(f"task must be one of {NAMES}, got {name!r}")
    return _TASKS[name]()

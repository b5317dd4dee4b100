"""A row of the scorecard: what a paper says, what was found here, and how to read it."""

from typing import Any

Row = dict[str, Any]


def entry(
    question: str, paper: str, here: str, how: str = "", interval: tuple | None = None, front: bool = False
) -> Row:
    """`interval` (estimate, low, high) gives the reading: on which side of zero all of it lies, if on one."""
    reading = ""
    if interval is not None:
        reading = "above zero" if interval[1] > 0 else "below zero" if interval[2] < 0 else "interval includes zero"
    return {"question": question, "paper": paper, "here": here, "reading": reading, "how, here": how, "front": front}


def criterion(question: str, here: str, how: str, met: bool, front: bool = False) -> Row:
    """A row for what was to be shown, as stated before the runs."""
    said = entry(f"Criterion: {question}", "not asked", here, how, front=front)
    return said | {"reading": "met" if met else "not met"}

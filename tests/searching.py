"""What the workers of one search do in the tests: a pure measure that takes a while, and a record of who began it."""

import json
import os
import time
from pathlib import Path

import numpy as np

from rank_spaces import EIGHT
from rules2ranks import storages
from rules2ranks.search import AutoQRA, Search, Shared, search

SECONDS = 0.1


def scores(configuration, fidelity=1.0):
    """Two, against each other, that look arbitrary in their last digits."""
    vector = np.array([configuration.ranks.get(f"m{knob}", 0) for knob in range(8)])
    return float(np.exp(-vector / 7) @ np.arange(1, 9) / (1 + fidelity)), float(vector @ [3, 1, 4, 1, 5, 9, 2, 6])


def front(measure, workers=map) -> Search:
    """A search in generations, for the front of two scores."""
    searcher = AutoQRA(importances=False, trust_region=False, population=8, promoted=3)
    return search(EIGHT, measure, searcher, limit=20, seed=3, workers=workers)


def work(place: str, folder: Path, seconds: float = SECONDS, patience: float = 5.0) -> None:
    """One of several workers: note each measurement in `begun` before it is made, and at the end the trials."""

    def measure(configuration, fidelity):
        line = {"what": f"{sorted(configuration.ranks.items())} {fidelity}", "pid": os.getpid(), "at": time.monotonic()}
        with (folder / "begun").open("a") as file:
            file.write(json.dumps(line) + "\n")
        time.sleep(seconds)
        return scores(configuration, fidelity)

    shared = Shared(storages.connect(place), "a front", scores=2, patience=patience)
    found = front(measure, shared)
    beside = folder / f"{os.getpid()}.new"
    beside.write_text(json.dumps(found.trials))
    beside.rename(folder / f"{os.getpid()}.json")

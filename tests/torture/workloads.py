"""What is disturbed: small runs of each kind, each of which makes results in RULES2RANKS_RUNS.

python tests/torture/workloads.py NAME
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rules2ranks import training
from tiny_rows import TINY

# Some rounds of training between two checkpoints, as in a run of hours.
training.CHECKPOINT_SECONDS = 0.2
SLOWLY = TINY | {"steps": 120, "rounds": 2, "batch": 64}
RECOVERED = {"steps": 30, "batch": 8, "examples": 140}


def note_work() -> None:
    """Note each training that begins, so that what was done twice is seen."""
    begin = training.train

    def noted(*given, **named):
        with open(os.environ["TRAININGS"], "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
        return begin(*given, **named)

    training.train = noted


def pretraining() -> None:
    from rules2ranks import stages

    stages.pretrain(source=30, **SLOWLY)


def recovery() -> None:
    from rules2ranks import stages

    stages.recover(pruned={"ratio": 0.4}, **RECOVERED | {"steps": 60})


def search() -> None:
    from rules2ranks.stages import ranks

    asked = ranks.Question.check({"pruned": {"ratio": 0.4}, "grid": (0, 2, 4), "recover": RECOVERED})
    ranks.search(asked, "random search", limit=3)


def table() -> None:
    from rules2ranks.tables import many

    many.measure(many.stage_jobs("pretrain", [{"source": rule, **SLOWLY} for rule in (30, 90, 204)]), "pretraining")


if __name__ == "__main__":
    if "TRAININGS" in os.environ:
        note_work()
    globals()[sys.argv[1]]()

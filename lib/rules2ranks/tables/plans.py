"""Plans of confirmatory tables: committed before the run, and the run is made from the committed file."""

import hashlib
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from rules2ranks import runs
from rules2ranks.published import data_folder
from rules2ranks.stages.ranges import Share


class Plan(runs.Params):
    """What is asked, what was known, how it is decided, and the settings of the table that `run` makes.

    `confirmatory` names what is tested, all of it together at `level`, against "uniform" or what `baseline` names for a
    setting; `margin` is the share of the baseline's score within which a difference is as good as none; `smallest`
    says, before the run, how large an effect (a share of that score) each setting could show under that criterion with
    this `power`.
    """

    question: str
    known: str
    statistic: str
    criterion: str
    confirmatory: list[str]
    baseline: dict[str, str] = Field(default_factory=dict)
    level: Share
    margin: Share
    power: Share
    smallest: dict[str, float]
    run: dict[str, Any]


def place(name: str) -> Path:
    """Where the plan of a table lies."""
    return data_folder() / "plans" / f"{name}.yaml"


def read(name: str) -> Plan:
    """A committed plan.

    Raises:
        FileNotFoundError: there is none of that name.
        ParameterError: it lacks something, or says something that a plan does not have.
    """
    return Plan.check(yaml.safe_load(place(name).read_text()))


def digest(name: str) -> str:
    """The sha256 of the file, as the note of its table holds it."""
    return hashlib.sha256(place(name).read_bytes()).hexdigest()

"""Stages about levels: the database of a model, and what is cut from it."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from torch import nn

from rules2ranks import pruning, runs, training
from rules2ranks.configuration import Level, Shapes
from rules2ranks.pruning.second_order import DAMPING, spaced
from rules2ranks.runs import stage
from rules2ranks.stages.ranges import Seed, Size
from rules2ranks.stages.subjects import SHIPPED_WEIGHTS, Base, subject


class Levels(runs.Params):
    """A database of a base's levels, `steps` for each attention and MLP: `pruning.levels`. The seed draws what it is
    calibrated on, as for importance.
    """

    base: Base = "language"
    steps: Size = 10
    damping: Annotated[float, Field(gt=0, le=1)] = DAMPING
    seed: Seed = 0

    def reads(self) -> tuple[Path, ...]:
        return (SHIPPED_WEIGHTS,) if self.base == "language" else ()


@stage(version=1)
def levels(work: Path, given: Levels) -> dict:
    """A database of levels: which groups of each attention and MLP go first, and weights that make up for them.

    Metrics: of each part what is lost of its output, as a share, from whole to no groups. Files: those that
    `pruning.Database` reads.
    """
    about = subject(given.base)
    pruning.check_architecture(about.model, empty=True)
    with training.reproducible(given.seed):
        found = pruning.levels(
            about.model,
            about.calibration(given.seed),
            about.loss,
            steps=given.steps,
            damping=given.damping,
            positions=about.positions,
        )
        pruning.save_levels(work, about.model, found)
    return {"errors": {name: part.errors for name, part in pruning.Database(work).parts.items()}}


class Cut(runs.Params):
    """So many groups gone from each part of a base, with the weights of its database of levels.

    `levels` are by part (`<layer>.attention`, `<layer>.mlp`), kept without those that stay whole and in order, so that
    equal choices are one result.
    """

    database: Levels = Field(default_factory=Levels)
    levels: dict[str, Level]

    @property
    def base(self) -> Any:
        """The model that it is cut from."""
        return self.database.base

    @model_validator(mode="after")
    def _canonical(self) -> Self:
        counts = subject(self.base).shapes.groups
        for name, level in self.levels.items():
            if name not in counts:
                raise ValueError(f"the model has no part {name}; they are named like {next(iter(counts))}")
            if level not in (there := spaced(counts[name], self.database.steps)):
                raise ValueError(f"{name} has no level {level} in the database, only {', '.join(map(str, there))}")
        object.__setattr__(self, "levels", {name: level for name, level in sorted(self.levels.items()) if level})
        return self

    @property
    def shapes(self) -> Shapes:
        """What is left; no weights are read for it."""
        return subject(self.base).shapes.cut(self.levels)

    def model(self) -> nn.Module:
        """The model, cut anew; the database is made if need be."""
        database = pruning.Database(levels(self.database).folder)
        return pruning.shrink(subject(self.base).model, database, self.levels).eval()

"""What each notebook takes as parameters, and where it writes. Light: imports neither torch nor matplotlib."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from rules2ranks import runs
from rules2ranks.spreads import Spread
from rules2ranks.stages.ranges import Rank, Rate, Rule, Seed, Share, Size, Steps
from rules2ranks.tasks import CoreTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Crop = Annotated[int, Field(ge=1, le=1000, description="cells of a row that a model sees")]
Rows = Annotated[int, Field(ge=2, le=900, description="rows that a model looks back on")]
#: With the first and the last of eight layers whole, no more can be removed from the language-suite model.
Removed = Annotated[float, Field(gt=0, le=0.66, description="share of all parameters")]

NOTEBOOKS: dict[str, type["Notebook"]] = {}


class Notebook(runs.Params):
    """A notebook's parameters. They have no defaults here: those stand in the notebook and in `profiles/`."""

    name: ClassVar[str]

    def __init_subclass__(cls, name: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if name:
            cls.name = name
            NOTEBOOKS[name] = cls

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> Self:
        """Check the names that a notebook's parameters cells set, given its `globals()`.

        In a notebook only cells made of nothing but assignments of plain values count (the parameters cell, and the
        one that papermill injects), so that the set-up cell can be run again at any time.

        Raises:
            ParameterError: an unknown name, a wrong type or an impossible value; says what is allowed.
        """
        if "In" in values:
            # nbval runs cells without recording them in In: there all plain values so far are parameters.
            names = [name for cell in values["In"] for name in _assigned(cell)] or _plain(values)
            values = {name: value for name, value in values.items() if name in names}
        return super().check(values)

    @property
    def folder(self) -> Path:
        """Where this notebook writes with these parameters."""
        return folder(self.name, self.model_dump(mode="json"))

    def save(self, fig: "Figure", name: str) -> None:
        """Keep a figure as PNG beside the metrics; the notebook still shows it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        fig.savefig(self.folder / f"{name}.png")

    def keep(self, table: "DataFrame", name: str) -> None:
        """Keep a table as CSV beside the metrics."""
        self.folder.mkdir(parents=True, exist_ok=True)
        table.to_csv(self.folder / f"{name}.csv")

    def finish(self, metrics: Mapping[str, float | int | str]) -> None:
        """Write `metrics.json`, whole or not at all: the sign that the notebook came to its end."""
        runs.write_json(self.folder / "params.json", self.model_dump(mode="json"))
        runs.write_json(self.folder / "metrics.json", dict(metrics))


def folder(name: str, values: Mapping[str, Any]) -> Path:
    """`runs/notebooks/<name>/<key>/` for a notebook run with these parameters."""
    return runs.root() / "notebooks" / name / runs.key(values)


def _assigned(cell: str) -> list[str]:
    """Names that a cell sets, if all it does is to set names to plain values; else none."""
    names = []
    cell = re.sub(r"float\('(nan|-?inf)'\)", "None", cell)  # as papermill writes what Python has no literal for
    try:
        for statement in ast.parse(cell).body:
            match statement:
                case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, value):
                    ast.literal_eval(value)
                    names.append(name)
                case _:
                    return []
    except (SyntaxError, ValueError, TypeError):
        return []
    return names


def _plain(values: Mapping[str, Any]) -> list[str]:
    """Public names of plain values, IPython's own list of cells aside."""
    plain = int | float | str | list | None
    return [name for name, value in values.items() if name != "In" and name[0] != "_" and isinstance(value, plain)]


class StartHere(Notebook, name="00_start_here"):
    rule: Rule


class Automata(Notebook, name="10_automata"):
    rule: Rule
    width: Annotated[int, Field(ge=8, le=1000, description="cells of a row")]
    steps: Annotated[int, Field(ge=8, le=1000, description="updates, and rows after the first")]
    seed: Seed


class Complexity(Notebook, name="11_complexity"):
    width: Annotated[int, Field(ge=8, le=1000, description="cells of a row")]
    rows: Annotated[int, Field(ge=5, le=40, description="rows of the short runs, the random one included")]
    long_rows: Annotated[int, Field(ge=5, le=1000, description="rows of the long runs")]
    burn_in: Annotated[int, Field(ge=1, le=100_000, description="updates before the first row of the long runs")]
    seeds: Annotated[int, Field(ge=2, le=1000, description="number of random starts, from seed 0 on")]


class Pretrain(Notebook, name="20_pretrain"):
    rule: Rule
    width: Crop
    ring: Annotated[int, Field(ge=3, le=1_000_000, description="cells of the ring")]
    rows: Rows
    every: Annotated[int, Field(ge=1, le=100, description="k: updates from one row to the next")]
    steps: Steps
    rounds: Annotated[int, Field(ge=1, le=12, description="at most, each twice as long as the one before")]
    batch: Size
    lr: Rate
    layers: Size
    heads: Size
    hidden: Size
    bf16: bool
    seed: Seed

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width > self.ring:
            raise ValueError(f"a crop of {self.width} cells (width) does not fit on a ring of {self.ring} (ring)")
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        return self


class Downstream(Notebook, name="21_downstream"):
    rule: Rule
    pretrain_steps: Steps
    steps: Annotated[int, Field(ge=4, le=10_000_000, description="optimiser steps; some tasks take a quarter of them")]
    seed: Seed


class EdgeOfChaos(Notebook, name="22_edge_of_chaos"):
    rule: Rule
    seed: Seed
    task: CoreTask


class Inside(Notebook, name="23_inside"):
    rules: Annotated[list[Rule], Field(min_length=2, max_length=8)]
    seed: Seed


class LanguageSuite(Notebook, name="24_language_suite"):
    steps: Steps
    seed: Seed


class Prune(Notebook, name="30_prune"):
    ratio: Removed
    rule: Rule
    seed: Seed


class Recover(Notebook, name="31_recover"):
    ratio: Removed
    spread: Spread
    rank: Rank
    steps: Steps
    seed: Seed


class RankAdaptor(Notebook, name="32_rank_adaptor"):
    setting: str
    seed: Seed


class LlamaRanks(Notebook, name="33_llama_ranks"):
    measurements: Annotated[str, Field(description="the authors' file, your own copy; empty: what was derived from it")]
    seed: Seed


class MixedBits(Notebook, name="34_mixed_bits"):
    setting: str
    seed: Seed


class BitsAndRanks(Notebook, name="35_bits_and_ranks"):
    setting: str
    seed: Seed


class EvolveTheShape(Notebook, name="37_evolve_the_shape"):
    setting: str
    seed: Seed


class OtherWays(Notebook, name="38_other_ways_to_mend"):
    setting: str
    trainings: Annotated[int, Field(ge=5, le=1000)]
    judgings: Annotated[int, Field(ge=11, le=100_000)]
    seed: Seed


class ARealModel(Notebook, name="39_a_real_model"):
    model: Annotated[str, Field(description="gemma, a folder or hub name; empty: the one that the notebook makes")]
    setting: str
    share: Share
    seed: Seed


class OwnModel(Notebook, name="36_your_own_model"):
    model: Annotated[str, Field(description="folder or hub name; empty: the one that the notebook makes")]
    data: Annotated[str, Field(description="file of texts; empty: the one that the notebook makes")]
    length: Annotated[int, Field(ge=2, le=1_000_000, description="tokens of a text, at most")]
    train_on_prompt: bool
    held_out: Size
    ratio: Share
    protect: Annotated[tuple[int, int], Field(description="layers that stay whole, first and last")]
    rank: Rank
    steps: Steps
    batch: Size
    examples: Size
    lr: Rate
    offline: Annotated[int, Field(ge=2, le=10_000)]
    rounds: Annotated[int, Field(ge=0, le=10_000)]
    budget: Annotated[int, Field(ge=0, description="bytes, at most; 0: those of 3 bits everywhere")]
    dtype: Literal["float32", "bfloat16"]
    at_once: Size
    tasks: list[str]
    seed: Seed

    @model_validator(mode="after")
    def _together(self) -> Self:
        if bool(self.model) != bool(self.data):
            raise ValueError("model and data belong together: give both, or neither for the ones made here")
        return self


class ComplexityAndCompression(Notebook, name="40_complexity_and_compression"):
    rules: Annotated[list[Rule], Field(min_length=1)]
    ratios: Annotated[list[Share], Field(min_length=1)]
    seed: Seed


class FourLenses(Notebook, name="42_four_lenses"):
    learns: Literal["half 0", "half 1", "simple", "complex"]
    rule: Rule
    seed: Seed


class Scorecard(Notebook, name="90_scorecard"):
    digits: Annotated[int, Field(ge=1, le=6)]

"""Searches for ranks: who decides them, over measurements that are results of the stage `recover`.

A search therefore goes on where it was stopped, and workers that share `runs/` measure each vector once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rules2ranks import allocation, importance, recovery, runs, training
from rules2ranks.allocation import Search, Space
from rules2ranks.decoders import linears
from rules2ranks.stages.compressing import load_pruned, prune, recover
from rules2ranks.stages.parameters import Rank, Seed, Size
from rules2ranks.stages.subjects import subject

Searcher = Literal["RankAdaptor", "random search", "additive"]
Control = Literal[
    "uniform", "uniform, twice the rank", "random vectors", "ends high", "middle high", "CFSP", "gradient"
]
#: What shares one rank: the matrices of a layer, as in the paper; those of one kind in all layers; or none.
Per = Literal["layer", "kind", "matrix"]
#: What becomes of the layers that pruning left whole: they keep the mean rank outside the budget, as in the paper, or
#: are searched too.
Ends = Literal["kept", "searched"]
#: What a search wants low: the loss on its own held-out examples, KL to the unpruned model there, or the accuracy
#: there (the paper's) with its sign turned.
Target = Literal["loss", "kl", "accuracy"]


class Question(runs.Params):
    """Which ranks does a pruned model want, at the trainable parameters of one mean rank?"""

    pruned: prune.Params
    mean_rank: Rank = 2
    per: Per = "layer"
    ends: Ends = "kept"
    grid: Annotated[tuple[Annotated[int, Field(ge=0, le=256)], ...], Field(min_length=2)] = Space.grid
    target: Target = "loss"
    recover: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> "Question":
        if taken := {"pruned", "ranks", "seed"} & set(self.recover):
            raise ValueError(f"recover takes no {', '.join(sorted(taken))} here: the search sets them")
        recover.Params.check({"pruned": self.pruned.model_dump(), **self.recover})
        if self.target == "kl" and self.recover.get("kl") is False:
            raise ValueError("target kl needs recover's kl to be true")
        return self


@dataclass(frozen=True, eq=False)
class Problem:
    """A question with its model's shapes: the space of rank vectors, and what a vector of it scores."""

    question: Question

    @cached_property
    def layers(self) -> list[dict[str, int]]:
        """Per decoder layer of the pruned model the parameters that one unit of rank adds, by matrix."""
        model = load_pruned(self.question.pruned)
        return [{name: recovery.lora_parameters(model, {name: 1}) for name in layer} for layer in linears(model)]

    @cached_property
    def units(self) -> list[tuple[list[str], bool]]:
        """The matrices that share each rank, and whether they are searched."""
        first, last = self.question.pruned.protect if self.question.ends == "kept" else (0, 0)
        inner = range(first, len(self.layers) - last)
        if self.question.per == "layer":
            return [(list(layer), place in inner) for place, layer in enumerate(self.layers)]
        if self.question.per == "matrix":
            return [([name], place in inner) for place, layer in enumerate(self.layers) for name in layer]
        searched = [self.layers[place] for place in inner]
        kept = [name for place, layer in enumerate(self.layers) if place not in inner for name in layer]
        return [(list(kind), True) for kind in zip(*searched, strict=True)] + ([(kept, False)] if kept else [])

    @cached_property
    def space(self) -> Space:
        """The rank vectors, one rank a unit, whose trainable parameters stay within those of the mean rank."""
        cost = {name: value for layer in self.layers for name, value in layer.items()}
        rank = self.question.mean_rank
        fixed = {place: rank for place, (_, searched) in enumerate(self.units) if not searched}
        return Space(
            tuple(sum(cost[name] for name in names) for names, _ in self.units), rank, self.question.grid, fixed
        )

    def spelt(self, ranks: Sequence[int]) -> int | list[int] | dict[str, int]:
        """A vector of the space as `recover` takes it, in the shortest form, so that equal ones are one result."""
        by_name = {name: rank for rank, (names, _) in zip(ranks, self.units, strict=True) for name in names}
        layers = [{by_name[name] for name in layer} for layer in self.layers]
        if any(len(layer) > 1 for layer in layers):
            return {name: rank for layer in self.layers for name in layer if (rank := by_name[name])}
        return [layer.pop() for layer in layers]

    def recovery(self, ranks: Any, seed: int) -> dict[str, Any]:
        """The parameters of one recovery; `ranks` in any form that `recover` takes."""
        return {"pruned": self.question.pruned.model_dump(), "ranks": ranks, "seed": seed, **self.question.recover}

    def score(self, ranks: Sequence[int], seed: int) -> float:
        """What a search wants low, of one recovery under this seed."""
        found = recover(**self.recovery(self.spelt(ranks), seed)).metrics[f"search_{self.question.target}"]
        return -found if self.question.target == "accuracy" else found

    def control(self, kind: Control, number: int = 1) -> list[Any]:
        """The vectors (spelt) of a control; `number` of the random ones."""
        space, given = self.space, self.question
        if kind == "uniform, twice the rank":
            return [self.spelt([2 * given.mean_rank] * len(self.units))]
        if kind == "random vectors":
            return [self.spelt(ranks) for ranks in allocation.random(space, number, seed=0)]
        shapes = {
            "uniform": lambda: allocation.uniform(space),
            "ends high": lambda: allocation.ends_high(space),
            "middle high": lambda: allocation.middle_high(space),
            "CFSP": lambda: allocation.by_importance(space, self._of_units(self._blocks())),
            "gradient": lambda: allocation.by_importance(space, self._of_units(self._gradients())),
        }
        return [self.spelt(shapes[kind]())]

    def _of_units(self, values: dict[str, float]) -> list[float]:
        """The mean over each unit's matrices."""
        return [sum(values[name] for name in names) / len(names) for names, _ in self.units]

    def _blocks(self) -> dict[str, float]:
        """CFSP: how far each block of the unpruned model turns its input, for all its matrices."""
        given = subject(self.question.pruned.base)
        with training.reproducible(0):
            batches = given.calibration(0)
            blocks = importance.block_importance(given.model, batches, given.loss, positions=given.positions)
        return {name: block for block, layer in zip(blocks, self.layers, strict=True) for name in layer}

    def _gradients(self) -> dict[str, float]:
        given = subject(self.question.pruned.base)
        with training.reproducible(0):
            found = allocation.gradient_norms(load_pruned(self.question.pruned), given.calibration(0), given.loss)
        return {name: norm for layer in found for name, norm in layer.items()}


def search(
    question: Question,
    searcher: Searcher = "RankAdaptor",
    *,
    offline: Size = 8,
    rounds: Size = 8,
    candidates: Size = 64,
    seed: Seed = 0,
    table: str | Path | None = None,
    progress: Any = None,
) -> Search:
    """A search for the ranks of a pruned model; every measurement is a result of `recover` with this seed.

    All searchers measure `offline + rounds` vectors; the additive model's choice is measured on top.

    Args:
        table: measurements that count as the offline part, see `allocation.read_measurements` (scores as the target
            wants them: low, but for an accuracy).
        progress: called with each new `allocation.Measurement`.

    Raises:
        ValueError: a table that does not fit, before anything is measured; or as the searches of `allocation`.
    """
    problem = Problem(question)
    given = (
        allocation.read_measurements(table, problem.space, higher_is_better=question.target == "accuracy")
        if table
        else ()
    )
    options = {"seed": seed, "measured": given, "progress": progress}

    def objective(ranks: Sequence[int]) -> float:
        return problem.score(ranks, seed)

    with training.reproducible(seed):
        if searcher == "RankAdaptor":
            sizes = {"offline": offline, "rounds": rounds, "candidates": candidates}
            return allocation.rank_adaptor(problem.space, objective, **sizes, **options)
        kind = allocation.random_search if searcher == "random search" else allocation.additive_search
        return kind(problem.space, objective, offline + rounds, **options)

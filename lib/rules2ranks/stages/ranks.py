"""Searches for ranks and bits: who decides them, over measurements that are results of the stage `recover`.

A search therefore goes on where it was stopped, and workers that share `runs/` measure each choice once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rules2ranks import importance, runs, training
from rules2ranks import search as searching
from rules2ranks.configuration import Bits, Configuration, Shapes, by_matrix, memory
from rules2ranks.search import Point, Search, Searcher, Space, Trial
from rules2ranks.stages.compressing import HowRecovered, Pruning, Recovery, load_pruned, pruned_shapes, recover
from rules2ranks.stages.ranges import Rank, Seed, Size
from rules2ranks.stages.subjects import subject

#: What shares one rank: the matrices of a layer, as in the paper; those of one kind in all layers; or none.
Per = Literal["layer", "kind", "matrix"]
#: What becomes of the layers that pruning left whole: they keep the mean rank outside the budget, as in the paper, or
#: are searched too.
Ends = Literal["kept", "searched"]
#: What a search wants low: the loss on its own held-out examples, KL to the unpruned model there, or the accuracy
#: there (the paper's) with its sign turned.
Target = Literal["loss", "kl", "accuracy"]
#: Under which the uniform choices that fit a budget of bytes are compared.
UNIFORM_SEEDS = (0, 1)


class Question(runs.Params):
    """Which ranks does a pruned model want, at the trainable parameters of one mean rank?

    With `memory`, the bytes of the whole model and its adapters: which bits and ranks does it want within them? Then
    all layers are searched. `fill` is the least share of the bytes that is used; `front` makes them a second score.
    """

    pruned: Pruning
    mean_rank: Rank = 2
    per: Per = "layer"
    ends: Ends = "kept"
    grid: Annotated[tuple[Annotated[int, Field(ge=0, le=256)], ...], Field(min_length=1)] = searching.GRID
    bits: Annotated[tuple[Bits, ...], Field(min_length=1)] = (16,)
    memory: Annotated[int, Field(ge=1)] | None = None
    fill: Annotated[float, Field(ge=0, le=1)] = searching.FILL
    front: bool = False
    target: Target = "loss"
    recover: HowRecovered = HowRecovered()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.bits != (16,) or self.front) and self.memory is None:
            raise ValueError("bits are searched within a budget of bytes: give memory")
        if len(self.bits) * len(self.grid) < 2:
            raise ValueError(f"there must be something to choose: grid is {self.grid}, bits are {self.bits}")
        if self.memory is not None and self.ends == "kept":
            raise ValueError("within a budget of bytes all layers are searched: ends must be searched")
        if self.target == "kl" and not self.recover.kl:
            raise ValueError("target kl needs recover's kl to be true")
        return self


@dataclass(frozen=True, eq=False)
class Problem:
    """A question with its model's shapes: the space of configurations, and what one of them scores."""

    question: Question

    @cached_property
    def shapes(self) -> Shapes:
        """The pruned model's."""
        return pruned_shapes(self.question.pruned)

    @cached_property
    def units(self) -> list[tuple[list[str], bool]]:
        """The matrices that share each rank, and whether they are searched."""
        layers = self.shapes.names
        first, last = self.question.pruned.protect if self.question.ends == "kept" else (0, 0)
        inner = range(first, len(layers) - last)
        if self.question.per == "layer":
            return [(layer, place in inner) for place, layer in enumerate(layers)]
        if self.question.per == "matrix":
            return [([name], place in inner) for place, layer in enumerate(layers) for name in layer]
        kinds = zip(*(layers[place] for place in inner), strict=True)
        kept = [name for place, layer in enumerate(layers) if place not in inner for name in layer]
        return [(list(kind), True) for kind in kinds] + ([(kept, False)] if kept else [])

    @cached_property
    def space(self) -> Space:
        """The choices: one rank a unit, whose trainable parameters stay within those of the mean rank; or bits and a
        rank a unit, whose bytes stay within `memory`.
        """
        if self.question.memory is not None:
            return self._within_bytes()
        rank, names = self.question.mean_rank, [names for names, _ in self.units]
        fixed = {place: rank for place, (_, searched) in enumerate(self.units) if not searched}
        return searching.rank_space(names, [self._cost(unit) for unit in names], rank, self.question.grid, fixed)

    def _within_bytes(self) -> Space:
        shapes, asked = self.shapes, self.question
        units = [[shapes.matrices[name] for name in names] for names, _ in self.units]
        rest = (shapes.parameters - sum(matrix.numbers for unit in units for matrix in unit)) * shapes.itemsize
        how = {"itemsize": shapes.itemsize, "group": asked.recover.group, "fill": asked.fill}
        return searching.byte_space(units, asked.memory, asked.bits, asked.grid, rest=rest, **how)

    def memory(self, choice: Configuration) -> int:
        """Bytes of the model with its adapters beside it, as an export of this choice takes them (headers aside)."""
        return memory(choice, self.shapes, self.question.recover.group)

    def _cost(self, names: Sequence[str]) -> int:
        """The parameters that one unit of rank adds to these matrices."""
        return sum(self.shapes.matrices[name].inputs + self.shapes.matrices[name].outputs for name in names)

    def choice(self, ranks: Any) -> Configuration:
        """The configuration of ranks in any form that `Recovery` takes."""
        return Configuration(ranks=by_matrix(ranks, self.shapes.names))

    def recovery(self, ranks: Any, seed: int, fidelity: float = 1.0) -> Recovery:
        """One recovery: of a `Configuration`, or of ranks in any form that `Recovery` takes.

        A `fidelity` below 1 is that share of the schedule's steps.
        """
        ranks, bits = (ranks.ranks, ranks.bits) if isinstance(ranks, Configuration) else (ranks, 16)
        how = self.question.recover
        stop = max(1, round(fidelity * how.steps))
        return Recovery(**dict(how), pruned=self.question.pruned, ranks=ranks, bits=bits, stop=stop, seed=seed)

    def score(self, ranks: Any, seed: int, fidelity: float = 1.0) -> float:
        """What a search wants low, of one recovery under this seed."""
        found = recover(self.recovery(ranks, seed, fidelity)).metrics[f"search_{self.question.target}"]
        return -found if self.question.target == "accuracy" else found

    def scores(self, choice: Configuration, seed: int, fidelity: float = 1.0) -> tuple[float, ...]:
        """All that a search wants low: the target, and the bytes where a front is asked for."""
        found = self.score(choice, seed, fidelity)
        return (found, float(self.memory(choice))) if self.question.front else (found,)

    def workers(self, seed: int, shared: str | Path | None) -> searching.Workers:
        """Who measures: this process alone, or all that share a database or a file."""
        if shared is None:
            return map
        from rules2ranks import storages  # which imports Optuna

        what = {"question": self.question.model_dump(mode="json"), "seed": seed}
        name = f"ranks {runs.key(what, recover.versions(self.recovery(1, seed)))}"
        return searching.Shared(storages.connect(shared), name, scores=1 + self.question.front)

    def uniform(self, bits: int, rank: int) -> Configuration:
        """All matrices alike."""
        names = self.shapes.matrices
        return Configuration(bits=dict.fromkeys(names, bits), ranks=dict.fromkeys(names, rank))

    def uniforms(self) -> list[Configuration]:
        """The choices that treat all matrices alike and fit the budget of bytes."""
        options = self.space.knobs[-1].options
        points = [(0, *[place] * (len(self.space.knobs) - 1)) for place in range(len(options))]
        return [self.space.configuration(point) for point in points if self.space.contains(point)]

    def control(self, kind: str, number: int = 1) -> list[Configuration]:
        """The choices of one of `CONTROLS`; `number` of the random ones."""
        found = CONTROLS[kind](self, number)
        return [each if isinstance(each, Configuration) else self.space.configuration(each) for each in found]

    def by(self, values: dict[str, float]) -> Point:
        """Ranks in proportion to the mean value of each unit's matrices."""
        means = [sum(values[name] for name in names) / len(names) for names, _ in self.units]
        return searching.by_importance(self.space, means)

    def block_importance(self) -> dict[str, float]:
        """CFSP: how far each block of the unpruned model turns its input, for all its matrices."""
        about = subject(self.question.pruned.base)
        with training.reproducible(0):
            batches = about.calibration(0)
            blocks = importance.block_importance(about.model, batches, about.loss, positions=about.positions)
        return {name: block for block, layer in zip(blocks, self.shapes.names, strict=True) for name in layer}

    def gradient_norms(self) -> dict[str, float]:
        """How steep the loss of the pruned model is, by matrix."""
        about = subject(self.question.pruned.base)
        with training.reproducible(0):
            found = importance.gradient_norms(load_pruned(self.question.pruned), about.calibration(0), about.loss)
        return {name: norm for layer in found for name, norm in layer.items()}


def _uniform(problem: Problem, number: int) -> list[Point | Configuration]:
    """Within bytes, the uniform choice that is best by the search's examples: the baseline is chosen as its rivals."""
    if problem.question.memory is None:
        return [problem.space.uniform]
    return [min(problem.uniforms(), key=lambda each: sum(problem.score(each, seed) for seed in UNIFORM_SEEDS))]


def _by_sensitivity(problem: Problem, number: int) -> list[Point]:
    """Bits and ranks that cost least and bring most, each unit measured alone and taken to add up.

    What bits cost is the rise of the loss when a unit alone is quantised and nothing is trained; what a rank brings is
    its fall when a unit alone is trained, at 16 bits.
    """
    space = problem.space
    whole = problem.score(Configuration(), 0)
    values = [[0.0]]
    for knob in space.knobs[1:]:
        bits = {option.bits: Configuration(bits=dict.fromkeys(knob.matrices, option.bits)) for option in knob.options}
        ranks = {option.rank: Configuration(ranks=dict.fromkeys(knob.matrices, option.rank)) for option in knob.options}
        rise = {width: problem.score(choice, 0) - whole for width, choice in bits.items()}
        fall = {rank: whole - problem.score(choice, 0) for rank, choice in ranks.items()} if len(ranks) > 1 else {}
        values.append([fall.get(option.rank, 0.0) - rise[option.bits] for option in knob.options])
    return [space.best(values)]


def _twice(problem: Problem, number: int) -> list[Configuration]:
    return [problem.choice(2 * problem.question.mean_rank)]


def _uniform_grid(problem: Problem, number: int) -> list[Configuration]:
    """Every width with every rank, the same for all matrices, whatever bytes they take."""
    return [problem.uniform(bits, rank) for bits in problem.question.bits for rank in problem.question.grid]


#: What a searched choice is compared with: points of the problem's space, or configurations outside it.
CONTROLS: dict[str, Callable[[Problem, int], Sequence[Point | Configuration]]] = {
    "uniform": _uniform,
    "uniform, twice the rank": _twice,
    "random vectors": lambda problem, number: searching.random(problem.space, number, seed=0),
    "ends high": lambda problem, number: [searching.ends_high(problem.space)],
    "middle high": lambda problem, number: [searching.middle_high(problem.space)],
    "CFSP": lambda problem, number: [problem.by(problem.block_importance())],
    "gradient": lambda problem, number: [problem.by(problem.gradient_norms())],
    "sensitivities": _by_sensitivity,
    "uniform grid": _uniform_grid,
}


def search(
    question: Question,
    searcher: str | Searcher = "RankAdaptor",
    *,
    limit: Size = 16,
    seed: Seed = 0,
    known: Sequence[Trial] = (),
    table: str | Path | None = None,
    progress: Callable[[Trial], None] | None = None,
    shared: str | Path | None = None,
) -> Search:
    """A search for the ranks, or bits and ranks, of a pruned model; measurements are results of `recover` at `seed`.

    All searchers measure `limit` choices; the additive model's own choice is measured on top.

    Args:
        searcher: a name of `search.SEARCHERS`, or one with settings, such as `search.RankAdaptor(offline=8)`.
        known: trials that count as measured, such as those of an interrupted search.
        table: a file of more such measurements, see `search.read_trials` (scores as the target wants them: low, but for
            an accuracy).
        progress: called with each new `search.Trial`.
        shared: a database or a file (see `storages.connect`) by which all workers that make this same search divide its
            measurements, with a common `runs/` or without (see `search.Shared`). The trials are the same.

    Raises:
        ValueError: a table that does not fit, before anything is measured; or as `search.search`.
    """
    problem = Problem(question)
    accuracy = question.target == "accuracy"
    read = searching.read_trials(table, problem.space, higher_is_better=accuracy) if table else []

    def measure(configuration: Configuration, fidelity: float) -> tuple[float, ...]:
        return problem.scores(configuration, seed, fidelity)

    known, workers = [*known, *read], problem.workers(seed, shared)
    with training.reproducible(seed):
        return searching.search(
            problem.space, measure, searcher, limit=limit, seed=seed, known=known, progress=progress, workers=workers
        )

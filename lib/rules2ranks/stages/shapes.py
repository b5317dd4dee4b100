"""Searches for the shape of a pruned model: which level each attention and MLP gets, and who decides it.

What a search wants low is the divergence from the unpruned model, before any training or after some: results of the
stage `judge`.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from rules2ranks import pruning, recovery, runs, training
from rules2ranks import search as searching
from rules2ranks.configuration import Bits, Configuration, Level, memory
from rules2ranks.runs import stage
from rules2ranks.search import Point, Search, Searcher, Space, Trial
from rules2ranks.search.searchers.darwin_lm import Switches, even
from rules2ranks.search.space import generator
from rules2ranks.stages.compressing import (
    HowRecovered,
    MatrixRank,
    Protect,
    Pruned,
    Recovery,
    batches_of,
    load_pruned,
    recover,
)
from rules2ranks.stages.cutting import Cut, Levels, levels
from rules2ranks.stages.learning import draw_seed
from rules2ranks.stages.ranges import Seed, Share, Size
from rules2ranks.stages.subjects import Batch, subject

#: Under which the choices that treat all parts alike are compared.
ALIKE_SEEDS = (0, 1)
#: The stream of seeds from which the examples come that a search judges by: none that training draws.
JUDGED = 3


class Judging(HowRecovered):
    """How far a pruned model is from the unpruned one after the first `stop` steps of a recovery (0: as it is).

    `judged` are the training examples, never those of the recovery, over which the divergence is taken.
    """

    pruned: Pruned
    ranks: MatrixRank = 2
    stop: Annotated[int, Field(ge=0)] = 0
    judged: Size = 128
    seed: Seed = 0

    @property
    def base(self) -> Any:
        """The model that was pruned."""
        return self.pruned.base


@stage(version=1)
def judge(work: Path, given: Judging) -> dict:
    """How far a pruned model is from the unpruned one, before or after some training: see `Judging`.

    Metrics: `kl`, in nats per scored position, the mean over the judged examples. No files.
    """
    about = subject(given.base)
    with training.reproducible(given.seed):
        model = load_pruned(given.pruned)
        if given.stop:
            model = _trained(given, model)
        return {"kl": about.divergence(_judged(given.base, given.judged), model)}


@functools.lru_cache(maxsize=1)
def _judged(base: Any, size: int) -> Batch:
    return subject(base).draw(size, draw_seed(0, 1, JUDGED))


def _trained(given: Judging, model: Any) -> Any:
    """The beginning of the recovery that `recover` makes at these settings."""
    about, method = subject(given.base), recovery.METHODS[given.method]
    pool = about.draw(given.examples, draw_seed(given.seed, 0, 0))
    adapted = recovery.add_adapter(model, given.ranks, given.method, seed=given.seed, steps=given.steps)
    trained = recovery.trainable(adapted)
    schedule = training.Schedule(given.steps, given.lr, stop=given.stop)
    batches = batches_of(pool, given.batch, given.seed)
    training.train(trained, batches, method.loss(about.loss), schedule, seed=given.seed, label="judge")
    return trained


class Question(runs.Params):
    """Which level does each attention and MLP want, when `ratio` of all parameters is to go?

    `flops` is a second budget: the share of the decoder layers' operations that goes. `protect` counts the layers that
    stay whole at the beginning and at the end. `recover` and `rank` are the training after which is judged, on
    `judged` examples; `fill` is the least share of the parameters that stay. A whole measurement of a searcher is taken
    after the share `trained` of the schedule (0: as it is cut); `front` makes the bytes of the model a second score.

    With `memory`, the bytes of the whole model and its adapters, in place of `ratio`: which levels, which of `bits` and
    which ranks of `grid`, all at once, or at `levels` that are settled? Choices are judged then by their loss on the
    search's examples after the recovery that `recover` says.
    """

    database: Levels = Field(default_factory=Levels)
    ratio: Share = 0.5
    flops: Share | None = None
    protect: Protect = (0, 0)
    rank: MatrixRank = 2
    recover: HowRecovered = HowRecovered()
    judged: Size = 128
    fill: Annotated[float, Field(ge=0, le=1)] = searching.FILL
    trained: Annotated[float, Field(ge=0, le=1)] = 1.0
    front: bool = False
    memory: Annotated[int, Field(ge=1)] | None = None
    bits: Annotated[tuple[Bits, ...], Field(min_length=1)] = (16,)
    grid: tuple[MatrixRank, ...] = ()
    levels: dict[str, Level] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.memory is None and (self.bits != (16,) or self.grid or self.levels is not None):
            raise ValueError("bits, ranks and settled levels are for a budget of bytes: give memory")
        if self.memory is None and self.recover.method not in ("lora", "pissa"):
            raise ValueError(f"judged is after LoRA or PiSSA, which need no other data: got {self.recover.method}")
        if self.levels is not None:
            Cut.check({"database": self.database, "levels": self.levels})
        if self.memory is not None and not self.grid:
            raise ValueError("within a budget of bytes ranks are chosen: give grid")
        return self

    def judging(self, pruned: Pruned, seed: int = 0, fidelity: float = 0.0) -> Judging:
        """How a search judges what is pruned, after this share of the schedule. Before any training the seed is 0."""
        stop = max(round(fidelity * self.recover.steps), 1) if fidelity else 0
        how = {"ranks": self.rank, "judged": self.judged, "stop": stop, "seed": seed if stop else 0}
        return Judging(**dict(self.recover), pruned=pruned, **how)


@dataclass(frozen=True, eq=False)
class Problem:
    """A question with its model's shapes: the space of levels, and what a choice scores."""

    question: Question

    @cached_property
    def _database(self) -> pruning.Database:
        return pruning.Database(levels(self.question.database).folder)

    @cached_property
    def space(self) -> Space:
        """The choices, by the bytes of the model, with its adapters where their ranks are chosen."""
        asked, shapes = self.question, subject(self.question.database.base).shapes
        parts = self._database.parts
        first, last = asked.protect
        number = len(shapes.layers)
        fixed = [name for name, part in parts.items() if not first <= part.layer < number - last]
        flops = 2 * sum(matrix.numbers for matrix in shapes.matrices.values())
        settled = asked.levels
        return searching.level_space(
            shapes,
            {name: self._database.levels(name) if settled is None else [settled.get(name, 0)] for name in parts},
            asked.memory or round((1 - asked.ratio) * shapes.parameters) * shapes.itemsize,
            flops=None if asked.flops is None else round((1 - asked.flops) * flops),
            bits=asked.bits,
            ranks=asked.grid or (0,),
            fixed=fixed,
            group=asked.recover.group,
            fill=asked.fill,
        )

    def recovery(self, choice: Configuration, seed: int, fidelity: float = 1.0) -> Recovery:
        """One recovery of a choice, or the beginning of it; at fidelity 0 no adapter is put on."""
        asked = self.question
        ranks = {} if not fidelity else asked.rank if asked.memory is None else choice.ranks
        stop = max(1, round((fidelity or 1.0) * asked.recover.steps))
        how = {"ranks": ranks, "bits": choice.bits, "stop": stop, "seed": seed if fidelity else 0}
        return Recovery(**dict(asked.recover), pruned=self.cut(choice), **how)

    def cut(self, choice: Configuration) -> Cut:
        """A choice of levels as what `recover` takes."""
        return Cut(database=self.question.database, levels=choice.levels)

    def memory(self, choice: Configuration) -> int:
        """Bytes of the model that is left, with its adapters where their ranks are chosen."""
        return memory(choice, subject(self.question.database.base).shapes, self.question.recover.group)

    def score(self, choice: Configuration, seed: int = 0, fidelity: float = 0.0) -> float:
        """What a search wants low after this share of the schedule, under this seed: see `Question`."""
        return self.measured(choice, seed, fidelity).metrics["kl" if self.question.memory is None else "search_loss"]

    def measured(self, choice: Configuration, seed: int = 0, fidelity: float = 0.0) -> runs.Result:
        """The result behind a score: of `judge`, or within bytes of `recover`."""
        if self.question.memory is None:
            return judge(self.question.judging(self.cut(choice), seed, fidelity))
        return recover(self.recovery(choice, seed, fidelity))

    def workers(self, seed: int, shared: str | Path | None) -> searching.Workers:
        """Who measures: this process alone, or all that share a database or a file."""
        if shared is None:
            return map
        from rules2ranks import storages  # which imports Optuna

        whole = Configuration()
        if self.question.memory is None:
            versions = judge.versions(self.question.judging(self.cut(whole), seed))
        else:
            versions = recover.versions(self.recovery(whole, seed))
        name = f"shapes {runs.key({'question': self.question.model_dump(mode='json'), 'seed': seed}, versions)}"
        return searching.Shared(storages.connect(shared), name, scores=1 + self.question.front)

    def control(self, kind: str, number: int = 1, seed: int = 0) -> list[Configuration]:
        """The choices of one of `CONTROLS`; `number` of the random ones."""
        return [self.space.configuration(point) for point in CONTROLS[kind](self, number, seed)]

    def _added_up(self, lost: Callable[[str, int], float]) -> list[Point]:
        """The choice whose parts, each taken alone, lose least in all: exact (`Space.best`)."""
        values = [[-lost(knob.parts[0], option.level) for option in knob.options] for knob in self.space.knobs[1:]]
        return [self.space.best([[0.0], *values])]

    def _error(self, part: str, level: int) -> float:
        return self._database.parts[part].errors[level]

    def _divergence(self, part: str, level: int) -> float:
        cut = self.cut(Configuration(levels={part: level}))
        return judge(self.question.judging(cut)).metrics["kl"]

    def alike(self, bits: int, rank: int) -> Point | None:
        """The levels whose divergences add up to the least where all that is left has these bits and this rank.

        None where these fit no budget.
        """
        never = -1e6
        values = []
        for knob in self.space.knobs[1:]:
            (part,), alone = knob.parts, len(knob.options) == 1
            gone = len(self._database.parts[part].order)
            may = [alone or each.level == gone or each[1:] == (bits, rank) for each in knob.options]
            values.append([
                -self._divergence(part, each.level) if here else never
                for each, here in zip(knob.options, may, strict=True)
            ])  # fmt: skip
        try:
            point = self.space.best([[0.0], *values])
        except ValueError:
            return None
        return None if any(row[place] == never for row, place in zip(values, point[1:], strict=True)) else point


def _alike(problem: Problem, number: int, seed: int) -> list[Point]:
    """The best pair of bits and rank for all by the search's examples: as simple a choice as there is, and tuned."""
    pairs = list(itertools.product(problem.question.bits, problem.question.grid or (0,)))
    fit = [point for pair in pairs if (point := problem.alike(*pair)) is not None]
    if not fit:
        raise ValueError(f"no bits and rank for all parts fill the budget of bytes: tried (bits, rank) {pairs}")

    def mean_score(point: Point) -> float:
        return sum(problem.score(problem.space.configuration(point), each, 1.0) for each in ALIKE_SEEDS)

    return [min(fit, key=mean_score)] if len(fit) > 1 else fit


def _neighbours(problem: Problem, number: int, seed: int) -> list[Point]:
    (best,) = CONTROLS["divergences"](problem, 1, 0)
    return Switches(problem.space).children(best, number, generator(seed, 5))


#: Who chooses levels without a search: the same share of every part; the least output errors, or divergences of single
#: parts, added up; chance; a switch or more from the one before; and, within bytes, added up at the same bits and rank
#: for all.
CONTROLS: dict[str, Callable[[Problem, int, int], Sequence[Point]]] = {
    "even": lambda problem, number, seed: [even(problem.space)],
    "errors": lambda problem, number, seed: problem._added_up(problem._error),
    "divergences": lambda problem, number, seed: problem._added_up(problem._divergence),
    "random levels": lambda problem, number, seed: searching.random(problem.space, number, seed),
    "neighbours": _neighbours,
    "alike": _alike,
}


def search(
    question: Question,
    searcher: str | Searcher = "DarwinLM",
    *,
    limit: Size = 20,
    seed: Seed = 0,
    known: Sequence[Trial] = (),
    progress: Callable[[Trial], None] | None = None,
    shared: str | Path | None = None,
) -> Search:
    """A search for the levels of a model; measurements are results of `judge`, or of `recover`, at `seed`.

    shared: as for `ranks.search`.

    Raises:
        ValueError: as `search.search`.
    """
    problem = Problem(question)

    def measure(configuration: Configuration, fidelity: float) -> tuple[float, ...]:
        kl = problem.score(configuration, seed, question.trained * fidelity)
        return (kl, float(problem.memory(configuration))) if question.front else (kl,)

    workers = problem.workers(seed, shared)
    with training.reproducible(seed):
        return searching.search(
            problem.space, measure, searcher, limit=limit, seed=seed, known=known, progress=progress, workers=workers
        )

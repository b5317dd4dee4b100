"""Stages that compress: prune a model, recover it, and see how far a rule's model can be pruned."""

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from torch import nn
from transformers import PreTrainedModel

from rules2ranks import checkpoints, decoders, models, pruning, quantisation, recovery, runs, training
from rules2ranks.configuration import GROUP, Bits, Shapes, by_matrix
from rules2ranks.importance import MEASURES, Kind
from rules2ranks.quantisation import ROUNDS
from rules2ranks.runs import stage
from rules2ranks.spreads import Spread
from rules2ranks.stages import learning
from rules2ranks.stages.cutting import Cut
from rules2ranks.stages.learning import CHECKPOINT, WEIGHTS, Pretraining, draw_seed
from rules2ranks.stages.own_texts import OwnModel, through_layers
from rules2ranks.stages.ranges import Rate, Seed, Share, Size, Steps
from rules2ranks.stages.subjects import SHIPPED_WEIGHTS, Base, Batch, Subject, subject
from rules2ranks.training import Schedule

Protect = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
MatrixRank = Annotated[int, Field(ge=0, le=256)]


class Pruning(runs.Params):
    """Remove whole groups until `ratio` of all the model's parameters are gone, or `of` those of its layers' groups.

    At ratio 0 nothing is: `recover` then trains the whole model, which every pruned one should be compared with.
    With the spread `same`, which needs all layers, what is left is a model of one size for all: see `multiple` there.
    `standardise` makes scores comparable over layers before a global ranking, as FLAP's authors do with theirs;
    `compensate` adds what removed inputs contributed on average to the biases (FLAP), whatever the importance.
    `protect` counts the layers that stay whole at the beginning and at the end.
    With `from_disk` a model of your own is never in memory as a whole (see `pruning.Streamed`): importance must then be
    `flap` or `wanda-sp`, and each pass reads the model's files again.
    """

    base: Base = "language"
    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    spread: Spread = "uniform"
    importance: Kind = "taylor"
    standardise: bool = False
    compensate: bool = False
    protect: Protect = (1, 1)
    # Defaults of what came later are left out, so that results from before are found under their own parameters.
    multiple: Annotated[Size, Field(exclude_if=lambda multiple: multiple == 1)] = 1
    of: Annotated[Literal["model", "layers"], Field(exclude_if=lambda of: of == "model")] = "model"
    from_disk: Annotated[bool, Field(exclude_if=lambda given: not given)] = False
    seed: Seed = 0

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.from_disk and not (self.base == "gemma" or isinstance(self.base, OwnModel)):
            raise ValueError(f"from_disk is for a model of your own, not for {self.base!r}")
        if self.from_disk and MEASURES[self.importance].needs != "activations":
            raise ValueError(f"from_disk needs importance flap or wanda-sp: {self.importance} needs the whole model")
        if self.spread == "same" and self.protect != (0, 0):
            raise ValueError("spread same gives all layers one size: it needs protect=(0, 0)")
        if self.multiple != 1 and self.spread != "same":
            raise ValueError(f"multiple is for spread same, not for {self.spread}")
        return self

    def reads(self) -> tuple[Path, ...]:
        return (SHIPPED_WEIGHTS,) if self.base == "language" else ()


def _way(pruned: Any) -> str:
    """Which way of pruning is meant: only its own mistakes are then told."""
    by_levels = "levels" in pruned if isinstance(pruned, Mapping) else isinstance(pruned, Cut)
    return "(levels)" if by_levels else "(ratio)"


#: What is recovered: a share removed by importance, or levels of a database.
Pruned = Annotated[
    Annotated[Pruning, BeforeValidator(Pruning.nested), Tag("(ratio)")]
    | Annotated[Cut, BeforeValidator(Cut.nested), Tag("(levels)")],
    Discriminator(_way),
]


class HowRecovered(runs.Params):
    """How a pruned model is recovered, whatever its ranks and bits. `method` is one of `recovery.METHODS`; `kl` asks
    for the distance to the unpruned model, which then takes its memory beside the pruned one; `group` numbers of a
    quantised matrix share a scale; `rounds` are LoftQ's.

    The rate is LoRA's best of 3e-4 to 2e-2 for a uniform rank 2 where half of the parameters was removed from all
    layers alike, by the loss on the search examples. The table `recovery_rates` has other methods and prunings.
    """

    method: Literal[*recovery.METHODS] = "lora"
    steps: Steps = 60
    batch: Size = 28
    examples: Size = 1400
    lr: Rate = 1e-2
    kl: bool = False
    # Defaults of what bits brought are left out, so that results from before are found under their own parameters.
    group: Annotated[int, Field(ge=8, multiple_of=8, exclude_if=lambda group: group == GROUP)] = GROUP
    rounds: Annotated[int, Field(ge=1, le=100, exclude_if=lambda rounds: rounds == ROUNDS)] = ROUNDS


class Recovery(HowRecovered):
    """Recover a pruned model: `ranks` and `bits` for all matrices, for those of each layer, or for each by its name.

    However these are given, they are kept by matrix and without defaults (rank 0, 16 bits), so that equal choices are
    one result. Where no matrix has a rank, nothing is trained: the model is as pruned, or as quantised. Training takes
    `steps`, or ends at `stop` of them on the same schedule: a lower fidelity, from which a longer one goes on.
    """

    pruned: Pruned
    ranks: MatrixRank | list[MatrixRank] | dict[str, MatrixRank] = 2
    bits: Annotated[Bits | list[Bits] | dict[str, Bits], Field(exclude_if=lambda bits: not bits)] = 16
    stop: Steps | None = None
    seed: Seed = 0

    @property
    def base(self) -> Any:
        """The model that was pruned."""
        return self.pruned.base

    @model_validator(mode="after")
    def _canonical(self) -> Self:
        if self.stop is not None and self.stop > self.steps:
            raise ValueError(f"stop ({self.stop}) must not be beyond the schedule's steps ({self.steps})")
        object.__setattr__(self, "stop", None if self.stop == self.steps else self.stop)
        shapes = subject(self.base).shapes
        for field, unsaid in (("ranks", 0), ("bits", 16)):
            chosen = by_matrix(getattr(self, field), shapes.names, unsaid)
            if isinstance(self.pruned, Cut):  # a part without groups has no matrices
                chosen = {name: value for name, value in chosen.items() if name in self.pruned.shapes.matrices}
            object.__setattr__(self, field, chosen)
        if (most := max(self.ranks.values(), default=0)) > shapes.width:
            raise ValueError(f"ranks must be from 0 to the model's width {shapes.width}, got {most}")
        return self


class Fragility(runs.Params):
    """Prune one rule's model at several ratios, each time from the whole model, without recovery."""

    base: Pretraining
    ratios: list[Share]
    spread: Spread = "global"
    importance: Kind = "taylor"
    seed: Seed = 0


@stage(version=2)
def prune(work: Path, given: Pruning) -> dict:
    """Remove whole groups from a model until a share of all its parameters is gone: see `Pruning`.

    Metrics: parameters, FLOPs and file size before and after, held-out scores before and after, what each layer kept.
    Files: the pruned checkpoint that `pruning.load_pruned` reads (a model of rows: its weights and sizes), and beside
    it a model's own tokenizer.

    Raises:
        ValueError: the ratio is 0, which is for `recover`; or what importance, plan and architecture have against it.
    """
    if not given.ratio:
        raise ValueError("at ratio 0 there is nothing to prune: pass it on to recover, which trains the whole model")
    if given.from_disk:
        return _prune_from_disk(work, given)
    with training.reproducible(given.seed):
        about = subject(given.base)
        before = about.evaluate("report")
        pruned = _sliced(about, _scored(about, given), given)
        after = about.evaluate("report", pruned)
    if isinstance(pruned, PreTrainedModel):
        pruning.save_pruned(pruned, work)
    else:
        models.save_weights(pruned, work / WEIGHTS)
    return _written(work, about, about.model, pruned) | {"before": before, "after": after}


def _prune_from_disk(work: Path, given: Pruning) -> dict:
    """The same of a model that is never in memory as a whole."""
    about = subject(given.base)
    about.check()
    streamed = pruning.Streamed(checkpoints.find(about.base.model), about.base.dtype, training.device())
    decoders.check_architecture(streamed.skeleton.config)
    with training.reproducible(given.seed):
        before = streamed.evaluated(lambda model: about.evaluate("report", model))
        batch = tuple(torch.cat(some) for some in zip(*about.calibration(given.seed), strict=True))
        fed = {"batch": batch, "loss": through_layers, "positions": about.positions}
        scored = streamed.importance(**fed, kind=given.importance)
        blocks = streamed.block_importance(**fed) if given.spread == "importance" else None
        plan = pruning.plan(streamed.skeleton, scored, given.ratio, **_how(given, blocks))
        streamed.prune(plan, work, means=scored.means if given.compensate else None)
        after = pruning.Streamed(work, device=training.device())
        scores = after.evaluated(lambda model: about.evaluate("report", model))
    return _written(work, about, about.skeleton(), after.skeleton) | {"before": before, "after": scores}


def _written(work: Path, about: Subject, before: nn.Module, after: nn.Module) -> dict:
    """Lay a model's own tokenizer beside the pruned one; returns what was removed, and the sizes of what is left."""
    for path in about.beside:
        shutil.copyfile(path, work / path.name)
    return {**pruning.report(before, after), "sizes": pruning.sizes(after)}


def _scored(about: Subject, given: Pruning | Fragility) -> pruning.Scores:
    """Importance of every group, from the calibration batches."""
    batches = about.calibration(given.seed)
    return pruning.importance(
        about.model, batches, about.loss, given.importance, seed=given.seed, positions=about.positions
    )


def _sliced(about: Subject, scored: pruning.Scores, given: Pruning) -> nn.Module:
    """A pruned copy."""

    def seen(look: Callable) -> Any:
        return look(about.model, about.calibration(given.seed), about.loss, positions=about.positions)

    blocks = seen(pruning.block_importance) if given.spread == "importance" else None
    means = (scored.means or seen(pruning.input_means)) if given.compensate else None
    return pruning.prune(about.model, given.ratio, scored, **_how(given, blocks), means=means)


def _how(given: Pruning, blocks: list[float] | None) -> dict[str, Any]:
    """What a plan is made with beside scores and ratio."""
    names = ("spread", "protect", "standardise", "multiple", "of")
    return {name: getattr(given, name) for name in names} | {"blocks": blocks}


def load_pruned(given: Pruning | Cut) -> nn.Module:
    """The model of a pruning result, pruned if need be, on the device; one of levels or the whole one is made anew."""
    if isinstance(given, Cut):
        return given.model()
    if not given.ratio:
        return copy.deepcopy(subject(given.base).model)
    result = prune(given)
    if not isinstance(given.base, Pretraining):
        return pruning.load_pruned(result.folder).to(training.device()).eval()
    model = pruning.resize(learning.untrained(given.base), result.metrics["sizes"])
    models.load_weights(model, result.file(WEIGHTS))
    return model.eval()


def pruned_shapes(given: Pruning | Cut) -> Shapes:
    """The shapes of a pruned model; no weights are read for them."""
    if isinstance(given, Cut):
        return given.shapes
    if not given.ratio:
        return subject(given.base).shapes
    return decoders.shapes(pruning.resize(subject(given.base).skeleton(), prune(given).metrics["sizes"]))


@stage(version=3)
def recover(work: Path, given: Recovery) -> dict:
    """Quantise a pruned model where bits are given, and recover it with adapters: see `Recovery`.

    Every adapter learns from the same number of training examples drawn from the seed. A method that cannot go on
    after an interruption begins anew (`resumes`); the losses in AdaLoRA's history include its regulariser.

    Metrics: held-out scores (those named `search_…` on the examples that a search may look at, `search_kl` in nats to
    the unpruned model where `kl` asks for it; the others on those that only reports look at), trained parameters (of
    AdaLoRA those of the ranks that it kept, and as `peak_parameters` those that it began with), history.
    Files: the adapter in PEFT's own format, an ordinary LoRA; after a `stop`, the checkpoint to go on from.
    """
    about, method = subject(given.base), recovery.METHODS[given.method]
    if not given.ranks:
        return _as_it_is(given, about)
    training.check_memory(about.step_bytes(given.batch), f"recovery with batch={given.batch}")
    checkpoint = work / CHECKPOINT if method.resumes else None
    if checkpoint and not checkpoint.is_file() and (sooner := _stopped_sooner(given)):
        shutil.copyfile(sooner.file(CHECKPOINT), checkpoint)
    with training.reproducible(given.seed):
        pool = about.draw(given.examples, draw_seed(given.seed, 0, 0))
        adapted = _adapted(given, about, pool)
        trained = recovery.trainable(adapted)
        history = training.train(
            trained,
            batches_of(pool, given.batch, given.seed),
            method.loss(about.loss),
            Schedule(given.steps, given.lr, stop=given.stop),
            seed=given.seed,
            after_step=method.after_step(adapted),
            checkpoint=checkpoint,
            label="recover",
        )
        scores = recovered_scores(about, trained, given.kl)
    method.save(adapted, work)
    if given.stop is None:
        (work / CHECKPOINT).unlink(missing_ok=True)
    elif checkpoint:
        _note_stop(given)
    return {**scores, **method.counts(adapted), "history": asdict(history)}


def _as_it_is(given: Recovery, about: Subject) -> dict:
    """What `recover` returns where nothing is trained."""
    with training.reproducible(given.seed):
        model = quantisation.quantise(load_pruned(given.pruned), given.bits, given.group)
        scores = recovered_scores(about, model, given.kl)
    return {**scores, "trained_parameters": 0, "history": asdict(training.History())}


def begun(given: Recovery, packed: bool = False) -> nn.Module:
    """The pruned model, quantised, with its adapter as it is before training; packed: kept in few bits."""
    about = subject(given.base)
    with training.reproducible(given.seed):
        return _adapted(given, about, about.draw(given.examples, draw_seed(given.seed, 0, 0)), packed)


def _adapted(given: Recovery, about: Subject, pool: Batch, packed: bool = False) -> nn.Module:
    """The same; a method may look at all of the pool, some at a time."""
    parts = max(1, len(pool[0]) // (about.at_once or 64))
    return recovery.add_adapter(
        load_pruned(given.pruned),
        given.ranks,
        given.method,
        seed=given.seed,
        steps=given.steps,
        loss=about.loss,
        batches=list(zip(*(tensor.tensor_split(parts) for tensor in pool), strict=True)),
        positions=about.positions,
        bits=given.bits,
        group=given.group,
        packed=packed,
        rounds=given.rounds,
    )


def batches_of(pool: Batch, size: int, seed: int) -> Callable[[int], Batch]:
    """The batch of each step: examples of the pool, drawn with replacement."""

    def batch(step: int) -> Batch:
        generator = torch.Generator().manual_seed(draw_seed(seed, 0, step))
        rows = torch.randint(len(pool[0]), (size,), generator=generator).to(pool[0].device)
        return tuple(tensor[rows] for tensor in pool)

    return batch


def recovered_scores(about: Subject, trained: nn.Module, kl: bool) -> dict[str, float]:
    """Held-out scores on the report's examples, and as `search_…` on those that a search may look at."""
    search, report = about.evaluate("search", trained), about.evaluate("report", trained)
    found = {**report, **{f"search_{name}": search[name] for name in ("loss", "accuracy")}}
    return found | ({"search_kl": about.divergence(about.held_out("search"), trained)} if kl else {})


def _stops(given: Recovery) -> Path:
    """A folder with a file for every step at which this schedule has been stopped."""
    whole = given.model_copy(update={"stop": None})
    return runs.root() / recover.name / f".stops-{runs.key(whole.model_dump(mode='json'), recover.versions(whole))}"


def _note_stop(given: Recovery) -> None:
    _stops(given).mkdir(parents=True, exist_ok=True)
    (_stops(given) / str(given.stop)).touch()


def _stopped_sooner(given: Recovery) -> runs.Result | None:
    """The longest finished recovery on the same schedule that stopped before this one is to."""
    stops = (int(mark.name) for mark in _stops(given).glob("[0-9]*"))
    sooner = (given.model_copy(update={"stop": stop}) for stop in sorted(stops, reverse=True))
    end = given.stop or given.steps
    return next((found for each in sooner if each.stop < end and (found := recover.find(each))), None)


@stage(version=2)
def fragility(work: Path, given: Fragility) -> dict:
    """Prune one rule's model at several ratios, each time from the whole model, without recovery.

    Metrics: a row for each ratio, 0 first, with the share really removed and the held-out scores; and the loss of the
    untrained model, against which the loss of what was learnt is measured.
    """
    with training.reproducible(given.seed):
        about = subject(given.base)
        scored = _scored(about, given)
        curve = [{"ratio": 0.0, "removed": 0.0, **about.evaluate("report")}]
        shared = {name: getattr(given, name) for name in ("base", "spread", "importance", "seed")}
        for ratio in sorted(given.ratios):
            pruned = _sliced(about, scored, Pruning(**shared, ratio=ratio, protect=(0, 0)))
            removed = 1 - models.parameter_count(pruned) / models.parameter_count(about.model)
            curve.append({"ratio": ratio, "removed": removed, **about.evaluate("report", pruned)})
        untrained = about.evaluate("report", learning.untrained(given.base))["loss"]
    return {"curve": curve, "untrained_loss": untrained}

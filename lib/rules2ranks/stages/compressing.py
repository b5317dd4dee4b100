"""Stages that compress: prune a model, recover it with LoRA, and see how far a rule's model can be pruned."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rules2ranks import models, pruning, recovery, training
from rules2ranks.published import data_folder
from rules2ranks.runs import stage
from rules2ranks.stages import language_suite, learning
from rules2ranks.stages.learning import CHECKPOINT, WEIGHTS, draw_seed, pretrain
from rules2ranks.stages.parameters import Importance, Rate, Seed, Share, Size, Spread, Steps
from rules2ranks.tasks.rows import rows_of

#: The trained model of the language suite that the project ships.
SHIPPED = data_folder() / "models" / "language_suite"
#: Held-out examples that a search may look at, and others that only reports look at: the same for every run.
SEARCH_SET, REPORT_SET = draw_seed(0, 1, 1), draw_seed(0, 1, 2)
HELD_OUT = 700

Base = Literal["language"] | pretrain.Params
Protect = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
LayerRank = Annotated[int, Field(ge=0, le=256)]


@dataclass(frozen=True)
class Subject:
    """A model to compress, with what it learnt from: `draw(size, seed, split)` gives a batch that `loss` takes."""

    model: nn.Module
    draw: Callable[[int, int, str], tuple[Tensor, ...]]
    loss: training.Loss
    scores: Callable[[nn.Module, int], dict[str, float]]

    def evaluate(self, seed: int, model: nn.Module | None = None) -> dict[str, float]:
        """Scores of the model (or of another in its place) on held-out examples drawn from `seed`."""
        return training.evaluated(self.model if model is None else model, lambda m: self.scores(m, seed))


def subject(base: Base) -> Subject:
    """The shipped language-suite model, or the model that learnt from one rule (pretrained if need be)."""
    if base == "language":
        model = models.load_causal_lm(SHIPPED).to(training.device())
        return Subject(
            model,
            language_suite.language_pairs,
            language_suite.language_loss,
            lambda m, seed: language_suite.language_scores(HELD_OUT, seed)(m),
        )

    def draw(size: int, seed: int, split: str) -> tuple[Tensor, ...]:
        # Splits need no other handling: `draw_seed` keeps their seeds apart.
        window = {"ring": base.ring, "every": base.every, "seed": seed}
        return (learning.floats(rows_of(base.source, size, base.width, base.rows, **window)),)

    return Subject(
        learning.pretrained(base),
        draw,
        lambda m, batch: learning.row_loss(m, *batch),
        lambda m, seed: learning.row_scores(m, *draw(128, seed, "validation"), learning.edges(base)),
    )


def _scored(given: Subject, kind: Importance, seed: int) -> Any:
    """Importance of every group, from ten calibration batches of 64 of the training data."""
    batches = [given.draw(64, draw_seed(seed, 0, step), "train") for step in range(10)]
    return pruning.importance(given.model, batches, given.loss, kind=kind, seed=seed)


@stage(version=2, uses=(pretrain,), reads=(SHIPPED / WEIGHTS,))
def prune(
    work: Path,
    base: Base = "language",
    ratio: Share = 0.5,
    spread: Spread = "uniform",
    importance: Importance = "taylor",
    protect: Protect = (1, 1),
    seed: Seed = 0,
) -> dict:
    """Remove whole groups from a model until `ratio` of all its parameters are gone.

    Metrics: parameters, FLOPs and file size before and after, held-out scores before and after, what each layer kept.
    Files: the pruned checkpoint that `pruning.load_pruned` reads (a model of rows: its weights and sizes).
    """
    with training.reproducible(seed):
        given = subject(base)
        before = given.evaluate(REPORT_SET)
        plan = pruning.plan(given.model, _scored(given, importance, seed), ratio, spread=spread, protect=protect)
        pruned = pruning.prune(given.model, plan)
        after = given.evaluate(REPORT_SET, pruned)
    if base == "language":
        pruning.save_pruned(pruned, work)
    else:
        models.save_weights(pruned, work / WEIGHTS)
    sizes = pruning.sizes(pruned)
    return {**pruning.report(given.model, pruned), "before": before, "after": after, "sizes": sizes}


def load_pruned(pruned: Any) -> nn.Module:
    """The model of a pruning result, pruned if need be. `pruned` are `prune.Params`."""
    result = prune(**pruned.model_dump())
    if pruned.base == "language":
        return pruning.load_pruned(result.folder).to(training.device()).eval()
    model = pruning.resize(learning.untrained(pruned.base), result.metrics["sizes"])
    models.load_weights(model, result.file(WEIGHTS))
    return model.eval()


@stage(version=1, uses=(prune,))
def recover(
    work: Path,
    pruned: prune.Params,
    ranks: LayerRank | list[LayerRank] = 2,
    steps: Steps = 60,
    batch: Size = 28,
    examples: Size = 1400,
    lr: Rate = 1e-2,
    seed: Seed = 0,
) -> dict:
    """Recover a pruned model with LoRA adapters: one rank for all layers, or one for each.

    Every adapter learns from `examples` training examples drawn from `seed`. The rate is the best of 1e-3, 3e-3, 1e-2
    and 2e-2 for a uniform rank 2 at half the parameters removed, by the loss on the search examples.

    Metrics: held-out scores (`search_loss` on the examples that a search may look at; the others on those that only
    reports look at), trainable parameters, history.
    Files: the adapter in PEFT's own format.
    """
    given = subject(pruned.base)
    with training.reproducible(seed):
        adapted = recovery.add_lora(load_pruned(pruned), ranks, seed=seed)
        pool = given.draw(examples, draw_seed(seed, 0, 0), "train")

        def some(step: int) -> tuple[Tensor, ...]:
            chosen = torch.Generator().manual_seed(draw_seed(seed, 0, step))
            rows = torch.randint(len(pool[0]), (batch,), generator=chosen).to(pool[0].device)
            return tuple(part[rows] for part in pool)

        history = training.train(
            adapted,
            some,
            given.loss,
            steps=steps,
            lr=lr,
            seed=seed,
            checkpoint=work / CHECKPOINT,
            label="recover",
        )
        search, report = given.evaluate(SEARCH_SET, adapted), given.evaluate(REPORT_SET, adapted)
    recovery.save_adapter(adapted, work)
    (work / CHECKPOINT).unlink(missing_ok=True)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    return {**report, "search_loss": search["loss"], "trained_parameters": trained, "history": asdict(history)}


@stage(version=2, uses=(pretrain,))
def fragility(
    work: Path,
    base: pretrain.Params,
    ratios: list[Share],
    spread: Spread = "global",
    importance: Importance = "taylor",
    seed: Seed = 0,
) -> dict:
    """Prune one rule's model at several ratios, each time from the whole model, without recovery.

    Metrics: a row for each ratio, 0 first, with the share really removed and the held-out scores; and the loss of the
    untrained model, against which the loss of what was learnt is measured.
    """
    with training.reproducible(seed):
        given = subject(base)
        scored = _scored(given, importance, seed)
        curve = [{"ratio": 0.0, "removed": 0.0, **given.evaluate(REPORT_SET)}]
        for ratio in sorted(ratios):
            plan = pruning.plan(given.model, scored, ratio, spread=spread, protect=(0, 0))
            pruned = pruning.prune(given.model, plan)
            removed = 1 - models.parameter_count(pruned) / models.parameter_count(given.model)
            curve.append({"ratio": ratio, "removed": removed, **given.evaluate(REPORT_SET, pruned)})
        untrained = given.evaluate(REPORT_SET, learning.untrained(base))["loss"]
    return {"curve": curve, "untrained_loss": untrained}

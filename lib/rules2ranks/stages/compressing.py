"""Stages that compress: prune a model, recover it with LoRA, and see how far a rule's model can be pruned."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from rules2ranks import models, pruning, recovery, training
from rules2ranks.runs import stage
from rules2ranks.stages import learning
from rules2ranks.stages.language_suite import language
from rules2ranks.stages.learning import CHECKPOINT, WEIGHTS, draw_seed, pretrain
from rules2ranks.stages.parameters import Importance, Rate, Seed, Share, Size, Spread, Steps
from rules2ranks.stages.subjects import SHIPPED_WEIGHTS, Base, Subject, subject

Protect = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
LayerRank = Annotated[int, Field(ge=0, le=256)]
#: One rank for all layers, one for each, or one for each matrix by its name (matrices without one get no adapter).
Ranks = LayerRank | list[LayerRank] | dict[str, LayerRank]
#: How an adapter starts, or that its ranks move: `recovery.add_lora`, `recovery.add_adalora`.
Method = Literal["lora", "pissa", "eva", "adalora"]


def _sliced(given: Subject, scored: Any, ratio: float, how: dict[str, Any], seed: int) -> nn.Module:
    """A pruned copy. `how`: spread, standardise, protect and compensate, as `prune` takes them."""
    batches, options = given.calibration(seed), {"positions": given.positions}
    blocks = means = None
    if how["spread"] == "importance":
        blocks = pruning.block_importance(given.model, batches, given.loss, **options)
    if how["compensate"]:
        means = scored.means or pruning.input_means(given.model, batches, given.loss, **options)
    plan = pruning.plan(
        given.model,
        scored,
        ratio,
        spread=how["spread"],
        protect=how["protect"],
        blocks=blocks,
        standardise=how["standardise"],
    )
    return pruning.prune(given.model, plan, means=means)


def _scored(given: Subject, kind: Importance, seed: int) -> Any:
    """Importance of every group, from the calibration batches."""
    batches = given.calibration(seed)
    return pruning.importance(given.model, batches, given.loss, kind, seed=seed, positions=given.positions)


@stage(version=2, uses=(pretrain, language), reads=(SHIPPED_WEIGHTS,))
def prune(
    work: Path,
    base: Base = "language",
    ratio: Share = 0.5,
    spread: Spread = "uniform",
    importance: Importance = "taylor",
    standardise: bool = False,
    compensate: bool = False,
    protect: Protect = (1, 1),
    seed: Seed = 0,
) -> dict:
    """Remove whole groups from a model until `ratio` of all its parameters are gone.

    `standardise` makes scores comparable over layers before a global ranking, as FLAP's authors do with theirs;
    `compensate` adds what removed inputs contributed on average to the biases (FLAP), whatever the importance.

    Metrics: parameters, FLOPs and file size before and after, held-out scores before and after, what each layer kept.
    Files: the pruned checkpoint that `pruning.load_pruned` reads (a model of rows: its weights and sizes), and beside
    it a model's own tokenizer.
    """
    with training.reproducible(seed):
        given = subject(base)
        how = {"spread": spread, "standardise": standardise, "protect": protect, "compensate": compensate}
        before = given.evaluate("report")
        pruned = _sliced(given, _scored(given, importance, seed), ratio, how, seed)
        after = given.evaluate("report", pruned)
    if isinstance(pruned, PreTrainedModel):
        pruning.save_pruned(pruned, work)
    else:
        models.save_weights(pruned, work / WEIGHTS)
    for path in given.beside:
        shutil.copyfile(path, work / path.name)
    sizes = pruning.sizes(pruned)
    return {**pruning.report(given.model, pruned), "before": before, "after": after, "sizes": sizes}


def load_pruned(pruned: Any) -> nn.Module:
    """The model of a pruning result, pruned if need be. `pruned` are `prune.Params`."""
    result = prune(**pruned.model_dump())
    if not isinstance(pruned.base, pretrain.Params):
        return pruning.load_pruned(result.folder).to(training.device()).eval()
    model = pruning.resize(learning.untrained(pruned.base), result.metrics["sizes"])
    models.load_weights(model, result.file(WEIGHTS))
    return model.eval()


def _adapted(
    model: nn.Module, ranks: Ranks, method: Method, given: Subject, pool: Sequence[torch.Tensor], steps: int, seed: int
) -> tuple[nn.Module, training.Loss, Callable[[int], None] | None]:
    """The model with the adapter of a method, before training; its loss, and what is done after each step."""
    if method == "adalora":
        adapted = recovery.add_adalora(model, ranks, steps=steps, seed=seed)
        return adapted, recovery.with_orthogonality(given.loss), partial(recovery.allocate, adapted)
    parts = max(1, len(pool[0]) // (given.at_once or 64))  # EVA looks at all of the pool, some examples at a time
    fed = {"batches": list(zip(*(p.tensor_split(parts) for p in pool), strict=True)), "positions": given.positions}
    return recovery.add_lora(model, ranks, start=method, loss=given.loss, seed=seed, **fed), given.loss, None


@stage(version=2, uses=(prune,))
def recover(
    work: Path,
    pruned: prune.Params,
    ranks: Ranks = 2,
    method: Method = "lora",
    steps: Steps = 60,
    batch: Size = 28,
    examples: Size = 1400,
    lr: Rate = 1e-2,
    kl: bool = True,
    seed: Seed = 0,
) -> dict:
    """Recover a pruned model with LoRA adapters: one rank for all layers, or one for each.

    `method` is how they start (LoRA, PiSSA, EVA: `recovery.add_lora`), or AdaLoRA, which moves the ranks about their
    mean as it trains (`recovery.add_adalora`). AdaLoRA begins anew when interrupted; the losses in its history include
    its regulariser.

    Every adapter learns from `examples` training examples drawn from `seed`. The rate is LoRA's best of 1e-3, 3e-3,
    1e-2 and 2e-2 for a uniform rank 2 at half the parameters removed, by the loss on the search examples; EVA's is the
    same, PiSSA's 3e-3, AdaLoRA's 2e-2 (two seeds).

    Metrics: held-out scores (those named `search_…` on the examples that a search may look at, `search_kl` in nats to
    the unpruned model where `kl` asks for it; the others on those that only reports look at), trained parameters (of
    AdaLoRA those of the ranks that it kept, and as `peak_parameters` those that it began with), history.
    Files: the adapter in PEFT's own format, an ordinary LoRA.
    """
    given = subject(pruned.base)
    with training.reproducible(seed):
        pool = given.draw(examples, draw_seed(seed, 0, 0))
        adapted, loss, after_step = _adapted(load_pruned(pruned), ranks, method, given, pool, steps, seed)

        def some(step: int) -> tuple[torch.Tensor, ...]:
            chosen = torch.Generator().manual_seed(draw_seed(seed, 0, step))
            rows = torch.randint(len(pool[0]), (batch,), generator=chosen).to(pool[0].device)
            return tuple(part[rows] for part in pool)

        history = training.train(
            adapted,
            some,
            loss,
            steps=steps,
            lr=lr,
            seed=seed,
            after_step=after_step,
            checkpoint=None if after_step else work / CHECKPOINT,
            label="recover",
        )
        search, report = given.evaluate("search", adapted), given.evaluate("report", adapted)
        for_search = {f"search_{name}": search[name] for name in ("loss", "accuracy")}
        if kl:
            for_search["search_kl"] = given.divergence("search", adapted)
    recovery.save_adapter(adapted, work)
    (work / CHECKPOINT).unlink(missing_ok=True)
    peak = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    counted = {"trained_parameters": peak}
    if method == "adalora":
        counted = {"trained_parameters": recovery.kept_parameters(adapted), "peak_parameters": peak}
    return {**report, **for_search, **counted, "history": asdict(history)}


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
        curve = [{"ratio": 0.0, "removed": 0.0, **given.evaluate("report")}]
        for ratio in sorted(ratios):
            how = {"spread": spread, "standardise": False, "protect": (0, 0), "compensate": False}
            pruned = _sliced(given, scored, ratio, how, seed)
            removed = 1 - models.parameter_count(pruned) / models.parameter_count(given.model)
            curve.append({"ratio": ratio, "removed": removed, **given.evaluate("report", pruned)})
        untrained = given.evaluate("report", learning.untrained(base))["loss"]
    return {"curve": curve, "untrained_loss": untrained}

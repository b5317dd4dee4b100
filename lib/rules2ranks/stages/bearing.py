"""The stage that asks how far a rule's network can be compressed before it loses more than is allowed."""

import copy
from itertools import chain
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import nn

from rules2ranks import decoders, models, pruning, quantisation, recovery, runs, training
from rules2ranks.configuration import Bits
from rules2ranks.importance import Kind
from rules2ranks.stages.compressing import MatrixRank, batches_of
from rules2ranks.stages.learning import Pretraining, draw_seed
from rules2ranks.stages.ranges import Rate, Seed, Share, Size, Steps
from rules2ranks.stages.subjects import Subject, subject

#: Where adapters may go, by what a matrix's name holds; of the layers, those before and behind the middle.
PARTS = {"attention": ".attn.", "MLP": ".mlp."}
HALVES = ("early layers", "late layers")


class Limits(runs.Params):
    """How far one rule's network can go until its loss is more than `allowed` nats per cell above what it was.

    Each question takes its values one after the other and ends with the first that answers it: `shares` of all
    parameters removed, ascending, by each importance; `bits` of all matrices, descending; and, with `ratio` removed,
    `ranks` of LoRA in all matrices, ascending, at the best of `rates` for `steps`. Beside the last, `beside` asks where
    a correction helps: as many trained parameters as that rank has everywhere, in attention or MLPs or half of the
    layers only.
    """

    base: Pretraining
    allowed: Annotated[float, Field(gt=0)] = 0.05
    shares: tuple[Share, ...] = tuple(round(0.05 * place, 2) for place in range(1, 18))
    importance: tuple[Kind, ...] = ("taylor", "l2", "random")
    bits: tuple[Bits, ...] = (8, 4, 3, 2)
    ratio: Share = 0.5
    ranks: tuple[Annotated[MatrixRank, Field(ge=1)], ...] = (1, 2, 4, 8, 16)
    beside: Annotated[MatrixRank, Field(ge=1)] = 2
    rates: tuple[Rate, ...] = (5e-3, 2e-2)
    steps: Steps = 40
    batch: Size = 16
    seed: Seed = 0


@runs.stage(version=1)
def limits(work: Path, given: Limits) -> dict:
    """Prune, quantise and mend one network until it has lost too much, or no longer: see `Limits`.

    All losses are above that of the network as it was, in nats per cell, on examples that neither training nor the
    choice of a rate looked at. Metrics: `loss` as it was; `pruned` by importance, `quantised` and `mended`, a list each
    of what was tried (`removed` is the share really gone; `mended` begins with rank 0); `where`, the loss with
    adapters in one part only; `importance_late` and `importance_mlp`, the shares of Taylor importance that lie in the
    later half of the layers and in MLPs.
    """
    with training.reproducible(given.seed):
        about = subject(given.base)
        whole = about.evaluate("report")["loss"]
        scored = {kind: _scored(about, kind, given.seed) for kind in dict.fromkeys((*given.importance, "taylor"))}
        cut = pruning.prune(about.model, given.ratio, scored["taylor"], spread="global")
        return {
            "loss": whole,
            "pruned": {kind: _pruned(about, given, scored[kind], whole) for kind in given.importance},
            "quantised": _quantised(about, given, whole),
            "mended": _mended(about, given, cut, whole),
            "where": _where(about, given, cut, whole),
            **_shares_of(scored["taylor"]),
        }


def _scored(about: Subject, kind: Kind, seed: int) -> pruning.Scores:
    return pruning.importance(about.model, about.calibration(seed), about.loss, kind, seed=seed)


def _pruned(about: Subject, given: Limits, scored: pruning.Scores, whole: float) -> list[dict]:
    found = []
    for share in sorted(given.shares):
        pruned = pruning.prune(about.model, share, scored, spread="global")
        removed = 1 - models.parameter_count(pruned) / models.parameter_count(about.model)
        found.append({"share": share, "removed": removed, "excess": about.evaluate("report", pruned)["loss"] - whole})
        if found[-1]["excess"] > given.allowed:
            break
    return found


def _quantised(about: Subject, given: Limits, whole: float) -> list[dict]:
    found = []
    for bits in sorted(given.bits, reverse=True):
        widths = dict.fromkeys(about.shapes.matrices, bits)
        model = quantisation.quantise(copy.deepcopy(about.model), widths)
        found.append({"bits": bits, "excess": about.evaluate("report", model)["loss"] - whole})
        if found[-1]["excess"] > given.allowed:
            break
    return found


def _mended(about: Subject, given: Limits, cut: nn.Module, whole: float) -> list[dict]:
    found = [{"rank": 0, "excess": about.evaluate("report", cut)["loss"] - whole}]
    for rank in sorted(given.ranks):
        if found[-1]["excess"] <= given.allowed:
            break
        names = dict.fromkeys(decoders.shapes(cut).matrices, rank)
        found.append({"rank": rank, "excess": _recovered(about, given, cut, names) - whole})
    return found


def _where(about: Subject, given: Limits, cut: nn.Module, whole: float) -> dict[str, float]:
    """The loss above what it was with as many trained parameters in each part, to within one rank."""
    layers = decoders.shapes(cut).names
    middle = len(layers) // 2
    parts = {part: [name for name in chain(*layers) if word in name] for part, word in PARTS.items()}
    parts |= zip(HALVES, ([*chain(*layers[:middle])], [*chain(*layers[middle:])]), strict=True)
    budget = recovery.lora_parameters(cut, given.beside)
    found = {}
    for part, names in parts.items():
        rank = max(1, round(budget / recovery.lora_parameters(cut, dict.fromkeys(names, 1))))
        found[part] = _recovered(about, given, cut, dict.fromkeys(names, rank)) - whole
    return found


def _recovered(about: Subject, given: Limits, cut: nn.Module, ranks: dict[str, int]) -> float:
    """The report's loss after LoRA at the rate that was best on the search's examples."""
    pool, found = about.draw(given.steps * given.batch, draw_seed(given.seed, 0, 0)), []
    for lr in given.rates:
        adapted = recovery.add_adapter(copy.deepcopy(cut), ranks, seed=given.seed)
        trained = recovery.trainable(adapted)
        batches, schedule = batches_of(pool, given.batch, given.seed), training.Schedule(given.steps, lr)
        training.train(trained, batches, about.loss, schedule, seed=given.seed, label="mend")
        found.append([about.evaluate(part, trained)["loss"] for part in ("search", "report")])
    return min(found)[1]


def _shares_of(scored: pruning.Scores) -> dict[str, float]:
    """Where Taylor importance lies: in the later half of the layers, and in MLPs."""
    attention, channels = ([float(layer.sum()) for layer in part] for part in (scored.attention, scored.channels))
    whole, middle = sum(attention) + sum(channels), len(attention) // 2
    late = sum(attention[middle:]) + sum(channels[middle:])
    return {"importance_late": late / whole, "importance_mlp": sum(channels) / whole}

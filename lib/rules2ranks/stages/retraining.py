"""The stage beside which adapters have to stand: all weights of a pruned model trained, or a new model of its shape."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from rules2ranks import models, pruning, runs, training
from rules2ranks.stages.compressing import Pruning, batches_of, load_pruned, prune, recovered_scores
from rules2ranks.stages.learning import CHECKPOINT, WEIGHTS, draw_seed
from rules2ranks.stages.ranges import Rate, Seed, Size, Steps
from rules2ranks.stages.subjects import Base, Batch, subject


class Retraining(runs.Params):
    """Train all weights of a pruned model: those that pruning left, or new ones (`scratch`).

    The batches are drawn from a pool of `examples`, the same as a recovery's at the same seed; without it every step
    has new ones.
    """

    pruned: Pruning
    start: Literal["pruned", "scratch"] = "pruned"
    steps: Steps = 60
    batch: Size = 28
    examples: Size | None = 1400
    lr: Rate = 1e-3
    seed: Seed = 0

    @property
    def base(self) -> Base:
        """The model that was pruned."""
        return self.pruned.base


@runs.stage(version=1)
def retrain(work: Path, given: Retraining) -> dict:
    """Train all weights of a pruned model, or of a new one of its shape: see `Retraining`.

    Metrics: held-out scores as `recover` has them, trained parameters, history. Files: the checkpoint that
    `pruning.load_pruned` reads (a model of rows: its weights).
    """
    about = subject(given.base)
    training.check_memory(about.step_bytes(given.batch), f"training with batch={given.batch}")
    with training.reproducible(given.seed):
        model = _begun(given).to(training.device()).requires_grad_(True)
        history = training.train(
            model,
            _batches(given),
            about.loss,
            training.Schedule(given.steps, given.lr),
            seed=given.seed,
            checkpoint=work / CHECKPOINT,
            label="retrain",
        )
        scores = recovered_scores(about, model, kl=False)
    if isinstance(model, PreTrainedModel):
        pruning.save_pruned(model, work)
    else:
        models.save_weights(model, work / WEIGHTS)
    (work / CHECKPOINT).unlink(missing_ok=True)
    return {**scores, "trained_parameters": models.parameter_count(model), "history": asdict(history)}


def _begun(given: Retraining) -> nn.Module:
    if given.start == "pruned":
        return load_pruned(given.pruned)
    return pruning.resize(subject(given.base).untrained(given.seed), prune(given.pruned).metrics["sizes"])


def _batches(given: Retraining) -> Callable[[int], Batch]:
    about = subject(given.base)
    if given.examples is None:
        return lambda step: about.draw(given.batch, draw_seed(given.seed, 0, step))
    return batches_of(about.draw(given.examples, draw_seed(given.seed, 0, 0)), given.batch, given.seed)

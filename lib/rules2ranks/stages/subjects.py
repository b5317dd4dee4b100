"""What can be compressed: a model together with what it learnt from, so that every stage treats all models alike."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rules2ranks import models, training
from rules2ranks.published import data_folder
from rules2ranks.stages import language_suite, learning
from rules2ranks.stages.language_suite import language
from rules2ranks.stages.learning import WEIGHTS, draw_seed, pretrain
from rules2ranks.tasks.rows import rows_of

#: The trained model of the language suite that the project ships.
SHIPPED = data_folder() / "models" / "language_suite"
SHIPPED_WEIGHTS = SHIPPED / WEIGHTS
#: Held-out examples that a search may look at, and others that only reports look at: the same for every run.
Part = Literal["search", "report"]
SEEDS: dict[Part, int] = {"search": draw_seed(0, 1, 1), "report": draw_seed(0, 1, 2)}
HELD_OUT = 700

#: The shipped model; one trained here (with another seed, say); or a model that learnt from a rule.
Base = Literal["language"] | language.Params | pretrain.Params


@dataclass(frozen=True)
class Subject:
    """A model to compress, with what it learnt from.

    `draw(size, seed)` gives a batch of training data that `loss` takes; `held_out(part)` a batch that training never
    draws. `logits(model, batch)` are those of all scored positions, `(n, classes)`; `scores(model, batch)` has at
    least `loss` and `accuracy`.
    """

    load: Callable[[], nn.Module]
    draw: Callable[[int, int], Any]
    held_out: Callable[[Part], Any]
    loss: training.Loss
    logits: Callable[[nn.Module, Any], Tensor]
    scores: Callable[[nn.Module, Any], dict[str, float]]

    @cached_property
    def model(self) -> nn.Module:
        """The unpruned model, on the device, in evaluation mode; loaded when first asked for."""
        return self.load()

    def calibration(self, seed: int, batches: int = 10, size: int = 64) -> list[Any]:
        """Batches of training data for importance: ten of 64 unless said."""
        return [self.draw(size, draw_seed(seed, 0, step)) for step in range(batches)]

    def evaluate(self, part: Part, model: nn.Module | None = None) -> dict[str, float]:
        """Scores of the model (or of another in its place) on held-out examples."""
        batch = self.held_out(part)
        return training.evaluated(self.model if model is None else model, lambda m: self.scores(m, batch))

    def divergence(self, part: Part, model: nn.Module) -> float:
        """KL(unpruned ‖ model) in nats per scored position, the mean over held-out examples."""
        batch = self.held_out(part)
        theirs, ours = (
            training.evaluated(m, lambda m: self.logits(m, batch).double().log_softmax(-1)) for m in (self.model, model)
        )
        return torch.sum(theirs.exp() * (theirs - ours), -1).mean().item()


def subject(base: Any) -> Subject:
    """The subject that a `Base` names; its model is trained first if need be."""
    if isinstance(base, pretrain.Params):
        return _of_rows(base)
    return _of_language(SHIPPED if base == "language" else language(**base.model_dump()).folder)


def _of_language(folder: Any) -> Subject:
    return Subject(
        load=lambda: models.load_causal_lm(folder).to(training.device()),
        draw=lambda size, seed: language_suite.language_pairs(size, seed, "train"),
        held_out=lambda part: language_suite.language_pairs(HELD_OUT, SEEDS[part], "validation"),
        loss=language_suite.language_loss,
        logits=language_suite.answer_logits,
        scores=language_suite.language_scores,
    )


def _of_rows(base: Any) -> Subject:
    def draw(size: int, seed: int) -> tuple[Tensor, ...]:
        # Splits need no other handling: `draw_seed` keeps their seeds apart.
        window = {"ring": base.ring, "every": base.every, "seed": seed}
        return (learning.floats(rows_of(base.source, size, base.width, base.rows, **window)),)

    def logits(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        ones = model(batch[0][..., :-1, :]).reshape(-1)
        return torch.stack([torch.zeros_like(ones), ones], -1)

    return Subject(
        load=lambda: learning.pretrained(base),
        draw=draw,
        held_out=lambda part: draw(128, SEEDS[part]),
        loss=lambda model, batch: learning.row_loss(model, *batch),
        logits=logits,
        scores=lambda model, batch: learning.row_scores(model, *batch, learning.edges(base)),
    )

"""The form of a recovery method, and what it may look at."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from rules2ranks import quantisation
from rules2ranks.calibration import Loss, Positions
from rules2ranks.configuration import GROUP
from rules2ranks.recovery.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a method may look at beside the model and its ranks.

    Args:
        seed: of whatever is drawn.
        steps: optimiser steps of the training to come; AdaLoRA plans by them.
        loss: `loss(model, batch)` of the training; EVA feeds batches to the model through it.
        batches: the training data, in as many parts as fit; EVA looks at what they put into the matrices.
        positions: which positions of a batch count, bool (examples, positions), all unless given. Give it where there
            is padding.
        alpha_per_rank: alpha = alpha_per_rank × rank, so the factor alpha/r of the correction is the same everywhere.
        dropout: in [0, 1), of the adapter's input; else ValueError.
        bits: of matrices by name, where fewer than 16: the frozen weights are quantised before the training.
        group: numbers that share a scale and a zero there.
        packed: whether these are kept packed, or hold their values, which is faster.
        rounds: how often LoftQ goes from bits to ranks and back.
    """

    seed: int
    steps: int | None = None
    loss: Loss | None = None
    batches: Sequence[Any] = ()
    positions: Positions | None = None
    alpha_per_rank: float = 2.0
    dropout: float = 0.0
    bits: Mapping[str, int] = field(default_factory=dict)
    group: int = GROUP
    packed: bool = False
    rounds: int = quantisation.ROUNDS

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")


class Method(ABC):
    """How a pruned model is mended: what is trained of it, how that starts, is counted and saved.

    A new method is a file in `recovery/methods/`, an entry of `METHODS` there, and a test. One of LoRA's kin builds on
    `methods.lora.Lora`, which saves and merges; it may come down to `add`. Any other answers all abstract calls itself:
    `adapted` is whatever model its own `add` has returned. What a method must remember of a model it leaves in that
    model: one instance serves all.
    """

    #: What it is called wherever a method is chosen.
    name: ClassVar[str]
    #: Whether a training that was stopped goes on to the same bits from the trained parameters and the optimiser.
    resumes: ClassVar[bool] = True

    @abstractmethod
    def add(self, model: nn.Module, ranks: Ranks, given: Given) -> nn.Module:
        """Make `model` ready for training, in place, and return it or its wrapper: what is trained has gradients on.

        Raises:
            ValueError: ranks that the model or the method cannot have, or something missing in `given`; before `model`
                is touched.
        """

    def quantise(self, model: nn.Module, given: Given) -> None:
        """Quantise what `given.bits` says, in place, before `add`; a method may do it there with its ranks in view."""
        (quantisation.pack if given.packed else quantisation.quantise)(model, given.bits, given.group)

    def loss(self, loss: Loss) -> Loss:
        """The loss to train with, where the plain one is `loss`."""
        return loss

    def after_step(self, adapted: nn.Module) -> Callable[[int], None] | None:
        """What to call after every optimiser step, with the number of finished steps, while gradients are there."""
        return None

    def counts(self, adapted: nn.Module) -> dict[str, int]:
        """`trained_parameters`, and what else the method counts."""
        return {"trained_parameters": sum(p.numel() for p in adapted.parameters() if p.requires_grad)}

    @abstractmethod
    def merge(self, adapted: nn.Module) -> nn.Module:
        """The plain model with the correction in its weights; `adapted` is taken apart."""

    @abstractmethod
    def save(self, adapted: nn.Module, folder: str | Path) -> None:
        """Write the correction as files that `recovery.load_adapter` reads."""

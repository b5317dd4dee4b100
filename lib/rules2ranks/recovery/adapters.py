"""Adapters of every method, for those who use them: put on, merged, saved and loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from rules2ranks.calibration import Loss, Positions
from rules2ranks.recovery.files import load_lora
from rules2ranks.recovery.method import Given, Method
from rules2ranks.recovery.methods import METHODS
from rules2ranks.recovery.methods.lora import Lora
from rules2ranks.recovery.ranks import Ranks
from rules2ranks.recovery.wrapping import check_plain


def add_adapter(
    model: nn.Module,
    ranks: Ranks,
    method: str = Lora.name,
    *,
    seed: int,
    steps: int | None = None,
    loss: Loss | None = None,
    batches: Sequence[Any] = (),
    positions: Positions | None = None,
    alpha_per_rank: float = 2.0,
    dropout: float = 0.0,
) -> nn.Module:
    """Put the adapter of a method on the matrices of every decoder layer, ready for training.

    `model` itself is changed (PEFT wraps its matrices and freezes all else); `merge` gives a plain model back. At first
    it computes what it did without the adapter. The global random state is neither used nor moved. How an adapter
    starts and what it needs stands with its method: `help(METHODS[method])`.

    Args:
        ranks: one for all layers, one per decoder layer, or one per matrix by its full name (the others none).
        seed: of whatever is drawn.
        steps: optimiser steps of the training to come; AdaLoRA plans by them.
        loss: `loss(model, batch)` of the training; EVA feeds batches to the model through it.
        batches: the training data, in as many parts as fit; EVA looks at what they put into the matrices.
        positions: which positions of a batch count, bool (examples, positions), all unless given. Give it where there
            is padding.
        alpha_per_rank: alpha = alpha_per_rank × rank, so the factor alpha/r of the correction is the same everywhere.
        dropout: in [0, 1), of the adapter's input.

    Raises:
        ValueError: an unknown method; ranks of the wrong number, negative, over the model's width or all zero; unknown
            names; a model that has an adapter already; ranks or data that the method cannot start from.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    given = Given(
        seed=seed,
        steps=steps,
        loss=loss,
        batches=batches,
        positions=positions,
        alpha_per_rank=alpha_per_rank,
        dropout=dropout,
    )
    check_plain(model)
    adapted = METHODS[method].add(model, ranks, given)
    adapted.recovery_method = method
    return adapted


def load_adapter(model: nn.Module, folder: str | Path, *, trainable: bool = False) -> PeftModel:
    """Put a saved LoRA adapter on `model` (changed in place), after checking every name and shape.

    Raises:
        ValueError: files missing or damaged, not LoRA, a model with an adapter already, or anything that does not fit:
            then each misfit is named and the model is left untouched.
    """
    check_plain(model)
    adapted = load_lora(model, folder, trainable)
    adapted.recovery_method = Lora.name
    return adapted


def method_of(adapted: nn.Module) -> Method:
    """The method that an adapter is trained by: its loss, what follows a step, what it counts.

    Raises:
        ValueError: a model without an adapter of `add_adapter` or `load_adapter`.
    """
    name = getattr(adapted, "recovery_method", None)
    if name is None:
        raise ValueError(f"a {type(adapted).__name__} that add_adapter or load_adapter has not returned has no method")
    return METHODS[name]


def merge(adapted: nn.Module) -> nn.Module:
    """The plain model with the correction added to its weights. It takes `adapted` apart: use only the result.

    Parameters that the adapter froze stay frozen.

    Raises:
        ValueError: the merged weights are not finite.
    """
    return method_of(adapted).merge(adapted)


def save_adapter(adapted: nn.Module, folder: str | Path) -> None:
    """Write the adapter as PEFT does (`adapter_config.json`, `adapter_model.safetensors`): an ordinary LoRA.

    Plain `PeftModel.from_pretrained(pruned_model, folder)` loads it; `load_adapter` also checks that it fits.
    """
    method_of(adapted).save(adapted, folder)

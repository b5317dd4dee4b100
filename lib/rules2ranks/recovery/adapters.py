"""Adapters of every method, for those who use them: put on, merged, saved and loaded."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from rules2ranks.decoders import width
from rules2ranks.models import misfits, read_tensors
from rules2ranks.quantisation import Packed
from rules2ranks.recovery import in_place
from rules2ranks.recovery.method import Given, Method
from rules2ranks.recovery.methods import METHODS
from rules2ranks.recovery.methods.lora import Lora
from rules2ranks.recovery.ranks import Ranks, ranks_by_name
from rules2ranks.recovery.wrapping import CONFIG, PREFIX, WEIGHTS, adapted_matrices


def add_adapter(model: nn.Module, ranks: Ranks, method: str = Lora.name, **given: Any) -> nn.Module:
    """Put the adapter of a method on the matrices of every decoder layer, ready for training.

    `model` itself is changed (PEFT wraps its matrices and freezes all else); `merge` gives a plain model back. At first
    it computes what it did without the adapter, or, where matrices are quantised, as near to it as the method comes.
    The global random state is neither used nor moved. How an adapter starts and what it needs stands with its method:
    `help(METHODS[method])`.

    Args:
        ranks: one for all layers, one per decoder layer, or one per matrix by its full name (the others none).
        given: `seed`, and whatever else `Given` has: what of it must be there depends on the method.

    Raises:
        ValueError: an unknown method; ranks of the wrong number, negative, over the model's width or all zero; unknown
            names; a model that has an adapter already; ranks or data that the method cannot start from.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    _check_plain(model)
    about = Given(**given)
    if about.bits:
        ranks = ranks_by_name(model, ranks)  # what is wrong with them is told before anything is quantised
        METHODS[method].quantise(model, about)
    adapted = METHODS[method].add(model, ranks, about)
    adapted.recovery_method = method
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
        ValueError: the merged weights are not finite; or an adapted matrix is packed: its few bits cannot say the sum.
    """
    of_peft = adapted_matrices(adapted) if isinstance(adapted, PeftModel) else ()
    if packed := [name for _, name, module in of_peft if isinstance(module.get_base_layer(), Packed)]:
        raise ValueError(f"{packed[0]} is packed in few bits: its adapter stays beside it, merging would not be exact")
    return method_of(adapted).merge(adapted)


def save_adapter(adapted: nn.Module, folder: str | Path) -> None:
    """Write the adapter as PEFT does (`adapter_config.json`, `adapter_model.safetensors`): an ordinary LoRA.

    Plain `PeftModel.from_pretrained(pruned_model, folder)` loads it; `load_adapter` also checks that it fits, and alone
    reads the `correction.safetensors` of a method that trains weights in place.
    """
    method_of(adapted).save(adapted, folder)


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """Put a saved LoRA on `model` (changed in place), frozen, after checking every name and shape; the correction of a
    method that trains weights in place is in the weights then.

    Raises:
        ValueError: files missing or damaged, not LoRA, a model with an adapter already, or anything that does not fit:
            then each misfit is named and the model is left untouched.
    """
    _check_plain(model)
    folder = Path(folder)
    if (folder / in_place.CORRECTION).is_file():
        corrected, method = in_place.load(model, folder)
        corrected.recovery_method = method
        return corrected
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: expected a folder in PEFT's format with safetensors")
    if (kind := json.loads((folder / CONFIG).read_text()).get("peft_type")) != "LORA":
        raise ValueError(f"expected a LORA adapter, got {kind}")
    held = {name: tuple(tensor.shape) for name, tensor in read_tensors(folder / WEIGHTS).items()}
    wrong = misfits(_needed(model, PeftConfig.from_pretrained(str(folder))), held)
    if wrong or not held:
        raise ValueError(f"the adapter does not fit this model, nothing was loaded:\n{wrong}")
    with torch.random.fork_rng(devices=[]):
        adapted = PeftModel.from_pretrained(model, str(folder))
    adapted.recovery_method = Lora.name
    return adapted


def _check_plain(model: nn.Module) -> None:
    if any(isinstance(module, LoraLayer) or parametrize.is_parametrized(module) for module in model.modules()):
        raise ValueError("the model has an adapter already: merge it first")


def _needed(model: nn.Module, config: PeftConfig) -> dict[str, tuple[int, int]]:
    """The shapes of the tensors that PEFT would put on `model` for `config`, by their names in the file."""
    shapes = {}
    for name, module in model.named_modules():
        if name and check_target_module_exists(config, name):
            if not isinstance(module, nn.Linear | Conv1D):
                raise ValueError(f"the adapter wants {name}, a {type(module).__name__}: only matrices can be checked")
            inputs, outputs = width(module)
            rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)
            shapes[f"{PREFIX}{name}.lora_A.weight"] = (rank, inputs)
            shapes[f"{PREFIX}{name}.lora_B.weight"] = (outputs, rank)
    return shapes

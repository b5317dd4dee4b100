"""Adapters as files in PEFT's own format: ordinary LoRA, whatever they were trained as."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rules2ranks.recovery.ranks import width
from rules2ranks.recovery.wrapping import lora_config

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # what PEFT puts before a module's name


def load_lora(model: nn.Module, folder: str | Path, trainable: bool) -> PeftModel:
    """Put a saved LoRA on a plain model, after checking every name and shape.

    Raises:
        ValueError: files missing or damaged, not LoRA, or anything that does not fit: then each misfit is named and the
            model is left untouched.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: expected a folder in PEFT's format with safetensors")
    if (kind := json.loads((folder / CONFIG).read_text()).get("peft_type")) != "LORA":
        raise ValueError(f"expected a LORA adapter, got {kind}")
    config = PeftConfig.from_pretrained(str(folder))
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged: {error}") from error
    _check_fit(_shapes_called_for(model, config), weights)
    with torch.random.fork_rng(devices=[]):
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)


def write_lora(
    adapted: PeftModel, pairs: Mapping[str, tuple[Tensor, Tensor]], alpha_per_rank: float, folder: str | Path
) -> None:
    """Write A and B of each matrix, by its name, as an ordinary LoRA: W + alpha_per_rank · B·A.

    A is (rank, inputs), B is (outputs, rank); matrices of rank 0 are left out.
    """
    folder, own = Path(folder), adapted.peft_config["default"]
    folder.mkdir(parents=True, exist_ok=True)
    ranks = {name: len(a) for name, (a, _) in pairs.items() if len(a)}
    base = adapted.get_base_model()
    config = lora_config(base, ranks, alpha_per_rank, own.lora_dropout)
    config.fan_in_fan_out, config.inference_mode = own.fan_in_fan_out, True
    config.base_model_name_or_path = base.__dict__.get("name_or_path")
    config.save_pretrained(str(folder))
    config_file = folder / CONFIG
    content = json.loads(config_file.read_text())
    content["target_modules"] = list(ranks)  # PEFT writes a set, in an order that changes from process to process
    config_file.write_text(json.dumps(content, indent=2, sort_keys=True))
    tensors = {
        f"{PREFIX}{name}.lora_{x}.weight": p.detach().cpu().contiguous()
        for name in ranks
        for x, p in zip("AB", pairs[name], strict=True)
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _shapes_called_for(model: nn.Module, config: PeftConfig) -> dict[str, tuple[int, int]]:
    """The tensors that PEFT would put on `model` for `config`, by their names in the file."""
    shapes = {}
    for name, module in model.named_modules():
        if name and check_target_module_exists(config, name):
            if not isinstance(module, Conv1D) and not hasattr(module, "in_features"):
                raise ValueError(f"the adapter wants {name}, a {type(module).__name__}: only matrices can be checked")
            inputs, outputs = width(module)
            rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)
            shapes[f"{PREFIX}{name}.lora_A.weight"] = (rank, inputs)
            shapes[f"{PREFIX}{name}.lora_B.weight"] = (outputs, rank)
    return shapes


def _check_fit(expected: Mapping[str, tuple[int, int]], weights: Mapping[str, Tensor]) -> None:
    wrong = []
    for name in sorted(expected.keys() | weights.keys()):
        want = expected.get(name, "no such tensor")
        have = tuple(weights[name].shape) if name in weights else "no such tensor"
        if want != have:
            wrong.append(f"{name.removeprefix(PREFIX)}: the model calls for {want}, the file has {have}")
    if wrong or not weights:
        raise ValueError("the adapter does not fit this model, nothing was loaded:\n" + "\n".join(wrong))

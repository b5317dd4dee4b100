"""Pruned and packed models on disk: weights as safetensors, and what `config.json` cannot say of their shapes."""

import copy
import json
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from rules2ranks import checkpoints, configuration, decoders, quantisation
from rules2ranks.decoders import add_biases, outputs, resize, sizes
from rules2ranks.models import misfits, parameter_count, read_tensors

#: 2: some matrices are packed. An older version does not read it, and says so.
FORMATS = PLAIN, PACKED = 1, 2
CONFIG, ABOUT, WEIGHTS, INDEX = "config.json", "pruning.json", "model.safetensors", "model.safetensors.index.json"


def save_pruned(model: nn.Module, folder: str | Path) -> None:
    """Write `model.safetensors`, the model's own `config.json`, and `pruning.json`.

    The last names the sizes of every layer, the matrices that got a bias from compensation, and the bits of those that
    `quantisation.pack` has packed.

    Raises:
        ValueError: not a transformers model: save `sizes(model)` and the weights, and load them after `resize` (and
            `add_biases`, where compensation made some).
    """
    if not isinstance(model, transformers.PreTrainedModel):
        raise ValueError(
            f"expected a transformers model, got {type(model).__name__}: merge an adapter first; "
            "of any other module save its sizes and its weights"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights_of(model).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    write_about(model, folder)


def write_about(model: transformers.PreTrainedModel, folder: Path) -> None:
    """Write `config.json` and `pruning.json` of a pruned model; its shapes are all that is read."""
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], model.dtype
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    whole = decoders.skeleton(config)
    without = {name for name, module in outputs(whole).items() if module.bias is None}
    parameters, bits = decoders.shapes(model).parameters, quantisation.bits_of(model)
    about = {
        "format": PACKED if bits else PLAIN,
        "parameters": parameters,
        "ratio_removed": 1 - parameters / parameter_count(whole),
        "layers": sizes(model),
        "biases": [name for name, module in outputs(model).items() if name in without and module.bias is not None],
    }
    if bits:
        about |= {"bits": bits, "group": next(m.group for m in model.modules() if isinstance(m, quantisation.Packed))}
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n")


def write_index(folder: Path, files: dict[str, str]) -> None:
    """Write which file has which tensor, as transformers has it of a model in several files."""
    size = sum((folder / name).stat().st_size for name in set(files.values()))
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def load_pruned(folder: str | Path) -> transformers.PreTrainedModel:
    """The model that `save_pruned` wrote, or `Streamed.prune` in several files, bit for bit, in eval mode.

    Raises:
        ValueError: a file is missing or damaged, or a tensor's name, shape or type is not the one that `config.json`
            and `pruning.json` call for; nothing is loaded in part.
    """
    folder = Path(folder)
    _check_files(folder, (CONFIG, ABOUT))
    parts = checkpoints.weights(folder) or [folder / WEIGHTS]
    _check_files(folder, tuple(part.name for part in parts))
    weights = {name: tensor for part in parts for name, tensor in read_tensors(part).items()}
    model = skeleton(folder)
    needed, held = (
        {name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in of.items()}
        for of in (weights_of(model), weights)
    )
    if wrong := misfits(needed, held):
        raise ValueError(f"the weights do not fit the model, nothing was loaded:\n{wrong}")
    # A tied tensor is in the file once, under one of its names; tying gives it the others.
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval()


def skeleton(folder: str | Path) -> transformers.PreTrainedModel:
    """The model that `save_pruned` wrote, as far as its shapes go: no weights are read, parameters are on "meta".

    Raises:
        ValueError: a file is missing or damaged, or `config.json` and `pruning.json` do not fit each other.
    """
    folder = Path(folder)
    _check_files(folder, (CONFIG, ABOUT))
    about = _read_about(folder / ABOUT)
    whole = decoders.skeleton(_config(folder / CONFIG))
    model = add_biases(resize(whole, about["layers"]), about["biases"])
    return quantisation.make_room(model, about["bits"], about["group"])


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The state by name, a tensor that has two names (tied embeddings) under the first only."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    return state


def _check_files(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: expected a folder that save_pruned wrote")


def _config(path: Path) -> transformers.PreTrainedConfig:
    """The configuration as transformers itself knows it: what `portable` adds is left out, and no code is ever run."""
    raw = _read_json(path)
    for name in ("auto_map", "pruned"):
        raw.pop(name, None)
    kind = raw.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise ValueError(f"{path} is of the type {kind}, which transformers does not have")
    return transformers.CONFIG_MAPPING[kind].from_dict(raw)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: expected an object, found {found!r:.60}")
    return found


def _read_about(path: Path) -> dict[str, Any]:
    """`pruning.json`, with what older versions did not name yet."""
    about = _read_json(path)
    if about.get("format") not in FORMATS:
        raise ValueError(f"pruning.json has format {about.get('format')}, this version reads {PLAIN} and {PACKED}")
    about.setdefault("biases", [])  # not named before there was bias compensation
    about = {"bits": {}, "group": configuration.GROUP} | about
    needed = {"layers": list, "biases": list, "bits": dict, "group": int}
    for (key, kind), what in zip(needed.items(), ("a list", "a list", "an object", "a number"), strict=True):
        if not isinstance(about.get(key), kind):
            raise ValueError(f"{path} needs {what} of {key}, got {about.get(key)}")
    return about

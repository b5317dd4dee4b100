"""Pruned folders that plain transformers loads: an ordinary checkpoint where sizes allow it, else with code beside.

`config.json` of transformers has one size for all layers. Where all are alike, the pruned sizes are written there, and
nothing else is needed. Otherwise the folder gets a modelling file (`decoders.standalone` and a class), and loads with

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
"""

import inspect
import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from rules2ranks import decoders, quantisation
from rules2ranks.decoders import standalone
from rules2ranks.decoders.standalone import LayerConfig, Nothing, NothingAttended
from rules2ranks.pruning import files

CODE = "modeling_pruned.py"
#: What configurations call the number of heads, of key/value heads, and of channels.
HEADS, KEYS, CHANNELS = "num_attention_heads", "num_key_value_heads", ("intermediate_size", "ffn_dim", "n_inner")
_CLASSES = '''

# --- written for this model -----------------------------------------------------------------------------------------

from transformers import {kind} as Whole  # noqa: E402


class PrunedForCausalLM(Whole):
    """The whole model, with layers of their own sizes: `config.json` says where they differ."""

    def __init__(self, config):
        super().__init__(config)
        fit(self, config.pruned)
'''


def make_portable(folder: str | Path) -> bool:
    """Have plain transformers load what `save_pruned` wrote, too; returns whether it is an ordinary checkpoint now.

    If it is not, it has a modelling file, which transformers runs with `trust_remote_code=True`; without, it finds that
    the sizes do not fit, and says so. The type of the model stays, since transformers chooses a tokenizer by it.
    `load_pruned` loads either, and never runs that file.

    Raises:
        ValueError: as `load_pruned` of folders that are not whole; or some matrices are packed in few bits, which only
            this package knows.
    """
    folder = Path(folder)
    model = files.skeleton(folder)
    if packed := quantisation.bits_of(model):
        raise ValueError(
            f"{folder}: {len(packed)} matrices are packed in few bits, which transformers cannot load: "
            "recover and export with 16 bits, or load the folder with rules2ranks.pruning.load_pruned"
        )
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if alike := _alike(model):
        raw |= alike
    else:
        raw |= _own_code(model, folder / CODE)
    (folder / "config.json").write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return bool(alike)


def _alike(model: PreTrainedModel) -> dict[str, int]:
    """Entries of a configuration that makes the very shapes of this model; none if there are no such."""
    sizes = {(layer.attention.count, layer.channels.count) for layer in decoders.groups(model)}
    if len(sizes) > 1:
        return {}
    config, ((groups, channels),) = model.config, sizes
    keys = getattr(config, KEYS, None)
    now = {name: channels for name in CHANNELS}
    if keys:
        heads = config.num_attention_heads
        now |= {KEYS: groups, HEADS: heads // keys * groups}
        if groups != keys and getattr(config, "head_dim", None) is None:
            now["head_dim"] = config.hidden_size // heads
    entries = {name: size for name, size in now.items() if hasattr(config, name) or name == "head_dim"}
    smaller = type(config).from_dict(config.to_dict() | entries)
    try:
        whole = decoders.skeleton(smaller, type(model))
    except Exception:  # sizes that the architecture does not take, in words of its own
        return {}
    return entries if not differences(whole, model) else {}


def _own_code(model: PreTrainedModel, file: Path) -> dict[str, Any]:
    """Write the modelling file, and return the entries of a configuration that calls for it."""
    kind = type(model).__name__
    file.write_text(inspect.getsource(standalone).rstrip() + _CLASSES.format(kind=kind), encoding="utf-8")
    return {
        "auto_map": {"AutoModelForCausalLM": f"{file.stem}.PrunedForCausalLM"},
        "pruned": differences(decoders.skeleton(model.config, type(model)), model),
    }


def differences(whole: nn.Module, pruned: nn.Module) -> dict[str, dict[str, Any]]:
    """By module, where `pruned` differs from `whole`, as `standalone.fit` takes it: JSON-able, empty if nowhere."""
    found = {}
    for name, module in pruned.named_modules():
        was, own = whole.get_submodule(name), {}
        shapes = {key: list(p.shape) for key, p in module.named_parameters(recurse=False)}
        if shapes != {key: list(p.shape) for key, p in was.named_parameters(recurse=False)}:
            own["shapes"] = shapes
        numbers = {key: value for key, value in vars(module).items() if type(value) is int}
        if changed := {key: value for key, value in numbers.items() if getattr(was, key, None) != value}:
            own["numbers"] = changed
        if isinstance(config := getattr(module, "config", None), LayerConfig):
            entries = {key: value for key, value in vars(config).items() if key != "_shared"}
            if any(getattr(was.config, key) != value for key, value in entries.items()):
                own["config"] = entries
        if isinstance(forward := vars(module).get("forward"), Nothing):
            own["empty"] = [forward.output, isinstance(forward, NothingAttended)]
        if own:
            found[name] = own
    return found

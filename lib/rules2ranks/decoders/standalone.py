"""What a pruned decoder needs beside transformers: layers of their own sizes, and parts of which nothing is left.

A copy of this file lies in an exported folder (`pruning.portable`), where this package may not be installed: it imports
nothing else, and the class that is written below its last line there is all that comes on top.
"""

from typing import Any

import torch
from torch import Tensor, nn


class LayerConfig:
    """A model's configuration as one layer sees it: some entries are its own, the others the model's, changes too."""

    def __init__(self, shared: Any, own: dict[str, Any]):
        vars(self).update(own, _shared=shared)

    def __getattr__(self, name: str) -> Any:
        if name == "_shared" or name.startswith("__"):  # asked for by copy and pickle, before there is anything
            raise AttributeError(name)
        return getattr(self._shared, name)


class Nothing:
    """In place of a module's `forward`: what it computes when its output matrix, of that name, has no inputs."""

    def __init__(self, module: nn.Module, output: str):
        self.module, self.output = module, output

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        bias = getattr(self.module, self.output).bias
        nothing = torch.zeros_like(hidden_states)
        return nothing if bias is None else nothing + bias


class NothingAttended(Nothing):
    """The same of attention, which answers with its weights too, and lets the cache know how long the text is.

    transformers asks the first layer's keys for that; one number a position stands for them.
    """

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get("past_key_values", kwargs.get("layer_past"))
        if cache is not None:
            keys = torch.zeros_like(hidden_states[:, None, :, :1])
            cache.update(keys, keys, self.module.layer_idx)
        return super().__call__(hidden_states), None


def fit(model: nn.Module, own: dict[str, dict[str, Any]]) -> None:
    """Give a model, in place, where it is to differ, by module: the values of new parameters mean nothing yet.

    `shapes` are those of its parameters, `numbers` what it remembers of sizes, `config` the entries of its own, `empty`
    the name of an output matrix without inputs, and whether that is attention's.
    """
    for name, what in own.items():
        module = model.get_submodule(name)
        like = next(module.parameters(recurse=False), None)
        for key, shape in what.get("shapes", {}).items():
            setattr(module, key, nn.Parameter(like.new_empty(shape), like.requires_grad))
        vars(module).update(what.get("numbers", {}))
        if "config" in what:
            module.config = LayerConfig(module.config, what["config"])
        if "empty" in what:
            output, attended = what["empty"]
            module.forward = (NothingAttended if attended else Nothing)(module, output)

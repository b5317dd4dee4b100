"""Knows where a decoder's layers are, which of their weights belong together, and how to cut them.

Attention comes in whole key/value groups (the key and value head with all its query heads and the columns of the
output projection that read them; in GPT-2 one head), the MLP in single channels. This is the coupling of LLM-Pruner
(arXiv 2305.11627, section 3.1) with its unit widened for grouped-query attention.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

LLAMA = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
GPT2 = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
SUPPORTED = "Llama-like layers (Llama, Mistral, Qwen2, Qwen3: separate q/k/v/o and gate/up/down) and GPT-2 blocks"


@dataclass(frozen=True, eq=False)
class Coupled:
    """One parameter that a set of groups shares out among themselves along `dim`.

    Along `dim` it is laid out as (repeats, groups, block): GPT-2's fused q, k and v repeat the heads three times.
    """

    module: nn.Module
    parameter: str
    dim: int
    repeats: int = 1

    @property
    def tensor(self) -> nn.Parameter:
        return getattr(self.module, self.parameter)


@dataclass(frozen=True, eq=False)
class Groups:
    """`count` interchangeable groups of weights, and every parameter that they are part of."""

    count: int
    coupled: tuple[Coupled, ...]

    @property
    def output(self) -> Coupled:
        """The matrix whose inputs the groups are: through it they reach the residual stream (o_proj, down_proj)."""
        return self.coupled[-1]

    @property
    def parameters(self) -> int:
        """Parameters that go with one group, biases included."""
        return sum(c.tensor.numel() for c in self.coupled) // self.count

    def sums(self, c: Coupled, values: Tensor) -> Tensor:
        """Sum of `values` (the shape of `c.tensor`) over each group: shape (count,)."""
        block = values.shape[c.dim] // (c.repeats * self.count)
        return values.movedim(c.dim, 0).reshape(c.repeats, self.count, block, -1).sum((0, 2, 3))

    def index(self, c: Coupled, chosen: Sequence[int]) -> Tensor:
        """Positions along `c.dim` of the chosen groups, in order."""
        positions = torch.arange(c.tensor.shape[c.dim], device=c.tensor.device)
        return positions.view(c.repeats, self.count, -1)[:, list(chosen)].reshape(-1)


@dataclass(frozen=True, eq=False)
class Layer:
    """A decoder layer: its name in the model, its attention groups and its MLP channels."""

    name: str
    module: nn.Module
    attention: Groups
    channels: Groups

    @property
    def parameters(self) -> int:
        """Parameters in groups; norms and the biases of the output projections belong to none."""
        return sum(part.count * part.parameters for part in self.parts)

    @property
    def parts(self) -> tuple[Groups, Groups]:
        return self.attention, self.channels


def decoder_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The decoder layers by name, in the order of the network, wherever they sit in `model`.

    Raises:
        ValueError: no such layer, or one beside them that cannot be handled (a mixture of experts, fused projections).
    """
    found, unknown = {}, []
    for name, module in model.named_modules():
        if _linear_paths(module):
            found[name] = module
        elif hasattr(module, "mlp") and (hasattr(module, "self_attn") or hasattr(module, "attn")):
            unknown.append(f"{name} ({type(module).__name__})")
    if unknown or not found:
        what = f"layers {', '.join(unknown)}" if unknown else f"a {type(model).__name__} without decoder layers"
        raise ValueError(f"{what} cannot be handled; supported are {SUPPORTED}")
    return found


def linears(model: nn.Module) -> list[dict[str, nn.Module]]:
    """Per decoder layer its matrix modules (seven in Llama, four in GPT-2) by their full names in `model`."""
    return [
        {f"{name}.{path}" if name else path: attrgetter(path)(layer) for path in _linear_paths(layer)}
        for name, layer in decoder_layers(model).items()
    ]


def outputs(model: nn.Module) -> dict[str, nn.Module]:
    """The matrices that the groups act through, two per decoder layer, by their full names in `model`.

    Raises:
        ValueError: as `groups`.
    """
    found = {part.output.module for layer in groups(model) for part in layer.parts}
    return {name: module for layer in linears(model) for name, module in layer.items() if module in found}


def groups(model: nn.Module) -> list[Layer]:
    """The coupled groups of every decoder layer, in order, as they are now (a pruned model has fewer).

    `layer.attention.count` and `layer.channels.count` are their numbers, `.parameters` what one of them costs.

    Raises:
        ValueError: unsupported layers (see `decoder_layers`), wrapped or quantised matrices, or norms over all heads.
    """
    for layer in linears(model):
        for name, module in layer.items():
            if not isinstance(module, nn.Linear | Conv1D):
                raise ValueError(
                    f"{name} is a {type(module).__module__}.{type(module).__name__}, not a plain Linear or Conv1D: "
                    "merge adapters and prune before quantising"
                )
    return [
        (_llama_layer if hasattr(module, "self_attn") else _gpt2_layer)(name, module)
        for name, module in decoder_layers(model).items()
    ]


def sizes(model: nn.Module) -> list[dict[str, int]]:
    """Per layer `{"attention_groups": n, "channels": n}`: all that must be known to rebuild the shapes (JSON-able)."""
    return [{"attention_groups": layer.attention.count, "channels": layer.channels.count} for layer in groups(model)]


def resize(model: nn.Module, sizes: Sequence[Mapping[str, int]]) -> nn.Module:
    """Give an unpruned model, in place, the shapes that `sizes` of a pruned one names; returns it.

    It keeps each layer's first groups, so the values mean nothing until the pruned weights are loaded (strictly).

    Raises:
        ValueError: another number of layers, unknown names, or a size outside 1…the layer's own.
    """
    layers = groups(model)
    if len(sizes) != len(layers):
        raise ValueError(f"the model has {len(layers)} decoder layers, the sizes are for {len(sizes)}")
    kept = []
    for layer, size in zip(layers, sizes, strict=True):
        limits = {"attention_groups": layer.attention.count, "channels": layer.channels.count}
        fits = isinstance(size, Mapping) and size.keys() == limits.keys()
        if not fits or not all(isinstance(size[key], int) and 1 <= size[key] <= limits[key] for key in limits):
            raise ValueError(f"{layer.name}: expected sizes from 1 up to {limits}, got {size}")
        kept.append((range(size["attention_groups"]), range(size["channels"])))
    return keep(model, kept)


def add_biases(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """Give the named output matrices a bias of zeros, in place, as bias compensation does; returns the model.

    Raises:
        ValueError: a name that is no output matrix of a decoder layer, or one that has a bias already.
    """
    known = outputs(model)
    wrong = [name for name in names if not (isinstance(name, str) and name in known and known[name].bias is None)]
    if wrong:
        free = [name for name, module in known.items() if module.bias is None]
        raise ValueError(f"no bias can be added to {wrong}; matrices that could have one: {free or 'none'}")
    for name in names:
        give_bias(known[name])
    return model


def give_bias(module: nn.Module) -> None:
    """A bias of zeros for a matrix that has none (a Linear: Conv1D always has one), frozen if the matrix is."""
    if module.bias is None:
        weight = module.weight
        module.bias = nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=weight.requires_grad)


def keep(model: nn.Module, kept: Sequence[tuple[Sequence[int], Sequence[int]]]) -> nn.Module:
    """Cut every layer of `model`, in place, down to the (attention groups, channels) given for it; returns it.

    `num_key_value_groups` (query heads per key/value head) stays true because only whole groups go. The head counts in
    `model.config` no longer describe a layer; nothing at run time asks for them: attention reshapes by `head_dim`
    with the number of heads inferred, and the key/value cache takes each layer's shape from its first keys.
    """
    for layer, choice in zip(groups(model), kept, strict=True):
        for part, chosen in zip(layer.parts, choice, strict=True):
            for c in part.coupled:
                cut = c.tensor.detach().index_select(c.dim, part.index(c, chosen)).contiguous()
                setattr(c.module, c.parameter, nn.Parameter(cut, requires_grad=c.tensor.requires_grad))
        _describe_shapes(layer.module)
    return model


def _linear_paths(module: nn.Module) -> tuple[str, ...]:
    """The paths of the matrices of a decoder layer; none if `module` is not one."""
    for paths in (LLAMA, GPT2):
        try:
            attrgetter(*paths)(module)
        except AttributeError:
            continue
        return paths
    return ()


def _rows(module: nn.Module, repeats: int = 1) -> tuple[Coupled, ...]:
    """A matrix cut along its outputs takes its bias with it."""
    weight = Coupled(module, "weight", 1 if isinstance(module, Conv1D) else 0, repeats)
    return (weight,) if module.bias is None else (weight, Coupled(module, "bias", 0, repeats))


def _columns(module: nn.Module) -> tuple[Coupled, ...]:
    """A matrix cut along its inputs keeps its bias, which is as wide as the residual stream."""
    return (Coupled(module, "weight", 0 if isinstance(module, Conv1D) else 1),)


def _llama_layer(name: str, module: nn.Module) -> Layer:
    attention, mlp = module.self_attn, module.mlp
    for norm in (getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)):
        if norm is not None and norm.weight.numel() != attention.head_dim:
            raise ValueError(f"{name}: a norm over all heads couples them, so none can go; supported are {SUPPORTED}")
    heads = _rows(attention.q_proj) + _rows(attention.k_proj) + _rows(attention.v_proj) + _columns(attention.o_proj)
    channels = _rows(mlp.gate_proj) + _rows(mlp.up_proj) + _columns(mlp.down_proj)
    key_value_heads = attention.k_proj.weight.shape[0] // attention.head_dim
    return Layer(name, module, Groups(key_value_heads, heads), Groups(mlp.gate_proj.weight.shape[0], channels))


def _gpt2_layer(name: str, module: nn.Module) -> Layer:
    attention, mlp = module.attn, module.mlp
    heads = _rows(attention.c_attn, repeats=3) + _columns(attention.c_proj)
    channels = _rows(mlp.c_fc) + _columns(mlp.c_proj)
    count = attention.c_proj.weight.shape[0] // attention.head_dim
    return Layer(name, module, Groups(count, heads), Groups(mlp.c_fc.weight.shape[1], channels))


def _describe_shapes(layer: nn.Module) -> None:
    """Bring the sizes that modules remember into line with their weights."""
    for path in _linear_paths(layer):
        module = attrgetter(path)(layer)
        if isinstance(module, Conv1D):
            module.nx, module.nf = module.weight.shape
        else:
            module.out_features, module.in_features = module.weight.shape
    if hasattr(layer, "attn"):
        layer.attn.split_size = layer.attn.c_proj.nx
        layer.attn.num_heads = layer.attn.split_size // layer.attn.head_dim
    elif hasattr(layer.mlp, "intermediate_size"):
        layer.mlp.intermediate_size = layer.mlp.gate_proj.out_features

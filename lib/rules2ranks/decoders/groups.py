"""The groups of a decoder's layers, and how to cut them.

Attention comes in whole key/value groups (the key and value head with all its query heads and the columns of the
output projection that read them; in GPT-2 one head), the MLP in single channels. This is the coupling of LLM-Pruner
(arXiv 2305.11627, section 3.1) with its unit widened for grouped-query attention.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from rules2ranks.configuration import Matrix, Shapes
from rules2ranks.decoders.families import SUPPORTED, Family, Part, family_of
from rules2ranks.decoders.standalone import LayerConfig, Nothing, NothingAttended

#: Per layer the numbers of its attention groups and of its channels.
Choice = Sequence[tuple[Sequence[int], Sequence[int]]]


@dataclass(frozen=True, eq=False)
class Coupled:
    """One parameter that a set of groups shares out among themselves along `dim`.

    Along `dim` lie sections, one after the other, all groups in each; `sections` are the sizes of one group's share of
    them, relative to one another. GPT-2's fused q, k and v are three of the same size.
    """

    module: nn.Module
    parameter: str
    dim: int
    sections: tuple[int, ...] = (1,)

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
        """Parameters that go with one group, biases included; 0 where no group is left."""
        return sum(c.tensor.numel() for c in self.coupled) // max(self.count, 1)

    def sums(self, c: Coupled, values: Tensor) -> Tensor:
        """Sum of `values` (the shape of `c.tensor`) over each group: shape (count,)."""
        return sum(alike.sum([0, *range(2, alike.ndim)]) for alike in self._sections(c, values.movedim(c.dim, 0)))

    def index(self, c: Coupled, chosen: Sequence[int]) -> Tensor:
        """Positions along `c.dim` of the chosen groups, in order."""
        positions, chosen = torch.arange(c.tensor.shape[c.dim], device=c.tensor.device), list(chosen)
        return torch.cat([alike[:, chosen].flatten() for alike in self._sections(c, positions)])

    def _sections(self, c: Coupled, values: Tensor) -> list[Tensor]:
        """`values`, first along `c.dim`, as (sections, count, block, …) for every run of sections of equal size."""
        unit = len(values) // max(self.count * sum(c.sections), 1)
        runs = [(size * unit, len(list(equal))) for size, equal in groupby(c.sections)]
        split = values.split([number * self.count * block for block, number in runs])
        return [v.unflatten(0, (number, self.count, block)) for v, (block, number) in zip(split, runs, strict=True)]


@dataclass(frozen=True, eq=False)
class Layer:
    """A decoder layer: its name in the model, its family, its attention groups and its MLP channels."""

    name: str
    module: nn.Module
    family: Family
    attention: Groups
    channels: Groups

    @property
    def parts(self) -> tuple[Groups, Groups]:
        return self.attention, self.channels


def decoder_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The decoder layers by name, in the order of the network, wherever they sit in `model`.

    Raises:
        ValueError: no such layer, or one beside them that is in no entry of the table (a mixture of experts, say).
    """
    found, unknown = {}, {}
    for name, module in model.named_modules():
        if family_of(module):
            found[name] = module
        elif isinstance(module, GradientCheckpointingLayer) or (
            hasattr(module, "mlp") and (hasattr(module, "self_attn") or hasattr(module, "attn"))
        ):
            matrices = [path.removesuffix(".weight") for path, p in module.named_parameters() if p.ndim > 1]
            contents = ", ".join(matrices[:8] + ["…"] * (len(matrices) > 8)) or "without matrices"
            unknown.setdefault(type(module).__name__, f"{name} ({contents})")
    if unknown:
        kinds = "; ".join(f"{kind}, such as {example}" for kind, example in unknown.items())
        raise ValueError(f"layers that are not in the table: {kinds}; supported are {SUPPORTED}")
    if not found:
        raise ValueError(f"no decoder layers of a kind that is in the table; supported are {SUPPORTED}")
    return found


def linears(model: nn.Module) -> list[dict[str, nn.Module]]:
    """Per decoder layer its matrix modules (seven in Llama, four in GPT-2) by their full names in `model`.

    Those of a part without groups hold nothing, and are left out.
    """
    found = [
        {_join(name, path): layer.get_submodule(path) for path in family_of(layer).matrices}
        for name, layer in decoder_layers(model).items()
    ]
    return [{path: module for path, module in layer.items() if module.weight.numel()} for layer in found]


def outputs(model: nn.Module) -> dict[str, nn.Module]:
    """The matrices that the groups act through, two per decoder layer, by their full names in `model`.

    Raises:
        ValueError: as `groups`.
    """
    return {
        _join(layer.name, part.output): layer.module.get_submodule(part.output)
        for layer in groups(model)
        for part in layer.family.parts
    }


def groups(model: nn.Module) -> list[Layer]:
    """The coupled groups of every decoder layer, in order, as they are now (a pruned model has fewer).

    `layer.attention.count` and `layer.channels.count` are their numbers, `.parameters` what one of them costs.

    Raises:
        ValueError: unknown layers (see `decoder_layers`), wrapped or quantised matrices, or parameters beside the
            matrices that couple the heads, such as norms over all of them.
    """
    return [_layer(name, module) for name, module in decoder_layers(model).items()]


def query_heads(model: nn.Module) -> list[Groups]:
    """The query heads of every decoder layer, in order: those of the first key/value head first.

    Raises:
        ValueError: as `groups`; or a family whose queries lie in one matrix with keys and values.
    """
    found = []
    for layer in groups(model):
        if (part := layer.family.query_heads) is None:
            raise ValueError(f"single query heads of {layer.family.name} layers cannot go: only whole attention groups")
        head = attrgetter(layer.family.head)(layer.module)
        found.append(Groups(width(layer.attention.output.module)[0] // head, _coupled(layer.module, part)))
    return found


def keep_query_heads(model: nn.Module, kept: Sequence[Sequence[int]]) -> nn.Module:
    """Cut every layer, in place, down to the given query heads, as many of each key/value head; returns the model.

    It is an ordinary model of its architecture then: `config.num_attention_heads` says how many are left.

    Raises:
        ValueError: as `query_heads`; or layers or key/value heads would keep different numbers, or none.
    """
    layers, found = groups(model), query_heads(model)
    for layer, part, chosen in zip(layers, found, kept, strict=True):
        each = part.count // layer.attention.count
        numbers = {sum(head // each == key for head in chosen) for key in range(layer.attention.count)}
        if (
            numbers != {len(kept[0]) // layers[0].attention.count}
            or 0 in numbers
            or list(chosen) != sorted(set(chosen))
        ):
            raise ValueError(f"{layer.name}: of {each} query heads each key/value head must keep as many, got {chosen}")
    for layer, part, chosen in zip(layers, found, kept, strict=True):
        _cut(part, chosen)
        place, _, entry = layer.family.queries.rpartition(".")
        setattr(layer.module.get_submodule(place), entry, len(chosen) // layer.attention.count)
        _describe_shapes(layer.name, layer.module)
    model.config.head_dim = attrgetter(layers[0].family.head)(layers[0].module)
    model.config.num_attention_heads = len(kept[0])
    return model


def sizes(model: nn.Module) -> list[dict[str, int]]:
    """Per layer `{"attention_groups": n, "channels": n}`: all that must be known to rebuild the shapes (JSON-able)."""
    return [{"attention_groups": layer.attention.count, "channels": layer.channels.count} for layer in groups(model)]


def shapes(model: nn.Module) -> Shapes:
    """The sizes of a model's matrices; the parts are named `<layer>.attention` and `<layer>.mlp`.

    Shapes are all that is read: the parameters may be on "meta". A number takes as many bytes as the first parameter's.

    Raises:
        ValueError: as `groups`.
    """
    layers, counts = [], {}
    for layer in groups(model):
        matrices = []
        for kind, part, paths in zip(("attention", "mlp"), layer.parts, layer.family.parts, strict=True):
            counts[name := _join(layer.name, kind)] = part.count
            for path in paths.matrices if part.count else ():
                matrix = layer.module.get_submodule(path)
                shared = "inputs" if path == paths.output else "outputs"
                matrices.append(Matrix(_join(layer.name, path), *width(matrix), name, shared, matrix.bias is not None))
        layers.append(tuple(matrices))
    known = Shapes(tuple(layers), counts, 0, next(model.parameters()).element_size())
    of_matrices = {f"{name}.{kind}" for name in known.matrices for kind in ("weight", "bias")}
    rest = sum(p.numel() for name, p in model.named_parameters() if name not in of_matrices)
    return replace(known, rest=rest)


def width(matrix: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a matrix module, as its weight has them."""
    rows, columns = matrix.weight.shape
    return (rows, columns) if isinstance(matrix, Conv1D) else (columns, rows)


def resize(model: nn.Module, sizes: Sequence[Mapping[str, int]]) -> nn.Module:
    """Give an unpruned model, in place, the shapes that `sizes` of a pruned one names; returns it.

    It keeps each layer's first groups, so the values mean nothing until the pruned weights are loaded (strictly).

    Raises:
        ValueError: another number of layers, unknown names, or a size outside 0…the layer's own.
    """
    layers = groups(model)
    if len(sizes) != len(layers):
        raise ValueError(f"the model has {len(layers)} decoder layers, the sizes are for {len(sizes)}")
    kept = []
    for layer, size in zip(layers, sizes, strict=True):
        limits = {"attention_groups": layer.attention.count, "channels": layer.channels.count}
        fits = isinstance(size, Mapping) and size.keys() == limits.keys()
        if not fits or not all(isinstance(size[key], int) and 0 <= size[key] <= limits[key] for key in limits):
            raise ValueError(f"{layer.name}: expected sizes from 0 up to {limits}, got {size}")
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


def keep(model: nn.Module, kept: Choice) -> nn.Module:
    """Cut every layer of `model`, in place, down to the (attention groups, channels) given for it; returns it.

    `num_key_value_groups` (query heads per key/value head) stays true because only whole groups go. The head counts in
    `model.config` no longer describe a layer, and stay as they are: where attention asks for them at run time, the
    layer gets an answer of its own. The key/value cache takes each layer's shape from its first keys. A part of which
    nothing is kept adds its output's bias, or nothing (see `standalone`).
    """
    for layer, choice in zip(groups(model), kept, strict=True):
        for part, chosen in zip(layer.parts, choice, strict=True):
            _cut(part, chosen)
        _describe_shapes(layer.name, layer.module)
    return model


def _cut(part: Groups, chosen: Sequence[int]) -> None:
    for c in part.coupled:
        cut = c.tensor.detach().index_select(c.dim, part.index(c, chosen)).contiguous()
        setattr(c.module, c.parameter, nn.Parameter(cut, requires_grad=c.tensor.requires_grad))


def kept_copy(model: nn.Module, kept: Choice) -> nn.Module:
    """What `keep` makes of a copy of `model`, which stays as it is; what is cut out is never copied."""
    cut: dict[int, Any] = {}  # by what stands in for a tensor when a deep copy comes to it
    for layer, choice in zip(groups(model), kept, strict=True):
        for part, chosen in zip(layer.parts, choice, strict=True):
            for c in part.coupled:
                rows = c.tensor.detach().index_select(c.dim, part.index(c, chosen)).contiguous()
                cut[id(c.tensor)] = nn.Parameter(rows, requires_grad=c.tensor.requires_grad)
    copied = copy.deepcopy(model, cut)
    for name, module in decoder_layers(copied).items():
        _describe_shapes(name, module)
    return copied


@torch.no_grad()
def blank(model: nn.Module, kept: Choice) -> nn.Module:
    """Write zeros, in place, into every weight that `keep` would cut out; returns the model."""
    for layer, choice in zip(groups(model), kept, strict=True):
        for part, chosen in zip(layer.parts, choice, strict=True):
            for c in part.coupled:
                index = part.index(c, chosen)
                values = c.tensor.index_select(c.dim, index)
                c.tensor.zero_().index_copy_(c.dim, index, values)
    return model


def _join(name: str, path: str) -> str:
    return f"{name}.{path}" if name else path


def _layer(name: str, module: nn.Module) -> Layer:
    family = family_of(module)
    for path in family.matrices:
        kind = type(module.get_submodule(path))
        if not issubclass(kind, nn.Linear | Conv1D):
            raise ValueError(
                f"{_join(name, path)} is a {kind.__module__}.{kind.__name__}, not a plain Linear or Conv1D: "
                "merge adapters and prune before quantising"
            )
    try:
        head = attrgetter(family.head)(module)
        queries = attrgetter(family.queries)(module) if family.queries else 1
    except AttributeError as error:
        raise ValueError(f"{name} has the matrices of a {family.name} layer, but {error}") from error
    attention = family.head.rpartition(".")[0]
    for path, p in module.get_submodule(attention).named_parameters(prefix=attention):
        if path.rpartition(".")[0] not in family.attention.matrices and p.numel() != head:
            raise ValueError(
                f"{_join(name, path)} couples the heads ({p.numel()} numbers, a head has {head}): none can go"
            )
    inputs, channels = (width(module.get_submodule(part.output))[0] for part in family.parts)
    heads = Groups(inputs // (head * queries), _coupled(module, family.attention, queries))
    return Layer(name, module, family, heads, Groups(channels, _coupled(module, family.mlp)))


def _coupled(layer: nn.Module, part: Part, queries: int = 1) -> tuple[Coupled, ...]:
    """Matrices cut along their outputs, with their biases, and the one cut along its inputs, which keeps its bias."""
    coupled = []
    for path, names in part.inner.items():
        matrix = layer.get_submodule(path)
        sections = tuple(queries if name == "q" else 1 for name in names) or (1,)
        coupled.append(Coupled(matrix, "weight", 1 if isinstance(matrix, Conv1D) else 0, sections))
        if matrix.bias is not None:
            coupled.append(Coupled(matrix, "bias", 0, sections))
    output = layer.get_submodule(part.output)
    return (*coupled, Coupled(output, "weight", 0 if isinstance(output, Conv1D) else 1))


def _describe_shapes(name: str, module: nn.Module) -> None:
    """Bring the sizes that the modules of a decoder layer remember into line with their weights."""
    family = family_of(module)
    for path in family.matrices:
        matrix = module.get_submodule(path)
        if isinstance(matrix, Conv1D):
            matrix.nx, matrix.nf = matrix.weight.shape
        else:
            matrix.out_features, matrix.in_features = matrix.weight.shape
    cut = _layer(name, module)
    inputs = width(cut.attention.output.module)[0]
    now = {
        "key/value heads": cut.attention.count,
        "heads": inputs // attrgetter(family.head)(module),
        "width": inputs,
        "channels": cut.channels.count,
    }
    for path, what in family.remembers.items():
        place, _, entry = path.rpartition(".")
        if place.endswith(".config"):  # no copy: the kind of attention may be changed later, in the model's
            owner = module.get_submodule(place.removesuffix(".config"))
            owner.config = LayerConfig(owner.config, {entry: now[what]})
        elif hasattr(owner := module.get_submodule(place), entry):
            setattr(owner, entry, now[what])
    for part, paths, kind in zip(cut.parts, family.parts, (NothingAttended, Nothing), strict=True):
        place, _, output = paths.output.rpartition(".")
        if place and not part.count:  # a matrix on the layer itself, without inputs, gives its bias as it is
            owner = module.get_submodule(place)
            owner.forward = kind(owner, output)

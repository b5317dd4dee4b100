"""Methods that are no adapters: they train weights where they stand, whole, some columns, or single entries.

    x.weight + values in the columns `columns`         (S2FT)
    x.weight + alpha/r · B·A + values at `entries`      (DSEE)
    another tensor in a parameter's place               (HFT, BitFit, FPF)

What was trained is one safetensors file, `correction.safetensors`, whose tensors are named `<what>:<parameter>`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rules2ranks.decoders import give_bias, outputs
from rules2ranks.models import misfits, read_tensors
from rules2ranks.recovery.method import Given, Method
from rules2ranks.recovery.ranks import Ranks, ranks_by_name

CORRECTION = "correction.safetensors"
WHOLE = "whole"


class Columns(nn.Module):
    """A matrix with numbers added in some of its columns (rows, with `dim` 0), which start at zero."""

    def __init__(self, weight: Tensor, dim: int, index: Tensor):
        super().__init__()
        self.dim = dim
        self.register_buffer("columns", index.to(weight.device))
        self.values = nn.Parameter(torch.zeros_like(weight.index_select(dim, self.columns)))

    def forward(self, weight: Tensor) -> Tensor:
        return weight.index_add(self.dim, self.columns, self.values)


class Entries(nn.Module):
    """A matrix with scale · B·A and numbers at some of its entries added, the numbers zero at first.

    A is (rank, columns) and B (rows, rank) for a matrix (rows, columns); rank 0 leaves the product out.
    """

    def __init__(self, weight: Tensor, entries: Tensor, a: Tensor, scale: float):
        super().__init__()
        self.register_buffer("entries", entries.to(weight.device))
        self.register_buffer("scale", torch.tensor(scale, dtype=weight.dtype, device=weight.device))
        self.values = nn.Parameter(weight.new_zeros(len(entries)))
        held = nn.Parameter if len(a) else nn.Buffer  # what is empty has no gradients
        self.a, self.b = held(a.to(weight)), held(weight.new_zeros(weight.shape[0], len(a)))

    def forward(self, weight: Tensor) -> Tensor:
        changed = weight.flatten().index_add(0, self.entries, self.values).view_as(weight)
        return changed + self.scale * (self.b @ self.a) if len(self.a) else changed


class InPlace(Method):
    """A method that trains weights of the model itself. `ranks` say which matrices take part, and how much may be
    trained: a method that has a choice trains at most what LoRA of these ranks would.
    """

    def quantise(self, model: nn.Module, given: Given) -> None:
        raise ValueError(f"{self.name} trains the weights themselves, which few bits cannot hold: leave bits out")

    def add(self, model: nn.Module, ranks: Ranks, given: Given) -> nn.Module:
        by_name = ranks_by_name(model, ranks)
        model.requires_grad_(False)
        self.prepare(model, by_name, given)
        return model

    @abstractmethod
    def prepare(self, model: nn.Module, by_name: Mapping[str, int], given: Given) -> None:
        """Make what is to be trained a parameter with gradients, in place: `put`, or `requires_grad_`."""

    def merge(self, adapted: nn.Module) -> nn.Module:
        for module, _, _ in _put(adapted):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        for name, p in adapted.requires_grad_(False).named_parameters():
            if not p.isfinite().all():
                raise ValueError(f"{name} is not finite after the training")
        return adapted

    def save(self, adapted: nn.Module, folder: str | Path) -> None:
        inside = {id(p) for _, _, correction in _put(adapted) for p in correction.parameters()}
        whole = {
            f"{WHOLE}:{name}": p for name, p in adapted.named_parameters() if p.requires_grad and id(p) not in inside
        }
        parts = {
            f"{what}:{name}.weight": tensor
            for _, name, correction in _put(adapted)
            for what, tensor in correction.state_dict().items()
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in (whole | parts).items()}
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(tensors, Path(folder) / CORRECTION, metadata={"format": "pt", "method": self.name})


def put(module: nn.Module, correction: nn.Module) -> None:
    """A correction on the weight of a matrix, until `merge`."""
    parametrize.register_parametrization(module, "weight", correction)


def _put(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Matrix, name and correction of each."""
    for name, module in list(model.named_modules()):
        if parametrize.is_parametrized(module, "weight"):
            yield module, name, module.parametrizations.weight[0]


@torch.no_grad()
def load(model: nn.Module, folder: str | Path) -> tuple[nn.Module, str]:
    """The model with a saved correction in its weights (changed in place), and the method's name.

    Raises:
        ValueError: a damaged file, or tensors that do not fit: each is named, and the model is left untouched.
    """
    file = Path(folder) / CORRECTION
    tensors = read_tensors(file)
    with safe_open(file, "pt") as held:
        method = (held.metadata() or {}).get("method")
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        what, _, name = key.partition(":")
        by_parameter.setdefault(name, {})[what] = tensor
    parameters = dict(model.named_parameters())
    new = {f"{name}.bias" for name, module in outputs(model).items() if module.bias is None} & by_parameter.keys()
    old = {name: found for name, found in by_parameter.items() if name not in new}
    wrong = "\n".join(fault for name, found in old.items() for fault in _faults(name, parameters.get(name), found))
    if wrong or not by_parameter or method is None:
        raise ValueError(f"the correction does not fit this model, nothing was loaded:\n{wrong or 'it is empty'}")
    for name in new:
        give_bias(model.get_submodule(name.removesuffix(".bias")))
    parameters = dict(model.named_parameters())
    for name, found in by_parameter.items():
        parameters[name].copy_(_corrected(parameters[name], found))
    return model.requires_grad_(False), method


def _faults(name: str, parameter: Tensor | None, found: Mapping[str, Tensor]) -> Iterator[str]:
    if parameter is None:
        yield f"{name}: the model has no such parameter"
    elif WHOLE in found:
        if wrong := misfits({name: tuple(parameter.shape)}, {name: tuple(found[WHOLE].shape)}):
            yield wrong
    elif "columns" in found and "values" in found:
        columns, values, shape = found["columns"], found["values"], tuple(parameter.shape)
        dim = _dim(shape, columns, values)
        if dim is None or not 0 <= int(columns.min()) <= int(columns.max()) < shape[dim]:
            yield f"{name}: {len(columns)} columns of {tuple(values.shape)} are none of a matrix of {shape}"
    elif {"entries", "values", "a", "b", "scale"} <= found.keys():
        entries, shape = found["entries"], tuple(parameter.shape)
        inside = not len(entries) or 0 <= int(entries.min()) <= int(entries.max()) < parameter.numel()
        if not inside or (found["b"].shape[0], found["a"].shape[1]) != shape:
            yield f"{name}: its entries and B·A are none of a matrix of {shape}"
    else:
        yield f"{name}: {', '.join(found)} say no correction"


def _dim(shape: tuple[int, ...], columns: Tensor, values: Tensor) -> int | None:
    """Along which side of a matrix the columns lie."""
    for dim in (1, 0):
        if len(columns) and tuple(values.shape) == (*shape[:dim], len(columns), *shape[dim + 1 :]):
            return dim
    return None


def _corrected(weight: Tensor, found: Mapping[str, Tensor]) -> Tensor:
    """What the parametrised weight was."""
    found = {what: tensor.to(weight.device) for what, tensor in found.items()}
    if WHOLE in found:
        return found[WHOLE]
    if "columns" in found:
        dim = _dim(tuple(weight.shape), found["columns"], found["values"])
        return weight.index_add(dim, found["columns"], found["values"])
    correction = Entries(weight, found["entries"], found["a"], float(found["scale"]))
    correction.load_state_dict(found)
    return correction(weight)

"""Matrices of few bits in a model: their values in plain modules, or packed in modules of their own."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rules2ranks import decoders
from rules2ranks.configuration import GROUP, groups_of
from rules2ranks.quantisation.grid import BITS, Quantised, dequantised, quantised
from rules2ranks.quantisation.packing import pack_codes, unpack_codes


class Packed(nn.Module):
    """A matrix whose weight is kept in few bits and unpacked whenever it is asked for; never trained.

    The buffers are what a file holds: `codes` packed without gaps, `scale` and `zero` of every group. A module of this
    kind is a Linear or a Conv1D as well, so that whatever looks for these finds it.
    """

    bits: int
    group: int

    def _init_packed(self, bias: nn.Parameter | None, held: Quantised, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.bits, self.group, self.dtype = held.bits, held.codes.shape[1], dtype
        self.outputs_inputs = held.shape
        self.register_buffer("codes", pack_codes(held.codes.flatten(), held.bits))
        self.register_buffer("scale", held.scale)
        self.register_buffer("zero", held.zero)
        self.bias = bias

    @property
    def values(self) -> Tensor:
        """The matrix, (outputs, inputs)."""
        codes = unpack_codes(self.codes, self.bits).view(-1, self.group)
        return dequantised(codes, self.scale, self.zero).view(self.outputs_inputs).to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """A move to another device takes all along; a change of type is one of the weight, not of scales and zeros."""
        held = self.scale, self.zero
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        super()._apply(fn, recurse)
        for name, before in zip(("scale", "zero"), held, strict=True):
            if not before.is_meta:
                setattr(self, name, before.to(getattr(self, name).device))
        return self

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == "weight":
            raise ValueError("the weight of a packed matrix cannot be replaced: prune and merge before quantising")
        super().register_parameter(name, param)


class PackedLinear(Packed, nn.Linear):
    """A packed nn.Linear."""

    def __init__(self, bias: nn.Parameter | None, held: Quantised, dtype: torch.dtype) -> None:
        self._init_packed(bias, held, dtype)
        self.out_features, self.in_features = held.shape

    @property
    def weight(self) -> Tensor:
        return self.values


class PackedConv1D(Packed, Conv1D):
    """A packed Conv1D: its weight is (inputs, outputs)."""

    def __init__(self, bias: nn.Parameter | None, held: Quantised, dtype: torch.dtype) -> None:
        self._init_packed(bias, held, dtype)
        self.nf, self.nx = held.shape

    @property
    def weight(self) -> Tensor:
        return self.values.T.contiguous()


def matrices(model: nn.Module, bits: Mapping[str, int], group: int = GROUP) -> dict[str, nn.Module]:
    """The modules of the matrices that get fewer than 16 bits, by name, in the order of the network.

    Raises:
        ValueError: an unknown name, other bits, a group that does not divide a matrix; before anything is changed.
    """
    known = {name: module for layer in decoders.linears(model) for name, module in layer.items()}
    for name, width in bits.items():
        if name not in known:
            raise ValueError(f"the model has no matrix {name}; they are named like {next(iter(known))}")
        if width not in (*BITS, 16):
            raise ValueError(f"{name}: a matrix can have {', '.join(map(str, BITS))} or 16 bits, got {width}")
        if width < 16:
            groups_of(decoders.width(known[name])[::-1], group, name)
    return {name: module for name, module in known.items() if bits.get(name, 16) < 16}


def quantise(model: nn.Module, bits: Mapping[str, int], group: int = GROUP) -> nn.Module:
    """Round the named matrices, in place, to what they are in so many bits; 16 leaves one as it is. Returns the model.

    Raises:
        ValueError: as `matrices`, and as `quantised`.
    """
    return _each(model, bits, group, packed=False)


def pack(model: nn.Module, bits: Mapping[str, int], group: int = GROUP) -> nn.Module:
    """Put packed matrices, in place, where `quantise` would round them; returns the model.

    Raises:
        ValueError: as `quantise`.
    """
    return _each(model, bits, group, packed=True)


def _each(model: nn.Module, bits: Mapping[str, int], group: int, packed: bool) -> nn.Module:
    held = {name: quantised(rows_of(m), bits[name], group) for name, m in matrices(model, bits, group).items()}
    for name in held:
        put(model, name, held[name], packed)
    return model


@torch.no_grad()
def put(model: nn.Module, name: str, held: Quantised, packed: bool = False) -> None:
    """Give the matrix of that name the values of a quantised one; packed: in a module that keeps them in few bits."""
    module = model.get_submodule(name)
    if packed:
        model.set_submodule(name, _kind(module)(module.bias, held, module.weight.dtype).train(module.training))
    else:
        rows_of(module).copy_(held.values)


def _kind(module: nn.Module) -> type[Packed]:
    return PackedConv1D if isinstance(module, Conv1D) else PackedLinear


def make_room(model: nn.Module, bits: Mapping[str, int], group: int = GROUP) -> nn.Module:
    """Give a model of the right shapes, in place, packed matrices without values, to be loaded; returns it.

    Raises:
        ValueError: as `matrices`.
    """
    for name, module in matrices(model, bits, group).items():
        inputs, outputs = decoders.width(module)
        count = groups_of((outputs, inputs), group)
        with torch.device("meta"):
            codes = torch.empty(count, group, dtype=torch.uint8)
            scale = torch.empty(count, 1, dtype=torch.float16)
            empty = Quantised(codes[:0], scale, scale.clone(), bits[name], (outputs, inputs))
            packed = _kind(module)(module.bias, empty, module.weight.dtype)
            packed.codes = torch.empty(count * group * bits[name] // 8, dtype=torch.uint8)
        model.set_submodule(name, packed)
    return model


def bits_of(model: nn.Module) -> dict[str, int]:
    """The bits of the packed matrices of a model, by name."""
    return {name: module.bits for name, module in model.named_modules() if isinstance(module, Packed)}


def packed_bytes(model: nn.Module) -> int:
    """Bytes of all tensors that a model holds, each storage once."""
    held = [*model.parameters(), *model.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values())


def rows_of(module: nn.Module) -> Tensor:
    """A matrix as (outputs, inputs)."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight

"""Numbers on a grid of few bits, a grid for each group of them (HQQ's)."""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from hqq.core.optimize import optimize_weights_proximal
from torch import Tensor

from rules2ranks.configuration import GROUP, Bits, groups_of

#: The widths that a matrix can be quantised to.
BITS = tuple(bits for bits in get_args(Bits) if bits < 16)
#: Groups whose numbers lie within so little are all one number, as in HQQ.
FLAT = 1e-4


class Quantised(NamedTuple):
    """A matrix as `(codes − zero) · scale`.

    codes: uint8, (groups, numbers of a group), 0 … 2^bits − 1; a group is so many numbers of the matrix in a row, rows
    one after the other. scale and zero: float16, (groups, 1). shape: the matrix's.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    shape: tuple[int, ...]

    @property
    def values(self) -> Tensor:
        """The matrix in float32."""
        return dequantised(self.codes, self.scale, self.zero).reshape(self.shape)


def dequantised(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """(codes − zero) · scale in float32."""
    return (codes.float() - zero.float()) * scale.float()


@torch.no_grad()
def quantised(weight: Tensor, bits: int, group: int = GROUP) -> Quantised:
    """A matrix of any floating type, (outputs, inputs), on a grid of so many bits for every `group` numbers.

    Scales span a group from its lowest to its highest number; zeros are moved by half-quadratic quantisation (HQQ,
    Badri and Shaji 2023: mobiusml.github.io/hqq_blog), which needs no data. Then both are rounded to float16, and codes
    are those nearest on the grid that is left.

    Raises:
        ValueError: other bits, a group that does not divide the matrix, numbers that are not finite or too large.
    """
    if bits not in BITS:
        raise ValueError(f"a matrix can have {', '.join(map(str, BITS))} bits, got {bits}")
    rows = weight.detach().float().reshape(groups_of(tuple(weight.shape), group), group)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    if not torch.isfinite(high - low).all():
        raise ValueError("the matrix has numbers that are not finite")
    top = 2**bits - 1
    spread = high - low
    # HQQ works with inverse scales, and bounds them so that they stay within half precision.
    inverse = torch.where(spread <= FLAT, 1.0, top / spread).clamp(max=2e4)
    _, inverse, zero = optimize_weights_proximal(rows, inverse, -low * inverse, [0, top], axis=1)
    scale, zero = (1 / inverse).half(), zero.half()
    if not (torch.isfinite(scale).all() and torch.isfinite(zero).all()):
        raise ValueError("the matrix has numbers too large for scales and zeros of 16 bits")
    codes = (rows / scale.float() + zero.float()).round_().clamp_(0, top).to(torch.uint8)
    return Quantised(codes, scale, zero, bits, tuple(weight.shape))

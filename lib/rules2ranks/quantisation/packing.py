"""Codes of few bits in bytes, without gaps: eight codes of b bits are b bytes, the first code in the lowest bits."""

import torch
from torch import Tensor


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes (n,), each below 2^bits, as uint8 (n · bits / 8,).

    Raises:
        ValueError: n is no multiple of 8, or a code is too large.
    """
    if len(codes) % 8:
        raise ValueError(f"codes are packed by eight, got {len(codes)}")
    if bits < 8 and len(codes) and int(codes.max()) >> bits:
        raise ValueError(f"codes of {bits} bits lie below {2**bits}, got {int(codes.max())}")
    words = (codes.long().view(-1, 8) << bits * torch.arange(8, device=codes.device)).sum(1)
    return (words[:, None] >> 8 * torch.arange(bits, device=codes.device) & 255).to(torch.uint8).flatten()


def unpack_codes(packed: Tensor, bits: int) -> Tensor:
    """What `pack_codes` packed: uint8 (n,)."""
    words = (packed.long().view(-1, bits) << 8 * torch.arange(bits, device=packed.device)).sum(1)
    codes = words[:, None] >> bits * torch.arange(8, device=packed.device) & 2**bits - 1
    return codes.to(torch.uint8).flatten()

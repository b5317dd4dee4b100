"""Evolving tensors on the device that they are on, bit for bit as `rules2ranks.automata.simulate` evolves arrays.

Random starts are drawn on the host and moved, so that a seed means the same cells on every device::

    states = torch.from_numpy(automata.random_states(4096, 256, seed=0)).to("cuda")
    runs = on_torch.simulate(110, states, 1000)

Inside, a row is ``(W, ceil(B / 64))`` int64: a bit is an automaton, and neighbours lie one index apart.
"""

from __future__ import annotations

from math import prod

import torch

from rules2ranks.automata.kernels import BOUNDARIES
from rules2ranks.automata.rules import algebraic_normal_form, integer

_ALL = -1  # the int64 whose bits are all 1


def simulate(
    rule: int,
    states: torch.Tensor,
    steps: int,
    *,
    boundary: str = "periodic",
    burn_in: int = 0,
    every: int = 1,
    last: bool = False,
) -> torch.Tensor:
    """Evolve every state ``(..., W)`` of a batch on its device: ``(..., T, W)`` uint8, or ``(..., W)`` with ``last``.

    Parameters, rows and errors are those of `automata.simulate`, without ``packed`` and ``out``; the states are a
    tensor of booleans, integers or floats, and ValueError is also raised for anything but a tensor. No gradient
    passes through.
    """
    coefficients = algebraic_normal_form(rule).tolist()
    steps = integer("steps", steps, 0)
    burn_in = integer("burn_in", burn_in, 0)
    every = integer("every", every, 1)
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {', '.join(BOUNDARIES)}; got {boundary!r}")
    states = _as_bits(states)
    *batch, width = states.shape
    if last:
        burn_in, steps = burn_in + steps * every, 0
    row = _pack(states.reshape(prod(batch), width))
    rows = row.new_empty(steps + 1, *row.shape)
    for t in range(steps + 1):
        for _ in range(every if t else burn_in):
            row = _update(coefficients, boundary, row)
        rows[t] = row
    return _unpack(rows, prod(batch)).reshape(*batch, *([] if last else [steps + 1]), width)


def _as_bits(states: torch.Tensor) -> torch.Tensor:
    """The states ``(..., W)`` as uint8; ValueError as `automata.as_bits` raises it, or for anything but a tensor."""
    if not isinstance(states, torch.Tensor):
        raise ValueError(f"states must be a torch.Tensor (automata.simulate takes others); got {type(states).__name__}")
    if states.ndim == 0 or states.shape[-1] == 0:
        raise ValueError(f"expected cells of shape (..., width) with at least one cell; got shape {(*states.shape,)}")
    states = states.detach()
    bad = (states != 0) & (states != 1)
    if bad.any():
        raise ValueError(f"cells must be 0 or 1; got {states[bad][0].item()}")
    return states.to(torch.uint8)


def _pack(states: torch.Tensor) -> torch.Tensor:
    """Bytes ``(B, W)`` to words ``(W, ceil(B / 64))``, the bits beyond the last automaton 0."""
    batch, width = states.shape
    eights = torch.nn.functional.pad(states, (0, 0, 0, -batch % 64)).reshape(-1, 8, width)
    places = torch.arange(8, dtype=torch.uint8, device=states.device)[:, None]
    octets = (eights << places).sum(1, dtype=torch.uint8)
    return octets.T.reshape(-1).view(torch.int64).reshape(width, -1)


def _unpack(rows: torch.Tensor, batch: int) -> torch.Tensor:
    """Words ``(T, W, ceil(B / 64))`` to bytes ``(B, T, W)``."""
    octets = rows.view(torch.uint8).movedim(-1, 0).contiguous()
    cells = octets.new_empty(batch, *rows.shape[:2])
    for place in range(8):
        these = cells[place::8]
        these[:] = octets[: len(these)] >> place & 1
    return cells


def _update(coefficients: list[int], boundary: str, row: torch.Tensor) -> torch.Tensor:
    first, last = row[:1], row[-1:]
    if boundary == "periodic":
        before, after = last, first
    elif boundary == "symmetric":
        before, after = first, last
    else:
        before = after = torch.full_like(first, _ALL if boundary == "fixed1" else 0)
    wider = torch.cat([before, row, after])
    new = _polynomial(coefficients, wider[:-2], row, wider[2:])
    return torch.full_like(row, new) if isinstance(new, int) else new


def _polynomial(coefficients: list[int], *cells: torch.Tensor) -> torch.Tensor | int:
    """The polynomial's value, an int where it is constant; a term that does not occur costs nothing."""
    if not cells:
        return _ALL * coefficients[0]
    first, *others = cells
    half = len(coefficients) // 2
    without = _polynomial(coefficients[:half], *others)
    factor = _polynomial(coefficients[half:], *others)
    if isinstance(factor, int):
        if factor == 0:
            return without
        product = first
    else:
        product = first & factor
    return product if isinstance(without, int) and without == 0 else product ^ without

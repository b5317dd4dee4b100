"""Elementary cellular automata: any rule, many states at once, and which rules are the same rule in disguise.

Conventions, everywhere in this package: Wolfram numbering (bit ``4 * left + 2 * centre + right`` of the rule is the
new cell), rows are ``(..., T, W)`` uint8 with the initial row counted in T, time runs downwards, the boundary is
periodic unless said. Packed rows hold a cell in a bit of a 64-bit word (`pack`).

`rules2ranks.automata.on_torch` evolves tensors on the device that they are on; it is imported by name, so that
nothing else here needs PyTorch.
"""

from rules2ranks.automata.rules import (
    algebraic_normal_form,
    equivalents,
    langton_lambda,
    representative,
    representatives,
    rule_table,
)
from rules2ranks.automata.simulation import BOUNDARIES, as_bits, pack, random_states, simulate, single_cell, unpack

__all__ = [
    "BOUNDARIES",
    "algebraic_normal_form",
    "as_bits",
    "equivalents",
    "langton_lambda",
    "pack",
    "random_states",
    "representative",
    "representatives",
    "rule_table",
    "simulate",
    "single_cell",
    "unpack",
]

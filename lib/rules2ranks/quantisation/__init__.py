"""Matrices of 2, 3, 4 or 8 bits: groups of numbers with a scale and a zero each, in a model's memory and in files.

    quantise(model, {"model.layers.0.mlp.up_proj": 3, …})      # the values of 3 bits, in plain matrices
    pack(model, {"model.layers.0.mlp.up_proj": 3, …})          # the same values, kept in 3 bits

Both compute the same, bit for bit. A search takes the first, which is faster on a CPU; `pruning.save_pruned` writes the
second. `loftq` and `cloq` split a matrix into few bits and a low-rank correction.
"""

from rules2ranks.quantisation.grid import BITS, Quantised, quantised
from rules2ranks.quantisation.packed import (
    Packed,
    bits_of,
    make_room,
    matrices,
    pack,
    packed_bytes,
    put,
    quantise,
    rows_of,
)
from rules2ranks.quantisation.packing import pack_codes, unpack_codes
from rules2ranks.quantisation.starts import ROUNDS, cloq, loftq

__all__ = [
    "BITS",
    "ROUNDS",
    "Packed",
    "Quantised",
    "bits_of",
    "cloq",
    "loftq",
    "make_room",
    "matrices",
    "pack",
    "pack_codes",
    "packed_bytes",
    "put",
    "quantise",
    "quantised",
    "rows_of",
    "unpack_codes",
]

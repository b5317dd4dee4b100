"""Knows where a decoder's layers are, which of their weights belong together, and how to cut them."""

from rules2ranks.decoders.families import FAMILIES, LLAMA, family_of
from rules2ranks.decoders.groups import (
    Groups,
    add_biases,
    blank,
    decoder_layers,
    give_bias,
    groups,
    keep,
    keep_query_heads,
    kept_copy,
    linears,
    outputs,
    query_heads,
    resize,
    shapes,
    sizes,
    width,
)
from rules2ranks.decoders.skeletons import causal_lm, skeleton
from rules2ranks.decoders.trial import check_architecture

__all__ = [
    "FAMILIES",
    "LLAMA",
    "Groups",
    "add_biases",
    "blank",
    "causal_lm",
    "check_architecture",
    "decoder_layers",
    "family_of",
    "give_bias",
    "groups",
    "keep",
    "keep_query_heads",
    "kept_copy",
    "linears",
    "outputs",
    "query_heads",
    "resize",
    "shapes",
    "sizes",
    "skeleton",
    "width",
]

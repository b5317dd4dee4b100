"""Knows where a decoder's layers are, which of their weights belong together, and how to cut them."""

from rules2ranks.decoders.families import FAMILIES, LLAMA, SUPPORTED, family_of
from rules2ranks.decoders.groups import (
    Coupled,
    Groups,
    Layer,
    add_biases,
    blank,
    decoder_layers,
    give_bias,
    groups,
    keep,
    linears,
    outputs,
    resize,
    shapes,
    sizes,
)
from rules2ranks.decoders.skeletons import skeleton
from rules2ranks.decoders.trial import causal_lm, check_architecture

__all__ = [
    "FAMILIES",
    "LLAMA",
    "SUPPORTED",
    "Coupled",
    "Groups",
    "Layer",
    "add_biases",
    "blank",
    "causal_lm",
    "check_architecture",
    "decoder_layers",
    "family_of",
    "give_bias",
    "groups",
    "keep",
    "linears",
    "outputs",
    "resize",
    "shapes",
    "sizes",
    "skeleton",
]

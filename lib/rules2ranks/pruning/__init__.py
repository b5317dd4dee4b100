"""Structured pruning of decoders: which groups go, cutting them out, and files that load again in the pruned shapes.

    scores = importance(model, batches, loss, "taylor")
    pruned = prune(model, 0.3, scores, spread="global", protect=(1, 1))
    save_pruned(pruned, folder)
    pruned = load_pruned(folder)

`importance` scores the coupled groups, `plan` chooses which stay (`prune` with a ratio calls it), `prune` slices. A
ratio is always the share of the whole model's parameters that is removed. `levels` go further: for each part
they say which groups stay when so many go, down to none, with weights that make up for those; `shrink` cuts a choice.
A model larger than memory is `Streamed` from its files.
"""

from rules2ranks.decoders import add_biases, check_architecture, decoder_layers, groups, outputs, resize, sizes
from rules2ranks.importance import Means, Scores, block_importance, importance, input_means
from rules2ranks.pruning.database import Database, levels, save_levels, shrink
from rules2ranks.pruning.files import load_pruned, save_pruned, skeleton
from rules2ranks.pruning.llama_cpp import write_gguf
from rules2ranks.pruning.plans import Kept, Plan, plan
from rules2ranks.pruning.portable import make_portable
from rules2ranks.pruning.slicing import mask, prune, report
from rules2ranks.pruning.streaming import Streamed
from rules2ranks.pruning.vocabulary import cut_tokenizer, keep_tokens

__all__ = [
    "Database",
    "Kept",
    "Means",
    "Plan",
    "Scores",
    "Streamed",
    "add_biases",
    "block_importance",
    "check_architecture",
    "cut_tokenizer",
    "decoder_layers",
    "groups",
    "importance",
    "input_means",
    "keep_tokens",
    "levels",
    "load_pruned",
    "make_portable",
    "mask",
    "outputs",
    "plan",
    "prune",
    "report",
    "resize",
    "save_levels",
    "save_pruned",
    "shrink",
    "sizes",
    "skeleton",
    "write_gguf",
]

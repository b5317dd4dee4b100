"""LoRA and its kin on pruned models: put on, counted, merged, saved and loaded in PEFT's own format.

    adapted = add_adapter(model, ranks=[2, 4, 4, 2], method="pissa", seed=0)
    …                                   # training of trainable(adapted), with method_of(adapted).loss(loss)
    save_adapter(adapted, folder)
    mended = merge(load_adapter(model, folder))

Nothing here trains. Ranks come as one number for all decoder layers, as one per layer (RankAdaptor, arXiv 2406.15734,
section 3: shared by the matrices of a layer), or as one per matrix by name; rank 0 leaves the matrix out. `METHODS` are
those that there are, `Method` says how one is added. Whatever it was trained as, a saved adapter of LoRA's kin is an
ordinary LoRA for the model that it was put on. Methods that train weights in place (`in_place`) have a file of their
own.
"""

from rules2ranks.recovery.adapters import add_adapter, load_adapter, merge, method_of, save_adapter
from rules2ranks.recovery.merged import trainable
from rules2ranks.recovery.method import Given, Method
from rules2ranks.recovery.methods import METHODS
from rules2ranks.recovery.ranks import Ranks, cost_per_rank, lora_parameters

__all__ = [
    "METHODS",
    "Given",
    "Method",
    "Ranks",
    "add_adapter",
    "cost_per_rank",
    "load_adapter",
    "lora_parameters",
    "merge",
    "method_of",
    "save_adapter",
    "trainable",
]

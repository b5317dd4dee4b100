"""LoRA and its kin on pruned models: put on, counted, merged, saved and loaded in PEFT's own format.

Nothing here trains. Ranks come as one number for all decoder layers, as one per layer (RankAdaptor, arXiv 2406.15734,
section 3: shared by the matrices of a layer), or as one per matrix by name; rank 0 leaves the matrix out. A and B start
as LoRA's, PiSSA's or EVA's (`add_lora`), or AdaLoRA moves the ranks while it trains (`add_adalora`).

Whatever it was trained as, a saved adapter is an ordinary LoRA for the model that it was put on.
"""

from rules2ranks.recovery.adalora import add_adalora, allocate, kept_parameters, kept_ranks, with_orthogonality
from rules2ranks.recovery.files import load_adapter, save_adapter
from rules2ranks.recovery.lora import Ranks, Start, add_lora, cost_per_rank, lora_parameters, merge

__all__ = [
    "Ranks",
    "Start",
    "add_adalora",
    "add_lora",
    "allocate",
    "cost_per_rank",
    "kept_parameters",
    "kept_ranks",
    "load_adapter",
    "lora_parameters",
    "merge",
    "save_adapter",
    "with_orthogonality",
]

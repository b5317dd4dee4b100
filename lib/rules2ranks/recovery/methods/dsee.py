"""DSEE (Chen et al., arXiv 2111.00160): a low-rank correction and a sparse one together."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rules2ranks.decoders import width
from rules2ranks.recovery.in_place import Entries, InPlace, put
from rules2ranks.recovery.method import Given
from rules2ranks.recovery.wrapping import own_generator

#: Turns of the decomposition that finds where the sparse part is.
TURNS = 5


class DSEE(InPlace):
    """W + alpha/r · B·A + S on each matrix, S at the entries that a low rank explains least of W.

    Half of the parameters of LoRA of the given rank are B's and A's, as LoRA starts them; the other half are the
    entries of S, zero at first. (A rank of 1 is all entries.) Where they are comes from W as low rank plus sparse: the
    authors' GreBsmo is here its plain form, truncated singular values and the largest entries of the rest in turn.
    """

    name = "dsee"

    def prepare(self, model: nn.Module, by_name: Mapping[str, int], given: Given) -> None:
        for place, (name, rank) in enumerate(by_name.items()):
            module, low = model.get_submodule(name), rank // 2
            a = torch.empty(low, module.weight.shape[1])
            if low:
                nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=own_generator(given.seed, place))
            entries = support(module.weight.detach().float(), low, (rank - low) * sum(width(module)))
            put(module, Entries(module.weight.detach(), entries, a, given.alpha_per_rank))


def support(weight: Tensor, rank: int, number: int) -> Tensor:
    """The places, counted through the rows, of so many entries (or all) that a matrix of this rank explains least."""
    number = min(number, weight.numel())
    sparse = torch.zeros_like(weight)
    for _ in range(TURNS):
        u, s, v = torch.linalg.svd(weight - sparse, full_matrices=False)
        rest = weight - (u[:, :rank] * s[:rank]) @ v[:rank]
        places = rest.abs().flatten().topk(number).indices
        sparse = torch.zeros_like(weight).flatten().index_copy_(0, places, rest.flatten()[places]).view_as(weight)
    return places.sort().values

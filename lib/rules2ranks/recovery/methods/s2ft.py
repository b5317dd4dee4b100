"""S2FT (Yang et al., arXiv 2412.06289): a few heads and channels of each layer, trained as dense submatrices."""

from collections.abc import Mapping

import numpy as np
from torch import nn

from rules2ranks.decoders import groups, linears, width
from rules2ranks.recovery.in_place import Columns, InPlace, put
from rules2ranks.recovery.method import Given


class S2FT(InPlace):
    """What some heads and channels write: their columns of the output matrices of attention and MLP.

    Each layer trains as much as LoRA of its ranks would, or a little less: the same share of its heads (rounded) and,
    with what is left, of its channels. They are drawn from `seed`; the paper's co-permutation only makes them
    neighbours in memory, and is left out. Columns of a head are those that the whole key/value group writes.
    """

    name = "s2ft"

    def prepare(self, model: nn.Module, by_name: Mapping[str, int], given: Given) -> None:
        """Raises ValueError also for ranks so low that not one channel can be trained."""
        for number, (layer, matrices) in enumerate(zip(groups(model), linears(model), strict=True)):
            budget = sum(by_name.get(name, 0) * sum(width(module)) for name, module in matrices.items())
            randomness = np.random.default_rng((given.seed, number))
            share = budget / sum(part.output.tensor.numel() for part in layer.parts)
            for part, last in zip(layer.parts, (False, True), strict=True):
                each = part.output.tensor.numel() // max(part.count, 1)
                most = min(budget // max(each, 1), part.count)
                chosen = most if last else min(round(share * part.count), most)
                if chosen:
                    drawn = randomness.choice(part.count, chosen, replace=False)
                    index = part.index(part.output, sorted(drawn.tolist()))
                    put(part.output.module, Columns(part.output.tensor.detach(), part.output.dim, index))
                    budget -= chosen * each
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError(f"ranks {dict(by_name)} are less than a channel of any layer: s2ft needs higher ones")

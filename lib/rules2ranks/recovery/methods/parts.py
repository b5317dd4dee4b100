"""Parts of a model trained whole: half of its matrices (HFT), its biases (BitFit), its norms (FPF)."""

from collections.abc import Iterator, Mapping

import numpy as np
from torch import nn

from rules2ranks.decoders import decoder_layers, give_bias, groups, linears
from rules2ranks.recovery.in_place import InPlace
from rules2ranks.recovery.method import Given


class HFT(InPlace):
    """Half fine-tuning (Hui et al., arXiv 2404.18466): in each layer half of the matrices of attention and of the MLP,
    drawn from `seed`, are trained and the others frozen; of an odd number one more in every other layer.

    That is half of all weights, whatever the ranks: they only say which matrices take part.
    """

    name = "hft"

    def prepare(self, model: nn.Module, by_name: Mapping[str, int], given: Given) -> None:
        for number, (layer, matrices) in enumerate(zip(groups(model), linears(model), strict=True)):
            randomness = np.random.default_rng((given.seed, number))
            for part in (layer.family.attention, layer.family.mlp):
                paths = {f"{layer.name}.{path}" if layer.name else path for path in part.matrices}
                own = [name for name in matrices if name in paths and name in by_name]
                half = (len(own) + number % 2) // 2
                for place in randomness.choice(len(own), half, replace=False) if own else ():
                    model.get_submodule(own[place]).weight.requires_grad_(True)


class BitFit(InPlace):
    """BitFit (Ben Zaken et al., arXiv 2106.10199): the biases alone. Where a layer's output matrices (attention's and
    the MLP's) have none, they get one of zeros, as bias compensation does.
    """

    name = "bitfit"

    def prepare(self, model: nn.Module, by_name: Mapping[str, int], given: Given) -> None:
        for layer in groups(model):
            for part in layer.parts:
                if part.count:
                    give_bias(part.output.module)
        for name, p in _of_layers(model):
            p.requires_grad_(name.endswith("bias"))


class FPF(InPlace):
    """A frozen pruned foundation: all matrices stay as they are, the norms and the biases that there are, are trained.

    The paper of that name could not be read; this is what its idea says at the least.
    """

    name = "fpf"

    def prepare(self, model: nn.Module, by_name: Mapping[str, int], given: Given) -> None:
        for _, p in _of_layers(model):
            p.requires_grad_(p.ndim == 1)


def _of_layers(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for layer in decoder_layers(model).values():
        yield from layer.named_parameters()

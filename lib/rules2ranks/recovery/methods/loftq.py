"""LoftQ (Li et al., arXiv 2310.08659) and CLoQ (Deng et al., arXiv 2501.18475): LoRA that starts as what bits lose."""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from peft import PeftModel
from torch import Tensor, nn

from rules2ranks import calibration, quantisation
from rules2ranks.quantisation import Quantised
from rules2ranks.recovery.method import Given
from rules2ranks.recovery.methods.lora import Lora
from rules2ranks.recovery.ranks import Ranks, ranks_by_name
from rules2ranks.recovery.wrapping import adapted_matrices

Start = tuple[Quantised, Tensor, Tensor]


class _Together(Lora):
    """Bits and ranks decided together, a matrix at a time: alpha/r · B·A starts as what quantising takes from it.

    Matrices of 16 bits start as LoRA's do (all of them, where no bits are given), those of rank 0 are only quantised.
    """

    def quantise(self, model: nn.Module, given: Given) -> None:
        """Nothing yet: `add` knows the ranks."""

    @abstractmethod
    def starts(self, matrices: Mapping[str, nn.Module], model: nn.Module, ranks: Mapping[str, int], given: Given):
        """Q, A and B, by name, of the matrices that have both fewer than 16 bits and a rank."""

    @torch.no_grad()
    def add(self, model: nn.Module, ranks: Ranks, given: Given) -> PeftModel:
        """Raises ValueError also as `quantisation.quantise`."""
        by_name, matrices = ranks_by_name(model, ranks), quantisation.matrices(model, given.bits, given.group)
        both = {name: module for name, module in matrices.items() if name in by_name}
        starts = self.starts(both, model, by_name, given)
        for name, module in matrices.items():
            rows = quantisation.rows_of(module)
            held = starts[name][0] if name in starts else quantisation.quantised(rows, given.bits[name], given.group)
            quantisation.put(model, name, held, given.packed)
        adapted = super().add(model, by_name, given)
        scale = given.alpha_per_rank**0.5
        for _, name, module in adapted_matrices(adapted):
            if name in starts:
                _, a, b = starts[name]
                module.lora_A["default"].weight.copy_(a / scale)
                module.lora_B["default"].weight.copy_(b / scale)
        return adapted


class LoftQ(_Together):
    """`rounds` times in turn: the matrix without B·A to few bits, B·A the main part of what that loses.

    A and B take what their truncated singular value decomposition gives, whatever `seed`.
    """

    name = "loftq"

    def starts(self, matrices, model, ranks, given) -> dict[str, Start]:
        return {
            name: quantisation.loftq(
                quantisation.rows_of(module), given.bits[name], ranks[name], given.rounds, given.group
            )
            for name, module in matrices.items()
        }


class CLoQ(_Together):
    """B·A in closed form: best for what goes into the matrix over `batches`, at `positions`, in the model before.

    Quantised as all others here, without the paper's calibrated quantiser.
    """

    name = "cloq"

    def starts(self, matrices, model, ranks, given) -> dict[str, Start]:
        """Raises ValueError also without batches or loss, where there are bits."""
        if matrices and (not len(given.batches) or given.loss is None):
            raise ValueError("cloq starts from the inputs of the matrices: give batches, and the loss that takes them")
        seen = calibration.collect(
            model, list(matrices.values()), calibration.SecondMoment, given.batches, given.loss, given.positions
        )
        return {
            name: quantisation.cloq(
                quantisation.rows_of(module), given.bits[name], ranks[name], moment.mean, given.group
            )
            for (name, module), moment in zip(matrices.items(), seen, strict=True)
        }

"""Few bits and a low-rank correction together: what is lost by the one is put, as far as it fits, into the other."""

import torch
from torch import Tensor

from rules2ranks.configuration import GROUP
from rules2ranks.quantisation.grid import Quantised, quantised

#: Below this share of the largest eigenvalue of the inputs' second moment, a direction counts as never seen.
DAMPING = 1e-6
#: Of LoftQ, unless told otherwise (its authors' number).
ROUNDS = 5


@torch.no_grad()
def loftq(
    weight: Tensor, bits: int, rank: int, rounds: int = ROUNDS, group: int = GROUP
) -> tuple[Quantised, Tensor, Tensor]:
    """LoftQ (Li et al., arXiv 2310.08659, algorithm 1): Q, A (rank, inputs) and B (outputs, rank) with Q + B·A near W.

    In turns, Q is what W − B·A becomes in so many bits, and B·A the truncated singular value decomposition of W − Q.
    Of all rounds that with the smallest ‖W − Q − B·A‖ is kept: rounding need not fall with every round.

    Raises:
        ValueError: no rounds, a rank that W does not have, or as `quantised`.
    """
    if rounds < 1 or not 1 <= rank <= min(weight.shape):
        raise ValueError(
            f"rounds from 1 on and ranks of 1 to {min(weight.shape)} are possible, got {rounds} and {rank}"
        )
    whole, correction, best = weight.float(), torch.zeros(()), None
    for _ in range(rounds):
        held = quantised(whole - correction, bits, group)
        a, b = _truncated(whole - held.values, rank)
        correction = b @ a
        left = (whole - held.values - correction).norm().item()
        if best is None or left < best[0]:
            best = left, held, a, b
    return best[1:]


@torch.no_grad()
def cloq(
    weight: Tensor, bits: int, rank: int, second_moment: Tensor, group: int = GROUP
) -> tuple[Quantised, Tensor, Tensor]:
    """CLoQ's closed form (Deng et al., arXiv 2501.18475): as `loftq`, but B·A is best for what W is given.

    Q is W in so many bits, and B·A minimises ‖(W − Q − B·A) X‖ over inputs X with the second moment X·Xᵀ (inputs,
    inputs): with the root R of it, B·A·R is the truncated singular value decomposition of (W − Q)·R. The paper
    quantises with calibration, too (OPTQ, MagR); here Q is HQQ's, which looks at no data.

    Raises:
        ValueError: a rank that W does not have, a moment of another shape, or as `quantised`.
    """
    inputs = weight.shape[1]
    if not 1 <= rank <= min(weight.shape) or second_moment.shape != (inputs, inputs):
        raise ValueError(
            f"ranks of 1 to {min(weight.shape)} and second moments ({inputs}, {inputs}) are possible, got {rank} and "
            f"{tuple(second_moment.shape)}"
        )
    held = quantised(weight, bits, group)
    eigenvalues, directions = torch.linalg.eigh(second_moment.double())
    root = eigenvalues.clamp_min(eigenvalues[-1].clamp_min(1e-30) * DAMPING).sqrt()
    rotated = (weight.double() - held.values.double()) @ directions * root
    left, size, right = torch.linalg.svd(rotated, full_matrices=False)
    half = size[:rank].sqrt()
    a = (half[:, None] * right[:rank] / root) @ directions.T
    return held, a.float(), (left[:, :rank] * half).float()


def _truncated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A and B of the truncated singular value decomposition, each with the root of the singular values."""
    left, size, right = torch.linalg.svd(matrix, full_matrices=False)
    half = size[:rank].sqrt()
    return half[:, None] * right[:rank], left[:, :rank] * half

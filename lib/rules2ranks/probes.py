"""Inside a network: how far back it looks, what it has in common with another, how much it learnt."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rules2ranks.gpt2 import Attention


def attention(model: nn.Module, rows: Tensor) -> Tensor:
    """Attention weights on rows `(B, T, W)`: `(layers, heads, T, T)`, mean over the batch; entry t, s is t's on s.

    For a model with blocks of `rules2ranks.gpt2`, all layers with as many heads. ValueError for any other model.
    """
    caught: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda module, given, made: caught.append(made[1].mean(0)))
        for module in model.modules()
        if isinstance(module, Attention)
    ]
    if not hooks:
        raise ValueError(f"a {type(model).__name__} has no attention of rules2ranks.gpt2 to look at")
    return torch.stack(_caught(caught, hooks, model, rows))


def _caught(caught: list[Tensor], hooks: Sequence[RemovableHandle], model: nn.Module, rows: Tensor) -> list[Tensor]:
    """What hooks put into a list as the model looks at rows; afterwards they are gone."""
    try:
        with torch.no_grad():
            model(rows)
    finally:
        for hook in hooks:
            hook.remove()
    return caught


def attention_to_last(weights: Tensor, last: int = 10) -> Tensor:
    """Share (0…1) of attention that goes to the `last` rows, the current one included: `(layers, heads)`.

    `weights` `(layers, heads, T, T)` of `attention`. The mean over the positions that see at least twice as many rows
    (earlier ones have little else to look at); attention spread evenly over all that is seen would give
    `attention_spread_evenly`. ValueError where no position sees so many.
    """
    length = weights.shape[-1]
    if not 0 < 2 * last <= length:
        raise ValueError(f"no position of {length} sees {2 * last} rows, twice the last {last}")
    near = torch.ones_like(weights).tril().triu(1 - last)
    return (weights * near).sum(-1)[..., 2 * last - 1 :].mean(-1)


def attention_spread_evenly(length: int, last: int = 10) -> float:
    """What `attention_to_last` gives if every position looks at all rows that it sees alike."""
    return float(np.mean(last / np.arange(2 * last, length + 1)))


def activations(model: nn.Module, rows: Tensor) -> Tensor:
    """What the blocks of a `models.RowGPT` make of rows `(B, T, W)`: `(B, T, hidden)`, behind the last norm."""
    with torch.no_grad():
        return model.body(model.input(rows))


def cka(a: ArrayLike, b: ArrayLike) -> float:
    """Linear centred kernel alignment of two sets of features of the same n examples, `(n, p)` and `(n, q)`: 0 to 1.

    Kornblith et al. 2019 (arXiv 1905.00414), equation 5 and section 3: 1 for features that agree up to rotation,
    scale and shift. ValueError for unequal n, or features that are the same for all examples.
    """
    x, y = (np.asarray(side, float) - np.mean(side, axis=0) for side in (a, b))
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"features of the same examples are (n, p) and (n, q); got {x.shape} and {y.shape}")
    own = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    if own == 0:
        raise ValueError("features that do not vary over the examples have no alignment")
    return float(np.square(y.T @ x).sum() / own)


def epiplexity(losses: Sequence[tuple[int, float]], end: float) -> float:
    """Prequential estimate of what was learnt: the area under a training's loss curve above its end, bits × steps.

    Finzi et al. 2026 (arXiv 2601.03220): the sum over steps of the loss on data not yet trained on, less that of the
    finished model on the same data. `losses` are (step, mean loss since the last entry) in nats per target bit, as a
    `training.History` has them; `end` is the finished model's loss on fresh data. Times the target bits of a step it
    is the size, in bits, of what the network knows. Their estimate counts input tokens too, ours targets only.

    ValueError for steps that do not rise.
    """
    steps = np.array([0, *(step for step, _ in losses)])
    if (np.diff(steps) <= 0).any():
        raise ValueError(f"steps must rise from entry to entry, got {steps[1:].tolist()}")
    excess = np.array([loss for _, loss in losses]) - end
    return float((np.diff(steps) * excess).sum() / np.log(2))


def residuals(model: nn.Module, rows: Tensor) -> Tensor:
    """What a `models.RowGPT` carries from block to block, for rows `(B, T, W)`: `(layers + 1, B, T, hidden)`.

    First what goes into the first block, then what each block makes of it.
    """
    caught: list[Tensor] = []
    blocks = model.body.h
    hooks = [blocks[0].register_forward_pre_hook(lambda module, given: caught.append(given[0]))]
    hooks += [block.register_forward_hook(lambda module, given, made: caught.append(made)) for block in blocks]
    return torch.stack(_caught(caught, hooks, model, rows))


def read_off(
    features: ArrayLike, answer: ArrayLike, groups: ArrayLike, *, folds: int = 4, ridge: float = 1e-3
) -> float:
    """How well a yes or no can be read off features by a linear function: balanced accuracy, 0 to 1, chance 0.5.

    `features` (n, p) and `answer` (n,) bool. The function is fitted by least squares, both answers with equal weight
    and the features standardised, with a penalty of `ridge`; on some `groups` (n,), and tested on the others: group g
    is in fold g mod `folds`, so that none is in both. NaN where an answer is missing from a fold's fit or test.
    """
    x, y, groups = np.asarray(features, np.float64), np.asarray(answer, bool), np.asarray(groups)
    right = np.zeros((folds, 2))
    for fold in range(folds):
        test = groups % folds == fold
        sides = [np.flatnonzero(part & side) for part in (~test, test) for side in (y, ~y)]
        if not all(map(len, sides)):
            return float("nan")
        fit = np.concatenate(sides[:2])
        weight = np.repeat([0.5 / len(side) for side in sides[:2]], [len(side) for side in sides[:2]])[:, None]
        mean = (weight * x[fit]).sum(0)
        spread = np.sqrt((weight * (x[fit] - mean) ** 2).sum(0)) + 1e-9
        z = (x - mean) / spread
        sign = np.where(y, 1.0, -1.0)
        gram = z[fit].T @ (weight * z[fit]) + ridge * np.eye(x.shape[1])
        direction = np.linalg.solve(gram, z[fit].T @ (weight[:, 0] * sign[fit]))
        right[fold] = [np.mean(z[side] @ direction * sign[side] > 0) for side in sides[2:]]
    return float(right.mean())

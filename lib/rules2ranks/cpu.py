"""What torch computes slowly on a CPU, computed faster: products of float32 matrices, GPT-2's GELU, and attention.

All give torch's numbers to rounding, decide themselves where they help, and are torch's own elsewhere: on a GPU, in
other types, under autocast and in `torch.func`. Gradients can be taken once, not of gradients.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import pytorch_utils

_ONEDNN = torch.backends.mkldnn.is_available()
# GELU by tanh (Hendrycks and Gimpel 2016) is x σ(u) with u = x (a + b x²), as (1 + tanh z) / 2 = σ(2z).
_A = math.sqrt(8 / math.pi)
_B = 0.044715 * _A
#: Multiplications that a product must have for oneDNN to be worth the way to it.
_WORTH = 2**22


class Linear(nn.Linear):
    """torch's linear layer by `affine`."""

    def forward(self, x: Tensor) -> Tensor:
        return affine(x, self.weight.T, self.bias)


class Conv1D(pytorch_utils.Conv1D):
    """transformers' linear layer (weight inputs × outputs) by `affine`."""

    def forward(self, x: Tensor) -> Tensor:
        return affine(x, self.weight, self.bias)


def _worth(x: Tensor, weight: Tensor) -> bool:
    return _ONEDNN and _helps(x) and x.numel() * weight.shape[1] >= _WORTH


def _helps(x: Tensor) -> bool:
    # A function that `torch.func` can handle takes twice as long to call: within it (as within `torch.vmap`) torch
    # does it all.
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight, + bias: (…, inputs), (inputs, outputs) and (outputs,) give (…, outputs). Not to be differentiated.

    On a CPU torch multiplies by MKL, which leaves AVX-512 unused on processors that are not Intel's and is half as fast
    there as oneDNN, which torch holds as well. Small products are left to it.
    """
    if _worth(x, weight):
        # torch has no public name for a product by oneDNN: this op is the one that its compiler uses.
        return torch.ops.mkldnn._linear_pointwise(x, weight.T, bias, "none", [], "")
    return F.linear(x, weight.T, bias)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`product`, to be differentiated."""
    return _Affine.apply(x, weight, bias) if _worth(x, weight) else F.linear(x, weight.T, bias)


def gelu(x: Tensor) -> Tensor:
    """`F.gelu(x, approximate="tanh")`, by the logistic function, which torch computes several times as fast as tanh."""
    if not _helps(x):
        return F.gelu(x, approximate="tanh")
    if torch.is_grad_enabled():
        return _Gelu.apply(x)
    return torch.addcmul(x.new_tensor(_A), x, x, value=_B).mul_(x).sigmoid_().mul_(x)


def attention(qkv: Tensor, added: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1), and its weights.

    Args:
        qkv: queries, keys and values side by side, heads within each: (B, T, 3 × heads × head_dim).
        added: what is added to the scores before the softmax, (T, T); a constant.

    Returns:
        What each position mixed, heads side by side (B, T, heads × head_dim), and the weights (B, heads, T, T).
    """
    return _Attention.apply(qkv, added, head_dim) if _helps(qkv) else _attention(qkv, added, head_dim)[:2]


def _attention(qkv: Tensor, added: Tensor, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    by_head = qkv.unflatten(-1, (3, -1, head_dim)).permute(2, 0, 3, 1, 4)
    laid_out = by_head.flatten(1, 2)
    q, k, v = laid_out.unbind()
    weights = torch.baddbmm(added, q, k.mT, alpha=head_dim**-0.5).softmax(-1)
    mixed, weights = (each.unflatten(0, by_head.shape[1:3]) for each in (weights @ v, weights))
    return mixed.transpose(1, 2).flatten(2), weights, laid_out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, added: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
        mixed, weights, laid_out = _attention(qkv, added, head_dim)
        ctx.save_for_backward(laid_out, weights)
        ctx.set_materialize_grads(False)  # mostly nobody asks for those of the weights
        return mixed, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mixed: Tensor | None, of_weights: Tensor | None) -> tuple[Tensor | None, None, None]:
        laid_out, weights = ctx.saved_tensors
        (q, k, v), flat = laid_out.unbind(), weights.flatten(0, 1)
        scale = q.shape[-1] ** -0.5
        if of_mixed is None:
            by_head = torch.zeros_like(v)
        else:
            by_head = of_mixed.unflatten(-1, (-1, q.shape[-1])).transpose(1, 2).flatten(0, 1)
        of_flat = by_head @ v.mT
        if of_weights is not None:
            of_flat += of_weights.flatten(0, 1)
        of_scores = torch.ops.aten._softmax_backward_data(of_flat, flat, -1, flat.dtype)
        # One piece of memory takes all three, so that they are copied only once, into the order of `qkv`.
        found = torch.empty_like(laid_out)
        torch.baddbmm(found[0], of_scores, k, beta=0, alpha=scale, out=found[0])
        torch.baddbmm(found[1], of_scores.mT, q, beta=0, alpha=scale, out=found[1])
        torch.bmm(flat.mT, by_head, out=found[2])
        return found.unflatten(1, weights.shape[:2]).permute(1, 3, 0, 2, 4).flatten(2), None, None


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        flat = dy.reshape(-1, dy.shape[-1])
        return (
            product(flat, weight.T).view(x.shape) if of_x else None,
            product(x.reshape(-1, x.shape[-1]).T, flat) if of_weight else None,
            flat.sum(0) if of_bias else None,
        )


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # The derivative is computed here, where x is at hand, so that the way back reads one tensor and not two.
        squares = x * x
        logistic = torch.add(x.new_tensor(_A), squares, alpha=_B).mul_(x).sigmoid_()
        slope = squares.mul_(3 * _B).add_(_A).mul_(x)
        torch.ops.aten.sigmoid_backward.grad_input(slope, logistic, grad_input=slope).add_(logistic)
        ctx.save_for_backward(slope)
        return logistic.mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * dy

"""What calibration batches show of a model: gradients, per-example gradients, and what goes into its matrices.

Everything here leaves the model as it was, after an error too: modes, flags, gradients and hooks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

#: The mean loss over the examples of a batch. Whatever a batch is, this alone takes it apart.
Loss = Callable[[nn.Module, Any], Tensor]
#: Which positions of a batch count, boolean `(examples, positions)`: False for padding.
Positions = Callable[[Any], Tensor]
CHUNK = 2**24  # entries of per-example gradients that are held at once


class Moments:
    """Count, mean, variance and norm of what goes into a matrix: float64 tensors with one entry per input."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Take in what goes into the matrix, `(positions, inputs)`, and what comes out, `(positions, outputs)`."""
        inputs = inputs.double()
        self.count += len(inputs)
        self.total = self.total + inputs.sum(0)
        self.squares = self.squares + inputs.square().sum(0)

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def variance(self) -> Tensor:
        """Sample variance (count − 1 in the denominator); 0 of a single position."""
        return (self.squares - self.count * self.mean.square()).clamp_min(0) / max(self.count - 1, 1)

    @property
    def norm(self) -> Tensor:
        """L2 norm over all positions."""
        return self.squares.sqrt()


class Angles:
    """Mean of arccos(cos(x, y))/π, x what goes into a module, y what comes out: 0 (no other direction) to 1."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        # In float32 a cosine near 1 would not tell angles below 3e-4 apart.
        cosine = torch.cosine_similarity(inputs.double(), outputs.double(), dim=-1).clamp(-1, 1)
        self.count += len(cosine)
        self.total += (cosine.arccos() / torch.pi).sum().item()

    @property
    def mean(self) -> float:
        return self.total / self.count


class SecondMoment:
    """X·Xᵀ / positions of what goes into a matrix, float64, (inputs, inputs)."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | float = 0.0

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        inputs = inputs.double()
        self.count += len(inputs)
        self.total = self.total + inputs.T @ inputs

    @property
    def mean(self) -> Tensor:
        return self.total / self.count


Summary = TypeVar("Summary", Moments, Angles, SecondMoment)


def collect(
    model: nn.Module,
    modules: Sequence[nn.Module],
    kind: type[Summary],
    batches: Sequence[Any],
    loss: Loss,
    positions: Positions | None = None,
) -> list[Summary]:
    """A summary of a kind for each module (matrices, decoder layers), over all positions that count of all batches."""
    summaries = {module: kind() for module in modules}
    mask = None

    def see(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        y = output[0] if isinstance(output, tuple) else output
        summaries[module].add(_counted(x, mask), _counted(y, mask))

    with evaluating(model), watching(modules, see), torch.no_grad():
        for batch in batches:
            mask = None if positions is None else positions(batch)
            loss(model, batch)
    return [summaries[module] for module in modules]


def mean_gradients(model: nn.Module, tensors: Sequence[Tensor], batches: Sequence[Any], loss: Loss) -> list[Tensor]:
    """Gradient of the mean loss over the batches, in float32.

    Each tensor's gradient is added as soon as it is there and given up, so that beside the model there is room for its
    float32 sums only: a model of n parameters needs 4 n bytes more.
    """
    sums = {tensor: torch.zeros_like(tensor, dtype=torch.float32) for tensor in tensors}

    def take(tensor: Tensor) -> None:
        sums[tensor].add_(tensor.grad)
        tensor.grad = None

    with evaluating(model), differentiable(tensors), ExitStack() as handles:
        for tensor in sums:
            handles.callback(setattr, tensor, "grad", tensor.grad)
            tensor.grad = None
            handles.enter_context(tensor.register_post_accumulate_grad_hook(take))
        for batch in batches:
            torch.autograd.backward(loss(model, batch), inputs=list(sums))
    return [sums[tensor].div_(len(batches)) for tensor in tensors]


def example_gradients(
    model: nn.Module, parameters: Sequence[tuple[nn.Module, str]], batches: Sequence[Any], loss: Loss
) -> tuple[list[Tensor], list[Tensor]]:
    """Mean gradient over the batches, and mean square over all examples of each example's own gradient, in float32.

    An example's gradient is that of its share of the batch's loss, times the number of examples. Where `loss` is the
    mean of the examples' losses, this is the gradient of the example's loss. One backward pass for a batch gives all of
    them, as a matrix's gradient is the product of the gradient of its outputs and of its inputs, example by example.

    `parameters` are weights and biases of Linear and Conv1D modules, as (module, name).

    Raises:
        ValueError: a matrix does not see `(examples, positions, inputs)` with as many examples as the others.
    """
    tensors = [getattr(module, name) for module, name in parameters]
    modules = list(dict.fromkeys(module for module, _ in parameters))
    means, squares = ([torch.zeros_like(tensor, dtype=torch.float32) for tensor in tensors] for _ in range(2))
    examples = 0
    seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def see(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        seen[module].append((args[0].detach(), output))

    with evaluating(model), differentiable(tensors), watching(modules, see):
        for batch in batches:
            seen.update((module, []) for module in modules)
            value = loss(model, batch)
            # As it is now: layers that are computed again in the backward pass would be seen twice.
            factors, size = _factors(value, {module: list(calls) for module, calls in seen.items()})
            for (module, name), mean, square in zip(parameters, means, squares, strict=True):
                for share in _shares(module, name, *factors[module]):
                    mean += share.sum(0)
                    square += (size * share).square().sum(0)
            examples += size
    return [mean / len(batches) for mean in means], [square / examples for square in squares]


def _factors(
    value: Tensor, seen: dict[nn.Module, list[tuple[Tensor, Tensor]]]
) -> tuple[dict[nn.Module, tuple[Tensor, Tensor]], int]:
    """Per module its inputs and the gradient of its outputs, `(examples, positions, width)`; and how many examples."""
    gradients = iter(torch.autograd.grad(value, [output for calls in seen.values() for _, output in calls]))
    shapes = {tuple(x.shape[:-2]) for calls in seen.values() for x, _ in calls}
    if len(shapes) > 1 or len(next(iter(shapes))) != 1:
        raise ValueError(
            "per-example gradients need every matrix to see (examples, positions, inputs) with the same examples, "
            f"got {sorted(shapes)} before positions and inputs"
        )
    factors = {
        # What several calls of a module add to its gradient adds up as several positions do.
        module: tuple(
            torch.cat(part, 1).float() for part in zip(*((x, next(gradients)) for x, _ in calls), strict=True)
        )
        for module, calls in seen.items()
    }
    return factors, shapes.pop()[0]


def _shares(module: nn.Module, name: str, inputs: Tensor, gradient: Tensor) -> Iterator[Tensor]:
    """Each example's share of a parameter's gradient, `(some examples, *parameter)`, a chunk at a time."""
    if name == "bias":
        yield gradient.sum(1)
        return
    step = max(1, CHUNK // getattr(module, name).numel())
    for x, dy in zip(inputs.split(step), gradient.split(step), strict=True):
        yield x.mT @ dy if isinstance(module, Conv1D) else dy.mT @ x


def _counted(x: Tensor, mask: Tensor | None) -> Tensor:
    """The positions of `(examples, positions, width)` that count: `(n, width)`."""
    if mask is None:
        return x.flatten(0, -2)
    if mask.dtype != torch.bool or mask.shape != x.shape[:-1]:
        raise ValueError(
            f"positions must be boolean and of the shape {tuple(x.shape[:-1])}, got {mask.dtype} {tuple(mask.shape)}"
        )
    return x[mask]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside (no dropout), every module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def differentiable(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Gradients can be asked for inside, of frozen tensors too; their flags are as before afterwards."""
    flags = [tensor.requires_grad for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for tensor, flag in zip(tensors, flags, strict=True):
            tensor.requires_grad_(flag)


@contextmanager
def watching(modules: Sequence[nn.Module], hook: Callable[[nn.Module, tuple, dict, Any], None]) -> Iterator[None]:
    """Call `hook` (module, arguments by place and by name, output) after each of the modules has run, inside only."""
    with ExitStack() as handles:
        for module in modules:
            handles.enter_context(module.register_forward_hook(hook, with_kwargs=True))
        yield

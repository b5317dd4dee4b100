"""A dry run: parameters, bytes and peak memory of each step on a model, before anything of it is loaded.

The steps are gone through with tensors that have shapes and no values, and what would be alive at a time is counted. On
top comes what Python and the libraries take themselves (some 0.5 GB), and what an allocator keeps in pieces.
"""

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AutoConfig

from rules2ranks import calibration, checkpoints, decoders, models, pruning, runs
from rules2ranks.importance import MEASURES, Kind
from rules2ranks.models import Dtype
from rules2ranks.spreads import Spread
from rules2ranks.stages.own_texts import recomputed
from rules2ranks.stages.ranges import Rank, Share, Size


class Planned(runs.Params):
    """Pruning and recovery of a model, as far as memory depends on them. `model` is a folder with a `config.json` (its
    weights need not be there) or a hub name; in training `at_once` texts of `length` tokens go through it, and one
    window of `calibration_length` for importance. With `kl` recovery holds the unpruned model beside the pruned one.
    With `from_disk` the model is pruned layer by layer, after `calibration_samples` windows at a time.
    """

    model: str
    dtype: Dtype = "float32"
    importance: Kind = "taylor"
    ratio: Share = 0.3
    of: Literal["model", "layers"] = "model"
    spread: Spread = "uniform"
    rank: Rank = 8
    length: Annotated[int, Field(ge=2)] = 256
    calibration_length: Annotated[int, Field(ge=2)] = 64
    at_once: Size = 8
    gradient_checkpointing: bool = False
    kl: bool = False
    from_disk: bool = False
    calibration_samples: Size = 10

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.from_disk and MEASURES[self.importance].needs != "activations":
            raise ValueError(f"from_disk needs importance flap or wanda-sp: {self.importance} needs the whole model")
        return self


def footprint(given: Planned) -> dict[str, dict[str, int]]:
    """By step (loading, importance, pruning, recovery): the model's `parameters` then, and at its peak the `bytes`.

    Raises:
        ValueError, OSError: there is no configuration, or one that cannot be pruned, or not so far.
    """
    folder, found = checkpoints.find(given.model), {}
    if not (folder / "config.json").is_file():
        raise OSError(f"{folder} holds no config.json: expected that of a model that transformers saved")
    kind, config = decoders.causal_lm(
        AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    )
    decoders.check_architecture(config)
    empty = decoders.skeleton(config, kind)
    plan = pruning.plan(
        empty, pruning.importance(empty, (), None, "random", seed=0), given.ratio, spread=given.spread, of=given.of
    )
    kept = [(range(len(layer.attention)), range(len(layer.channels))) for layer in plan.layers]
    with FakeTensorMode():
        model = kind._from_config(config, dtype=getattr(torch, given.dtype)).eval().requires_grad_(False)
        whole, count = _bytes(model), models.parameter_count(model)
        layer = max(map(_bytes, decoders.decoder_layers(model).values()))
        rest = whole - sum(map(_bytes, decoders.decoder_layers(model).values()))
        peak = _peak(model, lambda: _importance(model, given))
        found["loading"] = {"parameters": count, "bytes": rest if given.from_disk else whole}
        found["importance"] = {"parameters": count, "bytes": (rest + layer if given.from_disk else whole) + peak}
        decoders.keep(model, kept)
        left, count = _bytes(model), models.parameter_count(model)
        # From disk: a file is put together before it is written.
        cutting = 2 * max(rest, layer) if given.from_disk else whole + left
        found["pruning"] = {"parameters": count, "bytes": cutting}
        beside = whole if given.kl else 0
        found["recovery"] = {"parameters": count, "bytes": left + beside + _peak(model, lambda: _step(model, given))}
    return found


def _importance(model: nn.Module, given: Planned) -> None:
    needs, windows = MEASURES[given.importance].needs, given.calibration_samples if given.from_disk else 1
    batches = [torch.zeros(windows, given.calibration_length, dtype=torch.long)]
    model.requires_grad_(True)  # as it is loaded
    coupled = [c for layer in decoders.groups(model) for part in layer.parts for c in part.coupled]
    loss = partial(_loss, gradient_checkpointing=given.gradient_checkpointing)
    if needs == "gradients":
        calibration.mean_gradients(model, [c.tensor for c in coupled], batches, loss)
    elif needs == "example gradients":
        calibration.example_gradients(model, [(c.module, c.parameter) for c in coupled], batches, loss)
    elif needs == "activations":
        with torch.no_grad():
            model.base_model(input_ids=batches[0], use_cache=False) if given.from_disk else loss(model, batches[0])


def _step(model: nn.Module, given: Planned) -> None:
    """A step of LoRA on every matrix, as PEFT computes it; its own layers cannot be put on tensors without values."""
    model.requires_grad_(False)
    trained: list[Tensor] = []
    for matrix in (module for layer in decoders.linears(model) for module in layer.values()):
        inputs, outputs = decoders.width(matrix)
        a, b = (torch.zeros(shape, requires_grad=True) for shape in ((given.rank, inputs), (outputs, given.rank)))
        matrix.register_forward_hook(lambda _, x, y, a=a, b=b: y + F.linear(F.linear(x[0].to(a.dtype), a), b) * 2.0)
        trained += [a, b]
    optimiser = torch.optim.AdamW(trained)
    tokens = torch.zeros(given.at_once, given.length, dtype=torch.long)
    _loss(model, tokens, given.gradient_checkpointing).backward()
    optimiser.step()


def _loss(model: nn.Module, tokens: Tensor, gradient_checkpointing: bool = False) -> Tensor:
    """As `own_texts.text_loss` where all positions count."""
    with recomputed(model) if gradient_checkpointing else nullcontext():
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    logits = logits.flatten(0, 1)[torch.arange(logits.shape[0] * logits.shape[1])].float()
    return F.cross_entropy(logits, tokens[:, 1:].flatten())


class _Alive(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside, while they live; a model's own are not made."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = WeakIdKeyDictionary()
        for tensor in (*model.parameters(), *model.buffers()):
            self._seen[tensor.untyped_storage()] = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, made)
        return made

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._seen and not tensor.is_meta:
            size = self._seen[storage] = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size


def _peak(model: nn.Module, run: Callable[[], None]) -> int:
    """Bytes of what is made beside the model while it runs, at the peak."""
    with _Alive(model) as alive:
        run()
    return alive.peak


def _bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in {*model.parameters(), *model.buffers()})

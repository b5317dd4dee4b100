"""A database of levels: for each attention and MLP, which groups stay when so many go, and weights that make up for it.

    save_levels(folder, model, levels(model, batches, loss))
    database = Database(folder)
    shrunk = shrink(model, database, {"model.layers.2.mlp": 64, "model.layers.3.attention": 2})

A level is how many groups of a part are gone. Any choice of levels is cut from the same database; nothing is measured
again.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rules2ranks.calibration import Loss, Positions, SecondMoment, collect
from rules2ranks.decoders import Groups, groups, kept_copy
from rules2ranks.decoders.groups import Layer
from rules2ranks.pruning.second_order import DAMPING, kept, removal, spaced

FORMAT, INDEX = 1, "levels.json"
#: Bytes of second moments that are held at a time, unless told otherwise.
ROOM = 2**32


@dataclass(frozen=True, eq=False)
class Part:
    """An attention (`<layer>.attention`) or MLP (`<layer>.mlp`), and what becomes of it as its groups go.

    order: its groups, the first to go first. errors: what is lost of its output by then, as a share, from 0 groups gone
    on. weights: by the number of groups gone, the output matrix (outputs, inputs left) in the model's own type.
    """

    name: str
    layer: int
    order: tuple[int, ...]
    errors: tuple[float, ...]
    weights: Mapping[int, Tensor]


def levels(
    model: nn.Module,
    batches: Sequence[Any],
    loss: Loss,
    *,
    steps: int = 10,
    damping: float = DAMPING,
    positions: Positions | None = None,
    room: int = ROOM,
) -> Iterator[Part]:
    """The parts of every layer in order, each at `steps` levels from fewer groups to none.

    As many layers share a calibration pass as have second moments that fit into `room` bytes, at least one: a pass for
    all of a small model, and for a large one the memory of a layer at a time. The model is left alone.

    Raises:
        ValueError: no batch, no steps, an unsupported model, or as `removal`.
    """
    if not batches or steps < 1:
        raise ValueError(f"levels need calibration batches and steps from 1 on, got {len(batches)} and {steps}")
    layers = groups(model)
    for some in _that_fit(layers, room):
        parts = [(number, name, part) for number in some for name, part in named(layers[number]).items()]
        outputs = [part.output.module for *_, part in parts]
        moments = collect(model, outputs, SecondMoment, batches, loss, positions)
        for (number, name, part), seen in zip(parts, moments, strict=True):
            columns = torch.stack([part.index(part.output, [group]) for group in range(part.count)])
            at = spaced(part.count, steps)
            found = removal(_rows(part), seen.mean, columns, at, damping=damping)
            left = {level: part.index(part.output, kept(found.order, level)) for level in at[1:-1]}
            weights = {level: found.weights[level][:, index].contiguous().cpu() for level, index in left.items()}
            yield Part(name, number, found.order, found.errors, weights)


def named(layer: Layer) -> dict[str, Groups]:
    """The parts of a layer that have groups, by name."""
    both = {f"{layer.name}.attention": layer.attention, f"{layer.name}.mlp": layer.channels}
    return {name: part for name, part in both.items() if part.count}


def _that_fit(layers: Sequence[Layer], room: int) -> Iterator[list[int]]:
    """Numbers of layers whose second moments fit into so many bytes together."""
    some, taken = [], 0
    for number, layer in enumerate(layers):
        own = sum(8 * _rows(part).shape[1] ** 2 for part in named(layer).values())
        if some and taken + own > room:
            yield some
            some, taken = [], 0
        some, taken = [*some, number], taken + own
    yield some


def _rows(part: Groups) -> Tensor:
    """The output matrix of a part as (outputs, inputs)."""
    return part.output.tensor.detach().movedim(part.output.dim, -1)


def save_levels(folder: str | Path, model: nn.Module, parts: Iterable[Part]) -> None:
    """Write the parts of a model as they come, a safetensors file each, and at last `levels.json`."""
    folder, index = Path(folder), {}
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(parts):
        file = f"levels-{number:04}.safetensors"
        save_file({str(level): weight for level, weight in part.weights.items()}, folder / file)
        index[part.name] = {"file": file, "layer": part.layer, "order": part.order, "errors": part.errors}
    about = {"format": FORMAT, "model": digest(model), "parts": index}
    (folder / INDEX).write_text(json.dumps(about) + "\n")


class Database:
    """Levels on disk, as `save_levels` wrote them: read when they are asked for.

    Raises:
        ValueError: `levels.json` is missing, damaged or of another format.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            about = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
            found = {name: self._part(name, **part) for name, part in about["parts"].items()}
        except FileNotFoundError:
            raise ValueError(f"{folder} has no {INDEX}: expected a folder that save_levels wrote") from None
        except OSError as error:
            raise ValueError(str(error)) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.folder / INDEX} is damaged: {error}") from error
        if about.get("format") != FORMAT:
            raise ValueError(f"{INDEX} has format {about.get('format')}, this version reads {FORMAT}")
        self.model: str = about["model"]
        self.parts: dict[str, Part] = found

    def _part(self, name: str, file: str, layer: int, order: Sequence[int], errors: Sequence[float]) -> Part:
        return Part(name, layer, tuple(order), tuple(errors), _Lazy(self.folder / file))

    def levels(self, name: str) -> list[int]:
        """The levels that a part has, from whole to nothing.

        Raises:
            ValueError: no such part.
        """
        if name not in self.parts:
            raise ValueError(f"the database has no part {name}; they are named like {next(iter(self.parts))}")
        return [0, *sorted(self.parts[name].weights), len(self.parts[name].order)]

    def check(self, chosen: Mapping[str, int]) -> None:
        """Whether all of these levels are there.

        Raises:
            ValueError: a part or a level that the database does not have; says which it has.
        """
        for name, level in chosen.items():
            if level not in (there := self.levels(name)):
                raise ValueError(f"{name} has no level {level} in the database, only {', '.join(map(str, there))}")


class _Lazy(Mapping):
    """The weights of a part by level, from its file."""

    def __init__(self, file: Path):
        self._file = file
        try:
            with safe_open(file, "pt") as held:
                self._levels = sorted(map(int, held.keys()))
        except (OSError, SafetensorError) as error:
            raise OSError(f"{file} is missing or damaged: {error}") from error

    def __getitem__(self, level: int) -> Tensor:
        if level not in self._levels:
            raise KeyError(level)
        with safe_open(self._file, "pt") as held:
            return held.get_tensor(str(level))

    def __iter__(self) -> Iterator[int]:
        return iter(self._levels)

    def __len__(self) -> int:
        return len(self._levels)


@torch.no_grad()
def shrink(model: nn.Module, database: Database, chosen: Mapping[str, int]) -> nn.Module:
    """A copy of the model with so many groups of each named part gone, and the weights that make up for them.

    Raises:
        ValueError: a level that is not in the database, or a database of another model.
    """
    database.check(chosen)
    if database.model != digest(model):
        raise ValueError(f"the database in {database.folder} was made for another model: make one for this one")
    left = {name: kept(part.order, chosen.get(name, 0)) for name, part in database.parts.items()}
    both = [[left.get(f"{layer.name}.{kind}", ()) for kind in ("attention", "mlp")] for layer in groups(model)]
    shrunk = kept_copy(model, both)
    for layer in groups(shrunk):
        for name, part in named(layer).items():
            if level := chosen.get(name, 0):
                weight, own = database.parts[name].weights[level], _rows(part)
                if weight.shape != own.shape:
                    raise ValueError(f"{name}: level {level} has the shape {weight.shape}, the model {own.shape}")
                own.copy_(weight)
    return shrunk


def digest(model: nn.Module) -> str:
    """Of the output matrices of a model, by which a database knows whose it is: sha256."""
    found = hashlib.sha256()
    for layer in groups(model):
        for name, part in named(layer).items():
            weight = part.output.tensor.detach().cpu().contiguous()
            found.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            found.update(weight.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()

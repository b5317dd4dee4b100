"""How a model is compressed, as plain data: what goes of each part, each matrix's bits, and the rank that mends it.

`Shapes` are those of the model before; together they give memory and trained parameters exactly, without a model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from typing import Annotated, Literal

from pydantic import Field, field_validator

from rules2ranks import runs

#: How many of a part's groups go; 0: the part stays whole.
Level = Annotated[int, Field(ge=0)]
#: Bits of each number of a matrix; 16: as the checkpoint holds it.
Bits = Literal[2, 3, 4, 8, 16]
#: LoRA rank of a matrix; 0: it gets no adapter.
Rank = Annotated[int, Field(ge=0, le=65536)]
#: Numbers in a row that share one scale and one zero in a quantised matrix, …
GROUP = 64
#: … the bytes of both together, …
SCALE_AND_ZERO = 4
#: … and those of an adapter's number: PEFT trains and saves float32.
ADAPTER_NUMBER = 4
_DEFAULTS = {"levels": 0, "bits": 16, "ranks": 0}


class Configuration(runs.Params):
    """What is chosen about a model: a level per part, bits and a rank per matrix, each by its name.

    Canonical: defaults (level 0, bits 16, rank 0) are dropped and names sorted, so equal choices are equal, as JSON
    too. Raises ParameterError (through `check`) for values out of range.
    """

    levels: dict[str, Level] = Field(default_factory=dict)
    bits: dict[str, Bits] = Field(default_factory=dict)
    ranks: dict[str, Rank] = Field(default_factory=dict)

    @field_validator("levels", "bits", "ranks")
    @classmethod
    def _canonical(cls, values: dict[str, int], info) -> dict[str, int]:
        return {name: values[name] for name in sorted(values) if values[name] != _DEFAULTS[info.field_name]}

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


@dataclass(frozen=True)
class Matrix:
    """A matrix of a decoder layer, and the side of it that the groups of its part share out."""

    name: str
    inputs: int
    outputs: int
    part: str
    shared: Literal["inputs", "outputs"]
    bias: bool = False

    @property
    def numbers(self) -> int:
        """Entries of the weight."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Shapes:
    """A model as far as its sizes go: the matrices of each decoder layer, and how many groups each part has.

    `rest` are the parameters in none of these matrices (embeddings, norms, the head), tied ones counted once; the
    checkpoint holds each number in `itemsize` bytes.
    """

    layers: tuple[tuple[Matrix, ...], ...]
    groups: Mapping[str, int]
    rest: int
    itemsize: int = 4

    @cached_property
    def matrices(self) -> dict[str, Matrix]:
        """All matrices by name, in the order of the network."""
        return {matrix.name: matrix for layer in self.layers for matrix in layer}

    @property
    def names(self) -> list[list[str]]:
        """The names of each layer's matrices."""
        return [[matrix.name for matrix in layer] for layer in self.layers]

    @property
    def width(self) -> int:
        """That of the residual stream: of the layers' first matrices, which read it, the widest input."""
        return max(layer[0].inputs for layer in self.layers if layer)

    @property
    def parameters(self) -> int:
        """All parameters of the model."""
        biases = sum(matrix.outputs for matrix in self.matrices.values() if matrix.bias)
        return self.rest + biases + sum(matrix.numbers for matrix in self.matrices.values())

    def cut(self, levels: Mapping[str, int]) -> "Shapes":
        """The shapes that are left when so many groups of each part go. A part without groups has no matrices, but the
        bias of its output stays.

        Raises:
            ValueError: an unknown part, or more groups than it has.
        """
        for part, level in levels.items():
            if not 0 <= level <= self.groups.get(part, -1):
                raise ValueError(f"{part} has {self.groups.get(part, 'no')} groups: level {level} is not possible")
        left = {part: count - levels.get(part, 0) for part, count in self.groups.items()}
        layers = tuple(
            tuple(_cut(matrix, left[matrix.part], self.groups[matrix.part]) for matrix in layer if left[matrix.part])
            for layer in self.layers
        )
        gone = [matrix for layer in self.layers for matrix in layer if not left[matrix.part]]
        biases = sum(matrix.outputs for matrix in gone if matrix.bias and matrix.shared == "inputs")
        return replace(self, layers=layers, groups=left, rest=self.rest + biases)


def _cut(matrix: Matrix, left: int, count: int) -> Matrix:
    return replace(matrix, **{matrix.shared: getattr(matrix, matrix.shared) // count * left})


def trained(configuration: Configuration, shapes: Shapes) -> int:
    """The parameters of all adapters: Σ rank × (inputs + outputs), after the levels.

    Raises:
        ValueError: a part or a matrix that the model does not have.
    """
    return _adapters(configuration, _left(configuration, shapes))


def memory(configuration: Configuration, shapes: Shapes, group: int = GROUP) -> int:
    """Bytes of a compressed model and its adapters, as files hold them (headers aside).

    A quantised matrix takes its bits, packed without gaps, and for every `group` numbers a scale and a zero of 16 bits
    each (`quantisation`); all else stays as the checkpoint holds it.

    Raises:
        ValueError: a part or a matrix that the model does not have, or a group that does not divide a matrix.
    """
    left = _left(configuration, shapes)
    total = left.parameters * left.itemsize
    for name, matrix in left.matrices.items():
        chosen = configuration.bits.get(name, 16), configuration.ranks.get(name, 0)
        total += matrix_bytes(matrix, *chosen, left.itemsize, group) - matrix.numbers * left.itemsize
    return total


def matrix_bytes(matrix: Matrix, bits: int, rank: int, itemsize: int, group: int = GROUP) -> int:
    """Bytes of one matrix (without its bias) of so many bits, and of its adapter.

    Raises:
        ValueError: a group that does not divide the matrix.
    """
    adapter = ADAPTER_NUMBER * rank * (matrix.inputs + matrix.outputs)
    if bits == 16:
        return matrix.numbers * itemsize + adapter
    count = groups_of((matrix.outputs, matrix.inputs), group, matrix.name)
    return matrix.numbers * bits // 8 + count * SCALE_AND_ZERO + adapter


def groups_of(shape: tuple[int, int], group: int, name: str = "the matrix") -> int:
    """How many groups of so many numbers a matrix (outputs, inputs) has.

    Raises:
        ValueError: a group that is no multiple of 8 (codes are packed by eight) or does not divide the matrix.
    """
    numbers = math.prod(shape)
    if group < 8 or group % 8 or numbers % group:
        fits = [size for size in (256, 128, 64, 32, 16, 8) if numbers % size == 0]
        raise ValueError(
            f"{name} of {shape[0]} × {shape[1]} numbers has no whole number of groups of {group}: "
            + (f"of {', '.join(map(str, fits))} it has" if fits else "it can only stay at 16 bits")
        )
    return numbers // group


def by_matrix(
    values: int | Sequence[int] | Mapping[str, int], layers: Sequence[Sequence[str]], unsaid: int = 0
) -> dict[str, int]:
    """Whole numbers for matrices by name: from one for all, one for each layer, or as they are (the others `unsaid`).

    `layers` names the matrices of each decoder layer; those of `unsaid` are dropped, names are in the network's order.

    Raises:
        ValueError: another number of layers, an unknown name, or something else than whole numbers from 0 on.
    """
    names = [name for layer in layers for name in layer]
    if isinstance(values, Mapping):
        if unknown := sorted(set(values) - set(names)):
            raise ValueError(f"no such matrices in the decoder layers: {unknown}; they are named like {names[0]}")
        given = {name: values.get(name, unsaid) for name in names}
    else:
        per_layer = list(values) if isinstance(values, Sequence) else [values] * len(layers)
        if len(per_layer) != len(layers):
            raise ValueError(f"expected {len(layers)} numbers, one per decoder layer, got {len(per_layer)}")
        given = {name: value for layer, value in zip(layers, per_layer, strict=True) for name in layer}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
            raise ValueError(f"{name}: expected a whole number from 0 on, got {value!r}")
    return {name: int(value) for name, value in given.items() if value != unsaid}


def _left(configuration: Configuration, shapes: Shapes) -> Shapes:
    for name in [*configuration.bits, *configuration.ranks]:
        if name not in shapes.matrices:
            raise ValueError(f"the model has no matrix {name}; they are named like {next(iter(shapes.matrices))}")
    return shapes.cut(configuration.levels)


def _adapters(configuration: Configuration, left: Shapes) -> int:
    found = {name: left.matrices[name] for name in configuration.ranks if name in left.matrices}
    return sum(configuration.ranks[name] * (matrix.inputs + matrix.outputs) for name, matrix in found.items())

"""Which groups go: a number of parameters, spread over the layers of a decoder and filled with whole groups.

A spread takes the layers that may lose groups and the parameters that are to go, and answers with a `Choice`. At least
one attention group and one channel stay in every layer. Plain numpy, so that naming the spreads needs no torch.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
#: Per layer the attention groups and the channels that go, in no order.
Gone = list[tuple[list[int], list[int]]]


class Part(NamedTuple):
    """Groups of one kind in a layer: the importance (count,) of each, and the `cost` of any, in parameters."""

    scores: Floats
    cost: int

    @property
    def count(self) -> int:
        return len(self.scores)

    def least(self, number: int) -> list[int]:
        """The least important groups, from the least on; of equals the first."""
        return np.argsort(self.scores, kind="stable")[:number].tolist()


class Layer(NamedTuple):
    """The groups of a decoder layer."""

    attention: Part
    channels: Part

    @property
    def cost(self) -> int:
        """Parameters in all groups."""
        return sum(part.count * part.cost for part in self)

    @property
    def removable(self) -> int:
        """Parameters in all groups but one of each kind."""
        return sum((part.count - 1) * part.cost for part in self)


class Choice(NamedTuple):
    """What goes, and the most parameters that this spread can remove from these layers."""

    gone: Gone
    highest: float


def uniform(layers: Sequence[Layer], target: float) -> Choice:
    """Every layer loses the same share of its groups' parameters.

    Attention comes as near to a layer's share as whole groups can, and channels fill the rest; the least important go.
    """
    cost = sum(layer.cost for layer in layers)
    limit = min(layer.removable / layer.cost for layer in layers)
    share = min(target / cost, limit)
    return Choice(_by_shares(layers, [share] * len(layers)), limit * cost)


def in_proportion(layers: Sequence[Layer], target: float, blocks: Floats) -> Choice:
    """The share that a layer keeps is in proportion to the sigmoid of its `blocks` entry, standardised (CFSP).

    Coarse to fine, arXiv 2409.13199. `blocks` (layers,) is how much each layer matters. What a layer cannot keep (more
    than all of it) or lose (its last groups) goes to the others, in the same proportion. Within a layer as `uniform`.
    """
    cost = np.array([layer.cost for layer in layers], dtype=float)
    least = np.array([sum(part.cost for part in layer) for layer in layers]) / cost
    weight = 1 / (1 + np.exp(-_standardised(blocks)))
    kept = max(cost.sum() - target, least @ cost)
    # The factor of proportion by bisection: at 0 every layer keeps its least, at `high` all of itself.
    low, high = 0.0, 1 / weight.min()
    for _ in range(100):
        middle = (low + high) / 2
        if np.clip(middle * weight, least, 1) @ cost <= kept:
            low = middle
        else:
            high = middle
    shares = 1 - np.clip(low * weight, least, 1)
    return Choice(_by_shares(layers, shares.tolist()), (1 - least) @ cost)


def ranked(layers: Sequence[Layer], target: float, standardise: bool = False) -> Choice:
    """All groups in one ranking by importance per parameter; the least go first, and the last of a kind stays.

    With `standardise` by importance standardised within each layer and kind, for scores whose sizes cannot be compared
    from one matrix to another (FLAP, arXiv 2312.11983).
    """
    groups, values = [], []
    for number, layer in enumerate(layers):
        for kind, part in enumerate(layer):
            value = _standardised(part.scores) if standardise else part.scores / part.cost
            candidates = part.least(part.count - 1)
            groups += [_Group(number, kind, group, part.cost) for group in candidates]
            values += value[candidates].tolist()
    gone: Gone = [([], []) for _ in layers]
    order = np.argsort(values, kind="stable")
    slack = min(layer.channels.cost for layer in layers) / 2
    for group in _fill([groups[place] for place in order], target, slack):
        gone[group.layer][group.kind].append(group.number)
    return Choice(gone, sum(group.cost for group in groups))


def same(layers: Sequence[Layer], target: float, multiple: int = 1) -> Choice:
    """Every layer keeps the same number of groups of each kind, and of channels a multiple of `multiple`.

    What comes nearest to `target` parameters; of equals that whose attention is nearest to its share. The result is a
    model of one size for all layers, as configurations of ordinary checkpoints have it.

    Raises:
        ValueError: the layers are not of one size, or have no such multiple.
    """
    (first, *others) = layers
    if any(
        [(part.count, part.cost) for part in layer] != [(part.count, part.cost) for part in first] for layer in others
    ):
        raise ValueError("spread same is for layers of one size")
    attention, channels = first
    options = [
        (heads, number)
        for heads in range(attention.count)
        for number in range(channels.count)
        if (channels.count - number) % multiple == 0
    ]
    if not options:
        raise ValueError(f"no multiple of {multiple} is among 1 to {channels.count} channels")
    share = target / sum(layer.cost for layer in layers)

    def miss(option: tuple[int, int]) -> tuple[float, float, int]:
        heads, number = option
        gone = len(layers) * (heads * attention.cost + number * channels.cost)
        return abs(gone - target), abs(heads - share * attention.count), heads

    heads, number = min(options, key=miss)
    highest = max(heads * attention.cost + number * channels.cost for heads, number in options) * len(layers)
    return Choice([(layer.attention.least(heads), layer.channels.least(number)) for layer in layers], highest)


class Scheme(NamedTuple):
    """A way to spread what goes over layers, and the arguments that it `takes` beside layers and target."""

    choose: Callable[..., Choice]
    takes: tuple[str, ...]


SPREADS = {
    "uniform": Scheme(uniform, ()),
    "importance": Scheme(in_proportion, ("blocks",)),
    "global": Scheme(ranked, ("standardise",)),
    "same": Scheme(same, ("multiple",)),
}
Spread = Literal[*SPREADS]


def _by_shares(layers: Sequence[Layer], shares: Iterable[float]) -> Gone:
    """What goes when each layer loses this share of its groups' parameters."""
    gone: Gone = []
    due = 0.0
    for layer, share in zip(layers, shares, strict=True):
        due += share * layer.cost  # what rounding left over is made up for in the next layer
        heads, channels = _whole_groups(layer, due, share)
        due -= heads * layer.attention.cost + channels * layer.channels.cost
        gone.append((layer.attention.least(heads), layer.channels.least(channels)))
    return gone


def _whole_groups(layer: Layer, due: float, share: float) -> tuple[int, int]:
    """How many attention groups and channels come nearest to `due` parameters, and attention to its `share`."""
    attention, channels = layer

    def miss(heads: int) -> tuple[float, float, int, int]:
        """By how much parameters and attention are missed with so many heads and the best number of channels."""
        rest = due - heads * attention.cost
        fill = min(max(round(rest / channels.cost), 0), channels.count - 1)
        # Rounding to channels misses by up to half of one: whatever lies within that is as good.
        missed = max(abs(rest - fill * channels.cost), channels.cost / 2)
        return missed, abs(heads - share * attention.count), heads, fill

    *_, heads, fill = min(map(miss, range(attention.count)))
    return heads, fill


class _Group(NamedTuple):
    """A group in the ranking of all: `kind` 0 is attention and 1 a channel, as in `Layer`."""

    layer: int
    kind: int
    number: int
    cost: int


def _fill(ranking: Iterable[_Group], target: float, slack: float) -> list[_Group]:
    """Groups in this order up to `target` parameters, give or take `slack`."""
    taken: list[_Group] = []
    left: list[_Group] = []
    removed = 0
    for group in ranking:
        if removed + group.cost <= target + slack:
            taken.append(group)
            removed += group.cost
        else:
            left.append(group)  # attention is coarse: channels fill the rest
    for group in left:
        if removed >= target - slack:
            break
        # The channels ran out: one more goes all the same, and the most important channels come back.
        channels = [other for other in taken if other.kind == 1]
        taken.append(group)
        removed += group.cost
        while channels and removed - channels[-1].cost >= target - slack:
            removed -= channels[-1].cost
            taken.remove(channels.pop())
    return taken


def _standardised(values: Floats) -> Floats:
    """(values − mean) / standard deviation; zeros where all are equal."""
    deviation = values.std()
    return (values - values.mean()) / deviation if deviation > 0 else np.zeros_like(values)

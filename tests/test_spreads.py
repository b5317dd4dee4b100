"""Spreads by themselves: whole groups against brute force, shares by definition, and no torch."""

import subprocess
import sys
from itertools import product
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules2ranks.spreads import SPREADS, Layer, Part, Spread, in_proportion, ranked, same, uniform


@st.composite
def decoders(draw):
    """One to four layers of a few groups, with ties among their scores."""
    scores = st.integers(0, 3).map(float)
    parts = [(draw(st.integers(1, 5)), draw(st.integers(5, 60))), (draw(st.integers(1, 12)), draw(st.integers(1, 9)))]
    return [
        Layer(*(Part(np.array(draw(st.lists(scores, min_size=n, max_size=n))), cost) for n, cost in parts))
        for _ in range(draw(st.integers(1, 4)))
    ]


def removed(layers, gone):
    return sum(
        len(some) * part.cost
        for layer, pair in zip(layers, gone, strict=True)
        for part, some in zip(layer, pair, strict=True)
    )


@given(decoders(), st.floats(0, 1))
def test_one_layer_comes_as_near_as_its_whole_groups_can(layers, ratio):
    layer = layers[0]
    target = ratio * layer.removable
    gone, highest = uniform([layer], target)
    attention, channels = (range(part.count) for part in layer)
    sizes = [a * layer.attention.cost + c * layer.channels.cost for a, c in product(attention, channels)]
    nearest = min(abs(size - target) for size in sizes)
    # Half a channel is what rounding misses by: within it the number of heads decides.
    assert abs(removed([layer], gone) - target) <= max(nearest, layer.channels.cost / 2) + 1e-9
    assert highest == pytest.approx(layer.removable)


@given(decoders(), st.floats(0, 1), st.data())
def test_whatever_the_spread_the_least_go_and_the_last_of_a_kind_stay(layers, ratio, data):
    scheme = SPREADS[data.draw(st.sampled_from(["uniform", "importance", "global"]))]
    options = {"blocks": np.arange(len(layers)) / 7, "standardise": data.draw(st.booleans())}
    target = ratio * sum(layer.cost for layer in layers)
    gone, highest = scheme.choose(layers, target, **{name: options[name] for name in scheme.takes})
    assert removed(layers, gone) <= highest + layers[0].channels.cost
    for layer, pair in zip(layers, gone, strict=True):
        for part, some in zip(layer, pair, strict=True):
            assert len(set(some)) == len(some) < part.count
            # Of equals the first go: the order is by importance, then by number.
            order = sorted(range(part.count), key=lambda group, part=part: (part.scores[group], group))
            assert sorted(some) == sorted(order[: len(some)])


def test_equal_blocks_are_uniform_and_unequal_ones_keep_in_proportion():
    layers = [Layer(Part(np.arange(2.0), 3), Part(np.arange(4000.0), 1)) for _ in range(3)]
    target = 4000.0
    assert in_proportion(layers, target, np.full(3, 0.2)) == uniform(layers, target)
    gone, _ = in_proportion(layers, target, np.array([0.0, 1.0, 2.0]))
    kept = 1 - np.array([removed(layers[:1], [pair]) for pair in gone]) / layers[0].cost
    sigmoid = 1 / (1 + np.exp(-np.array([-1, 0, 1]) * 1.5**0.5))
    # The first two keep c · σ(z) to within a channel of 4006 parameters, and the last no more than all.
    assert kept[0] / kept[1] == pytest.approx(sigmoid[0] / sigmoid[1], abs=2e-3) and kept[2] <= 1


def test_a_ranking_of_all_takes_from_where_importance_per_parameter_is_least():
    poor, rich = (
        Layer(Part(size * np.arange(1.0, 3), 10), Part(size * np.arange(1.0, 21) / 10, 1)) for size in (1.0, 100.0)
    )
    gone, highest = ranked([poor, rich], 29)
    assert [tuple(map(len, pair)) for pair in gone] == [(1, 19), (0, 0)] and highest == 58
    even, _ = ranked([poor, rich], 29, standardise=True)
    # Standardised, the two layers are the same, but for which comes first.
    assert removed([poor, rich], even) == 29 and abs(len(even[0][1]) - len(even[1][1])) <= 1


def test_spreads_are_named_once_and_need_no_torch():
    assert get_args(Spread) == ("uniform", "importance", "global", "same") == tuple(SPREADS)
    code = "import sys, rules2ranks.spreads; print({'torch', 'pandas', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@given(decoders(), st.floats(0, 1), st.integers(1, 5))
def test_the_same_size_for_all_is_the_nearest_of_all_sizes(layers, ratio, multiple):
    layers = [layers[0]] * len(layers)
    attention, channels = layers[0]
    target = ratio * sum(layer.removable for layer in layers)
    allowed = [c for c in range(channels.count) if (channels.count - c) % multiple == 0]
    if not allowed:
        with pytest.raises(ValueError, match=f"no multiple of {multiple}"):
            same(layers, target, multiple)
        return
    gone, highest = same(layers, target, multiple)
    assert len({tuple(map(len, pair)) for pair in gone}) == 1 and len(gone[0][1]) in allowed
    sizes = [len(layers) * (a * attention.cost + c * channels.cost) for a in range(attention.count) for c in allowed]
    assert abs(removed(layers, gone) - target) == pytest.approx(min(abs(size - target) for size in sizes))
    assert highest == max(sizes)


def test_layers_of_several_sizes_cannot_become_the_same():
    one, other = (Layer(Part(np.ones(2), 10), Part(np.ones(n), 3)) for n in (4, 5))
    with pytest.raises(ValueError, match="layers of one size"):
        same([one, other], 10)

"""A configuration is canonical, and its memory and trained parameters are those of the arrays that it stands for."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules2ranks.configuration import Configuration, Matrix, Shapes, by_matrix, memory, trained
from rules2ranks.runs import ParameterError

NAMES = [["0.q", "0.o", "0.up", "0.down"], ["1.q", "1.o", "1.up", "1.down"]]
# Two layers of hidden size 8: 2 groups of 4 heads' width, 6 channels; outputs of q and up have a bias.
SHAPES = Shapes(
    layers=tuple(
        (
            Matrix(f"{n}.q", 8, 8, f"{n}.attention", "outputs", bias=True),
            Matrix(f"{n}.o", 8, 8, f"{n}.attention", "inputs", bias=True),
            Matrix(f"{n}.up", 8, 6, f"{n}.mlp", "outputs"),
            Matrix(f"{n}.down", 6, 8, f"{n}.mlp", "inputs"),
        )
        for n in range(2)
    ),
    groups={"0.attention": 2, "0.mlp": 6, "1.attention": 2, "1.mlp": 6},
    rest=100,
)
names = [name for layer in NAMES for name in layer]
configurations = st.builds(
    Configuration,
    levels=st.fixed_dictionaries({}, optional={part: st.integers(0, n) for part, n in SHAPES.groups.items()}),
    bits=st.dictionaries(st.sampled_from(names), st.sampled_from([2, 3, 4, 8, 16])),
    ranks=st.dictionaries(st.sampled_from(names), st.integers(0, 5)),
)


def arrays(configuration: Configuration) -> list[np.ndarray]:
    """What a checkpoint and an adapter would hold, as arrays made one by one."""
    held = [np.zeros(SHAPES.rest, np.float32)]
    for n in range(2):
        heads = 4 * (2 - configuration.levels.get(f"{n}.attention", 0))
        channels = 6 - configuration.levels.get(f"{n}.mlp", 0)
        sizes = {"q": (heads, 8, heads), "o": (8, heads, 8), "up": (channels, 8, 0), "down": (8, channels, 0)}
        for name, (outputs, inputs, bias) in sizes.items():
            if heads == 0 and name in "qo":  # the whole part is gone; what its output adds to all stays
                held += [np.zeros(bias, np.float32)] if name == "o" else []
                continue
            full, bits = f"{n}.{name}", configuration.bits.get(f"{n}.{name}", 16)
            if bits == 16:
                held.append(np.zeros((outputs, inputs), np.float32))
            else:
                held.append(np.packbits(np.zeros(outputs * inputs * bits, bool)))
                groups = np.zeros((outputs * inputs // 8, 2), np.float16)
                held.append(groups)
            held.append(np.zeros(bias, np.float32))
            if rank := configuration.ranks.get(full, 0):
                gone = channels == 0 and name in ("up", "down")
                held += [] if gone else [np.zeros((rank, inputs), np.float32), np.zeros((outputs, rank), np.float32)]
    return held


@given(configurations)
def test_memory_is_that_of_the_arrays(configuration):
    assert memory(configuration, SHAPES, group=8) == sum(array.nbytes for array in arrays(configuration))


@given(configurations)
def test_trained_are_the_entries_of_a_and_b(configuration):
    without = Configuration(levels=configuration.levels, bits=configuration.bits)
    apart = memory(configuration, SHAPES, group=8) - memory(without, SHAPES, group=8)
    assert apart == 4 * trained(configuration, SHAPES)


@given(configurations)
def test_equal_choices_are_equal_whatever_their_order_and_their_defaults(configuration):
    full = {
        "levels": {part: configuration.levels.get(part, 0) for part in reversed(SHAPES.groups)},
        "bits": {name: configuration.bits.get(name, 16) for name in reversed(names)},
        "ranks": {name: configuration.ranks.get(name, 0) for name in reversed(names)},
    }
    again = Configuration.check(json.loads(json.dumps(full)))
    assert again == configuration and hash(again) == hash(configuration)
    assert json.dumps(again.model_dump()) == json.dumps(configuration.model_dump())


def test_nothing_chosen_is_the_model_as_it_is():
    assert memory(Configuration(), SHAPES) == 4 * SHAPES.parameters
    assert trained(Configuration(), SHAPES) == 0
    assert SHAPES.cut({}) == SHAPES


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bits": {"0.q": 5}}, "2, 3, 4, 8 or 16"),
        ({"ranks": {"0.q": -1}}, "greater than or equal to 0"),
        ({"rank": {}}, "did you mean 'ranks'"),
    ],
)
def test_impossible_choices_are_refused(values, said):
    with pytest.raises(ParameterError, match=said):
        Configuration.check(values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ranks": {"2.q": 1}}, "no matrix 2.q; they are named like 0.q"),
        ({"levels": {"0.mlp": 7}}, "0.mlp has 6 groups"),
        ({"levels": {"0.mpl": 1}}, "0.mpl has no groups"),
    ],
)
def test_what_the_model_does_not_have_is_refused(values, said):
    for what in (memory, trained):
        with pytest.raises(ValueError, match=said):
            what(Configuration(**values), SHAPES)


@pytest.mark.parametrize("value", [2, [2, 2], dict.fromkeys(names, 2), {**dict.fromkeys(names, 2)}])
def test_the_same_ranks_said_in_three_ways_are_the_same(value):
    assert by_matrix(value, NAMES) == dict.fromkeys(names, 2)


def test_zeros_are_dropped_and_layers_are_spelt_out():
    assert by_matrix([0, 3], NAMES) == dict.fromkeys(NAMES[1], 3)
    assert by_matrix({"0.q": 0, "1.o": 4}, NAMES) == {"1.o": 4}
    assert SHAPES.names == NAMES


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1, 2, 3], "expected 2 numbers, one per decoder layer, got 3"),
        ({"0.k": 1}, "no such matrices"),
        (1.5, "0.q: expected a whole number from 0 on, got 1.5"),
        ([1, True], "expected a whole number from 0 on, got True"),
        (-1, "expected a whole number from 0 on, got -1"),
    ],
)
def test_other_numbers_are_refused(value, said):
    with pytest.raises(ValueError, match=said):
        by_matrix(value, NAMES)

"""Automata, in every form: against their definition, CellPyLib, known sequences, their own algebra and PyTorch."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from math import prod

import cellpylib
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rules2ranks import automata
from rules2ranks.automata import kernels, on_torch

PADDING = {
    "periodic": {"mode": "wrap"},
    "fixed0": {"constant_values": 0},
    "fixed1": {"constant_values": 1},
    "symmetric": {"mode": "symmetric"},
}
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]

RULES = st.integers(0, 255)
STATES = st.integers(1, 70).flatmap(lambda width: arrays(np.uint8, width, elements=st.integers(0, 1)))
AROUND_WORDS = st.sampled_from([1, 2, 63, 64, 65, 127, 128, 129])
BATCHES = (AROUND_WORDS | st.integers(0, 140)).map(lambda size: (size,)) | st.sampled_from([(), (3, 0), (2, 3, 13)])
WIDTHS = AROUND_WORDS | st.integers(1, 140)
HOW = st.fixed_dictionaries(
    {"boundary": st.sampled_from(automata.BOUNDARIES), "burn_in": st.integers(0, 9), "every": st.integers(1, 4)}
)
SEEDS = st.integers(0, 2**32)

TILE = 64 * kernels._TILE  # cells
# How many words several runs may have together, to be made group by group; see `kernels.evolve`.
GROUP = kernels._CACHE // (8 * kernels._ROWS)
LONG = 2 * kernels._ROWS  # updates, more than are made at a time


def by_definition(rule: int, states: np.ndarray, updates: int, boundary: str) -> np.ndarray:
    """``(..., updates + 1, W)``: each row looked up in the rule's bits, one padded row at a time."""
    table = np.array([rule >> neighbourhood & 1 for neighbourhood in range(8)], np.uint8)
    rows = [states]
    for _ in range(updates):
        padded = np.pad(rows[-1], [(0, 0)] * (states.ndim - 1) + [(1, 1)], **PADDING[boundary])
        rows.append(table[4 * padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]])
    return np.stack(rows, axis=-2)


def check_every_form(expected: np.ndarray, rule: int, states: np.ndarray, **how) -> None:
    """Compare with the rows ``(..., T, W)``: dense and packed, all and the last, in a new array and in a given one."""
    *batch, length, width = expected.shape
    flat = expected.reshape(prod(batch), length, width)
    forms = {None: expected, "batch": automata.pack(flat, "batch"), "width": automata.pack(expected, "width")}
    for packed, rows in forms.items():
        for last in (False, True):
            right = (rows[-1] if packed == "batch" else rows[..., -1, :]) if last else rows
            ours = automata.simulate(rule, states, length - 1, packed=packed, last=last, **how)
            assert ours.dtype == right.dtype
            np.testing.assert_array_equal(ours, right, err_msg=f"rule {rule}, packed {packed}, last {last}")
            out = ~right
            assert automata.simulate(rule, states, length - 1, packed=packed, last=last, out=out, **how) is out
            np.testing.assert_array_equal(out, right, err_msg=f"rule {rule}, packed {packed}, last {last}, out")


@given(rule=RULES, batch=BATCHES, width=WIDTHS, steps=st.integers(0, 6), how=HOW, seed=SEEDS)
@example(rule=30, batch=(65,), width=129, steps=3, how={"boundary": "periodic", "burn_in": 0, "every": 1}, seed=0)
@example(rule=45, batch=(129,), width=1, steps=3, how={"boundary": "fixed1", "burn_in": 2, "every": 2}, seed=0)
@example(rule=105, batch=(1,), width=64, steps=3, how={"boundary": "symmetric", "burn_in": 1, "every": 3}, seed=0)
@example(rule=255, batch=(0,), width=65, steps=2, how={"boundary": "fixed0", "burn_in": 1, "every": 2}, seed=0)
def test_every_form_is_the_definition(rule, batch, width, steps, how, seed):
    states = automata.random_states(batch, width, seed=seed)
    full = by_definition(rule, states, how["burn_in"] + steps * how["every"], how["boundary"])
    check_every_form(full[..., how["burn_in"] :: how["every"], :], rule, states, **how)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 9])
def test_all_rules_agree_with_cellpylib(width):
    # CellPyLib calls Python once a cell: small runs, every rule.
    for rule in range(256):
        start = automata.random_states(1, width, seed=rule)
        oracle = cellpylib.evolve(start, timesteps=6, apply_rule=lambda n, c, t, rule=rule: cellpylib.nks_rule(n, rule))
        check_every_form(oracle.astype(np.uint8), rule, start[0])


@pytest.mark.parametrize("boundary", PADDING)
@pytest.mark.parametrize("width", [1, 2, 3, 64, 65])
def test_boundaries_agree_with_numpy_padding(boundary, width):
    start = automata.random_states((), width, seed=width)
    for rule in range(256):
        check_every_form(by_definition(rule, start, 4, boundary), rule, start, boundary=boundary)


@pytest.mark.parametrize("boundary", PADDING)
@pytest.mark.parametrize("width", [2 * TILE - 64, 2 * TILE, 2 * TILE + 64 + 3, 3 * TILE + 64 + 63])
def test_rows_wide_enough_for_tiles(width, boundary):
    start = automata.random_states((), width, seed=width)
    expected = by_definition(30, start, 10, boundary)
    words = automata.pack(expected, "width")
    for steps in range(11):
        ours = automata.simulate(30, start, steps, boundary=boundary, packed="width")
        np.testing.assert_array_equal(ours, words[: steps + 1])
    check_every_form(expected[1:], 30, start, boundary=boundary, burn_in=1)
    check_every_form(expected[3::3], 30, start, boundary=boundary, burn_in=3, every=3)


@pytest.mark.parametrize(("batch", "width"), [(64 * (GROUP // 13) + 65, 13), (GROUP // 33 + 1, 33 * 64 - 7)])
@pytest.mark.parametrize(("steps", "burn_in", "every"), [(LONG, 0, 1), (3, LONG, 1), (3, LONG, 2), (2, 3, LONG)])
def test_runs_made_in_groups_and_parts(batch, width, steps, burn_in, every):
    states = automata.random_states(batch, width, seed=steps)
    expected = by_definition(30, states, burn_in + steps * every, "fixed1")[:, burn_in::every]
    check_every_form(expected, 30, states, boundary="fixed1", burn_in=burn_in, every=every)


def test_rule_30_centre_column():
    # The first cells of OEIS A051023.
    known = "1101110011000101100100111010111001110101"
    rows = automata.simulate(30, automata.single_cell(101), 39)
    assert "".join(map(str, rows[:, 50])) == known


@pytest.mark.parametrize(
    ("rule", "update"),
    [
        (30, lambda left, centre, right: left ^ (centre | right)),
        (90, lambda left, centre, right: left ^ right),
        (110, lambda left, centre, right: (centre | right) & ~(left & centre & right)),
    ],
)
def test_single_cells_agree_with_python_integers(rule, update):
    steps = 600
    rows = automata.simulate(rule, automata.single_cell(2 * steps + 1), steps, packed="width")
    number = 1  # the row's cells from t left of the centre to t right of it, the leftmost in the lowest bit
    for t, row in enumerate(rows):
        assert int.from_bytes(row.astype("<u8").tobytes(), "little") == number << (steps - t)
        number = update(number << 2, number << 1, number)


def test_rule_90_is_pascals_triangle_mod_2():
    steps = 40
    rows = automata.simulate(90, automata.single_cell(2 * steps + 1), steps)
    pascal = [1]
    for row in rows:
        cells = np.zeros(2 * steps + 1, np.uint8)
        cells[steps - len(pascal) + 1 : steps + len(pascal) : 2] = [number % 2 for number in pascal]
        np.testing.assert_array_equal(row, cells)
        pascal = [1, *(a + b for a, b in pairwise(pascal)), 1]


def test_identity_and_shifts():
    start = automata.random_states(3, 17, seed=5)
    for t in range(6):
        np.testing.assert_array_equal(automata.simulate(204, start, 5)[:, t], start)
        np.testing.assert_array_equal(automata.simulate(170, start, 5)[:, t], np.roll(start, -t, axis=-1))
        np.testing.assert_array_equal(automata.simulate(240, start, 5)[:, t], np.roll(start, t, axis=-1))


@pytest.mark.parametrize("rule", [60, 90, 102, 105, 150])
def test_additive_rules(rule):
    a, b = automata.random_states((2, 50), 33, seed=rule)
    run_a, run_b, run_sum = (automata.simulate(rule, state, 7) for state in (a, b, a ^ b))
    constant = automata.simulate(rule, np.zeros(33, np.uint8), 7)  # rule 105 is affine: it adds a 1 every step
    np.testing.assert_array_equal(run_sum, run_a ^ run_b ^ constant)
    assert not automata.algebraic_normal_form(rule)[[3, 5, 6, 7]].any()


@given(rule=RULES, state=STATES)
def test_mirror_and_complement_are_conjugacies(rule, state):
    run = automata.simulate(rule, state, 8)
    other = automata.equivalents(rule)
    np.testing.assert_array_equal(automata.simulate(other["mirror"], state[::-1], 8), run[:, ::-1])
    np.testing.assert_array_equal(automata.simulate(other["complement"], 1 - state, 8), 1 - run)
    np.testing.assert_array_equal(automata.simulate(other["both"], 1 - state[::-1], 8), 1 - run[:, ::-1])


@given(rule=RULES, state=STATES, burn_in=st.integers(0, 9), every=st.integers(1, 4))
def test_burn_in_and_every_pick_rows_of_the_full_run(rule, state, burn_in, every):
    full = automata.simulate(rule, state, burn_in + 5 * every)
    picked = automata.simulate(rule, state, 5, burn_in=burn_in, every=every)
    np.testing.assert_array_equal(picked, full[burn_in::every])


@pytest.mark.parametrize("batch", [(), (0,), (1,), (63,), (64,), (65,), (2, 3, 5), (200,)])
def test_a_batch_is_its_members(batch):
    starts = automata.random_states(batch, 13, seed=1)
    runs = automata.simulate(110, starts, 6)
    assert runs.shape == (*batch, 7, 13) and runs.dtype == np.uint8
    for index in np.ndindex(batch):
        np.testing.assert_array_equal(runs[index], automata.simulate(110, starts[index], 6))


def test_the_given_states_stay_as_they_are():
    start = automata.random_states(4, 9, seed=0)
    before = start.copy()
    automata.simulate(30, start, 3)[:] = 0
    np.testing.assert_array_equal(start, before)
    start.flags.writeable = False
    check_every_form(by_definition(30, before, 3, "periodic"), 30, start)


@pytest.mark.parametrize("kind", [bool, int, float, list])
def test_states_of_any_kind(kind):
    start = automata.random_states(2, 9, seed=0)
    given_as = start.tolist() if kind is list else start.astype(kind)
    np.testing.assert_array_equal(automata.simulate(30, given_as, 3), automata.simulate(30, start, 3))


@given(batch=BATCHES, width=WIDTHS, seed=SEEDS)
def test_packing(batch, width, seed):
    cells = automata.random_states(batch, width, seed=seed)
    packings = {"width": (cells, width)}
    if batch:
        packings["batch"] = (np.moveaxis(cells, 0, -1), batch[0])
    for packed, (bits, size) in packings.items():
        words = automata.pack(cells, packed)
        assert words.dtype == np.uint64 and words.shape == (*bits.shape[:-1], -(-size // 64))
        places = np.arange(64, dtype=np.uint64)
        in_words = (words[..., None] >> places & np.uint64(1)).reshape(*bits.shape[:-1], 64 * words.shape[-1])
        np.testing.assert_array_equal(in_words[..., :size], bits)
        assert not in_words[..., size:].any()
        np.testing.assert_array_equal(automata.unpack(words, packed, size), cells)


def test_the_first_cell_is_the_lowest_bit():
    cells = np.zeros((70, 66), np.uint8)
    cells[0, 0] = cells[2, 1] = cells[63, 64] = cells[64, 65] = 1
    in_rows, in_columns = automata.pack(cells, "width"), automata.pack(cells, "batch")
    assert in_rows.shape == (70, 2) and in_rows[[0, 2, 63, 64]].tolist() == [[1, 0], [2, 0], [0, 1], [0, 2]]
    assert in_columns.shape == (66, 2) and in_columns[[0, 1, 64, 65]].tolist() == [[1, 0], [4, 0], [2**63, 0], [0, 1]]
    assert in_rows.sum() == 6 and in_columns.sum() == 6 + 2**63


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: automata.pack([0, 1], "height"), "packed must be 'batch' or 'width'; got 'height'"),
        (lambda: automata.pack([0, 1], None), "packed must be 'batch' or 'width'; got None"),
        (lambda: automata.unpack(np.zeros(1, np.uint64), None, 2), "packed must be 'batch' or 'width'; got None"),
        (lambda: automata.pack([0, 2], "width"), "cells must be 0 or 1; got 2"),
        (lambda: automata.pack([], "width"), "at least one cell; got shape (0,)"),
        (lambda: automata.unpack(np.zeros(1, np.uint64), "height", 9), "'batch' or 'width'; got 'height'"),
        (
            lambda: automata.unpack(np.zeros(1, np.uint64), "width", 65),
            "65 packed cells are uint64 words (..., 2); got uint64 of shape (1,)",
        ),
        (
            lambda: automata.unpack(np.zeros((3, 1), np.int64), "batch", 9),
            "9 packed cells are uint64 words (..., 1); got int64 of shape (3, 1)",
        ),
        (lambda: automata.unpack(np.uint64(1), "width", 1), "(..., 1); got uint64 of shape ()"),
        (lambda: automata.unpack(np.zeros(1, np.uint64), "width", -1), "size must be an integer of at least 0; got -1"),
    ],
)
def test_packing_says_what_was_expected(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("how", "out", "message"),
    [
        ({}, np.full((4, 3, 8), 7, np.uint8), "uint8 and shape (4, 3, 9); got uint8 and shape (4, 3, 8)"),
        ({}, np.full((4, 3, 9), 7, np.int8), "uint8 and shape (4, 3, 9); got int8 and shape (4, 3, 9)"),
        ({}, np.full((4, 9, 3), 7, np.uint8).swapaxes(1, 2), "got uint8 and shape (4, 3, 9), not contiguous"),
        ({}, np.frombuffer(bytes(4 * 3 * 9), np.uint8).reshape(4, 3, 9), "got uint8 and shape (4, 3, 9), read-only"),
        ({}, [[[7] * 9] * 3] * 4, "uint8 and shape (4, 3, 9); got list"),
        ({"last": True}, np.full((4, 3, 9), 7, np.uint8), "uint8 and shape (4, 9); got uint8 and shape (4, 3, 9)"),
        ({"packed": "width"}, np.full((4, 3, 1), 7, np.uint8), "uint64 and shape (4, 3, 1); got uint8"),
        ({"packed": "batch"}, np.full((4, 3, 1), 7, np.uint64), "uint64 and shape (3, 9, 1); got uint64 and shape (4"),
    ],
)
def test_a_buffer_that_does_not_fit_stays_as_it_is(how, out, message):
    before = np.array(out)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        automata.simulate(30, automata.random_states(4, 9, seed=0), 2, out=out, **how)
    assert str(caught.value).startswith("out must be a writeable C-contiguous array of uint")
    np.testing.assert_array_equal(out, before)


def test_nothing_is_written_when_the_states_are_wrong():
    out = np.full((2, 3, 9), 7, np.uint8)
    with pytest.raises(ValueError, match="cells must be 0 or 1; got 2"):
        automata.simulate(30, np.full((2, 9), 2), 2, out=out)
    assert (out == 7).all()


def test_states_may_share_memory_with_the_result():
    starts = automata.random_states(70, 9, seed=0)
    expected = by_definition(30, starts, 5, "periodic")
    own = starts.copy()
    assert automata.simulate(30, own, 5, last=True, out=own) is own
    np.testing.assert_array_equal(own, expected[:, -1])
    rows = np.repeat(starts[:, None], 6, axis=1)
    automata.simulate(30, rows[:, 3], 5, out=rows)
    np.testing.assert_array_equal(rows, expected)


def test_arrays_are_evolved_without_torch():
    check = "import sys, rules2ranks.automata\nassert 'torch' not in sys.modules, 'the import brought torch along'"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("boundary", PADDING)
@pytest.mark.parametrize("device", DEVICES)
def test_all_rules_agree_with_torch(device, boundary):
    states = automata.random_states(70, 13, seed=0)
    moved = torch.from_numpy(states).to(device)
    for rule in range(256):
        theirs = on_torch.simulate(rule, moved, 4, boundary=boundary)
        assert theirs.device == moved.device and theirs.dtype == torch.uint8
        ours = automata.simulate(rule, states, 4, boundary=boundary)
        np.testing.assert_array_equal(theirs.cpu(), ours, err_msg=f"rule {rule}")


@pytest.mark.parametrize("device", DEVICES)
@given(rule=RULES, batch=BATCHES, width=WIDTHS, steps=st.integers(0, 6), last=st.booleans(), how=HOW, seed=SEEDS)
def test_torch_gives_the_same_rows(device, rule, batch, width, steps, last, how, seed):
    states = automata.random_states(batch, width, seed=seed)
    theirs = on_torch.simulate(rule, torch.from_numpy(states).to(device), steps, last=last, **how)
    np.testing.assert_array_equal(theirs.cpu(), automata.simulate(rule, states, steps, last=last, **how))


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int8, torch.int64, torch.uint16, torch.float16, torch.bfloat16, torch.float64]
)
def test_tensors_of_any_kind(dtype):
    states = automata.random_states(9, 5, seed=0)
    tensor = torch.from_numpy(states).to(dtype).T  # not contiguous
    if dtype.is_floating_point:
        tensor.requires_grad_()
    theirs = on_torch.simulate(30, tensor, 3)
    assert theirs.dtype == torch.uint8 and not theirs.requires_grad
    np.testing.assert_array_equal(theirs, automata.simulate(30, states.T, 3))


def test_the_given_tensor_stays_as_it_is():
    states = torch.from_numpy(automata.random_states(4, 9, seed=0))
    before = states.clone()
    for rule in (30, 204):
        on_torch.simulate(rule, states, 0, last=True)[:] = 7
        assert torch.equal(states, before)


def test_torch_takes_tensors_alone():
    with pytest.raises(
        ValueError, match=re.escape("must be a torch.Tensor (automata.simulate takes others); got list")
    ):
        on_torch.simulate(30, [0, 1, 0], 2)


def test_rule_table_starts_with_000():
    assert automata.rule_table(110).tolist() == [0, 1, 1, 1, 0, 1, 1, 0]
    for rule in range(256):
        assert sum(int(bit) << n for n, bit in enumerate(automata.rule_table(rule))) == rule


def test_algebraic_normal_form_is_the_rule():
    left, centre, right = np.array(list(np.ndindex(2, 2, 2))).T
    terms = np.array([left**i * centre**j * right**k for i, j, k in np.ndindex(2, 2, 2)])
    for rule in range(256):
        polynomial = automata.algebraic_normal_form(rule) @ terms % 2
        np.testing.assert_array_equal(polynomial, automata.rule_table(rule))
    assert automata.algebraic_normal_form(90).tolist() == [0, 1, 0, 0, 1, 0, 0, 0]


def test_equivalence_classes():
    assert automata.equivalents(110) == {"mirror": 124, "complement": 137, "both": 193}
    assert automata.equivalents(30) == {"mirror": 86, "complement": 135, "both": 149}
    chosen = automata.representatives()
    assert len(chosen) == 88 and list(chosen) == sorted(chosen)
    assert {automata.representative(rule) for rule in range(256)} == set(chosen)
    covered = [{rule, *automata.equivalents(rule).values()} for rule in chosen]
    assert sum(map(len, covered)) == 256 and set.union(*covered) == set(range(256))


def test_a_representative_is_a_plain_number():
    assert [type(automata.representative(rule)) for rule in (np.uint8(3), True)] == [int, int]


def test_langton_lambda():
    assert [automata.langton_lambda(rule) for rule in (0, 110, 90, 255)] == [0, 0.625, 0.5, 1]


def test_starts():
    assert automata.single_cell(5).tolist() == [0, 0, 1, 0, 0]
    assert automata.single_cell(4).tolist() == [0, 0, 1, 0]
    assert automata.random_states((), 7, seed=0).shape == (7,)
    # Written down once: a seed has to mean these cells on every machine and with every later NumPy.
    assert "".join(map(str, automata.random_states((), 16, seed=0))) == "1111010111010011"
    few, many = automata.random_states(2, 50, seed=3), automata.random_states(9, 50, seed=3)
    np.testing.assert_array_equal(few, many[:2])
    assert not automata.random_states(9, 50, seed=3, density=0).any()
    assert automata.random_states(9, 50, seed=3, density=1).all()
    # 10**5 cells: five standard deviations of the mean are 0.0073.
    assert abs(automata.random_states(1000, 100, seed=4, density=0.3).mean() - 0.3) < 0.0073


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": 256}, "rule must be an integer from 0 to 255; got 256"),
        ({"rule": -1}, "rule must be an integer from 0 to 255; got -1"),
        ({"rule": 110.0}, "rule must be an integer from 0 to 255; got 110.0"),
        ({"steps": -1}, "steps must be an integer of at least 0; got -1"),
        ({"burn_in": -5}, "burn_in must be an integer of at least 0; got -5"),
        ({"every": 0}, "every must be an integer of at least 1; got 0"),
        ({"boundary": "open"}, "boundary must be one of periodic, fixed0, fixed1, symmetric; got 'open'"),
        ({"states": [0, 1, 2]}, "cells must be 0 or 1; got 2"),
        ({"states": [0, -1]}, "cells must be 0 or 1; got -1"),
        ({"states": [0.5, 1]}, "cells must be 0 or 1; got 0.5"),
        ({"states": [float("nan")]}, "cells must be 0 or 1; got nan"),
        ({"states": []}, "expected cells of shape (..., width) with at least one cell; got shape (0,)"),
        ({"states": 1}, "expected cells of shape (..., width) with at least one cell; got shape ()"),
    ],
)
@pytest.mark.parametrize(("simulate", "kind"), [(automata.simulate, np.array), (on_torch.simulate, torch.tensor)])
def test_bad_input_says_what_was_expected(simulate, kind, arguments, message):
    arguments = {"rule": 110, "states": [0, 1, 0], "steps": 2} | arguments
    arguments["states"] = kind(arguments["states"])
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        simulate(**arguments)


def test_a_packing_that_does_not_exist():
    with pytest.raises(ValueError, match="packed must be 'batch' or 'width'; got 'nonsense'"):
        automata.simulate(110, [0, 1, 0], 2, packed="nonsense")


@pytest.mark.parametrize(
    "call",
    [
        lambda: automata.random_states(-1, 5, seed=0),
        lambda: automata.random_states(1, 0, seed=0),
        lambda: automata.random_states(1, 5, seed=-1),
        lambda: automata.random_states(1, 5, seed=0, density=1.5),
        lambda: automata.random_states(1, 5, seed=0, density=float("nan")),
        lambda: automata.single_cell(0),
        lambda: automata.rule_table(300),
        lambda: automata.equivalents(-2),
        lambda: automata.langton_lambda("110"),
    ],
)
def test_bad_arguments_of_the_helpers(call):
    with pytest.raises(ValueError):
        call()

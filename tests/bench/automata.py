"""Measures automata and complexity beside other packages and the machine's limits, into data/reference/bench.csv.

    make bench

Absolute figures depend on the machine and on what else it does; the column `ratio`, the library's rate over the other
way's on the same work in the same run, is what can be compared. The ways of a task take turns, each is called once
before it counts, and the fastest call stands. `fill` writes one value into a buffer of the same size and freshness as
the result: no way of keeping all rows can be faster. The results of many states and of LZ76 are compared first.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

import antropy
import cellpylib
import numpy as np
import pandas as pd
import torch
from common import compared, fastest, write

from rules2ranks import automata, complexity
from rules2ranks.automata import on_torch

RULE, BATCH, WIDTH, STEPS = 110, 512, 100, 1000
MANY = 4096
WIDE = 1_000_000
#: CellPyLib calls Python once a cell: one state is enough, its rate does not depend on how many there are.
FEW_STEPS = 100
LENGTH = 100_000
REPEATS = 7
UPDATES = "cell updates per second"

#: Prints the seconds that each kernel's first call takes in a new process.
FIRST_USE = """
import time
import numpy as np
from rules2ranks import automata, complexity
state = automata.random_states((), 100, seed=0)
run = np.array([state] * 5)
calls = [
    lambda: automata.simulate(110, np.repeat(run, 20, axis=0), 5),
    lambda: automata.simulate(110, state, 5),
    lambda: automata.simulate(110, state, 5, packed="batch"),
    lambda: automata.simulate(110, state, 5, packed="width"),
    lambda: complexity.lz76(state),
    lambda: complexity.lyapunov_boolean(204, run),
]
for call in calls:
    begin = time.perf_counter()
    call()
    print(time.perf_counter() - begin)
"""


def with_roll(states: np.ndarray, steps: int) -> np.ndarray:
    """All rows by table look-up and `np.roll`, as most plain NumPy programs do it: (B, steps + 1, W) uint8."""
    table = automata.rule_table(RULE)
    rows = np.empty((len(states), steps + 1, states.shape[-1]), np.uint8)
    rows[:, 0] = states
    for step in range(steps):
        now = rows[:, step]
        rows[:, step + 1] = table[4 * np.roll(now, 1, -1) + 2 * now + np.roll(now, -1, -1)]
    return rows


def with_cellpylib(state: np.ndarray, steps: int) -> np.ndarray:
    """All rows of one state, (steps + 1, W)."""
    return cellpylib.evolve(
        state[None].astype(int), timesteps=steps + 1, apply_rule=lambda n, c, t: cellpylib.nks_rule(n, RULE)
    )


def fill_fresh(like: np.ndarray) -> None:
    np.empty(like.shape, like.dtype).fill(1)


def many_states() -> pd.DataFrame:
    """All rows of many states, packed and as bytes, in new memory and in a buffer that is there."""
    states = automata.random_states(BATCH, WIDTH, seed=0)
    tensor = torch.from_numpy(states)
    dense = automata.simulate(RULE, states, STEPS)
    packed = automata.simulate(RULE, states, STEPS, packed="batch")
    np.testing.assert_array_equal(automata.unpack(packed, "batch", BATCH), dense)
    np.testing.assert_array_equal(with_roll(states, STEPS), dense)
    np.testing.assert_array_equal(with_cellpylib(states[0], FEW_STEPS), dense[0, : FEW_STEPS + 1])
    np.testing.assert_array_equal(on_torch.simulate(RULE, tensor, STEPS).numpy(), dense)

    updates = BATCH * WIDTH * STEPS
    few = fastest({"CellPyLib": lambda: with_cellpylib(states[0], FEW_STEPS)}, repeats=2)["CellPyLib"]
    slow = {"NumPy look-up, np.roll": lambda: with_roll(states, STEPS)}
    slow["library, torch on CPU"] = lambda: on_torch.simulate(RULE, tensor, STEPS)
    slow = {way: updates / seconds for way, seconds in fastest(slow, repeats=2).items()}
    slow[f"CellPyLib {cellpylib.__version__}, one state"] = WIDTH * FEW_STEPS / few
    about = f"rule {RULE}, {BATCH} states of {WIDTH} cells, {STEPS} steps, all rows"
    tables = []
    for name, like, options in (("packed", packed, {"packed": "batch"}), ("as bytes", dense, {})):
        fresh = {
            "library": lambda o=options: automata.simulate(RULE, states, STEPS, **o),
            "fill": lambda m=like: fill_fresh(m),
        }
        rates = {way: updates / seconds for way, seconds in fastest(fresh, repeats=20).items()}
        tables.append(compared(f"{about}, {name}", UPDATES, rates | slow))
        buffer = np.empty(like.shape, like.dtype)
        given = {
            "library": lambda o=options, b=buffer: automata.simulate(RULE, states, STEPS, out=b, **o),
            "fill": lambda b=buffer: b.fill(1),
        }
        rates = {way: updates / seconds for way, seconds in fastest(given, repeats=20).items()}
        tables.append(compared(f"{about}, {name}, into a given buffer", UPDATES, rates))
    return pd.concat(tables)


def kept_rows() -> pd.DataFrame:
    """More states, where all packed rows no longer fit a cache, and only the last row, which is no memory to fill."""
    states = automata.random_states(MANY, WIDTH, seed=0)
    ways = {
        "library, last row": lambda: automata.simulate(RULE, states, STEPS, last=True, packed="batch"),
        "library, last row as bytes": lambda: automata.simulate(RULE, states, STEPS, last=True),
        "library, all rows": lambda: automata.simulate(RULE, states, STEPS, packed="batch"),
    }
    rates = {way: MANY * WIDTH * STEPS / seconds for way, seconds in fastest(ways, REPEATS).items()}
    return compared(f"rule {RULE}, {MANY} states of {WIDTH} cells, {STEPS} steps, packed", UPDATES, rates)


def wide_state() -> pd.DataFrame:
    """All rows of one wide state, packed, into a given buffer."""
    state = automata.random_states((), WIDE, seed=0)
    given = np.empty((STEPS + 1, -(-WIDE // 64)), np.uint64)
    ways = {
        "library": lambda: automata.simulate(RULE, state, STEPS, packed="width", out=given),
        "fill": lambda: given.fill(1),
    }
    rates = {way: WIDE * STEPS / seconds for way, seconds in fastest(ways, REPEATS).items()}
    return compared(
        f"rule {RULE}, one state of {WIDE} cells, {STEPS} steps, packed into a given buffer", UPDATES, rates
    )


def phrases_of_lempel_ziv() -> pd.DataFrame:
    """LZ76 of one long sequence of an automaton, and how the time grows with its length."""
    rows = automata.simulate(RULE, automata.random_states((), WIDTH, seed=0), 10 * LENGTH // WIDTH)
    longer = rows.ravel()[: 10 * LENGTH]
    bits = longer[:LENGTH]
    text = "".join(map(str, bits))
    begin = time.perf_counter()
    assert antropy.lziv_complexity(text) == complexity.lz76(bits)
    theirs = time.perf_counter() - begin  # seconds long: once is enough
    ours = fastest({"short": lambda: complexity.lz76(bits), "long": lambda: complexity.lz76(longer)}, REPEATS)
    unit = "symbols per second"
    rates = {"library": LENGTH / ours["short"], f"antropy {antropy.__version__}": LENGTH / theirs}
    growth = {"library": LENGTH / ours["short"], "library, ten times the length": 10 * LENGTH / ours["long"]}
    return pd.concat(
        [
            compared(f"LZ76 of {LENGTH} symbols of rule {RULE}", unit, rates),
            compared(f"LZ76 of {LENGTH} and {10 * LENGTH} symbols of rule {RULE}", unit, growth),
        ]
    )


def all_measures() -> pd.DataFrame:
    """The table of all measures of all rules; Krylov complexity, which is kept once it is known, by itself first."""
    rates = {}
    begin = time.perf_counter()
    for rule in range(256):
        complexity.krylov(rule)
    rates["library, krylov alone"] = 256 / (time.perf_counter() - begin)
    for name, runs in {"11 rows": {}, "200 rows after 500 steps": {"rows": 200, "burn_in": 500}}.items():
        begin = time.perf_counter()
        complexity.table(**runs)
        rates[f"library, all others, {name}"] = 256 / (time.perf_counter() - begin)
    return compared("all measures of all 256 rules, 20 starts of 100 cells", "rules per second", rates)


def first_use() -> pd.DataFrame:
    """The slowest first call of a kernel, where nothing is compiled yet and in the next process."""
    with tempfile.TemporaryDirectory() as cache:
        rates = {}
        for way in ("library, kernels not compiled yet", "library, kernels cached"):
            command = [sys.executable, "-c", FIRST_USE]
            environment = os.environ | {"NUMBA_CACHE_DIR": cache}
            answer = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            rates[way] = max(map(float, answer.stdout.split()))
    return compared("first call in a process, the slowest of all kernels", "seconds", rates)


def main() -> None:
    """Measure, print and write."""
    parts = [many_states, kept_rows, wide_state, phrases_of_lempel_ziv, all_measures, first_use]
    table = pd.concat([part() for part in parts], ignore_index=True)
    write(table, "bench.csv")


if __name__ == "__main__":
    main()

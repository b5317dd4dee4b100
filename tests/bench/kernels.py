"""Measures the automaton and Lempel-Ziv kernels beside other packages, in one run, into data/reference/bench.csv.

    make bench

Absolute figures depend on the machine and on what else it does; the column `ratio`, the library's rate over the
peer's on the same work, is what can be compared. Every way is called once before it is timed, so that compilation is
not counted, and the results of all ways are compared with the library's.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path

import antropy
import cellpylib
import numpy as np
import pandas as pd

from rules2ranks import automata, complexity

RULE, BATCH, WIDTH, STEPS = 110, 512, 100, 1000
# What CellPyLib does in a second or two; its rate does not depend on the number of states or steps.
FEW_STEPS = 200
LENGTH = 20_000
REPEATS = 5
FILE = Path(__file__).resolve().parents[2] / "data" / "reference" / "bench.csv"


def fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls, after one that is not counted."""
    call()
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


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


def rows_of_automata() -> pd.DataFrame:
    """Cell updates per second of one rule on many random states, every row kept as uint8."""
    states = automata.random_states(BATCH, WIDTH, seed=0)
    reference = automata.simulate(RULE, states, STEPS)
    np.testing.assert_array_equal(with_roll(states, STEPS), reference)
    np.testing.assert_array_equal(with_cellpylib(states[0], FEW_STEPS), reference[0, : FEW_STEPS + 1])
    many, one = BATCH * WIDTH * STEPS, WIDTH * FEW_STEPS
    ways = {
        "rules2ranks": many / fastest(lambda: automata.simulate(RULE, states, STEPS)),
        "NumPy, np.roll": many / fastest(lambda: with_roll(states, STEPS)),
        f"CellPyLib {cellpylib.__version__}": one / fastest(lambda: with_cellpylib(states[0], FEW_STEPS)),
    }
    return compared(f"rule {RULE}, {BATCH} states of {WIDTH} cells, {STEPS} steps", "cell updates per second", ways)


def phrases_of_lempel_ziv() -> pd.DataFrame:
    """Symbols per second of LZ76 on one long sequence of an automaton."""
    steps = LENGTH // WIDTH - 1
    bits = automata.simulate(RULE, automata.random_states(1, WIDTH, seed=0), steps).ravel()
    text = "".join(map(str, bits))
    assert antropy.lziv_complexity(text) == complexity.lz76(bits)
    ways = {
        "rules2ranks": LENGTH / fastest(lambda: complexity.lz76(bits)),
        f"antropy {antropy.__version__}": LENGTH / fastest(lambda: antropy.lziv_complexity(text)),
    }
    return compared(f"LZ76 of {LENGTH} symbols of rule {RULE}", "symbols per second", ways)


def compared(task: str, unit: str, ways: dict[str, float]) -> pd.DataFrame:
    """One row for each way; `ratio` says how many times as fast the library is."""
    rates = pd.Series(ways)
    return pd.DataFrame(
        {"task": task, "way": rates.index, "rate": rates.values, "unit": unit, "ratio": (rates.iloc[0] / rates).values}
    )


def main() -> None:
    """Measure, print and write."""
    table = pd.concat([rows_of_automata(), phrases_of_lempel_ziv()], ignore_index=True)
    table["machine"] = f"{platform.machine()}, one thread, Python {platform.python_version()}"
    FILE.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(FILE, index=False, float_format="%.3g")
    print(table.drop(columns="machine").to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    print(f"Written to {FILE}")


if __name__ == "__main__":
    main()

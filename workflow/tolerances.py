"""Gives every trained metric in `data/expected/` a tolerance, from its spread over seeds.

    python workflow/tolerances.py notebooks/20_pretrain.ipynb ...

A notebook runs once more for each other seed. On one machine the same seed gives the same bits; on another, float sums
round differently, and a training that amplifies it ends about as far away as another seed would.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import papermill

import results
from rules2ranks.stages import parameters

#: Seeds that the reference tables have.
SEEDS = {"32_rank_adaptor": (0, 1, 2, 3)}
USUAL = (0, 1, 2)
#: Two or three seeds may lie close by chance: a tolerance is this share of the value at least.
LEAST = 0.05
#: What no seed changes is computed once, but summed in another order elsewhere.
ROUNDING = 1e-6
#: A share that is 1 for all seeds may elsewhere miss a few cases.
CEILING = 0.01
EXPECTED = results.REPOSITORY / "data" / "expected"


def metrics(name: str, values: dict) -> dict:
    """The metrics of a notebook as it is now, run with these parameters (finished stages are taken from `runs/`)."""
    place = parameters.folder(name, values)
    place.mkdir(parents=True, exist_ok=True)
    notebook = results.REPOSITORY / "notebooks" / f"{name}.ipynb"
    papermill.execute_notebook(notebook, place / f"{name}.ipynb", values, cwd=notebook.parent, progress_bar=False)
    return json.loads((place / "metrics.json").read_text(encoding="utf-8"))


def expected(found: list[dict], seeds: tuple[int, ...]) -> dict[str, dict]:
    """The first run's metrics with their tolerances: 4 standard deviations over seeds, and no less than `LEAST`."""
    entries = {}
    for key, value in found[0].items():
        values = [m[key] for m in found]
        if not isinstance(value, float):
            entries[key] = {"value": value, "tolerance": 0}
        elif min(values) == max(values) == 1.0:
            entries[key] = {"value": value, "tolerance": CEILING, "why": "at its ceiling for all seeds"}
        elif max(values) == min(values):
            entries[key] = {"value": value, "tolerance": ROUNDING, "why": "the same for all seeds, but for rounding"}
        else:
            spread = statistics.stdev(values)
            tolerance = float(f"{max(4 * spread, LEAST * abs(value)):.2g}")
            why = f"the larger of 4 × {spread:.2g}, the standard deviation over seeds {seeds}, and {LEAST:.0%}"
            entries[key] = {"value": value, "tolerance": tolerance, "why": why}
    return entries


def main(names: list[str]) -> None:
    for name in (Path(given).stem for given in names):
        values, seeds = results.values("fast")[name], SEEDS.get(name, USUAL)
        entries = expected([metrics(name, values | {"seed": seed}) for seed in seeds], seeds)
        (EXPECTED / f"{name}.json").write_text(
            json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        print(f"{name}: {sum('seeds (' in entry.get('why', '') for entry in entries.values())} of {len(entries)} vary")


if __name__ == "__main__":
    main(sys.argv[1:])

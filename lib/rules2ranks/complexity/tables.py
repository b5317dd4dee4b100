"""All measures of many rules, with seeds and spread."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rules2ranks import automata
from rules2ranks.automata.rules import integer
from rules2ranks.complexity import dynamics, entropies, functions, patterns
from rules2ranks.complexity.classes import wolfram_classes


class Measure(NamedTuple):
    """A measure of complexity: what a reader calls it, and its unit, empty for a bare number.

    `compute` takes a rule and a run ``(T, W)`` of it, or for measures `of_the_rule` the rule alone.
    """

    compute: Callable[..., float]
    label: str
    unit: str = ""
    of_the_rule: bool = False


def _of_pattern(compute: Callable[..., float], label: str, unit: str = "", **options: int) -> Measure:
    """A measure that reads the run and does not ask for its rule."""
    return Measure(lambda rule, run: compute(run, **options), label, unit)


def _both_fractal_dimensions(run: NDArray[np.uint8]) -> float:
    return (patterns.fractal_dimension(run) + patterns.fractal_dimension(1 - run)) / 2


def _damage(rule: int, run: NDArray[np.uint8]) -> float:
    """Over the steps of the run, or as many as the ring has room for."""
    return dynamics.lyapunov_damage(rule, run[0], min(len(run) - 1, (run.shape[1] - 1) // 2))


#: The measures of `table`, in its column order.
MEASURES: dict[str, Measure] = {
    "lz76": _of_pattern(patterns.lz76, "LZ76", "phrases"),
    "lz76_normalised": _of_pattern(patterns.lz76_normalised, "LZ76, normalised"),
    "compression": _of_pattern(patterns.compression, "compression", "bits per cell"),
    "entropy": _of_pattern(entropies.block_entropy, "Shannon entropy", "bits per cell", length=1),
    "entropy_rate": _of_pattern(entropies.entropy_rate, "entropy rate", "bits per cell"),
    "entropy_rate_time": _of_pattern(entropies.entropy_rate, "entropy rate in time", "bits per cell", axis=-2),
    "mutual_information": _of_pattern(entropies.mutual_information, "mutual information", "bits per cell"),
    "mutual_information_time": _of_pattern(
        entropies.mutual_information, "mutual information in time", "bits per cell", axis=-2
    ),
    "fractal_dimension": _of_pattern(_both_fractal_dimensions, "fractal dimension"),
    "lyapunov_damage": Measure(_damage, "Lyapunov, damage speed", "cells per step"),
    "lyapunov_boolean": Measure(dynamics.lyapunov_boolean, "Lyapunov, Boolean", "nats per step"),
    "krylov": Measure(dynamics.krylov, "Krylov complexity", of_the_rule=True),
    "linear_loss": Measure(functions.linear_loss, "linear loss", "nats per cell"),
    "nonlinearity": Measure(functions.nonlinearity, "distance from affine", "table entries", of_the_rule=True),
    "average_sensitivity": Measure(functions.average_sensitivity, "average sensitivity", "cells", of_the_rule=True),
    "canalisation": Measure(functions.canalisation, "canalisation", of_the_rule=True),
    "effective_connectivity": Measure(
        functions.effective_connectivity, "effective connectivity", "cells", of_the_rule=True
    ),
    "langton_lambda": Measure(automata.langton_lambda, "Langton's λ", of_the_rule=True),
}


def table(
    rules: Iterable[int] = range(256),
    *,
    width: int = 100,
    rows: int = 11,
    burn_in: int = 0,
    seeds: Iterable[int] = range(20),
    measures: Iterable[str] = MEASURES,
) -> pd.DataFrame:
    """Measures of rules, as mean and standard deviation over random starts.

    Each run is ``(rows, width)`` cells of a ring, recorded after ``burn_in`` updates from a random state of density
    one half; seed s gives every rule the same start. With the defaults LZ76 comes out near the published complexities
    of "Intelligence at the Edge of Chaos" (root mean square error 4.4 phrases).

    Returns one line per rule (index ``rule``): ``wolfram_class``, ``disputed``, then each measure, in the unit that
    `MEASURES` has for it, and where it depends on the start, its sample standard deviation ``<measure>_sd`` (NaN for a
    single seed, or where a value is not finite). Entropies are of blocks of 5 and mutual information of pairs of
    neighbours; ``lyapunov_damage`` is over rows - 1 steps, or as many as the ring has room for, from the run's first
    row; ``lyapunov_boolean`` is -inf if defects die out in any run; ``fractal_dimension`` is the mean of that of the 1s
    and that of the 0s. ``krylov``, ``langton_lambda`` and the four before it belong to the rule alone.

    Raises ValueError for no rules or no seeds, an unknown measure, fewer than 5 rows or cells, or what
    `automata.simulate` refuses.
    """
    rules, seeds = _listed("rules", rules, "[30, 110]"), _listed("seeds", seeds, "range(20)")
    measures = _listed("measures", measures, '["lz76"]')
    rows, width = integer("rows", rows, 1), integer("width", width, 1)
    if not rules or not seeds:
        raise ValueError(f"expected at least one rule and one seed; got {len(rules)} rules and {len(seeds)} seeds")
    if min(rows, width) < entropies.BLOCK:
        raise ValueError(f"rows and width must be at least {entropies.BLOCK}; got {rows} rows of {width} cells")
    if unknown := [name for name in measures if name not in MEASURES]:
        raise ValueError(f"unknown measure {unknown[0]!r}; there are {', '.join(MEASURES)}")
    starts = np.stack([automata.random_states((), width, seed=seed) for seed in seeds])
    runs = {rule: automata.simulate(rule, starts, rows - 1, burn_in=burn_in) for rule in rules}
    columns = wolfram_classes().loc[rules, ["class", "disputed"]].rename(columns={"class": "wolfram_class"})
    for name in measures:
        compute, _, _, of_the_rule = MEASURES[name]
        if of_the_rule:
            columns[name] = [compute(rule) for rule in rules]
            continue
        values = np.array([[compute(rule, run) for run in runs[rule]] for rule in rules], float)
        columns[name] = values.mean(axis=1)
        finite = np.where(np.isfinite(values).all(axis=1, keepdims=True), values, np.nan)
        columns[f"{name}_sd"] = finite.std(axis=1, ddof=1) if len(seeds) > 1 else np.nan
    return columns


def _listed(name: str, given: Iterable[Any], such_as: str) -> list[Any]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ValueError(f"{name} must be a list, such as {such_as}; got {given!r}")
    return list(given)

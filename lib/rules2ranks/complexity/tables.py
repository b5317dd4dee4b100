"""All measures of many rules, with seeds and spread."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rules2ranks import automata
from rules2ranks.automata.rules import integer
from rules2ranks.complexity import dynamics, entropies, patterns
from rules2ranks.complexity.classes import wolfram_classes

_OF_A_RUN: dict[str, Callable[[int, NDArray[np.uint8]], float]] = {
    "lz76": lambda rule, run: patterns.lz76(run),
    "lz76_normalised": lambda rule, run: patterns.lz76_normalised(run),
    "compression": lambda rule, run: patterns.compression(run),
    "entropy": lambda rule, run: entropies.block_entropy(run, 1),
    "entropy_rate": lambda rule, run: entropies.entropy_rate(run),
    "entropy_rate_time": lambda rule, run: entropies.entropy_rate(run, axis=-2),
    "mutual_information": lambda rule, run: entropies.mutual_information(run),
    "mutual_information_time": lambda rule, run: entropies.mutual_information(run, axis=-2),
    "fractal_dimension": lambda rule, run: (patterns.fractal_dimension(run) + patterns.fractal_dimension(1 - run)) / 2,
    "lyapunov_damage": lambda rule, run: dynamics.lyapunov_damage(
        rule, run[0], min(len(run) - 1, (run.shape[1] - 1) // 2)
    ),
    "lyapunov_boolean": dynamics.lyapunov_boolean,
}
_OF_A_RULE: dict[str, Callable[[int], float]] = {
    "krylov": dynamics.krylov,
    "langton_lambda": automata.langton_lambda,
}
_SUCH_AS = {"rules": "[30, 110]", "seeds": "range(20)", "measures": '["lz76"]'}
#: The measures of `table`, in its column order.
MEASURES = (*_OF_A_RUN, *_OF_A_RULE)


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

    Returns one line per rule (index ``rule``): ``wolfram_class``, ``disputed``, then each measure and, where it
    depends on the start, its sample standard deviation ``<measure>_sd`` (NaN for a single seed, or where a value is
    not finite). ``lz76`` is in phrases, compression, entropies and mutual information in bits per cell (blocks of 5,
    pairs of neighbours), ``lyapunov_damage`` in cells per step (over rows - 1 steps, or as many as the ring has room
    for, from the run's first row), ``lyapunov_boolean`` in nats per step (-inf if defects die out in any run).
    ``fractal_dimension`` is the mean of that of the 1s and that of the 0s. ``krylov`` and ``langton_lambda`` belong
    to the rule alone.

    Raises ValueError for no rules or no seeds, an unknown measure, fewer than 5 rows or cells, or what
    `automata.simulate` refuses.
    """
    for name, given in {"rules": rules, "seeds": seeds, "measures": measures}.items():
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise ValueError(f"{name} must be a list, such as {_SUCH_AS[name]}; got {given!r}")
    rules, seeds, measures = list(rules), list(seeds), list(measures)
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
        if name in _OF_A_RULE:
            columns[name] = [_OF_A_RULE[name](rule) for rule in rules]
            continue
        values = np.array([[_OF_A_RUN[name](rule, run) for run in runs[rule]] for rule in rules], float)
        columns[name] = values.mean(axis=1)
        finite = np.where(np.isfinite(values).all(axis=1, keepdims=True), values, np.nan)
        columns[f"{name}_sd"] = finite.std(axis=1, ddof=1) if len(seeds) > 1 else np.nan
    return columns

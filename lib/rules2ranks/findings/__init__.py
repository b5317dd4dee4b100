"""What is read out of the reference tables: the numbers that notebooks, scorecard and README share."""

from rules2ranks.findings.compression import kept, robustness
from rules2ranks.findings.edge import (
    COMPLEX,
    FEW,
    MEASURES,
    TASKS,
    baselines,
    correlations,
    how_learnt,
    learnt,
    lz76,
    measures,
    scores,
    variant_baselines,
    variants,
    verdict,
)
from rules2ranks.findings.papers import markdown, scorecard

__all__ = [
    "COMPLEX",
    "FEW",
    "MEASURES",
    "TASKS",
    "baselines",
    "correlations",
    "how_learnt",
    "kept",
    "learnt",
    "lz76",
    "markdown",
    "measures",
    "robustness",
    "scorecard",
    "scores",
    "variant_baselines",
    "variants",
    "verdict",
]

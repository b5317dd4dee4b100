"""Scores over rules and seeds, and how sure one may be of what they show.

`intervals` gives means with bootstrap intervals; `crossed` means over seeds and what was drawn beside them, tests of
difference and of equivalence, and the smallest effect that could be seen; `variance` what varies with what;
`correlations` relates rules' complexity to their scores, with and without controls; `mediation` parts an effect into
what goes through something and what does not; `sweet_spot` asks whether a score rises and then falls; `survival` treats
the steps until something was learnt, and the failures before the right answer; `benchmarks` is a bridge to lm-eval.

Everything resamples from an explicit seed, so the same data give the same interval. Importing this does not load
torch; `benchmark` needs the optional extra ``llm``.
"""

from rules2ranks.evaluation.benchmarks import Benchmark, benchmark
from rules2ranks.evaluation.correlations import Correlation, Kind, correlation, holm, mantel, partial_correlation
from rules2ranks.evaluation.crossed import Crossed, crossed
from rules2ranks.evaluation.intervals import Interval, mean_interval
from rules2ranks.evaluation.mediation import Mediation, mediation
from rules2ranks.evaluation.survival import (
    SurvivalGame,
    TimeToReach,
    failures,
    parametric_fits,
    survival_game,
    time_to_reach,
)
from rules2ranks.evaluation.sweet_spot import Quadratic, TwoLines, quadratic, two_lines
from rules2ranks.evaluation.variance import Interaction, TwoWay, interaction, two_way

__all__ = [
    "Benchmark",
    "Correlation",
    "Crossed",
    "Interaction",
    "Interval",
    "Kind",
    "Mediation",
    "Quadratic",
    "SurvivalGame",
    "TimeToReach",
    "TwoLines",
    "TwoWay",
    "benchmark",
    "correlation",
    "crossed",
    "failures",
    "holm",
    "interaction",
    "mantel",
    "mean_interval",
    "mediation",
    "parametric_fits",
    "partial_correlation",
    "quadratic",
    "survival_game",
    "time_to_reach",
    "two_lines",
    "two_way",
]

"""How complex a rule is: of its runs, of its dynamics, and by eye.

`patterns` and `entropies` read a run ``(T, W)``; `dynamics` follows differences and observables under the rule;
`functions` looks at the rule as a Boolean function; `classes` holds Wolfram's classes; `tables` measures many rules
with seeds and spread.
"""

from rules2ranks.complexity.classes import wolfram_class, wolfram_classes
from rules2ranks.complexity.dynamics import krylov, lyapunov_boolean, lyapunov_damage
from rules2ranks.complexity.entropies import block_entropy, entropy_rate, mutual_information
from rules2ranks.complexity.functions import (
    average_sensitivity,
    canalisation,
    effective_connectivity,
    linear_loss,
    nonlinearity,
    walsh_spectrum,
)
from rules2ranks.complexity.patterns import compression, fractal_dimension, lz76, lz76_normalised
from rules2ranks.complexity.tables import MEASURES, Measure, table

__all__ = [
    "MEASURES",
    "Measure",
    "average_sensitivity",
    "block_entropy",
    "canalisation",
    "compression",
    "effective_connectivity",
    "entropy_rate",
    "fractal_dimension",
    "krylov",
    "linear_loss",
    "lyapunov_boolean",
    "lyapunov_damage",
    "lz76",
    "lz76_normalised",
    "mutual_information",
    "nonlinearity",
    "table",
    "walsh_spectrum",
    "wolfram_class",
    "wolfram_classes",
]

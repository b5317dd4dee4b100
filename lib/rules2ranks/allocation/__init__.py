"""Who decides the ranks: uniform, random and closed-form controls, RankAdaptor's search, and an additive model.

A rank vector is a tuple with one LoRA rank per layer. A score is lower-is-better (a validation loss). The searches get
their objective as a callable and know nothing of models or files.
"""

from rules2ranks.allocation.predictors import AdditiveModel, PerformanceModel, additive, cross_validated_r2
from rules2ranks.allocation.search import Measurement, Search, additive_search, propose, random_search, rank_adaptor
from rules2ranks.allocation.signals import gradient_norms
from rules2ranks.allocation.space import (
    Ranks,
    Space,
    by_importance,
    ends_high,
    middle_high,
    neighbours,
    random,
    uniform,
)
from rules2ranks.allocation.tables import read_measurements

__all__ = [
    "AdditiveModel",
    "Measurement",
    "PerformanceModel",
    "Ranks",
    "Search",
    "Space",
    "additive",
    "additive_search",
    "by_importance",
    "cross_validated_r2",
    "ends_high",
    "gradient_norms",
    "middle_high",
    "neighbours",
    "propose",
    "random",
    "random_search",
    "rank_adaptor",
    "read_measurements",
    "uniform",
]

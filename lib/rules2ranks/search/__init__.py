"""What to choose under a budget: a space, its controls, and searchers that ask for points and are told their scores.

A point says for every knob which of its options is taken: a level, bits and a rank. Of scores, lower is better. The
searches get their measure as a callable and know nothing of models.
"""

from rules2ranks.search.controls import by_importance, ends_high, middle_high, random
from rules2ranks.search.loop import Workers, search
from rules2ranks.search.models import cross_validated_r2
from rules2ranks.search.searcher import SEARCHERS, Searcher
from rules2ranks.search.searchers.additive import AdditiveModel
from rules2ranks.search.searchers.auto_qra import AutoQRA
from rules2ranks.search.searchers.darwin_lm import DarwinLM
from rules2ranks.search.searchers.optuna import GP, NSGA2, TPE
from rules2ranks.search.searchers.rank_adaptor import PerformanceModel, RankAdaptor
from rules2ranks.search.shared import Shared
from rules2ranks.search.space import FILL, Knob, Option, Point, Space
from rules2ranks.search.spaces import GRID, byte_space, level_space, rank_space
from rules2ranks.search.tables import read_trials
from rules2ranks.search.trials import Proposal, Search, Trial, pareto

__all__ = [
    "FILL",
    "GP",
    "GRID",
    "NSGA2",
    "SEARCHERS",
    "TPE",
    "AdditiveModel",
    "AutoQRA",
    "DarwinLM",
    "Knob",
    "Option",
    "PerformanceModel",
    "Point",
    "Proposal",
    "RankAdaptor",
    "Search",
    "Searcher",
    "Shared",
    "Space",
    "Trial",
    "Workers",
    "by_importance",
    "byte_space",
    "cross_validated_r2",
    "ends_high",
    "level_space",
    "middle_high",
    "pareto",
    "random",
    "rank_space",
    "read_trials",
    "search",
]

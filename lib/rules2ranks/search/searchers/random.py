"""Random search: the control that every searcher has to beat."""

from dataclasses import dataclass

from rules2ranks.search.searcher import Searcher
from rules2ranks.search.trials import Proposal


@dataclass
class RandomSearch(Searcher, name="random search"):
    """`limit` random points; known ones count. The first are those of RankAdaptor's offline phase at the same seed."""

    several = True

    def ask(self) -> list[Proposal]:
        left = max(0, self.limit - len(self.trials))
        return [Proposal(point, proposer="random") for point in self.fresh(self.limit, self.trials)[:left]]

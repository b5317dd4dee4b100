"""Random search: the control that every searcher has to beat."""

from dataclasses import dataclass

from rules2ranks.search.searcher import Searcher
from rules2ranks.search.trials import Proposal


@dataclass
class RandomSearch(Searcher, name="random search"):
    """`limit` random points; known ones count. The first are those of RankAdaptor's offline phase at the same seed."""

    several = True

    def ask(self) -> Proposal | None:
        point = self.fresh(self.limit, self.trials) if len(self.trials) < self.limit else None
        return None if point is None else Proposal(point, proposer="random")

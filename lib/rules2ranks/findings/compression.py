"""What the table of pruned rule models says: how much of what was learnt is left after pruning."""

import pandas as pd

from rules2ranks import tables

#: A network that gained less than this from learning (nats per cell) has nothing that pruning could take.
LEARNT = 0.1


def kept(name: str = "compression") -> pd.DataFrame:
    """The table `compression`, or another of its kind, with two columns more, in each rule's own scale.

    `gained`: nats per cell that learning gained over the untrained network. `kept`: the share of it that is left after
    pruning, (untrained − pruned) / (untrained − trained), between 0 and 1; NaN where less than `LEARNT` was gained.
    """
    table, _ = tables.read(name)
    whole = table[table.ratio == 0].set_index(["rule", "seed"]).loss.rename("trained_loss")
    table = table.join(whole, on=["rule", "seed"])
    table["gained"] = table.untrained_loss - table.trained_loss
    share = (table.untrained_loss - table.loss) / table.gained
    return table.assign(kept=share.clip(0, 1).where(table.gained > LEARNT)).drop(columns="trained_loss")


def robustness(name: str = "compression") -> pd.DataFrame:
    """Mean share kept over all shares removed (the area under a rule's curve): a row for each rule, a column a seed.

    Rules that some seed did not learn are left out.
    """
    table = kept(name)
    area = table[table.ratio > 0].groupby(["rule", "seed"]).kept.apply(lambda s: s.mean(skipna=False))
    return area.unstack().dropna()

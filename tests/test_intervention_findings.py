"""What the table of interventions says, against other ways to the same numbers."""

import numpy as np
import pytest
from scipy import stats

from rules2ranks import tables
from rules2ranks.findings import interventions
from rules2ranks.findings import plans as planned
from rules2ranks.stages.bearing import Limits
from rules2ranks.tables import plans


@pytest.fixture(scope="module")
def plan():
    return plans.read(interventions.TABLE)


@pytest.fixture(scope="module")
def table():
    return tables.read(interventions.TABLE).table


def test_the_table_is_the_plans(plan, table):
    assert planned.as_committed(interventions.TABLE)
    counts = table.groupby("condition").size()
    assert set(counts.index) == set(plan.run["conditions"])
    assert set(counts) == {len(plan.run["rules"]) * len(plan.run["seeds"])}
    assert interventions.RANKS == (0, *Limits.model_fields["ranks"].default)
    assert list(interventions.OUTCOMES) == plan.confirmatory


def test_outcomes_are_the_tables(table):
    here = table[table.condition == "flips of .15"].set_index(["rule", "seed"]).sort_index()
    found = interventions.outcomes("flips of .15")
    for (rule, seed), row in here.iterrows():
        assert found["share"].loc[rule, seed] == row.share_taylor
        assert found["bits"].loc[rule, seed] == row.bits
        rank = found["rank"].loc[rule, seed]
        assert rank == 6 if np.isnan(row["rank"]) else interventions.RANKS[int(rank)] == row["rank"]
        ratio = np.exp(found["place"].loc[rule, seed])
        assert ratio == pytest.approx(max(row["only_early layers"], 1e-4) / max(row["only_late layers"], 1e-4))


def residuals(values, given):
    ranks = stats.rankdata(values)
    design = np.column_stack([np.ones(len(ranks)), *(stats.rankdata(column) for column in given.T)])
    return ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]


def test_partial_correlations_by_residuals():
    x, found = interventions.about(), interventions.over_rules()
    given = x.drop(columns="LZ76").to_numpy()
    for name, values in interventions.outcomes().items():
        mean = values.loc[x.index].mean(axis=1)
        by_hand = np.corrcoef(residuals(x.LZ76, given), residuals(mean, given))[0, 1]
        assert float(found.partial[name].split()[0]) == pytest.approx(by_hand, abs=0.0051)
    assert (found.holm >= found.p).all()


def test_differences_within_rules_are_paired(plan, table):
    found = interventions.within_rules()
    wide = table.pivot(index=["rule", "seed"], columns="condition", values="bits")
    for condition in wide.columns.drop(interventions.UNCHANGED):
        mean = (wide[condition] - wide[interventions.UNCHANGED]).mean()
        row = found.loc[condition, "bits"]
        assert row.estimate == pytest.approx(mean)
        assert row.low <= row["low 90"] <= row.estimate <= row["high 90"] <= row.high
    inside = interventions.no_effect()
    share = found.xs("share", level="outcome")
    assert (inside == (share[["low 90", "high 90"]].abs().max(axis=1) < plan.margin)).all()


def test_complexity_needs_both_tests(plan):
    lz, moved, found = interventions.over_rules(), interventions.within_rules(), interventions.verdict()
    for name, row in found.iterrows():
        both = lz.holm[name] < plan.level and moved.holm["three steps", name] < plan.level
        assert row.complexity == ("decides" if both else "not shown")
        assert row.scale == ("decides" if moved.holm["weight decay", name] < plan.level else "not shown")
        assert row.entropy == ("decides" if moved.holm["flips of .15", name] < plan.level else "not shown")


def test_what_follows_the_change_of_linear_loss():
    """By scipy's ranks; a rule that is a shift stays one, so nothing changes for it."""
    assert interventions._linear(15, 3) == interventions._linear(15, 1) == 0
    change = (interventions.outcomes("three steps")["share"] - interventions.outcomes()["share"]).mean(axis=1)
    linear = [interventions._linear(rule, 3) - interventions._linear(rule, 1) for rule in change.index]
    assert interventions.farther().estimate == pytest.approx(stats.spearmanr(linear, change).statistic)

"""What the tables of fresh rules say, against other ways to the same numbers."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rules2ranks import automata, complexity, tables
from rules2ranks.findings import edge, mechanism
from rules2ranks.findings import plans as planned
from rules2ranks.tables import plans


@pytest.fixture(scope="module")
def plan():
    return plans.read(mechanism.TABLE)


def test_the_table_is_the_plans(plan):
    table = tables.read(mechanism.TABLE).table
    assert planned.as_committed(mechanism.TABLE)
    assert set(table.rule) == {*plan.run["rules"], *plan.run["complex_rules"]}
    assert all(sorted(part.seed) == plan.run["seeds"] for _, part in table.groupby("rule"))
    assert set(table.step) == {plan.run["downstream"]["steps"]}
    pruned = tables.read(f"{mechanism.TABLE}_pruned").table
    assert sorted(pruned.ratio.unique()) == [0, *plan.run["fragility"]["ratios"]]


def left_of(values, given):
    """Residuals of ranks after least squares on the ranks of another measure."""
    ranks, other = (stats.rankdata(side) for side in (values, given))
    design = np.c_[np.ones(len(ranks)), other]
    return ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]


def test_partial_correlations_by_residuals_and_the_verdicts(plan):
    found = mechanism.confirmed()
    for outcome, scores in mechanism.outcomes().items():
        about, mean = mechanism.measured(tuple(scores.index)), scores.mean(axis=1)
        for measure, other in ((mechanism.LINEAR, mechanism.LZ76), (mechanism.LZ76, mechanism.LINEAR)):
            sides = left_of(about[measure], about[other]), left_of(mean, about[other])
            row = found.loc[measure, outcome]
            assert row.partial == pytest.approx(np.corrcoef(*sides)[0, 1])
            holds = row.holm < plan.level and row.partial * mechanism.SIGNS[outcome] > 0
            inside = max(abs(row["low 90"]), abs(row["high 90"])) < plan.margin
            assert row.verdict == ("holds" if holds else "adds nothing" if inside else "undecided")
    assert (found.holm >= found.p).all()
    assert len(found) == len(plan.confirmatory)


def test_classes_are_compared_over_kinds(plan):
    found = mechanism.classes()
    scores = mechanism.outcomes("complex_rules")[mechanism.BOARDS].mean(axis=1)
    kinds = scores.groupby(scores.index.map(automata.representative)).mean()
    fourth = {kind for kind in kinds.index if complexity.wolfram_class(kind) == 4}
    values = kinds.to_dict()

    def difference(chosen):
        return np.mean([values[k] for k in chosen]) - np.mean([values[k] for k in values if k not in chosen])

    every, here = np.array([difference(set(some)) for some in combinations(values, len(fourth))]), difference(fourth)
    tails = np.mean(every >= here - 1e-12), np.mean(every <= here + 1e-12)
    assert found.difference == pytest.approx(here)
    assert found.p == pytest.approx(min(1, 2 * min(tails)))  # two-sided: twice the smaller tail
    assert found.kinds == len(kinds)


def test_orders_by_pandas_own_ranks(plan):
    """The estimate is pandas' Spearman of means; times that were not reached come last; verdicts follow the margin."""
    table, found = tables.read(mechanism.SIZES).table, mechanism.orders()
    assert planned.as_committed(mechanism.SIZES)
    here = table[~table.source.isin(["coin", "none"])]
    late = here.step_at_80.isna()
    times = here.step_at_80.mask(late, 10_000)
    score = here.accuracy.mask(here.variant == mechanism.STEPS, -times)
    means = score.groupby([here.variant, here.source.astype(int)]).mean().unstack("variant")
    for name, row in found.drop(mechanism.SHIPPED).iterrows():
        if name != mechanism.STEPS:  # how late counts in a mean, so only its sign is sure there
            assert float(row[f"ρ with {mechanism.SHIPPED}"].split()[0]) == pytest.approx(
                means[name].corr(means[mechanism.SHIPPED], method="spearman"), abs=0.005
            )
        low, high = (float(each) for each in row[f"ρ with {mechanism.SHIPPED}"].split("[")[1].rstrip("]").split(", "))
        margin = plans.read(mechanism.SIZES).margin
        assert row["the order"] == ("holds" if low > margin else "does not hold" if high < margin else "undecided")
    assert list(found.index) == list(plans.read(mechanism.SIZES).run["variants"])


def test_functions_go_with_scores_as_pandas_says():
    found, scores = mechanism.functions("reasoning-hard"), edge.scores("reasoning-hard").mean(axis=1)
    sensitivity = scores.index.map(complexity.average_sensitivity)
    by_hand = scores.corr(pd.Series(sensitivity, scores.index), method="spearman")
    assert float(found.score["average sensitivity"].split()[0]) == pytest.approx(by_hand, abs=0.0051)
    assert len(found) == len(mechanism.FUNCTION)

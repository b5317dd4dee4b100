"""What is read off the tables of levels and of mendings agrees with them and with their searches and rates."""

import numpy as np
import pytest
from scipy import stats

from rules2ranks import evaluation, tables
from rules2ranks.findings import levels, ranks, recoveries
from rules2ranks.findings import plans as planned
from rules2ranks.stages import subjects
from rules2ranks.tables import plans
from rules2ranks.tables import recoveries as recovery_tables
from rules2ranks.tables.levels import read


@pytest.fixture(scope="module")
def frame():
    return tables.read(levels.TABLE).table


def test_every_choice_is_as_small_as_it_has_to_be(frame):
    whole = subjects.subject("language").shapes
    run = plans.read(levels.TABLE).run
    for setting, part in frame.groupby("setting"):
        assert part.removed.between(
            run["settings"][setting]["ratio"] - 0.001, run["settings"][setting]["ratio"] + 0.02
        ).all()
    for text in frame.levels.dropna().unique():
        left = whole.cut(read(text, whole).levels).parameters / whole.parameters
        assert frame[frame.levels == text].removed.iloc[0] == pytest.approx(1 - left)


def test_all_went_as_planned():
    assert planned.as_committed(levels.TABLE) and planned.as_committed("mendings")
    assert not planned.deviations(levels.TABLE).differs.any()


def test_a_search_s_choice_is_the_best_that_it_judged_at_the_most_training(frame):
    searched = tables.read(f"{levels.TABLE}_search").table
    for (setting, name, seed), part in searched.groupby(["setting", "allocator", "search_seed"]):
        last = part[part.fidelity == part.fidelity.max()]
        chosen = last.loc[last.measured.idxmin()]
        own = frame[(frame.setting == setting) & (frame.allocator == name) & (frame.which == seed)]
        assert set(own.levels) == {chosen.levels}


def test_darwin_is_compared_with_evolution_search_by_search(frame):
    found = levels.trained_or_not()
    for (setting, start), row in found.iterrows():
        part = frame[(frame.setting == setting) & frame.allocator.isin(levels.PAIRS[start])]
        logs = np.log(part.set_index(["which", "report_seed", "allocator"]).loss).unstack()
        one, other = levels.PAIRS[start]
        assert np.log1p(row.estimate) == pytest.approx((logs[one] - logs[other]).mean(), abs=1e-12)


def test_orders_are_rank_correlations_with_the_loss_after_recovery(frame):
    judged = tables.read(f"{levels.TABLE}_judged").table
    for (among, share), row in levels.orders().iterrows():
        own = judged[(judged.allocator == among) & (judged.share == share)].set_index("which")
        after = frame[frame.allocator == among].groupby("which").loss.mean()
        assert row.rho == pytest.approx(stats.spearmanr(own.kl, after[own.index]).statistic)
        assert row.choices == len(own)


def test_shapes_are_those_of_the_table(frame):
    setting = frame.setting.iloc[0]
    text = frame[(frame.setting == setting) & (frame.allocator == "divergences")].levels.iloc[0]
    assert levels.shape(setting, "divergences") == read(text, subjects.subject("language").shapes).levels
    assert levels.as_cut().loc[(setting, "divergences"), "removed"] == pytest.approx(
        frame[frame.levels == text].removed.iloc[0]
    )


def test_each_way_to_mend_is_at_its_best_and_tested_against_lora():
    report, tuned = tables.read("mendings").table, tables.read("mending_rates").table
    plan, found = plans.read("mendings"), recoveries.tested()
    for (setting, way), part in report[report.way != tables.ALONE].groupby(["setting", "way"]):
        assert (part.lr.iloc[0], part.steps.iloc[0]) == recovery_tables.best(tuned, setting, way)
        assert sorted(part.seed) == plan.run["seeds"]
    assert set(found.index.get_level_values("way")) == set(plan.confirmatory)
    wide = np.log(report.pivot_table(index=["setting", "seed"], columns="way", values="loss"))
    effects = {key: evaluation.crossed(wide.loc[key[0], key[1]] - wide.loc[key[0], "lora"]) for key in found.index}
    np.testing.assert_allclose(found.holm, evaluation.holm([effects[key].p for key in found.index]), atol=1e-12)
    for key, row in found.iterrows():
        assert recoveries.ways("mendings").estimate[key] == pytest.approx(np.expm1(effects[key].estimate))
        assert (row.verdict in ("better", "worse")) == (row.holm < plan.level and row.equivalence >= plan.level)


def test_at_no_more_trained_parameters_than_lora():
    trained = tables.read("mendings").table.groupby(["setting", "way"]).trained_parameters.mean().unstack()
    for way in plans.read("mendings").confirmatory:
        assert (trained[way] <= trained.lora).all() and (trained[way] > 0.9 * trained.lora).all()
    assert (trained.hft > 5 * trained.lora).all() and (trained.bitfit < trained.lora).all()


def test_verdicts_of_levels_are_corrected_over_all_that_was_planned():
    plan, found = plans.read(levels.TABLE), ranks.comparisons(levels.TABLE)
    tested = found[found.holm.notna()]
    assert set(tested.index.get_level_values("allocator")) <= set(plan.confirmatory)
    np.testing.assert_allclose(tested.holm, evaluation.holm(tested.p), atol=1e-12)

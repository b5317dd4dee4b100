"""What is read off the tables of levels, of mendings and of choices within bytes agrees with these tables."""

import numpy as np
import pytest
from scipy import stats

from rules2ranks import configuration, evaluation, tables
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
    assert all(planned.as_committed(t) for t in (levels.TABLE, levels.JOINT, levels.REAL, levels.SHARES, "mendings"))
    assert not planned.deviations(levels.TABLE).differs.any()
    assert not planned.deviations(levels.REAL).differs.any()
    assert not planned.deviations(levels.SHARES).differs.any()
    joint = planned.deviations(levels.JOINT)
    (differs,) = joint[joint.differs].itertuples()  # the best of the first turn is not trained again in the second
    assert (differs.planned, differs.run) == ("in turn 20, joint 20", "in turn 19, joint 20")


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


def test_choices_within_bytes_are_within_them_and_made_up_of_what_they_hold():
    frame, run, whole = (
        tables.read(levels.JOINT).table,
        plans.read(levels.JOINT).run,
        subjects.subject("language").shapes,
    )
    (limit,) = (each["memory"] for each in run["settings"].values())
    found = levels.made_up()
    assert len(found) == len(frame.groupby(["allocator", "which"], dropna=False))
    for (allocator, which), row in found.iterrows():
        own = frame[(frame.allocator == allocator) & (frame.which.isna() | (frame.which == which))]
        (text,) = own.levels.unique()
        choice = read(text, whole)
        assert run["fill"] * limit <= configuration.memory(choice, whole) == own.memory.iloc[0] <= limit
        left = whole.cut(choice.levels)
        assert row["removed, %"] == pytest.approx(100 * (1 - left.parameters / whole.parameters))
        assert row["rank, mean"] == pytest.approx(np.mean([choice.ranks.get(name, 0) for name in left.matrices]))
        assert row["bits, mean"] == pytest.approx(np.mean([choice.bits.get(name, 16) for name in left.matrices]))


def test_joint_is_compared_with_in_turn_search_by_search():
    frame, found = tables.read(levels.JOINT).table, levels.joint_or_in_turn()
    logs = np.log(
        frame[frame.allocator != "alike"].pivot(index=["which", "report_seed"], columns="allocator", values="loss")
    )
    assert np.log1p(found.estimate.item()) == pytest.approx((logs["joint"] - logs["in turn"]).mean(), abs=1e-12)


def test_the_order_on_the_real_model_is_compared_way_by_way():
    real, shares, small = (tables.read(name).table for name in (levels.REAL, levels.SHARES, levels.TABLE))
    for setting, row in levels.orders_alike().iterrows():
        frame = real if setting in set(real.setting) else shares
        here = frame[frame.setting == setting].groupby("allocator").loss.mean().drop("whole", errors="ignore")
        there = small[small.setting == row.small].groupby("allocator").loss.mean()
        named = ["global, all layers" if name == "global" else name for name in here.index]
        assert row.rho == pytest.approx(stats.spearmanr(here, there[named]).statistic)
        assert row.choices == len(here) == 6


def test_pairs_are_counted_over_the_fields_of_grammar():
    counted, found = tables.read("blimp").table.fillna({"setting": ""}), levels.blimp()
    for (setting, allocator, state), row in found.iterrows():
        own = counted[(counted.setting == setting) & (counted.allocator == allocator) & (counted.state == state)]
        assert row.pairs == own.pairs.sum() == 1005 and row.share == own.right.sum() / 1005
        assert row.low < row.share < row.high and row.high - row.low < 0.065
    assert set(levels.real().index) <= {key[:2] for key in found.index}


def test_every_share_of_the_real_model_stands_in_one_table():
    found = levels.by_share()
    assert list(found) == [f"{share} % of the layers" for share in (10, 20, 30, 50)]
    table, cut = tables.read(levels.SHARES).table, levels.as_cut(levels.SHARES).loss
    way = "DarwinLM, from divergences"
    own = table[(table.setting == "50 % of the layers") & (table.allocator == way)]
    assert found.loc[way, "50 % of the layers"].startswith(
        f"{cut['50 % of the layers', way]:.2f} → {own.loss.mean():.2f}"
    )
    assert found.loc[way, "10 % of the layers"] == "", "not tried there"
    assert found.index[-1] == "whole"
    both = tables.read(levels.REAL).table, table
    same = [t[(t.setting == "50 % of the layers") & (t.allocator == "divergences")].loss.mean() for t in both]
    assert same[0] == pytest.approx(same[1], abs=1e-12), "what two tables have is one measurement"

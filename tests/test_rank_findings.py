"""What the reference tables of ranks say, and what is said of made-up tables whose answer is known."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from rules2ranks import tables
from rules2ranks.findings import plans as planned
from rules2ranks.findings import ranks
from rules2ranks.findings import recoveries as recovered
from rules2ranks.tables import Reference, plans, recoveries

#: Not at the uniform rank's parameters, or without any.
OUTSIDE = (ranks.DOUBLE, tables.ALONE)


@pytest.fixture(params=ranks.TABLES)
def table(request):
    return request.param


def test_every_vector_keeps_to_the_budget_of_uniform(table):
    frame = tables.read(table).table
    for _, part in frame[~frame.allocator.isin(OUTSIDE)].groupby("setting"):
        limit = part[part.allocator == "uniform"].trained_parameters.iloc[0]
        assert (part.trained_parameters <= limit).all()
        searched = part[~part.allocator.str.startswith("uniform")]
        assert (searched.trained_parameters >= 0.985 * limit).all()


def test_effects_are_paired_by_seed_and_corrected_together(table):
    frame, plan, found = tables.read(table).table, plans.read(table), ranks.comparisons(table)
    for (setting, name), row in found.iterrows():
        part = frame[frame.setting == setting]
        wide = part.groupby(["allocator", "report_seed"]).loss.apply(lambda some: np.log(some).mean()).unstack(0)
        assert math.log1p(row.estimate) == pytest.approx((wide[name] - wide.uniform).dropna().mean(), abs=1e-12)
        assert row.low <= row.estimate <= row.high
    if plan.confirmatory:
        tested = found[found.holm.notna()]
        assert set(tested.index.get_level_values("allocator")) <= set(plan.confirmatory)
        assert (tested.holm >= tested.p).all()
        assert tested.holm.min() == pytest.approx(min(1, tested.p.min() * len(tested)))
        assert (tested.verdict != "").all()


def test_searches_never_saw_the_report(table):
    run = plans.read(table).run
    assert not set(run["search_seeds"]) & set(run["report_seeds"])


def test_what_is_confirmatory_has_seeds_searches_and_vectors_enough():
    run = plans.read("rank_adaptor").run
    assert len(run["report_seeds"]) >= 24 and len(run["search_seeds"]) >= 4 and run["random"] >= 12


def test_what_was_promised_stands_in_the_searches(table):
    found = ranks.curse(table)
    searched = tables.read(f"{table}_search").table
    (setting, name, seed), row = next(iter(found[found.index.get_level_values(1) == "RankAdaptor"].iterrows()))
    part = searched[(searched.setting == setting) & (searched.search_seed == seed)]
    best = part[part.allocator == name].measured.min() / part[part.allocator == "uniform"].measured.item() - 1
    assert row.promised == pytest.approx(best)


def test_the_best_of_one_is_no_selection_and_more_looks_better():
    found = ranks.best_of_n("layers, best rate")
    assert found.loc[1, "as selected"] == pytest.approx(found.loc[1, "on other seeds"], abs=0.01)
    assert (np.diff(found["as selected"]) <= 1e-12).all()


def test_pruned_only_and_the_best_rate_stand_in_every_table(table):
    found = ranks.baselines(table)
    assert found.notna().all(axis=None) and (found[tables.ALONE] > 0).all()


def test_r2_and_ceiling_are_of_the_same_vectors(table):
    found, frame = ranks.explained(table), tables.read(table).table
    drawn = frame[frame.allocator == ranks.RANDOM].groupby("setting")
    assert found.vectors.to_dict() == drawn.which.nunique().to_dict()
    assert found.ceiling.between(0, 1).all() and (found.noise > 0).all()


# --- plans --------------------------------------------------------------------------------------------------------


def test_tables_are_made_from_the_committed_plans(table):
    assert planned.as_committed(table)
    assert not planned.deviations(table).differs.any()


def test_an_earlier_run_that_left_its_plan_is_shown():
    found = planned.superseded()
    differ = found[found.differs]
    assert set(differ.xs("report seeds", level="what").run) == {10, "not run"}
    assert set(found[~found.differs].index.unique("setting")) >= {"30 %, uniform", "50 %, global"}
    not_run = differ[differ.run == "not run"].index.unique("setting")
    assert list(not_run) == ["50 %, low rate", "50 %, per matrix, low rate"]


def test_every_setting_has_the_rate_that_is_best_for_it():
    tuned = tables.read("recovery_rates").table
    for name in ranks.TABLES:
        for setting, given in plans.read(name).run["settings"].items():
            where = "50 %, uniform" if name == "rank_adaptor" else setting
            lr, steps = recoveries.best(tuned, where, "lora")
            grid = sorted(tuned[(tuned.setting == where) & (tuned.way == "lora")].lr.unique())
            lower = grid[grid.index(lr) - 1]
            assert given["recover"] == {"lr": lower if "lower" in setting else lr, "steps": steps}
            if "lower" in setting:
                assert given["others"] == {ranks.BEST: {"lr": lr, "steps": steps}}


def test_no_recovery_at_its_best_is_worse_than_none():
    """Where it were, the notebook would have to say so."""
    tuned = tables.read("recovery_rates").table
    for setting in tuned.setting.unique():
        lr, steps = recoveries.best(tuned, setting, "lora")
        assert recovered.tuned(setting).loc[lr, steps] < recovered.pruned_only(setting)


# --- made-up tables -----------------------------------------------------------------------------------------------

EFFECTS = {"RankAdaptor": -0.2, "additive": 0.0, "CFSP": 0.0, "random vectors": 0.3}


@pytest.fixture
def made_up(monkeypatch):
    """A setting in which RankAdaptor is better by 20 %, the additive model as good, and CFSP's vector is uniform's."""
    rng = np.random.default_rng(0)
    seeds = {seed: rng.normal(0, 0.3) for seed in range(24)}
    rows = [{"setting": "s", "allocator": "pruned only", "loss": 2.0}]
    for name, vectors in {"uniform": 1, "RankAdaptor": 4, "additive": 4, "CFSP": 1, "random vectors": 8}.items():
        for which, seed in itertools.product(range(vectors), seeds):
            same = name in ("uniform", "CFSP")
            noise = 0 if same else rng.normal(0, 0.02)
            loss = math.exp(EFFECTS.get(name, 0) + seeds[seed] + noise)
            text = "2 2" if same else f"{name} {which}"
            rows.append({"setting": "s", "allocator": name, "which": which, "ranks": text, "report_seed": seed,
                         "loss": loss, "accuracy": 1 - loss / 10})  # fmt: skip
    plan = plans.read("rank_adaptor")
    monkeypatch.setattr(tables, "read", lambda name: Reference(pd.DataFrame(rows), {}))
    monkeypatch.setattr(plans, "read", lambda name: plan)


def test_better_as_good_and_not_counted_twice(made_up):
    found = ranks.comparisons().loc["s"]
    assert found.verdict[["RankAdaptor", "additive", "CFSP"]].tolist() == [
        "better",
        "equivalent",
        "the same as uniform",
    ]
    assert found.verdict["random vectors"] == ""
    assert math.log1p(found.estimate["RankAdaptor"]) == pytest.approx(-0.2, abs=0.01)
    # Two are tested, not three: Holm doubles the smaller p.
    assert found.holm.notna().sum() == 2
    assert (
        found.equivalence["additive"] == pytest.approx(min(found.equivalence), rel=1e-9)
        and found.smallest.dropna().between(0.001, 0.05).all()
    )
    assert ranks.points("rank_adaptor", "s", "RankAdaptor").estimate > 0


def test_little_data_is_undecided(made_up, monkeypatch):
    frame = tables.read("").table
    few = frame[frame.report_seed.isna() | (frame.report_seed < 3)]
    noisy = few.assign(loss=few.loss * np.exp(np.random.default_rng(1).normal(0, 0.5, len(few))))
    monkeypatch.setattr(tables, "read", lambda name: Reference(noisy, {}))
    assert ranks.comparisons().loc["s"].verdict["additive"] == "undecided"


def test_over_settings_both_settings_and_seeds_are_drawn(made_up, monkeypatch):
    frame = tables.read("").table
    more = pd.concat([frame.assign(setting=f"s{k}") for k in range(4)])
    moved = more.allocator.eq("RankAdaptor") & more.setting.isin(["s1", "s3"])
    more.loc[moved, "loss"] *= math.exp(0.4)  # now half of the settings are 20 % better, half as much worse
    monkeypatch.setattr(tables, "read", lambda name: Reference(more, {}))
    found = ranks.over_settings({"rank_adaptor": list(more.setting.unique())}, ["RankAdaptor", "additive"])
    assert found.verdict.tolist() == ["undecided", "equivalent"]
    assert found.settings.tolist() == [4, 4] and found.seeds.tolist() == [24, 24]
    assert found.low["RankAdaptor"] < -0.2 and found.high["RankAdaptor"] > 0.2


# --- recoveries ---------------------------------------------------------------------------------------------------


def test_ways_are_paired_with_lora_by_seed():
    found, frame = recovered.ways(), tables.read("recoveries").table
    for (setting, way), row in found[found.estimate.notna()].iterrows():
        wide = frame[frame.setting == setting].pivot(index="seed", columns="way", values="loss")
        assert math.log1p(row.estimate) == pytest.approx(np.log(wide[way] / wide.lora).mean(), abs=1e-12)
    assert {"pruned only", "lora", "all weights", "from scratch"} <= set(found.index.get_level_values("way"))
    assert set(found.xs("lora", level="way").steps) <= {15, 30, 60}


def test_the_real_models_choices_in_words():
    table, found = tables.read("real_ranks").table, ranks.comparisons("real_ranks")
    said = ranks.in_words("real_ranks")
    for (setting, name), row in said.iterrows():
        own = table[(table.setting == setting) & (table.allocator == name)]
        assert row.loss == f"{own.loss.mean():.3f}"
        assert row["trained parameters"] == f"{own.trained_parameters.mean():,.0f}"
        assert bool(row.MB) == (setting == "bits and ranks")
    # Random vectors have one report seed: a mean, and no interval.
    one = found.xs(ranks.RANDOM, level="allocator")
    assert one.estimate.notna().all() and one[["low", "high", "p", "holm"]].isna().all(axis=None)
    random, uniform = (
        table[(table.setting == "kinds") & (table.allocator == name) & (table.report_seed == 100)].loss
        for name in (ranks.RANDOM, ranks.UNIFORM)
    )
    assert one.estimate["kinds"] == pytest.approx(np.exp(np.log(random / uniform.item()).mean()) - 1)


def test_ranks_of_the_real_model_went_as_planned_but_for_what_is_shown():
    assert planned.as_committed("real_ranks")
    deviations = planned.deviations("real_ranks")
    (differs,) = deviations[deviations.differs].itertuples()  # what was left would not have trained another in full
    assert (differs.Index[0], differs.planned, differs.run) == ("bits and ranks", 20, 19)

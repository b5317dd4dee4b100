"""What the reference tables of ranks say."""

import numpy as np
import pytest

from rules2ranks import tables
from rules2ranks.findings import ranks


@pytest.fixture(params=ranks.TABLES)
def table(request):
    return request.param


def test_every_vector_keeps_to_the_budget_of_uniform(table):
    frame = tables.read(table).table
    for _, part in frame[frame.allocator != ranks.DOUBLE].groupby("setting"):
        limit = part[part.allocator == "uniform"].trained_parameters.iloc[0]
        assert (part.trained_parameters <= limit).all()
        searched = part[~part.allocator.str.startswith("uniform")]
        assert (searched.trained_parameters >= 0.985 * limit).all()


def test_differences_are_paired_by_seed_and_corrected_together(table):
    frame = tables.read(table).table
    found = ranks.differences(table)
    for (setting, name), row in found.iterrows():
        part = frame[frame.setting == setting]
        mean = part.groupby(["allocator", "report_seed"]).loss.mean().unstack(0)
        assert row.estimate == pytest.approx((mean[name] - mean.uniform).mean(), abs=1e-12)
    equal = found[found.holm.notna()]
    assert (equal.holm >= equal.p).all()
    assert equal.holm.min() == pytest.approx(min(1, equal.p.min() * len(equal)))
    assert not (ranks.beats_uniform(found) & (found.estimate > 0)).any()


def test_searches_never_saw_the_report(table):
    settings = tables.read(table).note["settings"]
    assert not set(settings["search_seeds"]) & set(settings["report_seeds"])
    assert len(settings["report_seeds"]) >= 6


def test_what_was_promised_stands_in_the_searches(table):
    found = ranks.curse(table)
    searched = tables.read(f"{table}_search").table
    (setting, name, seed), row = next(iter(found[found.index.get_level_values(1) == "RankAdaptor"].iterrows()))
    part = searched[(searched.setting == setting) & (searched.search_seed == seed)]
    best = part[part.allocator == name].measured.min() - part[part.allocator == "uniform"].measured.item()
    assert row.promised == pytest.approx(best)


def test_the_best_of_one_is_no_selection_and_more_looks_better():
    found = ranks.best_of_n("50 %, uniform")
    assert found.loc[1, "as selected"] == pytest.approx(found.loc[1, "on other seeds"], abs=1e-3)
    assert (np.diff(found["as selected"]) <= 1e-12).all()


def test_spread_counts_what_differs(table):
    found = ranks.spread_of_vectors(table)
    assert (found.vectors > 2).all() and found.ceiling.between(0, 1).all() and (found.noise > 0).all()

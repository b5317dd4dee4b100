"""What is read off the table of bits and ranks together agrees with the table and its searches."""

import numpy as np
import pytest
from scipy import stats

from rules2ranks import tables
from rules2ranks.findings import bits
from rules2ranks.findings import plans as planned
from rules2ranks.tables import plans


@pytest.fixture(scope="module")
def frame():
    return tables.read(bits.TABLE).table


def test_the_grid_has_every_width_with_every_rank_under_the_same_seeds(frame):
    run, found = plans.read(bits.TABLE).run, bits.grid()
    assert not found.isna().any(axis=None)
    assert list(found.columns) == run["random_seeds"]
    sizes = found.groupby("setting").size().to_dict()
    assert sizes == dict.fromkeys([*run["settings"], bits.BETTER], len(run["bits"]) * len(run["grid"]))
    row = frame[(frame.setting == "lower rate") & (frame.allocator == "uniform grid") & (frame.report_seed == 102)]
    same = row[row.ranks.str.match(r"^3:16( 3:16)*$")]
    assert found.loc[("lower rate", 3, 16), 102] == same.loss.item()


def test_the_better_rate_is_that_of_the_search_examples():
    found, judged = bits.grid(), bits.grid("search_loss")
    for cell in found.loc[bits.BETTER].index:
        rates = {rate: judged.loc[(rate, *cell)].mean() for rate in plans.read(bits.TABLE).run["settings"]}
        np.testing.assert_array_equal(found.loc[(bits.BETTER, *cell)], found.loc[(min(rates, key=rates.get), *cell)])


def test_shares_of_bits_ranks_and_both_are_all_there_is():
    for trained in (False, True):
        found = bits.interactions(trained)
        np.testing.assert_allclose(found[["first", "second", "together"]].sum(axis=1), 1)
        assert ((found.low <= found["size"]) & (found["size"] <= found.high)).all()


def test_close_is_measured_against_the_full_weights_named(frame):
    close = bits.close_to_full()
    for setting, row in close.iterrows():
        part = frame[(frame.setting == setting) & frame.allocator.isin(["AutoQRA", row.against])]
        logs = part.assign(loss=np.log(part.loss)).groupby(["report_seed", "allocator"]).loss.mean().unstack()
        assert np.log1p(row.estimate) == pytest.approx((logs.AutoQRA - logs[row.against]).mean(), abs=1e-12)
    full = frame[frame.allocator.isin(bits.FULL.values())]
    assert not full.ranks.str.contains(":").any()  # ranks alone: nothing of it is quantised


def test_foresight_is_the_rank_correlation_of_what_was_promoted():
    searched = tables.read(f"{bits.TABLE}_search").table
    own = searched[(searched.setting == "best rate") & (searched.allocator == "AutoQRA")]
    found = []
    for _, part in own.groupby("search_seed"):
        full = part[part.phase == "promoted"].set_index("ranks").measured
        low = part[part.fidelity < 1].drop_duplicates("ranks").set_index("ranks").measured
        found.append(stats.spearmanr(low[full.index], full).statistic)
    row = bits.foresight().loc["best rate", "AutoQRA", "low fidelity"]
    assert (row.rho, row.least, row.most) == pytest.approx((np.mean(found), min(found), max(found)))


def test_nothing_takes_more_bytes_than_it_may_and_all_went_as_planned(frame):
    run = plans.read(bits.TABLE).run
    free = ["uniform grid", *run["others"], tables.ALONE]
    assert (frame[~frame.allocator.isin(free)].memory <= run["memory"]).all()
    assert planned.as_committed(bits.TABLE)
    assert not planned.deviations(bits.TABLE).differs.any()  # among it how many trainings each search had

"""What is derived from RankAdaptor's measurements: planted effects are found, noise is called noise."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rules2ranks import search, tables
from rules2ranks.evaluation.benchmarks import SEVEN
from rules2ranks.published import table as published
from rules2ranks.tables import llama_ranks, replay

GRID = np.array([2, 4, 6, 8, 10, 12])


def sample(n=120, layers=6, seed=0, effect=0.0, noise=1.0):
    """Random vectors; the average is 50 + effect × log(1 + rank of layer 2) + noise, the same in all seven tasks."""
    randomness = np.random.default_rng(seed)
    ranks = np.unique(randomness.choice(GRID, (2 * n, layers)), axis=0)
    ranks = randomness.permutation(ranks)[:n]
    average = 50 + effect * np.log1p(ranks[:, 2]) + noise * randomness.normal(size=n)
    return llama_ranks.Sample(ranks, np.repeat(average[:, None], 7, axis=1), np.arange(n))


def value(rows, **which):
    (found,) = [row for row in rows if all(row[key] == wanted for key, wanted in which.items())]
    return found


# --- what the ranks explain -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["additive", "ridge"])
def test_a_planted_effect_is_found_up_to_what_the_noise_leaves(name):
    planted = sample(n=400, effect=2.0)
    signal = 4 * np.log1p(planted.ranks[:, 2]).var()
    real, null = llama_ranks.explained(planted, llama_ranks.models(12)[name], repeats=3, shuffles=20)
    # Six slopes and a mean, fitted to 360 vectors, cost about 7/360 of the noise.
    assert real.mean() == pytest.approx(signal / (signal + 1), abs=0.08)
    assert null.max() < 0.1 < real.min()


@pytest.mark.parametrize("name", ["additive", "ridge"])
def test_noise_explains_nothing(name):
    real, null = llama_ranks.explained(sample(), llama_ranks.models(12)[name], repeats=5, shuffles=20)
    assert real.max() < 0.05 and abs(real.mean() - null.mean()) < 0.05


def test_copies_let_a_model_that_remembers_explain_noise():
    def nearest(train, scores, test):
        return scores[((test[:, None] - train) ** 2).sum(axis=2).argmin(axis=1)]

    once = sample(n=60, layers=20)
    best = np.argsort(-once.average)[:8]
    rows = np.concatenate([np.arange(60), best, best])
    copied = llama_ranks.Sample(once.ranks[rows], once.accuracies[rows], np.arange(len(rows)))
    pools = llama_ranks.samples(copied)
    real, _ = llama_ranks.explained(copied, nearest, repeats=5, shuffles=0)
    honest, _ = llama_ranks.explained(pools["each vector once"], nearest, repeats=5, shuffles=0)
    assert honest.mean() < -0.5 and real.mean() > 0


# --- samples ----------------------------------------------------------------------------------------------------


def test_each_vector_counts_once_with_the_mean_of_its_rows():
    ranks = np.array([[8, 8], [2, 4], [8, 8], [4, 2]])
    accuracies = np.repeat(np.array([[50.0], [40], [52], [44]]), 7, axis=1)
    found = llama_ranks.samples(llama_ranks.Sample(ranks, accuracies, np.array([3, 105, 106, 107])))
    assert found["each vector once"].ranks.tolist() == [[8, 8], [2, 4], [4, 2]]
    assert found["each vector once"].average.tolist() == pytest.approx([51, 40, 44])
    assert found["one raw file"].rows.tolist() == [105, 107]
    assert len(found["all rows"].ranks) == 4


def test_reruns_of_one_vector_give_the_noise_and_copies_do_not():
    ranks = np.array([[2, 2]] * 4 + [[4, 4]] * 2)
    values = np.array([50.0, 50, 51, 52, 47, 49])  # the first two are copies
    group = llama_ranks.Sample(ranks, np.repeat(values[:, None], 7, axis=1), np.arange(6))
    noise, low, high, free = llama_ranks.rerun({("LLaMA-7B", 20): group})
    assert free == 3 and noise == pytest.approx(math.sqrt((2 + 2) / 3))
    assert low == pytest.approx(math.sqrt(4 / stats.chi2.ppf(0.975, 3))) and low < noise < high


def test_records_are_grouped_by_model_and_share_removed():
    performance = {task: 0.1 * place for place, task in enumerate(reversed(SEVEN))}
    records = [
        {"name": name, "rank_list": [8.0, 2], "performance": performance}
        for name in ("vicuna-7b_0.50", "llama-7b_0.20", "vicuna-7b_0.50")
    ]
    found = llama_ranks.grouped(records)
    assert {key: group.rows.tolist() for key, group in found.items()} == {
        ("LLaMA-7B", 20): [1],
        ("Vicuna-7B", 50): [0, 2],
    }
    assert found["LLaMA-7B", 20].accuracies[0] == pytest.approx([60, 50, 40, 30, 20, 10, 0])


# --- the best of n ----------------------------------------------------------------------------------------------


def test_the_best_of_n_has_the_known_mean_and_quantiles():
    draws = np.random.default_rng(0).normal(size=(20_000, 30)).max(axis=1)
    assert llama_ranks.best_of(30, [0.025, 0.5, 0.975]) == pytest.approx(
        np.quantile(draws, [0.025, 0.5, 0.975]), abs=0.03
    )
    # The mean of the larger of two is 1/√π.
    levels = (np.arange(2000) + 0.5) / 2000
    assert llama_ranks.best_of(2, levels).mean() == pytest.approx(1 / math.sqrt(math.pi), abs=1e-3)


def test_shrinkage_is_james_and_steins():
    values = np.array([1.0, 2, 3, 4, 5, 9])
    squares = ((values - 4) ** 2).sum()
    assert llama_ranks.shrinkage(values, 1.5) == pytest.approx(1 - 3 * 2.25 / squares)
    assert llama_ranks.shrinkage(values, 100) == 0
    assert llama_ranks.shrinkage(values, 0) == 1


def test_noise_is_no_more_than_a_best_of_n_and_an_outlier_is():
    noise = sample()
    base = llama_ranks.Sample(np.full((1, 6), 8), np.full((1, 7), 50.0), np.array([120]))
    group = llama_ranks.Sample(*(np.concatenate(pair) for pair in zip(noise, base, strict=True)))
    which = {"pool": "each vector once", "what": "best − mean by noise alone", "x": "reruns"}
    chance = value(llama_ranks.best(group, (1.0, 0.9, 1.1)), **which)
    assert float(chance["how"].removeprefix("p = ")) > 0.05
    assert value(llama_ranks.best(group, (1.0, 0.9, 1.1)), pool="all rows", what="shrinkage")["value"] < 0.3
    group.accuracies[0] += 10
    assert float(value(llama_ranks.best(group, (1.0, 0.9, 1.1)), **which)["how"].removeprefix("p = ")) < 1e-6


def test_the_sampling_error_is_the_binomial_one():
    found = llama_ranks.sampling_error(np.full(7, 50.0))
    assert found[:7] == pytest.approx([50 / math.sqrt(items) for items in llama_ranks.ITEMS])
    assert found[7] == pytest.approx(math.sqrt((found[:7] ** 2).sum()) / 7)


# --- layers -----------------------------------------------------------------------------------------------------


def test_the_layer_that_matters_is_named_and_no_other():
    found = llama_ranks.layers(sample(n=200, effect=1.5), resamples=300)
    rows = [row for row in found if row["pool"] == "one raw file" and row["what"] == "correlation"]
    p = {row["x"]: float(row["how"].split()[2]) for row in rows}
    assert p[2] < 0.01 and min(p[layer] for layer in p if layer != 2) > 0.05
    planted = value(rows, x=2)
    assert 0.3 < planted["low"] < planted["value"] < planted["high"]
    assert value(found, pool="one raw file", what="rank of the best tenth − mean rank", x=2)["low"] > 0


# --- replays ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", llama_ranks.SEARCHERS)
def test_when_all_is_measured_the_best_is_found(name):
    few = sample(n=14, layers=4)
    found = replay.best_so_far(few.ranks, few.average, name, limit=14, seed=0)
    assert len(found) == 14 and (np.diff(found) >= 0).all()
    assert found[-1] == few.average.max() and found[0] < found[-1]


def test_a_model_of_a_clear_effect_finds_the_best_sooner_than_chance():
    clear = sample(n=100, effect=5.0, noise=0.01)
    rows = llama_ranks.replays("all", clear, {"random search": 40, "additive": 40})
    regret = {(row["what"], row["x"]): row["value"] for row in rows}
    assert regret["additive", 20] < 0.1 < regret["random search", 10]
    assert regret["random search", 40] < regret["random search", 5]


def test_a_pool_offers_only_what_is_not_measured_yet():
    pool = replay.Pool.of([[2, 8], [4, 8], [2, 8], [4, 6]])
    assert len(pool.points) == 3
    wanted = pool.best([np.array([0.0, 1]), np.array([0.0, 1])])
    assert [option.rank for option in pool.options(wanted)] == [4, 8]
    del pool.left[wanted]
    assert pool.nearest(wanted) != wanted and wanted not in pool.sample(50, np.random.default_rng(0))
    assert pool.fills(wanted), "a search may be told of it again"
    pool.left.clear()
    with pytest.raises(ValueError, match="all points"):
        pool.nearest(wanted)
    with pytest.raises(ValueError, match="4 scores for 3 different"):
        replay.best_so_far([[2, 8], [4, 8], [2, 8], [4, 6]], [1, 2, 3, 4], "random search", limit=3, seed=0)


# --- the file and the table -------------------------------------------------------------------------------------


def test_another_file_is_refused_before_any_work(tmp_path, capsys):
    other = tmp_path / "merged_file_v4.json"
    other.write_text("[]")
    with pytest.raises(ValueError, match=f"wanted sha256 {llama_ranks.SHA256}, found 4f53cda18c2baa0c"):
        llama_ranks.read(other)
    with pytest.raises(ValueError, match="no file"):
        llama_ranks.read(tmp_path / "none.json")
    with pytest.raises(SystemExit):
        llama_ranks.main([str(other)])
    assert llama_ranks.SHA256 in capsys.readouterr().err


def test_the_table_says_what_it_was_made_from_and_holds_no_record():
    table, note = tables.read("llama_ranks")
    assert note["settings"] == {"sha256": llama_ranks.SHA256} and note["rows"] == len(table)
    assert set(table.analysis) == {"spread", "parts", "best", "layers", "R²", "replay"}
    assert (table.low.isna() | (table.low <= table.high)).all()
    assert np.isfinite(table.value).all()
    # Means of parts of the file stand on five vectors at least.
    assert (table[table.analysis == "parts"].n >= 5).all()
    assert not table.duplicated(["model", "removed", "analysis", "pool", "what", "x"]).any()


def test_the_table_agrees_with_what_was_published_of_the_same_file():
    table, _ = tables.read("llama_ranks")
    rows = published("rank_adaptor")
    where = {
        "measured rank vectors": ("spread", "mean", "n", 0),
        "average accuracy, mean over rank vectors": ("spread", "mean", "value", 0.0051),
        "average accuracy, standard deviation over rank vectors": ("spread", "sd", "value", 0.0151),
        "average accuracy, best rank vector minus uniform rank 8": ("best", "best − uniform", "value", 0.0051),
        "percentile of uniform rank 8 among rank vectors": ("best", "uniform's percentile", "value", 1.5),
    }
    compared = 0
    for (model, removed), group in table[table.pool == "all rows"].groupby(["model", "removed"]):
        for quantity, (analysis, what, column, tolerance) in where.items():
            told = rows[(rows.setting == f"{model}; {removed} % removed") & (rows.quantity == quantity)].value
            here = group[
                (group.analysis == analysis) & (group.what == what) & (group.x.isin(["average"]) | group.x.isna())
            ]
            if model != "all":
                assert here[column].item() == pytest.approx(told.item(), abs=tolerance), (model, removed, quantity)
                compared += 1
    assert compared == 40


def test_the_notebooks_metrics_are_the_tables():
    table, _ = tables.read("llama_ranks")
    expected = json.loads((tables.place("x").parents[1] / "expected" / "33_llama_ranks.json").read_text())
    of = table[(table.model == "LLaMA-7B") & (table.removed == 50)]
    for pool in ("all rows", "each vector once", "one raw file"):
        mlp = of[(of.analysis == "R²") & (of.pool == pool) & (of.what == "MLP")].value.item()
        assert expected[f"MLP's R², LLaMA-7B 50 %, {pool}"]["value"] == mlp


def test_a_table_can_be_remade_from_records():
    randomness = np.random.default_rng(0)
    records = [
        {
            "name": "llama-7b_0.50",
            "rank_list": [8.0] * 4 if row == 0 else randomness.choice(GRID, 4).tolist(),
            "performance": dict(zip(SEVEN, randomness.uniform(0.4, 0.6, 7).tolist(), strict=True)),
        }
        for row in range(40)
    ]
    said = []
    records += records[5:8]
    group = llama_ranks.grouped(records)
    repeated = [{**records[3], "performance": {**records[3]["performance"], "boolq": 0.9}}]
    group = llama_ranks.grouped(records + repeated)
    made = llama_ranks.make(group, ("spread", "best", "layers"), say=said.append)
    assert isinstance(made, pd.DataFrame) and len(said) == 3
    assert made.n[made.what == "sd of reruns"].item() == 1
    again = llama_ranks.make(group, ("spread", "best", "layers"), say=said.append)
    pd.testing.assert_frame_equal(made, again)
    assert "TPE" in search.SEARCHERS and search.SEARCHERS["TPE"] is search.TPE

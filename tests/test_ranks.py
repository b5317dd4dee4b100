"""Questions about ranks, the searches over stage results, and what the reference tables of ranks say."""

import numpy as np
import pandas as pd
import pytest

from rules2ranks import allocation, recovery, runs, stages
from rules2ranks.stages import compressing, rank_findings, rank_tables, ranks, reference

SHORT = {"steps": 2, "examples": 56, "kl": True}
ASKED = {"pruned": {"ratio": 0.5}, "recover": SHORT}


@pytest.fixture(autouse=True, scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RULES2RANKS_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("TQDM_DISABLE", "1")
        yield


def problem(**more):
    return ranks.Problem(ranks.Question.check(ASKED | more))


@pytest.mark.parametrize("per", ["layer", "kind", "matrix"])
@pytest.mark.parametrize("ends", ["kept", "searched"])
def test_uniform_costs_what_add_lora_makes_trainable(per, ends):
    given = problem(per=per, ends=ends)
    model = compressing.load_pruned(given.question.pruned)
    whole = recovery.lora_parameters(model, 2)
    first, last = given.question.pruned.protect
    outside = 0 if ends == "searched" else sum(recovery.cost_per_rank(model)[i] for i in (0, -1)) * 2
    assert (first, last) == (1, 1)
    assert given.space.budget == whole - outside
    assert sorted(name for names, _ in given.units for name in names) == sorted(n for x in given.layers for n in x)
    assert given.control("uniform") == [[2] * 8]


@pytest.mark.parametrize("per", ["layer", "kind", "matrix"])
def test_what_is_spelt_costs_what_the_space_says(per):
    given = problem(per=per)
    model = compressing.load_pruned(given.question.pruned)
    kept = 2 * sum(recovery.cost_per_rank(model)[i] for i in (0, -1))
    for vector in allocation.random(given.space, 3, seed=1):
        spelt = given.spelt(vector)
        assert recovery.lora_parameters(model, spelt) == given.space.used(vector) + kept
        assert rank_tables.read_ranks(rank_tables.written(spelt)) == spelt


def test_controls_fill_the_budget():
    given = problem()
    for kind in ("random vectors", "ends high", "middle high", "CFSP", "gradient"):
        for vector in given.control(kind, 2):
            assert given.space.contains(vector) and given.space.fills(vector), kind
    assert len(given.control("random vectors", 2)) == 2
    assert given.control("uniform, twice the rank") == [[4] * 8]


def test_a_search_goes_on_from_what_is_in_runs_and_each_vector_is_measured_once(monkeypatch):
    question = problem().question
    found = ranks.search(question, "RankAdaptor", offline=2, rounds=1, candidates=4, seed=1)
    assert len(found.history) == 3
    measured = [stages.recover.find(**ranks.Problem(question).recovery(list(e.ranks), 1)) for e in found.history]
    assert [m.metrics["search_loss"] for m in measured] == [e.measured for e in found.history]

    def again(*_, **__):
        raise AssertionError("nothing may be measured twice")

    monkeypatch.setattr(runs, "_only_one", again)
    assert ranks.search(question, "RankAdaptor", offline=2, rounds=1, candidates=4, seed=1) == found


def test_targets_are_those_of_the_search_examples():
    for target, sign in (("loss", 1), ("kl", 1), ("accuracy", -1)):
        given = problem(target=target)
        metrics = stages.recover(**given.recovery([2] * 8, 0)).metrics
        assert given.score([2] * 8, 0) == sign * metrics[f"search_{target}"]


def test_a_table_is_the_offline_part(tmp_path):
    question = problem().question
    space = ranks.Problem(question).space
    known = allocation.random(space, 4, seed=9)
    table = tmp_path / "measured.csv"
    rows = [{"ranks": " ".join(map(str, r)), "score": 1 + k} for k, r in enumerate(known)]
    pd.DataFrame(rows).to_csv(table, index=False)
    found = ranks.search(question, offline=4, rounds=1, candidates=4, table=table)
    assert [e.ranks for e in found.history[:4]] == known
    assert [e.phase for e in found.history] == ["given"] * 4 + ["online"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pruned": {"ratio": 1.5}}, "ratio"),
        ({"recover": {"step": 3}}, "unknown parameter 'step': did you mean 'steps'"),
        ({"recover": {"ranks": 3}}, "recover takes no ranks here"),
        ({"target": "kl", "recover": {"kl": False}}, "target kl needs"),
        ({"mean_rnk": 3}, "did you mean 'mean_rank'"),
    ],
)
def test_questions_that_make_no_sense_are_refused(change, message):
    with pytest.raises(runs.ParameterError, match=message):
        ranks.Question.check(ASKED | change)


# --- what the tables say ----------------------------------------------------------------------------------------


@pytest.fixture(params=rank_findings.TABLES)
def table(request):
    return request.param


def test_every_vector_keeps_to_the_budget_of_uniform(table):
    frame = reference.read(table).table
    for _, part in frame[frame.allocator != rank_findings.DOUBLE].groupby("setting"):
        limit = part[part.allocator == "uniform"].trained_parameters.iloc[0]
        assert (part.trained_parameters <= limit).all()
        searched = part[~part.allocator.str.startswith("uniform")]
        assert (searched.trained_parameters >= 0.985 * limit).all()


def test_differences_are_paired_by_seed_and_corrected_together(table):
    frame = reference.read(table).table
    found = rank_findings.differences(table)
    for (setting, name), row in found.iterrows():
        part = frame[frame.setting == setting]
        mean = part.groupby(["allocator", "report_seed"]).loss.mean().unstack(0)
        assert row.estimate == pytest.approx((mean[name] - mean.uniform).mean(), abs=1e-12)
    equal = found[found.holm.notna()]
    assert (equal.holm >= equal.p).all()
    assert equal.holm.min() == pytest.approx(min(1, equal.p.min() * len(equal)))
    assert not (rank_findings.beats_uniform(found) & (found.estimate > 0)).any()


def test_searches_never_saw_the_report(table):
    settings = reference.read(table).note["settings"]
    assert not set(settings["search_seeds"]) & set(settings["report_seeds"])
    assert len(settings["report_seeds"]) >= 6


def test_what_was_promised_stands_in_the_searches(table):
    found = rank_findings.curse(table)
    searched = reference.read(f"{table}_search").table
    (setting, name, seed), row = next(iter(found[found.index.get_level_values(1) == "RankAdaptor"].iterrows()))
    part = searched[(searched.setting == setting) & (searched.search_seed == seed)]
    best = part[part.allocator == name].measured.min() - part[part.allocator == "uniform"].measured.item()
    assert row.promised == pytest.approx(best)


def test_the_best_of_one_is_no_selection_and_more_looks_better():
    found = rank_findings.best_of_n("50 %, uniform")
    assert found.loc[1, "as selected"] == pytest.approx(found.loc[1, "on other seeds"], abs=1e-3)
    assert (np.diff(found["as selected"]) <= 1e-12).all()


def test_spread_counts_what_differs(table):
    found = rank_findings.spread_of_vectors(table)
    assert (found.vectors > 2).all() and found.ceiling.between(0, 1).all() and (found.noise > 0).all()

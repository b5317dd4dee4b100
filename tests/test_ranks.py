"""Questions about ranks, and the searches over stage results."""

import copy

import numpy as np
import pandas as pd
import pytest

from rules2ranks import quantisation, recovery, runs, search, stages, tables
from rules2ranks.configuration import Configuration, trained
from rules2ranks.stages import compressing, ranks, subjects

SHORT = {"steps": 4, "examples": 56, "kl": True}
ASKED = {"pruned": {"ratio": 0.5}, "recover": SHORT}


@pytest.fixture(autouse=True, scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RULES2RANKS_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("TQDM_DISABLE", "1")
        patch.setattr(subjects, "HELD_OUT", 70)  # nothing here depends on how many examples a recovery is scored on
        yield


def problem(**more):
    return ranks.Problem(ranks.Question.check(ASKED | more))


@pytest.mark.parametrize("per", ["layer", "kind", "matrix"])
@pytest.mark.parametrize("ends", ["kept", "searched"])
def test_uniform_costs_what_an_adapter_of_that_rank_trains(per, ends):
    given = problem(per=per, ends=ends)
    model = compressing.load_pruned(given.question.pruned)
    whole = recovery.lora_parameters(model, 2)
    first, last = given.question.pruned.protect
    outside = 0 if ends == "searched" else sum(recovery.cost_per_rank(model)[i] for i in (0, -1)) * 2
    assert (first, last) == (1, 1)
    assert given.space.budgets == (whole - outside,)
    assert sorted(name for names, _ in given.units for name in names) == sorted(given.shapes.matrices)
    assert given.control("uniform") == [given.choice(2)]


@pytest.mark.parametrize("per", ["layer", "kind", "matrix"])
def test_a_choice_costs_what_the_space_says(per):
    given = problem(per=per)
    model = compressing.load_pruned(given.question.pruned)
    kept = 2 * sum(recovery.cost_per_rank(model)[i] for i in (0, -1))
    for point in search.random(given.space, 3, seed=1):
        choice = given.space.configuration(point)
        (used,) = given.space.used(point)
        assert recovery.lora_parameters(model, choice.ranks) == trained(choice, given.shapes) == used + kept
        text = tables.written(choice, given.shapes.names)
        assert given.recovery(tables.read_ranks(text), 0) == given.recovery(choice, 0)


def test_controls_fill_the_budget():
    given = problem()
    for kind in ("random vectors", "ends high", "middle high", "CFSP", "gradient"):
        for choice in given.control(kind, 2):
            point = given.space.point(choice)
            assert given.space.contains(point) and given.space.fills(point), kind
    assert len(set(given.control("random vectors", 2))) == 2
    assert given.control("uniform, twice the rank") == [given.choice(4)]


def test_a_search_goes_on_from_what_is_in_runs_and_each_choice_is_measured_once():
    question = problem().question
    few = search.RankAdaptor(offline=2, candidates=4)
    found = ranks.search(question, few, limit=3, seed=1)
    assert len(found.trials) == 3
    given = ranks.Problem(question)
    measured = [stages.recover.find(given.recovery(given.space.configuration(t.point), 1)) for t in found.trials]
    assert [(m.metrics["search_loss"],) for m in measured] == [t.scores for t in found.trials]
    when = [(m.folder / "provenance.json").stat().st_mtime_ns for m in measured]
    assert ranks.search(question, few, limit=3, seed=1) == found
    assert [(m.folder / "provenance.json").stat().st_mtime_ns for m in measured] == when


def test_workers_share_a_search_without_a_common_runs(tmp_path, monkeypatch):
    question, few = problem().question, search.RankAdaptor(offline=2, candidates=4)
    journal = tmp_path / "search.journal"
    found = ranks.search(question, few, limit=3, seed=1, shared=journal)
    assert found == ranks.search(question, few, limit=3, seed=1)
    monkeypatch.setattr(ranks.Problem, "score", lambda *given: pytest.fail("measured again"))
    assert ranks.search(question, few, limit=3, seed=1, shared=journal) == found
    with pytest.raises(pytest.fail.Exception, match="measured again"):  # another seed is another measurement
        ranks.search(question, few, limit=3, seed=2, shared=journal)


def test_targets_are_those_of_the_search_examples():
    for target, sign in (("loss", 1), ("kl", 1), ("accuracy", -1)):
        given = problem(target=target)
        metrics = stages.recover(given.recovery(2, 0)).metrics
        assert given.score(given.choice(2), 0) == sign * metrics[f"search_{target}"]


def test_a_lower_fidelity_is_a_stop_on_the_same_schedule():
    given = problem()
    stopped = given.recovery(2, 5, fidelity=0.5)
    assert (stopped.stop, stopped.steps, given.recovery(2, 5).stop) == (2, 4, None)
    assert given.score(2, 5, fidelity=0.5) == stages.recover.find(stopped).metrics["search_loss"]


def test_a_table_is_known_before_the_search(tmp_path):
    question = problem().question
    given = ranks.Problem(question)
    known = search.random(given.space, 4, seed=9)
    file = tmp_path / "measured.csv"
    texts = [tables.written(given.space.configuration(point), given.shapes.names) for point in known]
    pd.DataFrame({"ranks": texts, "score": 1 + np.arange(4)}).to_csv(file, index=False)
    found = ranks.search(question, search.RankAdaptor(offline=4, candidates=4), limit=5, table=file)
    assert [trial.point for trial in found.trials[:4]] == known
    assert [trial.proposer for trial in found.trials] == ["given"] * 4 + ["online"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pruned": {"ratio": 1.5}}, "ratio"),
        ({"recover": {"step": 3}}, "unknown parameter 'step': did you mean 'steps'"),
        ({"recover": {"ranks": 3}}, "unknown parameter 'ranks': .*Allowed are method, steps"),
        ({"target": "kl", "recover": {"kl": False}}, "target kl needs"),
        ({"mean_rnk": 3}, "did you mean 'mean_rank'"),
    ],
)
def test_questions_that_make_no_sense_are_refused(change, message):
    with pytest.raises(runs.ParameterError, match=message):
        ranks.Question.check(ASKED | change)


# --- within bytes -----------------------------------------------------------------------------------------------

BYTES = {"ends": "searched", "bits": (2, 4), "grid": (0, 2), "memory": 200_000}


def test_a_choice_within_bytes_takes_what_an_export_of_it_takes():
    given = problem(**BYTES, per="matrix")
    model = compressing.load_pruned(given.question.pruned)
    for point in search.random(given.space, 3, seed=0):
        choice = given.space.configuration(point)
        packed = quantisation.packed_bytes(quantisation.pack(copy.deepcopy(model), choice.bits))
        buffers = sum(b.numel() * b.element_size() for name, b in model.named_buffers())  # no file holds them
        assert given.space.used(point)[0] == given.memory(choice)
        assert given.memory(choice) == packed - buffers + 4 * recovery.lora_parameters(model, choice.ranks)
        text = tables.written(choice, given.shapes.names)
        assert tables.read_choice(text, given.shapes.names) == choice


def test_choices_are_written_by_layer_and_read_again():
    given = problem(**BYTES)
    layers = given.shapes.names
    for point in search.random(given.space, 5, seed=0):
        choice = given.space.configuration(point)
        text = tables.written(choice, layers)
        assert len(text.split()) == len(layers) and tables.read_choice(text, layers) == choice
    assert tables.written(Configuration(bits={layers[0][0]: 4}, ranks={layers[1][0]: 2}), layers) == (
        f"{layers[0][0]}=4:0 {layers[1][0]}=16:2"
    )
    assert tables.read_choice("2", layers) == given.choice(2) == tables.read_choice(" ".join("2" * 8), layers)


def test_the_uniform_choice_within_bytes_is_the_best_that_fits():
    given = problem(**BYTES)
    fits = given.uniforms()
    assert {given.memory(choice) <= 200_000 for choice in fits} == {True} and len(fits) == 3  # 4 bits with rank 2: over
    means = [sum(given.score(choice, seed) for seed in ranks.UNIFORM_SEEDS) for choice in fits]
    assert given.control("uniform") == [fits[int(np.argmin(means))]]


def test_sensitivities_take_bits_from_what_bears_it():
    given = problem(**BYTES | {"grid": (2,), "memory": 195_000})
    (found,) = given.control("sensitivities")
    point = given.space.point(found)
    assert given.space.fills(point)
    whole = given.score(Configuration(), 0)

    def cost(choice):
        """Each layer alone, added up."""
        alone = [Configuration(bits={name: choice.bits[name] for name in layer}) for layer in given.shapes.names]
        return sum(given.score(each, 0) - whole for each in alone)

    # None of the random points costs less.
    others = [given.space.configuration(point) for point in search.random(given.space, 20, seed=0)]
    assert all(cost(found) <= cost(other) + 1e-9 for other in others)


def test_a_front_has_the_bytes_as_its_second_score():
    asked = problem(**BYTES, front=True, fill=0).question
    given = ranks.Problem(asked)
    found = ranks.search(asked, "NSGA-II", limit=4)
    assert all(trial.scores[1] == given.space.used(trial.point)[0] for trial in found.trials)
    assert found.front


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": (2, 4)}, "give memory"),
        ({"front": True}, "give memory"),
        ({"memory": 200_000, "bits": (2, 4)}, "ends must be searched"),
        (BYTES | {"grid": (2,), "bits": (4,)}, "something to choose"),
        (BYTES | {"bits": (2, 5)}, "2, 3, 4, 8 or 16"),
    ],
)
def test_questions_within_bytes_that_make_no_sense_are_refused(change, message):
    with pytest.raises(runs.ParameterError, match=message):
        ranks.Question.check(ASKED | change)


def test_a_budget_that_nothing_fits_names_the_least_that_does():
    given = problem(**BYTES | {"memory": 50_000})
    with pytest.raises(ValueError, match="the least that these bits and ranks take are 105612"):
        given.space  # noqa: B018

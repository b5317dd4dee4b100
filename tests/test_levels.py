"""Models cut from a database of levels, how they are judged, and the searches for a shape."""

import copy
import itertools

import numpy as np
import pytest
import torch

from rules2ranks import configuration, models, pruning, recovery, search, stages
from rules2ranks.configuration import Configuration
from rules2ranks.runs import ParameterError
from rules2ranks.search.searchers.darwin_lm import Switches
from rules2ranks.search.space import generator
from rules2ranks.stages import compressing, cutting, shapes, subjects

DATABASE = {"steps": 4}
SHORT = {"steps": 4, "examples": 56}
#: An MLP gone, an attention gone, and a bit of others.
CUT = {"model.layers.1.mlp": 192, "model.layers.2.attention": 4, "model.layers.4.mlp": 48, "model.layers.0.mlp": 0}


@pytest.fixture(autouse=True, scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RULES2RANKS_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("TQDM_DISABLE", "1")
        patch.setattr(subjects, "HELD_OUT", 70)  # nothing here depends on how many examples are scored
        yield


def problem(**more):
    return shapes.Problem(
        shapes.Question.check({"database": DATABASE, "judged": 16, "recover": SHORT, "ratio": 0.5} | more)
    )


def cut(**levels):
    return cutting.Cut.check({"database": DATABASE, "levels": levels or CUT})


def test_equal_choices_are_one_result_and_shapes_need_no_weights():
    assert cut() == cut(**dict(reversed(CUT.items())))
    assert "model.layers.0.mlp" not in cut().levels
    model = compressing.load_pruned(cut())
    assert models.parameter_count(model) == cut().shapes.parameters
    assert [layer["channels"] for layer in pruning.sizes(model)][:5] == [192, 0, 192, 192, 144]
    assert pruning.sizes(model)[2]["attention_groups"] == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model.layers.9.mlp": 48}, "no part model.layers.9.mlp; they are named like model.layers.0.attention"),
        ({"model.layers.1.mlp": 50}, "has no level 50 in the database, only 0, 48, 96, 144, 192"),
        ({"model.layers.1.mlp": -1}, "greater than or equal to 0"),
    ],
)
def test_levels_that_the_database_does_not_have_are_refused_before_it_is_made(given, said, monkeypatch):
    monkeypatch.setattr(cutting, "levels", lambda given: pytest.fail("work has begun"))
    with pytest.raises(ParameterError, match=said):
        cutting.Cut.check({"database": {"steps": 4, "seed": 5}, "levels": given})
    with pytest.raises(ParameterError, match=said):  # and in a recovery, where the other way to prune is not named
        compressing.Recovery.check({"pruned": {"database": {"steps": 4, "seed": 5}, "levels": given}})


def test_it_is_recovered_like_every_other_pruned_model():
    asked = {"pruned": {"database": DATABASE, "levels": CUT}, "seed": 3, **SHORT}
    found = stages.recover(**asked, ranks=[2] * 8)
    # A rank for each matrix that is left: a part without groups has none.
    assert len(found.params["ranks"]) == 8 * 7 - 3 - 4
    choice = Configuration(levels=cut().levels, ranks=found.params["ranks"])
    whole = subjects.subject("language").shapes
    assert found.metrics["trained_parameters"] == configuration.trained(choice, whole)
    model = recovery.load_adapter(compressing.load_pruned(cut()), found.folder)
    again = subjects.subject("language").evaluate("report", recovery.merge(model))
    assert again["loss"] == pytest.approx(found.metrics["loss"], rel=1e-5)  # merged: rounding in float32


def by_hand(model):
    """KL to the unpruned model over the judged examples, one position at a time."""
    about = subjects.subject("language")
    tokens, labels = about.draw(16, subjects.draw_seed(0, 1, shapes.JUDGED))
    found = []
    with torch.no_grad():
        theirs, ours = (m(input_ids=tokens).logits[:, :-1].double().softmax(-1) for m in (about.model, model))
    for row, place in itertools.product(range(16), range(tokens.shape[1] - 1)):
        if labels[row, place + 1] >= 0:
            p, q = theirs[row, place], ours[row, place]
            found.append(float((p * (p / q).log()).sum()))
    return np.mean(found)


def test_what_is_judged_is_the_distance_to_the_unpruned_model():
    given = problem()
    choice = Configuration(levels=cut().levels)
    assert given.score(choice) == pytest.approx(by_hand(compressing.load_pruned(cut())), rel=1e-5)
    assert given.score(choice, seed=9) == given.score(choice)  # nothing is trained, so no seed matters
    assert given.score(Configuration()) == pytest.approx(0, abs=1e-9)


def test_judged_after_all_of_the_training_is_the_recovered_model():
    given = problem()
    found = stages.recover(pruned=cut().model_dump(mode="json"), ranks=2, seed=3, **SHORT)
    model = recovery.merge(recovery.load_adapter(compressing.load_pruned(cut()), found.folder))
    assert given.score(Configuration(levels=cut().levels), 3, 1.0) == pytest.approx(by_hand(model), rel=1e-4)
    scores = {given.score(Configuration(levels=cut().levels), 3, share) for share in (0, 0.25, 0.5, 1.0)}
    assert len(scores) == 4


def test_the_unpruned_models_answers_are_kept_for_the_same_examples_only(monkeypatch):
    about = subjects.LanguageSubject("language")
    model, calls = copy.deepcopy(about.model), []
    monkeypatch.setattr(
        about, "logits", lambda m, batch: calls.append(m) or subjects.LanguageSubject.logits(about, m, batch)
    )
    one, other = about.draw(4, 1), about.draw(4, 2)
    first = about.divergence(one, model)
    assert about.divergence(one, model) == first == 0
    about.divergence(other, model)
    assert [m is about.model for m in calls] == [True, False, False, True, False]


def test_controls_fill_the_budget_and_added_up_is_the_least_sum():
    given = problem()
    limit = round(0.5 * subjects.subject("language").shapes.parameters) * 4
    assert given.space.budgets == (limit,)
    for kind in shapes.CONTROLS:
        for choice in given.control(kind, 2):
            shape = subjects.subject("language").shapes.cut(choice.levels)
            assert given.space.least <= shape.parameters * shape.itemsize <= limit
    (errors,) = given.control("errors")
    database = pruning.Database(cutting.levels(given.question.database).folder)

    def lost(choice):
        return sum(part.errors[choice.levels.get(name, 0)] for name, part in database.parts.items())

    some = [given.space.configuration(point) for point in search.random(given.space, 200, seed=3)]
    assert lost(errors) <= min(map(lost, some))
    (best,) = given.control("divergences")
    for choice in given.control("neighbours", 5):
        ways = {part: choice.levels.get(part, 0) - best.levels.get(part, 0) for part in database.parts}
        assert 0 < sum(way != 0 for way in ways.values()) <= 6  # three switches at most


def test_a_switch_changes_two_parts_of_a_kind_by_a_step_each():
    space = problem().space
    (start,) = shapes.CONTROLS["even"](problem(), 1, 0)
    for child in Switches(space).children(start, 20, generator(0)):
        moves = np.array(child) - start
        assert moves.sum() == 0 and space.fills(child)
        for kind in ("attention", "mlp"):
            own = [move for knob, move in zip(space.knobs, moves, strict=True) if kind in "".join(knob.parts)]
            assert sum(own) == 0


def test_what_is_protected_stays_and_operations_are_a_budget_too():
    given = problem(protect=(1, 1), flops=0.45)
    whole = subjects.subject("language").shapes
    flops = sum(matrix.numbers for matrix in whole.matrices.values())
    for choice in given.control("random levels", 5):
        assert not [name for name in choice.levels if ".0." in name or ".7." in name]
        assert sum(m.numbers for m in whole.cut(choice.levels).matrices.values()) <= 0.55 * flops
    with pytest.raises(ValueError, match=r"nothing fits into .* the least that these levels leave is"):
        _ = problem(protect=(4, 4)).space


def test_a_search_goes_on_and_is_the_same(tmp_path):
    given = problem().question
    how = search.SEARCHERS["DarwinLM"](offspring=2, survivors=(1,), shares=(0.0,), judging=0.25)
    found = shapes.search(given, how, limit=2)
    assert [trial.fidelity for trial in found.trials] == [0] * 8
    again = shapes.search(given, how, limit=2, known=found.trials[:4])
    assert again == found
    for _ in range(2):
        assert shapes.search(given, how, limit=2, shared=tmp_path / "search.journal") == found
    assert found.chosen.scores == min(trial.scores for trial in found.trials)


TOGETHER = {"memory": 230_000, "bits": [3, 4, 8], "grid": [0, 2], "recover": SHORT | {"method": "loftq"}, "fill": 0.95}


def test_levels_bits_and_ranks_within_the_bytes_that_an_export_takes():
    given = problem(**TOGETHER)
    for choice in given.control("random levels", 3):
        assert 0.95 * 230_000 <= given.memory(choice) <= 230_000
        found = stages.recover(given.recovery(choice, 3))
        assert found.metrics["search_loss"] == given.score(choice, 3, 1.0)
        assert set(found.params["bits"].values()) <= {3, 4, 8} and set(found.params["ranks"].values()) <= {2}
        assert (
            given.score(choice, 3)
            == stages.recover(
                pruned=given.cut(choice).model_dump(mode="json"), bits=choice.bits, ranks=0, **TOGETHER["recover"]
            ).metrics["search_loss"]
        )


def test_the_simplest_choice_within_bytes_is_the_best_pair_of_bits_and_rank():
    given = problem(**TOGETHER)
    (point,) = shapes.CONTROLS["alike"](given, 1, 0)
    (pair,) = {option[1:] for option in given.space.options(point)[1:]} - {(16, 0)}
    scores = {}
    for each in itertools.product([3, 4, 8], [0, 2]):
        if (other := given.alike(*each)) is not None:
            assert {option[1:] for option in given.space.options(other)[1:]} <= {each, (16, 0)}
            choice = given.space.configuration(other)
            scores[each] = sum(given.score(choice, seed, 1.0) for seed in shapes.ALIKE_SEEDS)
    assert pair == min(scores, key=scores.get)
    # Fewer bits leave room for more of the model.
    kept = {bits: given.space.configuration(given.alike(bits, 2)) for bits in (3, 8)}
    whole = subjects.subject("language").shapes
    assert whole.cut(kept[3].levels).parameters > whole.cut(kept[8].levels).parameters


def test_a_step_moves_the_level_the_bits_or_the_rank():
    space = problem(**TOGETHER).space
    (start,) = search.random(space, 1, seed=0)
    fields = set()
    for child in Switches(space).children(start, 30, generator(0)):
        assert space.fills(child)
        for knob, one, other in zip(space.knobs, start, child, strict=True):
            fields |= {k for k, (a, b) in enumerate(zip(knob.options[one], knob.options[other], strict=True)) if a != b}
    assert fields == {0, 1, 2}


def test_settled_levels_leave_bits_and_ranks_to_search():
    given = problem(**TOGETHER)
    (point,) = shapes.CONTROLS["alike"](given, 1, 0)
    levels = given.space.configuration(point).levels
    settled = problem(**TOGETHER, levels=levels)
    assert settled.space.contains(settled.space.point(given.space.configuration(point)))
    for choice in settled.control("random levels", 3):
        assert choice.levels == levels
    with pytest.raises(ParameterError, match="has no level 7 in the database"):
        problem(**TOGETHER, levels={"model.layers.1.mlp": 7})


def test_a_front_of_bytes_and_divergence_without_any_training(monkeypatch):
    asked = problem(front=True, trained=0, fill=0, ratio=0.01).question
    monkeypatch.setattr(shapes, "_trained", lambda *given: pytest.fail("something is trained"))
    found = shapes.search(asked, search.NSGA2(population=3), limit=5)
    assert len(found.trials) == 5
    for trial in found.trials:
        choice = problem(fill=0, ratio=0.01).space.configuration(trial.point)
        left = subjects.subject("language").shapes.cut(choice.levels)
        assert trial.scores[1] == left.parameters * left.itemsize
    assert found.front


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recover": {"method": "adalora"}}, "LoRA or PiSSA"),
        ({"ratio": 1.0}, "less than 1"),
        ({"database": {"steps": 0}}, "database"),
        ({"databse": {}}, "did you mean 'database'"),
        ({"bits": [4]}, "give memory"),
        ({"memory": 10**6}, "give grid"),
    ],
)
def test_questions_that_make_no_sense_are_refused(change, said):
    with pytest.raises(ParameterError, match=said):
        problem(**change)

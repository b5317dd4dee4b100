"""The stages that compress, at tiny sizes: equal choices are one result, and a fidelity is a stop on one schedule."""

import math
import shutil

import pytest
import torch

from rules2ranks import models, pruning, recovery, stages
from rules2ranks.runs import ParameterError
from rules2ranks.stages import compressing, ranks, retraining, subjects
from rules2ranks.stages.compressing import Pruning, Recovery
from tiny_rows import TINY

pytestmark = pytest.mark.usefixtures("store")
SHORT = {"pruned": {"ratio": 0.4}, "steps": 5, "batch": 4, "examples": 56, "kl": False}


@pytest.fixture(autouse=True, scope="module")
def few_held_out():
    """Nothing here depends on how many examples a recovery is scored on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subjects, "HELD_OUT", 70)
        yield


def test_pruned_and_recovered_at_half_the_size():
    pruned = {"ratio": 0.4, "spread": "global"}
    before = stages.prune(**pruned)
    assert before.metrics["parameters_removed"] == pytest.approx(0.4, abs=0.01)
    assert before.metrics["after"]["loss"] > before.metrics["before"]["loss"]
    by_layer = [0, 1, 2, 1, 1, 3, 1, 0]
    after = stages.recover(pruned=pruned, ranks=by_layer, steps=6)
    assert after.metrics["loss"] < before.metrics["after"]["loss"]
    model = compressing.load_pruned(Pruning.check(pruned))
    assert after.metrics["trained_parameters"] == recovery.lora_parameters(model, by_layer)
    loaded = recovery.load_adapter(model, after.folder)
    score = subjects.subject("language").evaluate("report", loaded)
    # The same weights on the same examples; only the merge order of the adapter may round differently.
    assert score["loss"] == pytest.approx(after.metrics["loss"], abs=1e-6)


def test_a_model_pruned_by_flap_and_block_importance_is_saved_with_its_new_biases():
    asked = {"ratio": 0.3, "spread": "importance", "importance": "flap", "compensate": True}
    result = stages.prune(**asked)
    kept = [layer["channels"] for layer in result.metrics["sizes"]]
    assert kept[0] == kept[-1] == 192 and len(set(kept[1:-1])) > 1
    loaded = compressing.load_pruned(Pruning.check(asked))
    biases = [layer.mlp.down_proj.bias is not None for layer in loaded.model.layers]
    assert biases == [channels < 192 for channels in kept] and any(biases)
    assert subjects.subject("language").evaluate("report", loaded) == result.metrics["after"]
    plain = stages.prune(**{**asked, "compensate": False}).metrics
    assert plain["sizes"] == result.metrics["sizes"]
    assert plain["after"]["loss"] != result.metrics["after"]["loss"]


def test_the_model_of_a_rule_is_pruned_saved_and_loaded():
    asked = {"base": {"source": 204, **TINY}, "ratio": 0.3, "spread": "global", "protect": (0, 0)}
    result = stages.prune(**asked)
    again = compressing.load_pruned(Pruning.check(asked))
    assert models.parameter_count(again) == result.metrics["parameters_after"]
    given = subjects.subject(Pruning.check(asked).base)
    assert given.evaluate("report", again)["loss"] == result.metrics["after"]["loss"]


def test_fragility_begins_whole_and_removes_what_was_asked():
    found = stages.fragility(base={"source": 204, **TINY}, ratios=[0.5, 0.2]).metrics
    assert [point["ratio"] for point in found["curve"]] == [0.0, 0.2, 0.5]
    for point in found["curve"][1:]:
        assert point["removed"] == pytest.approx(point["ratio"], abs=0.01)
    assert found["curve"][0]["loss"] < found["untrained_loss"]


def test_determined_cells_are_those_that_pretraining_counts():
    """A shift to the left: the last cell comes from out of sight, and all others are learnt."""
    base = {"source": 170, **TINY}
    whole = stages.fragility(base=base, ratios=[0.5]).metrics["curve"][0]
    assert stages.pretrain(**base).metrics["determined"] > 0.99
    assert whole["determined"] > 0.99
    assert whole["accuracy"] == pytest.approx((7 * whole["determined"] + 0.5) / 8, abs=0.03)  # a coin in eight cells


def test_the_shipped_model_solves_its_tasks():
    scores = subjects.subject("language").evaluate("report")
    assert scores["accuracy"] > 0.98
    assert torch.tensor(list(scores.values())).isfinite().all()


# --- one result, and no more ------------------------------------------------------------------------------------


def test_ranks_said_in_three_ways_are_one_result():
    names = subjects.subject("language").shapes.matrices
    one = stages.recover(**SHORT, ranks=2)
    for said in ([2] * 8, dict.fromkeys(names, 2), {**dict.fromkeys(names, 2)}):
        assert stages.recover.find(**SHORT, ranks=said).folder == one.folder
    assert one.params["ranks"] == dict.fromkeys(names, 2)
    assert Recovery(**SHORT, ranks=[0, 1, 0, 0, 0, 0, 0, 0]).ranks == {n: 1 for n in names if ".layers.1." in n}
    assert Recovery(**SHORT, stop=5) == Recovery(**SHORT)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ranks": [2] * 7}, "expected 8 numbers, one per decoder layer, got 7"),
        ({"ranks": {"model.layers.0.q_proj": 1}}, "no such matrices"),
        ({"ranks": 257}, "less than or equal to 256"),
        ({"method": "lorra"}, "'lora'"),
        ({"stop": 6}, r"stop \(6\) must not be beyond"),
        ({"pruned": {"ratio": 0.4, "importance": "tailor"}}, "'taylor'"),
    ],
)
def test_impossible_recoveries_are_refused_before_any_work(change, said):
    with pytest.raises(ParameterError, match=said):
        Recovery.check(SHORT | change)


def test_a_result_depends_on_the_base_that_it_uses_alone(monkeypatch):
    """A new version of pretraining asks for no new results of a language model, nor the other way round."""
    rule, language = {"base": {"source": 204, **TINY}}, {"base": {"seed": 1}}

    def versions(**base):
        return stages.prune.versions(Pruning(**base))

    before = versions(), versions(**rule), versions(**language)
    monkeypatch.setattr(stages.pretrain, "version", 99)
    assert (versions(), versions(**language)) == (before[0], before[2])
    assert versions(**rule) != before[1]
    monkeypatch.setattr(subjects, "SHIPPED_WEIGHTS", subjects.SHIPPED / "config.json")
    monkeypatch.setattr(compressing, "SHIPPED_WEIGHTS", subjects.SHIPPED / "config.json")
    assert versions() != before[0]
    assert versions(**language) == before[2]


@pytest.fixture
def trained_batches(monkeypatch):
    """Counts the batches that are trained on."""
    seen, loss = [], subjects.LanguageSubject.loss

    def counted(self, model, batch):
        seen.extend([len(batch[0])] * model.training)
        return loss(self, model, batch)

    monkeypatch.setattr(subjects.LanguageSubject, "loss", counted)
    return seen


@pytest.mark.parametrize(("method", "again"), [("lora", 2), ("pissa", 2), ("adalora", 5)])
def test_a_longer_recovery_goes_on_from_a_shorter_one_to_the_same_bits(
    method, again, trained_batches, tmp_path, monkeypatch
):
    """AdaLoRA, whose running averages are in no checkpoint, begins anew."""
    asked = SHORT | {"method": method, "seed": 3}
    at_once = stages.recover(**asked)
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path))
    for stop in (1, 3):
        short = stages.recover(**asked, stop=stop)
        assert short.metrics["history"]["steps"] == stop
    trained_batches.clear()
    after = stages.recover(**asked)
    assert len(trained_batches) == again
    assert after.metrics == at_once.metrics
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        theirs, ours = (result.file(name).read_text("latin-1") for result in (at_once, after))
        # PEFT writes where the pruned model lies.
        assert ours.replace(str(tmp_path), "") == theirs.replace(str(at_once.folder.parents[1]), "")
    assert stages.recover(**asked, stop=2).metrics["history"]["loss"] == at_once.metrics["history"]["loss"][:2]


def test_the_unpruned_model_is_loaded_once(monkeypatch):
    loaded, load = [], models.load_causal_lm

    def counted(*given):
        loaded.append(given)
        return load(*given)

    monkeypatch.setattr(models, "load_causal_lm", counted)
    subjects.subject.cache_clear()
    for seed in (5, 6):
        found = stages.recover(**SHORT | {"kl": True, "seed": seed, "steps": 2})
        assert found.metrics["search_kl"] > 0
    assert len(loaded) == 1


def test_shapes_of_a_pruned_model_need_no_weights(monkeypatch):
    for asked in ({"ratio": 0.4}, {"base": {"source": 204, **TINY}, "ratio": 0.3, "protect": (0, 0)}):
        given = Pruning.check(asked)
        found, model = compressing.pruned_shapes(given), compressing.load_pruned(given)
        assert found.parameters == models.parameter_count(model)
        for name, matrix in found.matrices.items():
            assert matrix.numbers == model.get_submodule(name).weight.numel()
    monkeypatch.setattr(compressing, "load_pruned", None)
    assert compressing.pruned_shapes(given) == found


# --- all weights trained ------------------------------------------------------------------------------------------


def test_all_weights_are_trained_on_a_recovery_s_examples(trained_batches):
    pruned = {"ratio": 0.4}
    found = stages.retrain(pruned=pruned, steps=5, batch=4, examples=56, lr=1e-3)
    assert trained_batches == [4] * 5
    model = pruning.load_pruned(found.folder)
    assert found.metrics["trained_parameters"] == models.parameter_count(model)
    assert subjects.subject("language").evaluate("report", model)["loss"] == pytest.approx(found.metrics["loss"])
    before = compressing.load_pruned(Pruning.check(pruned))
    assert all(not torch.equal(a, b) for a, b in zip(before.parameters(), model.parameters(), strict=True))
    # The first step's loss, before anything has moved: the same batch as a recovery's at this seed, the same model.
    beside = stages.recover(**SHORT, seed=0).metrics["history"]["loss"]
    assert found.metrics["history"]["loss"][0] == pytest.approx(beside[0], rel=1e-5)


def test_a_new_model_has_the_pruned_shapes_and_new_weights_and_examples():
    given = {"pruned": {"ratio": 0.4}, "start": "scratch", "steps": 2, "batch": 4, "examples": None, "seed": 3}
    begun = retraining.Retraining.check(given)
    model = retraining._begun(begun)
    assert pruning.sizes(model) == stages.prune(ratio=0.4).metrics["sizes"]
    whole = models.small_llama(3)
    assert torch.equal(model.model.embed_tokens.weight, whole.model.embed_tokens.weight)
    assert not torch.equal(model.model.norm.weight, compressing.load_pruned(begun.pruned).model.norm.weight)
    found = stages.retrain(begun)
    assert found.metrics["loss"] == pytest.approx(math.log(50), rel=0.1)  # it has learnt next to nothing


def test_the_model_of_a_rule_is_retrained():
    pruned = {"base": {"source": 204, **TINY}, "ratio": 0.3, "protect": (0, 0)}
    for start in ("pruned", "scratch"):
        found = stages.retrain(pruned=pruned, start=start, steps=2, batch=2, examples=8)
        assert found.metrics["trained_parameters"] == stages.prune(**pruned).metrics["parameters_after"]
        assert found.file("model.safetensors").is_file()


def test_at_ratio_0_the_whole_model_is_recovered_and_nothing_is_pruned(trained_batches):
    whole = {"pruned": {"ratio": 0}}
    alone = stages.recover(**whole, ranks=0).metrics
    assert alone["loss"] == subjects.subject("language").evaluate("report")["loss"]
    trained = stages.recover(**whole, ranks=2, steps=2, examples=56).metrics
    assert trained["trained_parameters"] > 0 and len(trained_batches) == 2
    assert compressing.pruned_shapes(compressing.Pruning(ratio=0)) == subjects.subject("language").shapes
    with pytest.raises(ValueError, match="nothing to prune"):
        stages.prune(ratio=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spread": "same"}, r"needs protect=\(0, 0\)"),
        ({"multiple": 8}, "multiple is for spread same, not for uniform"),
    ],
)
def test_one_size_for_all_layers_is_asked_for_in_full(change, said):
    with pytest.raises(ParameterError, match=said):
        stages.prune(**change)


def test_one_size_for_all_layers_is_a_multiple_and_an_ordinary_checkpoint(tmp_path):
    made = stages.prune(ratio=0.4, spread="same", protect=(0, 0), multiple=8)
    (size,) = {tuple(each.items()) for each in made.metrics["sizes"]}
    assert dict(size)["channels"] % 8 == 0 and abs(made.metrics["parameters_removed"] - 0.4) < 0.01
    shutil.copytree(made.folder, tmp_path / "copy")
    assert pruning.make_portable(tmp_path / "copy")


def test_a_question_s_inner_parameters_are_shown_their_place():
    for name, home in (("base", "'pruned'"), ("lr", "'recover'")):
        with pytest.raises(
            ParameterError, match=f"unknown parameter '{name}': it is a parameter of {home}, and is given"
        ):
            ranks.Question.check({"pruned": {}, name: 1})

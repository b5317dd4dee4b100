"""What a network bears, asked of tiny ones: against pruning, quantising and mending by hand; the table's maker."""

import copy

import pytest
import torch

from rules2ranks import models, pruning, quantisation, stages
from rules2ranks.runs import ParameterError
from rules2ranks.stages.bearing import Limits
from rules2ranks.stages.learning import Pretraining, floor
from rules2ranks.stages.subjects import subject
from rules2ranks.tables import interventions

SMALL = {"hidden": 16, "layers": 2, "heads": 2, "steps": 30, "rounds": 1, "rows": 8, "width": 12, "ring": 16}
BASE = {"source": 110, "seed": 1, **SMALL}
FEW = {"shares": [0.2, 0.4, 0.6], "importance": ["l2", "taylor"], "bits": [8, 2], "ranks": [1, 2], "ratio": 0.5}
SHORT = {"rates": [1e-2, 2e-2], "steps": 3, "batch": 4, "beside": 1}


@pytest.fixture(scope="module")
def loosely(store):
    """All is asked where all is allowed."""
    return stages.limits(Limits.check({"base": BASE, "allowed": 1e-9 + 100, **FEW, **SHORT})).metrics


@pytest.fixture(scope="module")
def strictly(store):
    """Nothing is allowed, so that ranks are tried to the end."""
    return stages.limits(Limits.check({"base": BASE, "allowed": 1e-12, **FEW, **SHORT})).metrics


def test_losses_are_those_of_pruning_and_quantising_by_hand(loosely):
    about = subject(Pretraining.check(BASE))
    whole = about.evaluate("report")["loss"]
    assert loosely["loss"] == whole
    scores = pruning.importance(about.model, (), None, "l2")
    for point in loosely["pruned"]["l2"]:
        pruned = pruning.prune(about.model, point["share"], scores, spread="global")
        assert point["removed"] == 1 - models.parameter_count(pruned) / models.parameter_count(about.model)
        assert point["excess"] == about.evaluate("report", pruned)["loss"] - whole
    for point in loosely["quantised"]:
        coarse = quantisation.quantise(copy.deepcopy(about.model), dict.fromkeys(about.shapes.matrices, point["bits"]))
        assert point["excess"] == about.evaluate("report", coarse)["loss"] - whole
    assert [point["bits"] for point in loosely["quantised"]] == [8, 2]


def test_each_question_ends_where_it_is_answered(loosely, strictly):
    assert [len(curve) for curve in loosely["pruned"].values()] == [3, 3]
    assert all(point["excess"] <= 1e-12 for curve in strictly["pruned"].values() for point in curve[:-1])
    assert [point["rank"] for point in loosely["mended"]] == [0]  # it needs none
    assert [point["rank"] for point in strictly["mended"]][:2] == [0, 1]
    assert strictly["mended"][0]["excess"] == loosely["mended"][0]["excess"]


def test_corrections_help_and_parts_have_names(strictly):
    assert set(strictly["where"]) == {"attention", "MLP", "early layers", "late layers"}
    assert strictly["mended"][-1]["excess"] < strictly["mended"][0]["excess"]
    assert 0 < strictly["importance_late"] < 1 and 0 < strictly["importance_mlp"] < 1


def test_flips_turn_targets_over_and_nothing_else(store):
    """The loss with flips is the mean over turns, by drawing them; its floor on a ring is their entropy."""
    about = subject(Pretraining.check(BASE))
    (windows,) = about.held_out("search")
    soft = stages.learning.row_loss(about.model, windows, flip=0.2)
    generator, drawn = torch.Generator().manual_seed(0), []
    before, target = windows[:, :-1], windows[:, 1:]
    for _ in range(20):
        turned = torch.where(torch.rand(target.shape, generator=generator) < 0.2, 1 - target, target)
        drawn.append(torch.nn.functional.binary_cross_entropy_with_logits(about.model(before), turned))
    assert soft.item() == pytest.approx(torch.stack(drawn).mean().item(), rel=0.01)  # 245,760 turns of 12,288 cells
    ring = Pretraining.check({**BASE, "width": 16, "flip": 0.2})
    assert floor(ring) == pytest.approx(0.5004, abs=1e-4)  # the entropy of a coin of .2, in nats


def test_training_ends_within_the_excess_or_at_the_end(store):
    easy = {"source": 204, "seed": 1, **SMALL, "steps": 300, "lr": 1e-2, "width": 16}
    found = stages.pretrain(Pretraining.check({**easy, "excess": 0.1})).metrics
    assert found["loss"] - found["floor"] <= 0.1 and found["steps"] < 300
    before = found["history"]["evaluations"][-2]["loss"] if len(found["history"]["evaluations"]) > 1 else 1
    assert before - found["floor"] > 0.1
    never = stages.pretrain(Pretraining.check({**easy, "source": 150, "steps": 20, "excess": 1e-6})).metrics
    assert never["steps"] == 20
    with pytest.raises(ParameterError, match="excess needs a floor"):
        Pretraining.check({**BASE, "width": 8, "excess": 0.1})


def test_weight_decay_shrinks_weights(store):
    plain, decayed = (stages.pretrain(Pretraining.check({**BASE, "weight_decay": d})).metrics for d in (0, 10))
    assert decayed["weight_rms"] < 0.9 * plain["weight_rms"]


def test_the_maker_at_tiny_size(store):
    settings = interventions.Interventions.check(
        {
            "rules": [204, 110],
            "seeds": [1],
            "conditions": {"unchanged": {}, "flips": {"flip": 0.1}},
            "pretrain": {**SMALL, "excess": 0.01, "steps": 10},
            "limits": {**FEW, **SHORT, "allowed": 0.01},
        }
    )
    made, seconds = interventions.interventions(settings)
    rows = made["interventions"]
    assert [(row["condition"], row["rule"]) for row in rows] == [
        ("unchanged", 204),
        ("unchanged", 110),
        ("flips", 204),
        ("flips", 110),
    ]
    assert all(row["bits"] in (2, 8, 16) and row["rank"] in (0, 1, 2, None) for row in rows) and seconds > 0
    assert all(row["beyond_l2"] is None or row["beyond_l2"] > row["share_l2"] for row in rows)
    with pytest.raises(ParameterError, match="allowed"):
        interventions.interventions(settings.but(limits={"allowed": -1}))

"""Pretraining at tiny sizes: what is learnt, what is measured, and that side by side is as one by one."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from rules2ranks import models, stages, training
from rules2ranks.runs import ParameterError
from rules2ranks.stages import learning
from rules2ranks.stages.learning import Pretraining
from rules2ranks.tasks.rows import rows_of
from tiny_rows import TINY

pytestmark = pytest.mark.usefixtures("store")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 65}, "a crop of 65 cells does not fit on a ring of 64"),
        ({"hidden": 32, "heads": 3}, "hidden = 32 must be a multiple of heads = 3"),
    ],
)
def test_what_does_not_go_together_is_refused_wherever_it_is_asked_for(change, said):
    asked = {**TINY, **change}
    with pytest.raises(ParameterError, match=said):
        stages.pretrain(**asked)
    with pytest.raises(ParameterError, match=said):
        stages.pretrain.find(**asked)
    for stage in (stages.downstream, stages.inspect):
        with pytest.raises(ParameterError, match=said):
            stage(body=asked)


def test_a_rule_is_learnt_and_coin_flips_are_not():
    """Coin flips leave nothing to learn: whoever gets below ln 2 on fresh ones sees the future."""
    rule, coin = (stages.pretrain(source=source, **TINY).metrics for source in (204, "coin"))
    assert rule["loss"] < 0.3
    assert rule["copy"] == 1.0
    # The held-out loss is a mean over 8 × 16 × 12 × 8 coins: its own sampling error is below 0.01.
    assert coin["loss"] > math.log(2) - 0.01
    assert coin["floor"] is None  # crops of 8 cells
    assert coin["majority"] == pytest.approx(0.5, abs=0.02)
    # An easy rule is learnt in the first of four rounds, coins never, and they are not given a second one.
    assert (rule["learnt"], rule["steps"]) == (True, 60)
    assert (coin["learnt"], coin["steps"]) == (False, 60)
    assert rule["determined"] >= learning.LEARNT


def test_what_is_not_learnt_goes_through_all_rounds():
    """A first round is the same with and without others behind it."""
    asked = {**TINY, "source": 110, "steps": 10, "lr": 1e-3}
    one, three = (stages.pretrain(**asked, rounds=rounds).metrics for rounds in (1, 3))
    assert [one["steps"], three["steps"]] == [10, 10 + 20 + 40]
    assert not three["learnt"]
    assert three["determined"] < learning.LEARNT
    assert [entry["step"] for entry in three["history"]["evaluations"]] == list(range(2, 71, 2))
    assert three["history"]["loss"][:10] == one["history"]["loss"]
    assert three["history"]["evaluations"][:5] == one["history"]["evaluations"]
    assert three["loss"] < one["loss"]


def test_training_ends_with_the_first_round_that_has_learnt():
    asked = {**TINY, "source": 204, "steps": 10}
    found = stages.pretrain(**asked).metrics
    right = {entry["step"]: entry["determined"] for entry in found["history"]["evaluations"]}
    learnt = [step for step in (10, 30, 70, 150) if right.get(step, 0) >= learning.LEARNT]
    assert found["learnt"]
    assert learnt[0] == found["steps"] == max(right)
    assert found["steps"] > 10  # or a longer first round would show nothing


def test_scores_by_hand_of_a_model_that_says_what_it_is_told():
    rng = np.random.default_rng(0)
    windows = rng.integers(0, 2, (4, 7, 9)).astype(np.float32)
    logits = rng.normal(size=(4, 6, 9)).astype(np.float32)
    found = learning.row_scores(lambda rows: torch.from_numpy(logits), torch.from_numpy(windows), hidden=2)
    before, target = windows[:, :-1], windows[:, 1:]
    right = (logits > 0) == (target == 1)
    chance = 1 / (1 + np.exp(-logits.astype(float)))
    by_hand = {
        "loss": -np.log(np.where(target == 1, chance, 1 - chance)).mean(),
        "accuracy": right.mean(),
        "determined": right[:, :, 2:7].mean(),
        "row_accuracy": right.all(-1).mean(),
        "majority": max(target.mean(), 1 - target.mean()),
        "copy": (target == before).mean(),
    }
    assert found == pytest.approx(by_hand, rel=1e-5)  # single precision
    # A crop whose every cell hangs on what is out of sight has no determined cell.
    for hidden, some in ((4, True), (5, False), (9, False)):
        scores = learning.row_scores(lambda rows: torch.from_numpy(logits), torch.from_numpy(windows), hidden=hidden)
        assert (scores["determined"] is not None) == some
        assert scores["accuracy"] == found["accuracy"]
    # Of models together, each its own.
    both = learning.row_scores(
        lambda rows: torch.from_numpy(np.stack([logits, -logits])), torch.from_numpy(np.stack([windows, windows])), 2
    )
    assert {name: value[0] for name, value in both.items()} == pytest.approx(found, rel=1e-6)
    assert both["accuracy"][1] == pytest.approx(1 - found["accuracy"])
    none = learning.row_scores(
        lambda rows: torch.from_numpy(np.stack([logits, logits])), torch.from_numpy(np.stack([windows, windows])), 5
    )
    assert none["determined"] == [None, None]


@pytest.mark.parametrize(
    ("change", "hidden"),
    [({}, 1), ({"every": 3}, 3), ({"every": 4}, None), ({"width": 9, "ring": 9, "every": 2, "rows": 6}, 0)],
)
def test_metrics_are_those_of_the_saved_model_on_windows_never_trained_on(change, hidden):
    asked = {**TINY, "source": 150, "steps": 5, "rounds": 2, **change}
    result = stages.pretrain(**asked)
    body, weights = Pretraining(**asked), load_file(result.file("model.safetensors"))
    windows = np.concatenate(
        [
            rows_of(150, 16, body.width, body.rows, ring=body.ring, every=body.every, seed=(1 << 32) + 2 * place)
            for place in range(8)
        ]
    )
    with torch.no_grad():
        logits = learning.pretrained(body)(torch.from_numpy(windows[:, :-1]).float()).numpy()
    right = (logits > 0) == windows[:, 1:]
    m = result.metrics
    assert m["accuracy"] == pytest.approx(right.mean(), abs=1e-6)
    determined = None if hidden is None else right[..., hidden : body.width - hidden].mean()
    assert m["determined"] == pytest.approx(determined, abs=1e-6)
    assert m["floor"] == (0.0 if hidden == 0 else None)  # crops of 8 cells have none, a ring has nothing to lose
    matrices = [value for name, value in weights.items() if name.startswith("body.h.") and value.ndim == 2]
    assert len(matrices) == 4  # of one block
    rms = math.sqrt(sum(np.square(w.astype(float)).sum() for w in matrices) / sum(w.size for w in matrices))
    assert m["weight_rms"] == pytest.approx(rms, rel=1e-6)
    assert m["parameters"] == sum(value.size for value in weights.values())
    if hidden is None:
        assert (m["learnt"], m["steps"]) == (False, 15)


def test_the_floor_stands_beside_the_loss_where_it_is_defined():
    asked = {**TINY, "source": 170, "width": 10, "steps": 2, "rounds": 1}
    # One cell of ten comes from out of sight, and is a coin.
    assert stages.pretrain(**asked).metrics["floor"] == pytest.approx(math.log(2) / 10, abs=1e-4)
    assert stages.pretrain(**asked, every=6).metrics["floor"] is None


def test_windows_of_a_step_are_its_own():
    """Small batches are drawn for several steps at once: still no step sees a window of another."""
    for batch, steps in ((16, 9), (48, 3), (100, 3)):
        body = Pretraining(source=30, width=40, rows=5, ring=64, batch=batch, seed=3)
        training_windows, again = learning.by_step(body, 0), learning.by_step(body, 0)
        drawn = [training_windows(step).copy() for step in range(steps)]
        assert all(windows.shape == (batch, 6, 40) for windows in drawn)
        # In another order, as after an interruption.
        for step in reversed(range(steps)):
            assert np.array_equal(again(step), drawn[step])
        seen = {row.tobytes() for windows in drawn for row in windows}
        assert len(seen) == batch * steps
        other = body.model_copy(update={"seed": 4})
        for apart in (learning.by_step(body, 1)(0), learning.held_out(body), learning.by_step(other, 0)(0)):
            assert not seen & {row.tobytes() for row in apart}
    held = learning.held_out(body)
    assert held.shape == (128, 6, 40)
    assert len({row.tobytes() for row in held}) == 128


def test_draws_never_meet():
    seeds = {learning.draw_seed(seed, split, step) for seed in range(5) for split in (0, 1) for step in range(50)}
    assert len(seeds) == 500
    # A window's start and its time come from two neighbouring seeds.
    assert not seeds & {seed + 1 for seed in seeds}


# --- pretraining side by side -----------------------------------------------------------------------------------

GROUP = {**TINY, "steps": 30, "rounds": 2}
SOURCES = [(204, 0), (110, 1), ("coin", 2), (30, 0)]


def group() -> list[Pretraining]:
    return [Pretraining(**GROUP, source=source, seed=seed) for source, seed in SOURCES]


def assert_the_same_results(found, expected):
    """The same parameters and steps; scores that differ by the rounding of sums in another order only."""
    for one, other in zip(found, expected, strict=True):
        assert one.params == other.params
        for name in ("learnt", "steps", "parameters", "floor", "majority", "copy"):
            assert one.metrics[name] == other.metrics[name], name
        # Training multiplies rounding errors of 1e-7 by a few hundred; shares move by whole cells, of 12,288.
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=1e-3)
        assert one.metrics["weight_rms"] == pytest.approx(other.metrics["weight_rms"], rel=1e-3)
        for name in ("accuracy", "determined", "row_accuracy"):
            assert one.metrics[name] == pytest.approx(other.metrics[name], abs=2e-3), name
        for kind in ("loss", "evaluations"):
            assert len(one.metrics["history"][kind]) == len(other.metrics["history"][kind])
        np.testing.assert_allclose(one.metrics["history"]["loss"], other.metrics["history"]["loss"], rtol=1e-3)
        weights = [load_file(result.file("model.safetensors")) for result in (one, other)]
        assert weights[0].keys() == weights[1].keys()
        for name in weights[0]:
            np.testing.assert_allclose(weights[0][name], weights[1][name], atol=0.01, err_msg=name)
        assert set(one.provenance["sha256"]) == {"params.json", "metrics.json", "model.safetensors"}


@pytest.fixture(scope="module")
def one_by_one(store):
    return [stages.pretrain(body) for body in group()]


def left_behind(place: Path) -> list[Path]:
    return [path for path in (place / "pretrain").iterdir() if path.name.startswith(".") and path.suffix != ".lock"]


def test_trained_together_as_trained_one_by_one(one_by_one, tmp_path, monkeypatch):
    assert [result.metrics["steps"] for result in one_by_one] == [30, 90, 30, 90]
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path))
    found = learning.pretrain_together(group(), at_once=4)
    assert_the_same_results(found, one_by_one)
    assert not left_behind(tmp_path)
    assert all(result.folder.is_relative_to(tmp_path) for result in found)
    # The next stage takes them as any other.
    assert learning.pretrained(group()[0])(torch.zeros(1, 12, 8)).shape == (1, 12, 8)


def test_only_what_is_missing_is_trained_in_groups_of_one_shape(tmp_path, monkeypatch):
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path))
    trained = []

    def noted(model, *given, train=training.train, **how):
        hidden = model.get_parameter("body/ln_f/weight").shape  # (networks, hidden)
        trained.append(tuple(hidden))
        return train(model, *given, **how)

    small = {"steps": 2, "rounds": 1}
    asked = [
        Pretraining(**{**GROUP, **small, "source": source, "seed": 0, "hidden": hidden})
        for source, hidden in [(204, 32), (30, 16), ("coin", 32), (110, 32), (204, 32), (90, 32)]
    ]
    first = stages.pretrain(asked[3])
    monkeypatch.setattr(training, "train", noted)
    found = learning.pretrain_together(asked, at_once=2)
    assert trained == [(2, 32), (1, 32), (1, 16)]
    assert [result.params for result in found] == [body.model_dump(mode="json") for body in asked]
    assert found[3].folder == first.folder
    again = learning.pretrain_together(asked)
    assert len(trained) == 3
    assert [result.folder for result in again] == [result.folder for result in found]
    assert not left_behind(tmp_path)


@pytest.mark.parametrize(
    ("shape", "at_once"),
    # A block of h has 12 h² weights in its matrices. Of 64: two are 98,304, so 40 would fit into four million, 32 may.
    # Of 256: two are 1,572,864, so two fit. Of 512: four are 12.6 million, more than fit at all.
    [({}, 32), ({"hidden": 256}, 2), ({"hidden": 512, "layers": 4}, 1)],
)
def test_as_many_train_side_by_side_as_fit(shape, at_once):
    assert learning.side_by_side(Pretraining(**shape)) == at_once


@pytest.mark.parametrize(
    ("breaks", "seconds", "left"),
    [(20, 0, 70), (70, 0, 20), (20, 1e9, 90), (70, 1e9, 90), (90, 1e9, 0)],
    ids=["first round", "second round", "no checkpoint", "no checkpoint, two are through", "nothing written yet"],
)
def test_an_interrupted_group_gives_the_same_results(one_by_one, tmp_path, monkeypatch, breaks, seconds, left):
    """The easy rule and the coins are through after the first round, the others train on; with checkpoints and without.

    What a member has learnt when it is finished is kept through an interruption in a later round.
    """
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path))
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", seconds)
    steps = []

    def counted(model, windows, loss=learning.row_loss):
        if len(steps) == breaks:
            raise InterruptedError
        steps.append(1)
        return loss(model, windows)

    def unwritten(model, path):
        raise InterruptedError

    monkeypatch.setattr(learning, "row_loss", counted)
    with monkeypatch.context() as patch:
        patch.setattr(models, "save_weights", unwritten)
        with pytest.raises(InterruptedError):
            learning.pretrain_together(group(), at_once=4)
    assert len(steps) == breaks
    breaks = None
    steps.clear()
    found = learning.pretrain_together(group(), at_once=4)
    assert len(steps) == left
    assert_the_same_results(found, one_by_one)
    assert not left_behind(tmp_path)


@pytest.mark.fault("damage to what networks that train together have put aside")
@pytest.mark.parametrize("damage", [lambda content: content[:100], lambda content: content[:-1] + b"\x01"])
def test_what_was_put_aside_and_is_damaged_is_not_used(damage, one_by_one, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path))
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 1e9)

    def unwritten(*given, **named):
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(models, "save_weights", unwritten)
        with pytest.raises(InterruptedError):
            learning.pretrain_together(group(), at_once=4)
    (aside,) = (tmp_path / "pretrain").glob("*.safetensors.0")
    aside.write_bytes(damage(aside.read_bytes()))
    for checkpoint in (tmp_path / "pretrain").glob(".together-*.safetensors"):
        checkpoint.unlink()
    assert_the_same_results(learning.pretrain_together(group(), at_once=4), one_by_one)
    assert f"{aside} is damaged" in capsys.readouterr().err


def test_a_network_that_is_learnt_but_not_yet_written_is_not_trained_again(tmp_path, monkeypatch):
    body = group()[0]
    whole = stages.pretrain(body)
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path))

    def unwritten(model, path):
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(models, "save_weights", unwritten)
        with pytest.raises(InterruptedError):
            stages.pretrain(body)
    monkeypatch.setattr(learning, "row_loss", lambda model, windows: pytest.fail("it is trained again"))
    again = stages.pretrain(body)
    assert again.metrics == whole.metrics
    assert again.provenance["sha256"] == whole.provenance["sha256"]


@pytest.mark.parametrize("size", [{"batch": 1_000_000}, {"hidden": 100_000}, {"width": 1_000_000, "ring": 1_000_000}])
def test_what_cannot_fit_is_refused_before_anything_is_made(store, size):
    body = Pretraining(**{"source": 30, "rows": 900, "batch": 100, **size})
    with pytest.raises(ValueError, match=r"needs about [\d,]+ GiB to train, and there are"):
        learning.pretrain(body)


def test_what_fits_is_not(store):
    """The paper's network on the paper's rows: 1.4 GB of weights, moments and gradients, and as much of a batch."""
    assert 2e9 < learning._bytes(Pretraining(layers=12, heads=12, hidden=768, width=100, rows=60, batch=64)) < 4e9

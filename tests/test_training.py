"""The loop: it descends, resumes to the same bits (after SIGKILL too), and refuses what cannot work."""

import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rules2ranks import models, stages, training


def line() -> tuple[nn.Module, callable, callable]:
    """A linear regression with dropout, so that the random state matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1))

    def batch(step: int):
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
        return x, x.sum(1, keepdim=True)

    return model, batch, lambda m, b: nn.functional.mse_loss(m(b[0]), b[1])


def state(model: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()


def test_it_is_adamw_with_clipping_and_a_schedule():
    model, batch, loss = line()
    model[1].p = 0.0  # the oracle below has no dropout
    oracle, *_ = line()
    oracle[1].p = 0.0
    training.train(model, batch, loss, steps=7, lr=1e-2, rate=training.cosine(7, 0.3), clip=0.5)

    optimiser = torch.optim.AdamW(oracle.parameters(), lr=1e-2, weight_decay=0.0)
    # Two steps up to the peak, five down: written out.
    shares = [0.5, 1, *(0.5 + 0.5 * math.cos(math.pi * k / 5) for k in range(5))]
    for step, share in enumerate(shares):
        optimiser.param_groups[0]["lr"] = 1e-2 * share
        optimiser.zero_grad()
        loss(oracle, batch(step)).backward()
        nn.utils.clip_grad_norm_(oracle.parameters(), 0.5)
        optimiser.step()
    # The fused optimiser rounds in another order: a few units in the last place over seven steps.
    np.testing.assert_allclose(state(model), state(oracle), rtol=1e-5, atol=1e-7)


def test_the_schedule_rises_and_falls():
    rates = [training.cosine(100)(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[55] == pytest.approx(0.5)  # half way down
    assert 0 < rates[-1] < 1e-3
    assert training.cosine(100, 0.0)(0) == 1
    assert {training.constant(step) for step in range(100)} == {1.0}
    assert training.cosine(1)(0) == 1  # one step has no time to warm up


@given(first=st.integers(1, 60), rounds=st.integers(1, 5), warmup=st.sampled_from([0.0, 0.1, 0.5]))
def test_each_round_is_a_cosine_of_its_own_length(first, rounds, warmup):
    rate, ends = training.restarts(first, rounds, warmup)
    lengths = [first * 2**k for k in range(rounds)]
    assert ends == list(np.cumsum(lengths))
    expected = [training.cosine(length, warmup)(step) for length in lengths for step in range(length)]
    assert [rate(step) for step in range(ends[-1])] == expected


def test_rounds_without_warm_up_are_sgdr_as_torch_has_it():
    rate, ends = training.restarts(7, 4, warmup=0.0)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimiser, T_0=7, T_mult=2)
    expected = []
    for _ in range(ends[-1]):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert [rate(step) for step in range(ends[-1])] == pytest.approx(expected, abs=1e-12)


def test_without_a_rate_it_is_one_cosine_over_all_steps():
    (one, batch, loss), (other, *_) = line(), line()
    training.train(one, batch, loss, steps=20, lr=1e-2)
    training.train(other, batch, loss, steps=20, lr=1e-2, rate=training.cosine(20, 0.1))
    assert np.array_equal(state(one), state(other))


def test_it_stops_after_the_evaluation_that_says_so():
    model, batch, loss = line()
    asked = []
    history = training.train(
        model,
        lambda step: asked.append(step) or batch(step),
        loss,
        steps=50,
        lr=1e-2,
        log_every=4,
        evaluate=lambda m: {"training": m.training, "gradients": torch.is_grad_enabled()},
        evaluate_every=5,
        until=lambda entry: entry["step"] >= 13,
    )
    assert history.steps == 15
    assert asked == list(range(15))
    quiet = {"training": False, "gradients": False}
    assert history.evaluations == [{"step": step, **quiet} for step in (5, 10, 15)]
    assert [step for step, _ in history.loss] == [4, 8, 12]
    assert not model.training
    # The planned steps decide the rate, wherever it ends.
    short, *_ = line()
    training.train(short, batch, loss, steps=50, stop=15, lr=1e-2)
    assert np.array_equal(state(short), state(model))


def test_a_loss_entry_is_the_mean_since_the_last_one():
    every, batch, loss = line()
    few, *_ = line()
    single = training.train(every, batch, loss, steps=10, lr=1e-2, log_every=1).loss
    means = training.train(few, batch, loss, steps=10, lr=1e-2, log_every=4).loss
    values = [value for _, value in single]
    assert [step for step, _ in single] == list(range(1, 11))
    expected = [(4, np.mean(values[:4])), (8, np.mean(values[4:8])), (10, np.mean(values[8:]))]
    assert means == expected


def test_half_precision_moves_the_weights_a_little():
    def trained(bf16: bool) -> tuple[np.ndarray, list]:
        model = models.RowGPT(6, 6, layers=2, heads=2, hidden=16, rows=10, seed=0)
        before = state(model)
        history = training.train(model, rows_of_ones_and_zeros(0), error, steps=20, lr=1e-2, bf16=bf16, log_every=1)
        return state(model) - before, [value for _, value in history.loss]

    (whole, losses), (half, rough) = trained(False), trained(True)
    assert half.dtype == np.float32  # computed with in half, kept whole
    assert not np.array_equal(whole, half)
    # bfloat16 keeps 8 bits: each step is off by about a per cent, Adam makes the same of all sizes of gradient, so that
    # where the gradient is nearly zero its sign is a guess. The path as a whole stays.
    np.testing.assert_allclose(rough, losses, rtol=0.02)
    assert np.linalg.norm(whole - half) < 0.5 * np.linalg.norm(whole)


def rows_of_ones_and_zeros(seed: int):
    """Data of which each seed has its own: half a sequence, then the same again."""

    def batch(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 * seed + step)
        half = torch.randint(2, (8, 5, 6), generator=generator).float()
        return torch.cat([half, half[:, :5], half[:, :1]], dim=1)

    return batch


def error(model: nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the next row, one number for each model."""
    made = nn.functional.binary_cross_entropy_with_logits(
        model(windows[..., :-1, :]), windows[..., 1:, :], reduction="none"
    )
    return made.mean((-3, -2, -1))


@pytest.mark.parametrize("clip", [0.0, 0.05, 1.0])
def test_models_trained_together_are_as_trained_alone(clip):
    """Three seeds, each on data of its own, with a gradient that is clipped at every step, at some, and never."""

    def fresh() -> list[models.RowGPT]:
        return [models.RowGPT(6, 6, layers=2, heads=2, hidden=16, rows=10, seed=seed) for seed in range(3)]

    # One model learns from rows scaled up: its gradient is much larger, so one norm for all would hurt the others.
    streams = [rows_of_ones_and_zeros(seed) for seed in range(3)]
    scale = [1.0, 1.0, 30.0]
    settings = {"steps": 25, "lr": 3e-3, "clip": clip, "log_every": 5, "evaluate_every": 10}

    def batches(place: int, step: int) -> torch.Tensor:
        return torch.cat([streams[place](step)[:, :-1] * scale[place], streams[place](step)[:, -1:]], dim=1)

    def measured(m):
        return {"error": error(m, fixed if isinstance(m, training.Together) else fixed[place]).tolist()}

    fixed = torch.stack([stream(10_000) for stream in streams])
    together = training.Together(fresh())
    started = [together.member(place) for place in range(3)]
    for place, model in enumerate(fresh()):
        assert all(torch.equal(value, started[place][name]) for name, value in model.state_dict().items())
    started = [torch.cat([v.flatten() for v in one.values()]).clone() for one in started]
    both = training.train(
        together,
        lambda step: torch.stack([batches(place, step) for place in range(3)]),
        error,
        evaluate=measured,
        **settings,
    )
    norms = []

    def noted(m, windows):
        (value := error(m, windows)).backward(retain_graph=True)
        norms.append(nn.utils.get_total_norm([p.grad for p in m.parameters()]).item())
        return value

    for place, alone in enumerate(fresh()):
        expected = training.train(
            alone, lambda step, place=place: batches(place, step), noted, evaluate=measured, **settings
        )
        own = both.member(place, 25)
        assert own.steps == 25
        assert [step for step, _ in own.loss] == [step for step, _ in expected.loss] == [5, 10, 15, 20, 25]
        assert [entry["step"] for entry in own.evaluations] == [10, 20, 25]
        # The same sums of single precision in another order, over 25 steps.
        np.testing.assert_allclose([v for _, v in own.loss], [v for _, v in expected.loss], rtol=1e-4)
        np.testing.assert_allclose(
            [e["error"] for e in own.evaluations], [e["error"] for e in expected.evaluations], rtol=1e-4
        )
        back = models.RowGPT(6, 6, layers=2, heads=2, hidden=16, rows=10, seed=9)
        back.load_state_dict(together.member(place))
        moved = np.linalg.norm(state(alone) - started[place].numpy())
        # A rounding error in a gradient near zero can turn the sign of Adam's step, for few weights and few steps: all
        # weights together are a thousandth of the way off at most.
        assert np.linalg.norm(state(back) - state(alone)) < 1e-3 * moved
    bites = np.mean(np.array(norms) > clip) if clip else 0.0
    assert {0.0: bites == 0, 0.05: bites == 1, 1.0: 0 < bites < 1}[clip]


def test_a_member_of_a_history_ends_where_it_ended():
    history = training.History(
        30,
        [(10, [3.0, 4.0]), (20, [2.0, 3.5]), (30, [1.0, 3.2])],
        [{"step": 15, "right": [0.5, None]}, {"step": 30, "right": [1.0, None]}],
    )
    assert history.member(1, 20) == training.History(20, [(10, 4.0), (20, 3.5)], [{"step": 15, "right": None}])
    assert history.member(0, 30).evaluations[-1] == {"step": 30, "right": 1.0}


@pytest.mark.parametrize("stopped", [None, 60])
def test_interrupted_and_resumed_to_the_same_bits(tmp_path, stopped):
    """In rounds, and with an evaluation that may end the training: neither minds where it was interrupted."""
    rate, ends = training.restarts(20, 3)
    whole, batch, loss = line()
    settings = {
        **{"steps": ends[-1], "rate": rate, "lr": 1e-2, "evaluate_every": 20},
        **{"evaluate": lambda m: {"w": float(state(m).sum())}},
        **{"until": (lambda entry: entry["step"] >= stopped) if stopped else None},
    }
    expected = training.train(whole, batch, loss, **settings)
    assert expected.steps == (stopped or 140)

    class Interrupted(Exception):
        pass

    def falters(step: int):
        if step == 51:
            raise Interrupted
        return batch(step)

    broken, *_ = line()
    with pytest.raises(Interrupted):
        training.train(broken, falters, loss, checkpoint=tmp_path / "c.safetensors", checkpoint_seconds=0, **settings)
    resumed, *_ = line()
    asked = []
    history = training.train(
        resumed,
        lambda step: asked.append(step) or batch(step),
        loss,
        checkpoint=tmp_path / "c.safetensors",
        **settings,
    )
    assert asked[0] > 40
    assert np.array_equal(state(resumed), state(whole))
    assert [tuple(x) for x in history.loss] == expected.loss
    assert history.evaluations == expected.evaluations
    assert history.steps == expected.steps


def test_models_together_resume_to_the_same_bits(tmp_path):
    def fresh() -> training.Together:
        return training.Together([models.RowGPT(6, 6, layers=1, heads=2, hidden=16, rows=10, seed=s) for s in (0, 1)])

    def batch(step: int) -> torch.Tensor:
        return torch.stack([rows_of_ones_and_zeros(seed)(step) for seed in (0, 1)])

    def falters(step: int):
        if step == 9:
            raise InterruptedError
        return batch(step)

    settings = {"steps": 12, "lr": 1e-2, "log_every": 3}
    whole, broken, resumed = fresh(), fresh(), fresh()
    expected = training.train(whole, batch, error, **settings)
    place = tmp_path / "c.safetensors"
    with pytest.raises(InterruptedError):
        training.train(broken, falters, error, checkpoint=place, checkpoint_seconds=0, **settings)
    history = training.train(resumed, batch, error, checkpoint=place, **settings)
    assert np.array_equal(state(resumed), state(whole))
    assert history.member(1, 12).loss == expected.member(1, 12).loss


@pytest.mark.slow
def test_killed_in_the_middle_and_the_same_result_after_resuming(tmp_path, monkeypatch):
    """The shipped stage, killed with SIGKILL once it has a checkpoint, then called again."""
    asked = {"source": 30, "width": 12, "rows": 16, "hidden": 32, "steps": 200, "rounds": 2}
    code = (
        "from rules2ranks import stages, training; import functools;"
        "training.train = functools.partial(training.train, checkpoint_seconds=0.2);"
        f"stages.pretrain(**{asked})"
    )
    env = os.environ | {"RULES2RANKS_RUNS": str(tmp_path / "killed"), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen([sys.executable, "-c", code], env=env)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").rglob("checkpoint.safetensors")):
        assert killed.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint within two minutes"
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not list((tmp_path / "killed").rglob("metrics.json"))

    monkeypatch.setenv("TQDM_DISABLE", "1")
    found = {}
    for store in ("killed", "whole"):
        monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path / store))
        found[store] = stages.pretrain(**asked)
    assert (found["killed"].provenance["resumed"], found["whole"].provenance["resumed"]) == (True, False)
    assert found["killed"].metrics == found["whole"].metrics
    # The same checksums: the same weights to the bit, and no other file.
    assert found["killed"].provenance["sha256"] == found["whole"].provenance["sha256"]


def test_only_what_requires_a_gradient_is_trained():
    model, batch, loss = line()
    model[0].requires_grad_(False)
    before = state(model[0])
    training.train(model, batch, loss, steps=5, lr=1e-1)
    assert np.array_equal(before, state(model[0]))
    assert not model.training


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stop": 11}, "between 1 and the 10 steps"),
        ({"stop": 0}, "between 1 and the 10 steps"),
    ],
)
def test_impossible_settings_are_refused(change, said):
    model, batch, loss = line()
    with pytest.raises(ValueError, match=said):
        training.train(model, batch, loss, **{"steps": 10, "lr": 1e-2, **change})


def test_nothing_to_train_and_a_loss_that_is_not_finite():
    model, batch, loss = line()
    with pytest.raises(FloatingPointError, match="at step 0"):
        training.train(model, batch, lambda m, b: loss(m, b) * float("inf"), steps=3, lr=1e-2)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        training.train(model, batch, loss, steps=3, lr=1e-2)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    model, batch, loss = line()
    place = tmp_path / "c.safetensors"
    training.train(model, batch, loss, steps=20, lr=1e-2, checkpoint=place, checkpoint_seconds=0)
    with pytest.raises(ValueError, match="another training"):
        training.train(model, batch, loss, steps=30, lr=1e-2, checkpoint=place)
    # The same names, of other shapes: 9 hidden units for 8, and an input more.
    for wrong in (
        nn.Sequential(nn.Linear(3, 9), nn.Dropout(0.2), nn.Linear(9, 1)),
        nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1)),
    ):
        before = state(wrong).copy()
        with pytest.raises(ValueError, match=r"c\.safetensors is a checkpoint of another training: remove it"):
            training.train(wrong, batch, loss, steps=20, lr=1e-2, checkpoint=place)
        assert np.array_equal(state(wrong), before)
    fewer = nn.Sequential(nn.Linear(3, 8, bias=False), nn.Dropout(0.2), nn.Linear(8, 1))
    with pytest.raises(ValueError, match="another training"):
        training.train(fewer, batch, loss, steps=20, lr=1e-2, checkpoint=place)


def test_reproducible_leaves_threads_and_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    with training.reproducible(1):
        torch.rand(10)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(3), expected)

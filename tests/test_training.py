"""The loop: it descends, resumes to the same bits (after SIGKILL too), and refuses what cannot work."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from torch import nn

from rules2ranks import models, runs, stages, training
from rules2ranks.training import Schedule, Watch


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


def test_it_is_adamw_with_clipping_and_a_schedule(monkeypatch):
    monkeypatch.setattr(training, "CLIP", 0.5)
    model, batch, loss = line()
    model[1].p = 0.0  # the oracle below has no dropout
    oracle, *_ = line()
    oracle[1].p = 0.0
    training.train(model, batch, loss, Schedule(7, 1e-2, rate=training.cosine(7, 0.3)))

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
    training.train(one, batch, loss, Schedule(20, 1e-2))
    training.train(other, batch, loss, Schedule(20, 1e-2, rate=training.cosine(20, 0.1)))
    assert np.array_equal(state(one), state(other))


def test_it_stops_after_the_evaluation_that_says_so():
    model, batch, loss = line()
    asked = []
    history = training.train(
        model,
        lambda step: asked.append(step) or batch(step),
        loss,
        Schedule(50, 1e-2),
        watch=Watch(
            evaluate=lambda m: {"training": m.training, "gradients": torch.is_grad_enabled()},
            every=5,
            until=lambda entry: entry["step"] >= 13,
            log_every=4,
        ),
    )
    assert history.steps == 15
    assert asked == list(range(15))
    quiet = {"training": False, "gradients": False}
    assert history.evaluations == [{"step": step, **quiet} for step in (5, 10, 15)]
    assert [step for step, _ in history.loss] == [4, 8, 12]
    assert not model.training
    # The planned steps decide the rate, wherever it ends.
    short, *_ = line()
    training.train(short, batch, loss, Schedule(50, 1e-2, stop=15))
    assert np.array_equal(state(short), state(model))


def test_a_loss_entry_is_the_mean_since_the_last_one():
    every, batch, loss = line()
    few, *_ = line()
    single = training.train(every, batch, loss, Schedule(10, 1e-2), watch=Watch(log_every=1)).loss
    means = training.train(few, batch, loss, Schedule(10, 1e-2), watch=Watch(log_every=4)).loss
    values = [value for _, value in single]
    assert [step for step, _ in single] == list(range(1, 11))
    expected = [(4, np.mean(values[:4])), (8, np.mean(values[4:8])), (10, np.mean(values[8:]))]
    assert means == expected


def test_half_precision_moves_the_weights_a_little():
    def trained(bf16: bool) -> tuple[np.ndarray, list]:
        model = models.RowGPT(6, 6, layers=2, heads=2, hidden=16, rows=10, seed=0)
        before = state(model)
        schedule, watch = Schedule(20, 1e-2, bf16=bf16), Watch(log_every=1)
        history = training.train(model, rows_of_ones_and_zeros(0), error, schedule, watch=watch)
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


@pytest.mark.parametrize("clip", [0.05, 1.0, 100.0])
def test_models_trained_together_are_as_trained_alone(clip, monkeypatch):
    """Three seeds, each on data of its own, with a gradient that is clipped at every step, at some, and never."""
    monkeypatch.setattr(training, "CLIP", clip)

    def fresh() -> list[models.RowGPT]:
        return [models.RowGPT(6, 6, layers=2, heads=2, hidden=16, rows=10, seed=seed) for seed in range(3)]

    # One model learns from rows scaled up: its gradient is much larger, so one norm for all would hurt the others.
    streams = [rows_of_ones_and_zeros(seed) for seed in range(3)]
    scale = [1.0, 1.0, 30.0]
    schedule = Schedule(25, 3e-3)

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
        schedule,
        watch=Watch(measured, every=10, log_every=5),
    )
    norms = []

    def noted(m, windows):
        (value := error(m, windows)).backward(retain_graph=True)
        norms.append(nn.utils.get_total_norm([p.grad for p in m.parameters()]).item())
        return value

    for place, alone in enumerate(fresh()):
        expected = training.train(
            alone,
            lambda step, place=place: batches(place, step),
            noted,
            schedule,
            watch=Watch(measured, every=10, log_every=5),
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
    bites = np.mean(np.array(norms) > clip)
    assert {0.05: bites == 1, 1.0: 0 < bites < 1, 100.0: bites == 0}[clip]


def test_a_member_of_a_history_ends_where_it_ended():
    history = training.History(
        30,
        [(10, [3.0, 4.0]), (20, [2.0, 3.5]), (30, [1.0, 3.2])],
        [{"step": 15, "right": [0.5, None]}, {"step": 30, "right": [1.0, None]}],
    )
    assert history.member(1, 20) == training.History(20, [(10, 4.0), (20, 3.5)], [{"step": 15, "right": None}])
    assert history.member(0, 30).evaluations[-1] == {"step": 30, "right": 1.0}


def interrupted_at(step: int, batch):
    """The batches of a training that is interrupted when it asks for one."""

    def faltering(asked: int):
        if asked == step:
            raise InterruptedError
        return batch(asked)

    return faltering


def all_bits(model: nn.Module, checkpoint) -> dict[str, bytes]:
    """Weights and the optimiser's state, as the bytes that they are."""
    kept = {name: value.tobytes() for name, value in load_file(checkpoint).items()}
    return kept | {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("ended", [None, 60])
def test_interrupted_and_resumed_to_the_same_bits(tmp_path, monkeypatch, ended):
    """In rounds, with means of losses under way, and with an evaluation that may end the training."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    rate, ends = training.restarts(20, 3)
    whole, batch, loss = line()
    schedule = Schedule(ends[-1], 1e-2, rate=rate)
    watch = Watch(
        evaluate=lambda m: {"w": float(state(m).sum())},
        every=20,
        until=(lambda entry: entry["step"] >= ended) if ended else None,
        log_every=7,
    )
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    expected = training.train(whole, batch, loss, schedule, watch=watch, checkpoint=first)
    assert expected.steps == (ended or 140)

    broken, *_ = line()
    with pytest.raises(InterruptedError):
        training.train(broken, interrupted_at(51, batch), loss, schedule, watch=watch, checkpoint=second)
    resumed, *_ = line()
    asked = []
    again = training.train(
        resumed, lambda step: asked.append(step) or batch(step), loss, schedule, watch=watch, checkpoint=second
    )
    assert asked[0] == 51
    assert all_bits(resumed, second) == all_bits(whole, first)
    assert again == expected
    # What is finished is found finished, whether its steps were over or an evaluation ended it.
    found, *_ = line()
    assert training.train(found, interrupted_at(0, batch), loss, schedule, watch=watch, checkpoint=second) == expected
    assert np.array_equal(state(found), state(whole))


@settings(max_examples=20)  # each trains up to six times
@given(
    stops=st.lists(st.integers(1, 7), min_size=1, max_size=3).map(sorted),
    log_every=st.integers(1, 9),
    every=st.none() | st.integers(1, 9),
    ended=st.none() | st.integers(1, 8),
)
def test_a_stop_is_a_place_on_one_schedule(stops, log_every, every, ended):
    """Stopped and gone on, as often as one likes, is never stopped: weights, optimiser and history, bit for bit."""
    asked = Watch(
        evaluate=lambda m: {"w": float(state(m).sum())},
        every=every,
        until=(lambda entry: entry["step"] >= ended) if ended else None,
        log_every=log_every,
    )

    def run(stop: int | None, checkpoint) -> tuple[nn.Module, training.History]:
        model, batch, loss = line()
        schedule = Schedule(8, 1e-2, stop=stop)
        return model, training.train(model, batch, loss, schedule, watch=asked, checkpoint=checkpoint)

    with TemporaryDirectory() as folder:
        parts, at_once = Path(folder) / "parts.safetensors", Path(folder) / "whole.safetensors"
        for stop in stops:
            model, history = run(stop, parts)
            # As a reader sees it, a stop is an end like any other.
            alone, seen = run(stop, None)
            assert (history, state(model).tobytes()) == (seen, state(alone).tobytes())
        (last, history), (whole, expected) = run(None, parts), run(None, at_once)
        assert history == expected
        assert all_bits(last, parts) == all_bits(whole, at_once)


def test_a_checkpoint_from_beyond_the_stop_is_refused(tmp_path):
    model, batch, loss = line()
    place = tmp_path / "c.safetensors"
    training.train(model, batch, loss, Schedule(10, 1e-2, stop=6), checkpoint=place)
    before = state(model).copy()
    with pytest.raises(ValueError, match=r"c\.safetensors holds 6 steps, more than those up to the stop at 5"):
        training.train(model, batch, loss, Schedule(10, 1e-2, stop=5), checkpoint=place)
    assert np.array_equal(state(model), before)


def test_models_together_resume_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)

    def fresh() -> training.Together:
        return training.Together([models.RowGPT(6, 6, layers=1, heads=2, hidden=16, rows=10, seed=s) for s in (0, 1)])

    def batch(step: int) -> torch.Tensor:
        return torch.stack([rows_of_ones_and_zeros(seed)(step) for seed in (0, 1)])

    schedule, watch, place = Schedule(12, 1e-2), Watch(log_every=3), tmp_path / "c.safetensors"
    whole, broken, resumed = fresh(), fresh(), fresh()
    expected = training.train(whole, batch, error, schedule, watch=watch)
    with pytest.raises(InterruptedError):
        training.train(broken, interrupted_at(8, batch), error, schedule, watch=watch, checkpoint=place)
    history = training.train(resumed, batch, error, schedule, watch=watch, checkpoint=place)
    assert np.array_equal(state(resumed), state(whole))
    assert history == expected


@pytest.mark.slow
def test_killed_in_the_middle_and_the_same_result_after_resuming(tmp_path, monkeypatch):
    """The shipped stage, killed with SIGKILL once it has a checkpoint, then called again."""
    asked = {"source": 30, "width": 12, "rows": 16, "hidden": 32, "steps": 200, "rounds": 2}
    code = f"from rules2ranks import stages, training; training.CHECKPOINT_SECONDS = 0.2;stages.pretrain(**{asked})"
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
    training.train(model, batch, loss, Schedule(5, 1e-1))
    assert np.array_equal(before, state(model[0]))
    assert not model.training


def test_nothing_to_train_and_a_loss_that_is_not_finite():
    model, batch, loss = line()
    with pytest.raises(FloatingPointError, match="at step 0"):
        training.train(model, batch, lambda m, b: loss(m, b) * float("inf"), Schedule(3, 1e-2))
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        training.train(model, batch, loss, Schedule(3, 1e-2))


@pytest.mark.fault("damage to a checkpoint")
def test_a_checkpoint_that_was_damaged_is_put_aside_and_changes_nothing(tmp_path, capsys, record_property):
    """Bits flipped anywhere in the file, and the file torn at any place: the end is that of a training from scratch."""
    whole, batch, loss = line()
    expected = training.train(whole, batch, loss, Schedule(12, 1e-2))
    place = tmp_path / "c.safetensors"
    broken, *_ = line()
    training.train(broken, batch, loss, Schedule(12, 1e-2, stop=7), checkpoint=place)
    good = place.read_bytes()
    draw = np.random.Generator(np.random.Philox(0))
    flips = [(int(at), 1 << int(bit)) for at, bit in draw.integers(0, (len(good), 8), (60, 2))]
    flips += [(at, 1) for at in range(0, 60, 4)]  # the header
    record_property("attempts", len(flips) + 4)
    for at, bit in flips:
        place.write_bytes(good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :])
        again, *_ = line()
        assert training.train(again, batch, loss, Schedule(12, 1e-2), checkpoint=place) == expected, at
        assert np.array_equal(state(again), state(whole)), at
        said = capsys.readouterr().err
        assert f"{place} is damaged" in said and (tmp_path / ".c.safetensors.damaged").is_file()
    for length in (0, 5, 200, len(good) - 1):
        place.write_bytes(good[:length])
        again, *_ = line()
        training.train(again, batch, loss, Schedule(12, 1e-2), checkpoint=place)
        assert np.array_equal(state(again), state(whole))
    place.write_bytes(good)
    capsys.readouterr()
    again, *_ = line()
    training.train(again, batch, loss, Schedule(12, 1e-2), checkpoint=place)
    assert np.array_equal(state(again), state(whole)) and "damaged" not in capsys.readouterr().err


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    model, batch, loss = line()
    place = tmp_path / "c.safetensors"
    training.train(model, batch, loss, Schedule(20, 1e-2), checkpoint=place)
    with pytest.raises(ValueError, match="another training"):
        training.train(model, batch, loss, Schedule(30, 1e-2), checkpoint=place)
    # The same names, of other shapes: 9 hidden units for 8, and an input more.
    for wrong in (
        nn.Sequential(nn.Linear(3, 9), nn.Dropout(0.2), nn.Linear(9, 1)),
        nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1)),
    ):
        before = state(wrong).copy()
        with pytest.raises(ValueError, match=r"c\.safetensors is a checkpoint of another training: remove it"):
            training.train(wrong, batch, loss, Schedule(20, 1e-2), checkpoint=place)
        assert np.array_equal(state(wrong), before)
    fewer = nn.Sequential(nn.Linear(3, 8, bias=False), nn.Dropout(0.2), nn.Linear(8, 1))
    with pytest.raises(ValueError, match="another training"):
        training.train(fewer, batch, loss, Schedule(20, 1e-2), checkpoint=place)


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


def test_more_threads_are_asked_for_by_name_and_noted(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setenv("RULES2RANKS_THREADS", "2")
    with training.reproducible(1):
        assert torch.get_num_threads() == 2
        assert runs.where()["threads"] == 2
    assert torch.get_num_threads() == threads
    for wrong in ("0", "-1", "two", "1.5", ""):
        monkeypatch.setenv("RULES2RANKS_THREADS", wrong)
        with pytest.raises(ValueError, match="must be a number of threads from 1 up"), training.reproducible(1):
            pass

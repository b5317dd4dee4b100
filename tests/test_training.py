"""The loop: it descends, resumes to the same bits (after SIGKILL too), and refuses what cannot work."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rules2ranks import training


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
    training.train(model, batch, loss, steps=7, lr=1e-2, warmup=0.3, clip=0.5)

    optimiser = torch.optim.AdamW(oracle.parameters(), lr=1e-2, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: training.rate_at(s, 7, 0.3, "cosine"))
    for step in range(7):
        optimiser.zero_grad()
        loss(oracle, batch(step)).backward()
        nn.utils.clip_grad_norm_(oracle.parameters(), 0.5)
        optimiser.step()
        rates.step()
    # The fused optimiser rounds in another order: a few units in the last place over seven steps.
    np.testing.assert_allclose(state(model), state(oracle), rtol=1e-5, atol=1e-7)


def test_the_schedule_rises_and_falls():
    rates = [training.rate_at(step, 100, 0.1, "cosine") for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] < 1e-3
    assert {training.rate_at(step, 100, 0.0, "constant") for step in range(100)} == {1.0}


def test_interrupted_and_resumed_to_the_same_bits(tmp_path):
    whole, batch, loss = line()
    expected = training.train(whole, batch, loss, steps=60, lr=1e-2, evaluate=lambda m: {"w": float(state(m).sum())},
                              evaluate_every=20)  # fmt: skip

    class Interrupted(Exception):
        pass

    def falters(step: int):
        if step == 41:
            raise Interrupted
        return batch(step)

    settings = {"steps": 60, "lr": 1e-2, "evaluate_every": 20, "evaluate": lambda m: {"w": float(state(m).sum())}}
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
    assert asked[0] > 30
    assert np.array_equal(state(resumed), state(whole))
    assert [tuple(x) for x in history.loss] == expected.loss
    assert history.evaluations == expected.evaluations


@pytest.mark.slow
def test_killed_in_the_middle_and_the_same_metrics_after_resuming(tmp_path):
    """The shipped stage, killed with SIGKILL once it has a checkpoint, then called again."""
    code = (
        "from rules2ranks import stages, training; import functools;"
        "training.train = functools.partial(training.train, checkpoint_seconds=0.2);"
        "r = stages.pretrain(source=30, width=12, rows=16, hidden=32, steps=400);"
        "print(r.metrics['loss'], r.metrics['accuracy'], r.provenance['resumed'], r.provenance['sha256'])"
    )

    def start(store: Path) -> subprocess.Popen:
        env = os.environ | {"RULES2RANKS_RUNS": str(store), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)

    killed = start(tmp_path / "killed")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").rglob("checkpoint.safetensors")):
        assert killed.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint within two minutes"
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not list((tmp_path / "killed").rglob("metrics.json"))

    again, whole = start(tmp_path / "killed"), start(tmp_path / "whole")
    resumed, unbroken = (p.communicate(timeout=300)[0].split(maxsplit=3) for p in (again, whole))
    assert resumed[:2] == unbroken[:2]
    assert (resumed[2], unbroken[2]) == ("True", "False")
    assert resumed[3].split("model.safetensors")[1] == unbroken[3].split("model.safetensors")[1]


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
        ({"schedule": "linear"}, "'cosine' or 'constant'"),
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

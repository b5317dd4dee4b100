"""One AdamW over vectors is torch's over parameters."""

import pytest
import torch
from torch import nn

from rules2ranks import optimising


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].double()  # of another type
    model[2].weight = nn.Parameter(model[2].weight.detach().T.clone().T)  # lies otherwise in memory
    return model


def step(model: nn.Module, number: int) -> torch.Tensor:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(number))
    return 10 * model[2](model[1](model[0](x).double()).float()).square().mean()


def train(model: nn.Module, steps: range, moments: dict | None = None) -> dict[str, torch.Tensor]:
    """What is left of the moments after these steps, the memory released."""
    optimiser = optimising.AdamW(dict(model.named_parameters()), 1e-2, 0.1)
    if moments:
        optimiser.resume(moments, steps[0])
    for number in steps:
        optimiser.clear()
        step(model, number).backward()
        optimiser.gather()
        optimiser.clip(0.5)
        optimiser.step(1e-2 / (number + 1))
    found = {name: each.clone() for name, each in optimiser.moments().items()}
    optimiser.release()
    return found


def test_it_is_torchs():
    model, oracle = network(), network()
    moments = train(model, range(6))
    optimiser = torch.optim.AdamW(oracle.parameters(), lr=1e-2, weight_decay=0.1)
    for number in range(6):
        optimiser.param_groups[0]["lr"] = 1e-2 / (number + 1)
        optimiser.zero_grad()
        step(oracle, number).backward()
        assert nn.utils.clip_grad_norm_(oracle.parameters(), 0.5) > 0.5  # clipping is put to the test
        optimiser.step()
    for (name, p), other in zip(model.named_parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(p, other, rtol=1e-5, atol=1e-6)
        for part in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(moments[f"{part}/{name}"], optimiser.state[other][part], rtol=1e-4, atol=1e-7)


def test_it_goes_on_to_the_bit():
    whole, parts = network(), network()
    train(whole, range(6))
    train(parts, range(2, 6), train(parts, range(2)))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), parts.parameters(), strict=True))


def test_each_parameter_has_memory_of_its_own_afterwards():
    model = network()
    train(model, range(1))
    assert all(p.grad is None and p.untyped_storage().nbytes() == p.nbytes for p in model.parameters())


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_what_gets_no_gradient_only_decays(weight_decay):
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimiser = optimising.AdamW({"used": used, "unused": unused}, 0.5, weight_decay)
    for _ in range(2):
        optimiser.clear()
        used.sum().backward()
        optimiser.gather()
        assert used.grad.tolist() == [1, 1] and unused.grad.tolist() == [0, 0, 0]  # not those of the step before
        optimiser.step(0.5)
    assert unused.tolist() == pytest.approx([(1 - 0.5 * weight_decay) ** 2] * 3)
    assert (used < unused[0]).all()


def test_there_is_nothing_to_keep_before_the_first_step():
    assert optimising.AdamW({"a": nn.Parameter(torch.ones(1))}, 0.1, 0.0).moments() == {}

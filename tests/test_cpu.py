"""What the CPU computes faster is what torch computes: values and gradients, in float64 as the oracle."""

import pytest
import torch
import torch.nn.functional as F

from rules2ranks import cpu


@pytest.fixture(params=[1, cpu._WORTH], ids=["any size", "large products only"], autouse=True)
def worth(request, monkeypatch):
    """These products are small: as if any were worth it, and as shipped."""
    monkeypatch.setattr(cpu, "_WORTH", request.param)


def parameters(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def same_in_double(fast, exact, inputs: list[torch.Tensor]) -> None:
    """Values and gradients of a function in float32 against another in float64; float32 has seven digits."""
    double = [each.detach().double().requires_grad_(each.requires_grad) for each in inputs]
    out, expected = fast(*inputs), exact(*double)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    trained = [place for place, each in enumerate(inputs) if each.requires_grad]
    dy = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(out, [inputs[place] for place in trained], dy)
    right = torch.autograd.grad(expected, [double[place] for place in trained], dy.double())
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("frozen", [(), (0,), (1, 2)], ids=["all trained", "inputs given", "frozen"])
def test_affine(shape, frozen):
    inputs = parameters(shape, (5, 7), (7,))
    for place in frozen:
        inputs[place].requires_grad_(False)
    same_in_double(cpu.affine, lambda x, w, b: x @ w + b, inputs)


def test_affine_of_what_lies_otherwise_in_memory():
    x, w, b = parameters((4, 3, 5), (7, 5), (7,))
    same_in_double(
        lambda x, w, b: cpu.affine(x.transpose(0, 1), w.T, b), lambda x, w, b: x.transpose(0, 1) @ w.T + b, [x, w, b]
    )


def test_gelu():
    x = torch.linspace(-30, 30, 601).requires_grad_()
    same_in_double(cpu.gelu, lambda x: F.gelu(x, approximate="tanh"), [x])
    far = torch.tensor([-1e30, 1e30, float("nan")])
    assert cpu.gelu(far)[:2].tolist() == F.gelu(far, approximate="tanh")[:2].tolist()
    assert cpu.gelu(far)[2].isnan()
    with torch.no_grad():  # by a shorter way
        torch.testing.assert_close(cpu.gelu(x), F.gelu(x, approximate="tanh"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("asked", [("mixed",), ("weights",), ("mixed", "weights")], ids="+".join)
def test_attention(asked):
    """Against the definition, head by head."""
    (qkv,) = parameters((2, 5, 3 * 3 * 4))
    added = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).tril() == 0, -torch.inf)

    def given(mixed, weights):
        return torch.cat([{"mixed": mixed, "weights": weights}[name].flatten() for name in asked])

    def defined(qkv):
        mixed, weights = [], []
        for head in range(3):
            q, k, v = (qkv[..., 12 * part + 4 * head :][..., :4] for part in range(3))
            weights.append((q @ k.transpose(1, 2) / 2 + added.double()).softmax(-1))
            mixed.append(weights[-1] @ v)
        return given(torch.cat(mixed, -1), torch.stack(weights, 1))

    same_in_double(lambda qkv: given(*cpu.attention(qkv, added, 4)), defined, [qkv])


def test_many_side_by_side():
    x, w, b = parameters((3, 4, 5), (3, 5, 7), (3, 7))
    together = torch.vmap(lambda x, w, b: cpu.gelu(cpu.affine(x, w, b)))(x, w, b)
    alone = torch.stack([cpu.gelu(cpu.affine(*each)) for each in zip(x, w, b, strict=True)])
    torch.testing.assert_close(together, alone)
    found, right = (torch.autograd.grad(y.sum(), (x, w, b)) for y in (together, alone))
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize(
    "x",
    [torch.ones(2, 0), torch.ones(0, 3), torch.ones(2, 3, dtype=torch.float64)],
    ids=["no inputs", "no rows", "double"],
)
def test_where_it_does_not_help_torch_does(x):
    w, b = torch.ones(x.shape[-1], 2, dtype=x.dtype), torch.ones(2, dtype=x.dtype)
    torch.testing.assert_close(cpu.affine(x, w, b), x @ w + b)
    torch.testing.assert_close(cpu.gelu(x), F.gelu(x, approximate="tanh"))


def test_autocast_is_as_without():
    x, w, b = parameters((4, 5), (5, 7), (7,))
    with torch.autocast("cpu", torch.bfloat16):
        assert cpu.affine(x, w, b).dtype == torch.bfloat16

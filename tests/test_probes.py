"""Probes by their definitions: attention, likeness of features, and what a loss curve says was learnt."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rules2ranks import models, probes

SHAPE = {"layers": 3, "heads": 2, "hidden": 16, "rows": 24, "seed": 0}


def drawn(mask: str = "causal") -> models.RowGPT:
    """A model whose attention is far from even: weights ten times as large as an untrained one's."""
    model = models.RowGPT(5, 5, **SHAPE, mask=mask)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.body.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.eval()


# --- attention --------------------------------------------------------------------------------------------------


def test_attention_is_shared_out_and_never_to_the_future():
    model, rows = drawn(), torch.rand(7, 20, 5, generator=torch.Generator().manual_seed(0))
    weights = probes.attention(model, rows)
    assert weights.shape == (3, 2, 20, 20)
    assert not weights.requires_grad
    # A softmax in single precision over at most twenty entries, then a mean.
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert (weights.triu(1) == 0).all()
    assert (weights.tril() >= 0).all()
    assert weights[..., -1, :].max() > 0.1  # far from even, or the test says nothing
    published = probes.attention(drawn("published"), rows)
    np.testing.assert_allclose(published.sum(-1), 1, atol=1e-6)
    assert (published.triu(1) > 0).any()
    assert not any(module._forward_hooks for module in model.modules())


def test_attention_is_the_softmax_of_queries_and_keys():
    model, rows = drawn(), torch.rand(4, 9, 5, generator=torch.Generator().manual_seed(0))
    block = model.body.h[0]
    with torch.no_grad():
        x = block.ln_1(model.input(rows) + model.body.wpe.weight[:9]).double()
        made = x @ block.attn.c_attn.weight.double() + block.attn.c_attn.bias.double()
    expected = torch.zeros(2, 9, 9, dtype=torch.float64)
    for n in range(4):
        for head in range(2):
            query, key = made[n, :, 8 * head : 8 * head + 8], made[n, :, 16 + 8 * head : 24 + 8 * head]
            for t in range(9):
                scores = torch.stack([query[t] @ key[s] / math.sqrt(8) for s in range(t + 1)])
                expected[head, t, : t + 1] += scores.softmax(0) / 4
    np.testing.assert_allclose(probes.attention(model, rows)[0], expected, atol=1e-5)  # single precision


def test_a_model_without_such_blocks_is_refused():
    with pytest.raises(ValueError, match=r"a Linear has no attention of rules2ranks\.gpt2 to look at"):
        probes.attention(nn.Linear(3, 3), torch.rand(1, 2, 3))


def test_hooks_are_gone_after_a_failure():
    model = drawn()
    with pytest.raises(ValueError, match="25 rows are more than the 24 positions"):
        probes.attention(model, torch.rand(1, 25, 5))
    assert not any(module._forward_hooks for module in model.modules())


def test_attention_to_the_last_rows_of_weights_made_by_hand():
    weights = torch.zeros(1, 3, 6, 6)
    weights[0, 0] = torch.eye(6)  # each position looks at itself
    weights[0, 1, :, 0] = 1  # all look at the first
    for t in range(1, 6):
        weights[0, 2, t, t - 1], weights[0, 2, t, t] = 0.75, 0.25  # three quarters to the row before
    weights[0, 2, 0, 0] = 1
    # Of the last two rows: all, nothing, all; positions 3, 4 and 5 see four rows and more.
    assert probes.attention_to_last(weights, 2).tolist() == [[1, 0, 1]]
    assert probes.attention_to_last(weights, 1).tolist() == [[1, 0, 0.25]]
    # Position 3 is the only one that sees four rows of a sequence of four.
    weights[0, 0, 3] = torch.tensor([0.5, 0.25, 0.125, 0.125, 0, 0])
    assert probes.attention_to_last(weights[..., :4, :4], 2)[0, 0] == 0.25
    for last in (4, 0, -1):
        with pytest.raises(ValueError, match=f"no position of 6 sees {2 * last} rows, twice the last {last}"):
            probes.attention_to_last(weights, last)


@given(last=st.integers(1, 12), more=st.integers(0, 40))
def test_even_attention_gives_what_is_said_of_it(last, more):
    length = 2 * last + more
    even = torch.ones(length, length, dtype=torch.float64).tril()
    even = (even / even.sum(-1, keepdim=True)).expand(2, 3, -1, -1)
    by_hand = np.mean([last / seen for seen in range(2 * last, length + 1)])
    assert probes.attention_spread_evenly(length, last) == pytest.approx(by_hand, rel=1e-12)
    np.testing.assert_allclose(probes.attention_to_last(even, last), by_hand, rtol=1e-12)


def test_a_network_whose_queries_are_nothing_looks_evenly():
    model = drawn()
    with torch.no_grad():
        for block in model.body.h:
            block.attn.c_attn.weight[:, :16] = 0
            block.attn.c_attn.bias[:16] = 0
    found = probes.attention_to_last(probes.attention(model, torch.rand(2, 24, 5)), 10)
    np.testing.assert_allclose(found, probes.attention_spread_evenly(24, 10), atol=1e-6)  # single precision


def test_activations_are_what_the_output_layer_is_given():
    model, rows = drawn(), torch.rand(3, 20, 5)
    seen = probes.activations(model, rows)
    assert seen.shape == (3, 20, 16)
    with torch.no_grad():
        assert torch.equal(model.output(seen), model(rows))


# --- likeness ---------------------------------------------------------------------------------------------------


def by_gram(a: np.ndarray, b: np.ndarray) -> float:
    """CKA by its definition: HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) of the Gram matrices K = a aᵀ and L = b bᵀ."""
    n = len(a)
    centring = np.eye(n) - 1 / n

    def hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
        return np.trace(k @ centring @ l @ centring) / (n - 1) ** 2

    k, l = a @ a.T, b @ b.T  # noqa: E741
    return hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l))


def features(seed: int, n: int, p: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, p))


sizes = st.integers(1, 6)


@given(seed=st.integers(0, 10_000), n=st.integers(3, 20), p=sizes, q=sizes)
def test_likeness_is_its_definition_with_gram_matrices(seed, n, p, q):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(3, 2, (n, p)), rng.normal(size=(n, q))
    b[:, 0] += a[:, 0]
    # Double precision; centring features of mean 3 loses one digit or two.
    assert probes.cka(a, b) == pytest.approx(by_gram(a, b), rel=1e-9)
    assert probes.cka(b, a) == pytest.approx(probes.cka(a, b), rel=1e-12)
    assert 0 <= probes.cka(a, b) <= 1 + 1e-12


@given(
    seed=st.integers(0, 10_000),
    p=sizes,
    scale=st.floats(1e-3, 1e3),
    sign=st.sampled_from([-1, 1]),
    shift=st.floats(-100, 100),
)
def test_features_turned_scaled_and_shifted_are_wholly_alike(seed, p, scale, sign, shift):
    a, other = features(seed, 12, p), features(seed + 1, 12, 3)
    turn, _ = np.linalg.qr(features(seed + 2, p, p))
    moved = sign * scale * a @ turn + shift
    # A shift of 100 over a scale of 1e-3 leaves some eleven of sixteen digits; the likeness squares what is left.
    assert probes.cka(a, moved) == pytest.approx(1, abs=1e-8)
    assert probes.cka(moved, other) == pytest.approx(probes.cka(a, other), abs=1e-8)


def test_stretching_one_direction_does_matter():
    a = features(0, 200, 2)
    assert probes.cka(a, a * [1, 10]) < 0.9


def test_independent_features_are_hardly_alike():
    # Expected about √(p q) / n for n examples: 8 / 4000, here with room for the draw.
    assert probes.cka(features(0, 4000, 8), features(1, 4000, 8)) < 0.005
    assert probes.cka(features(0, 8, 8), features(1, 8, 8)) > 0.1  # why n has to be large


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (np.ones((4, 2)), features(0, 4, 2), "do not vary over the examples"),
        (features(0, 4, 2), features(0, 5, 2), r"\(n, p\) and \(n, q\); got \(4, 2\) and \(5, 2\)"),
        (features(0, 4, 2)[:, 0], features(0, 4, 2), r"got \(4,\) and \(4, 2\)"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(a, b, said):
    with pytest.raises(ValueError, match=said):
        probes.cka(a, b)


# --- what was learnt --------------------------------------------------------------------------------------------


def test_epiplexity_of_a_curve_worked_out_by_hand():
    # Ten steps at 0.7 over the end, twenty at 0.2, one at 0.1 below it.
    losses = [(10, 1.0), (30, 0.5), (31, 0.2)]
    assert probes.epiplexity(losses, 0.3) == pytest.approx((10 * 0.7 + 20 * 0.2 - 0.1) / math.log(2), rel=1e-12)
    assert probes.epiplexity([(5, 0.25)], 0.25) == 0.0
    # A bit a step at the price of a coin: a loss of ln 2 over nothing.
    assert probes.epiplexity([[1, math.log(2)], [8, math.log(2)]], 0.0) == pytest.approx(8)


@given(values=st.lists(st.floats(0, 5), min_size=1, max_size=60), step=st.integers(1, 9), end=st.floats(0, 1))
def test_epiplexity_does_not_care_how_the_history_was_thinned(values, step, end):
    whole = [(k + 1, value) for k, value in enumerate(values)]
    ends = [*range(step, len(values), step), len(values)]
    thinned = [(stop, float(np.mean(values[begin:stop]))) for begin, stop in zip([0, *ends], ends, strict=False)]
    # The same sum in another order, of at most 60 values up to 5.
    assert probes.epiplexity(thinned, end) == pytest.approx(probes.epiplexity(whole, end), abs=1e-9)


@pytest.mark.parametrize("losses", [[(0, 1.0)], [(2, 1.0), (2, 0.5)], [(4, 1.0), (2, 0.5)]])
def test_steps_that_do_not_rise_are_refused(losses):
    with pytest.raises(ValueError, match="steps must rise from entry to entry"):
        probes.epiplexity(losses, 0.0)

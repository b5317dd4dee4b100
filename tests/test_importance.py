"""Importance: each kind against its formula in plain loops; the model is left as it was; what is refused."""

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rules2ranks import calibration, importance, pruning
from rules2ranks.decoders import linears
from rules2ranks.models import RowGPT
from tiny_decoders import build, lm_loss, tokens

BY_GRADIENT = ["taylor", "taylor2", "taylor-mixed", "vector"]
BY_WEIGHT = ["l1", "l2"]
BY_ACTIVATION = ["wanda-sp", "flap"]


def steep(model, batch):
    """A loss so steep that second order weighs as much as first."""
    return 100 * lm_loss(model, batch)


def gradients(model, batches):
    """The gradient of the mean loss over the batches, by name."""
    model.zero_grad()
    (sum(steep(model, batch) for batch in batches) / len(batches)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def fisher(model, batches):
    """The mean square of each example's gradient, one example at a time."""
    examples = [gradients(model, [example[None]]) for batch in batches for example in batch]
    return {name: sum(g[name].square() for g in examples) / len(examples) for name in examples[0]}


def llama_loops(model, value, kv, queries, head, channels):
    """Σ value over each group, entry by entry, straight from the definition of the groups."""
    scores = []
    for i in range(len(model.model.layers)):
        attention, mlp = [], []
        for g in range(kv):
            total = 0.0
            for which, heads in (("q", queries), ("k", 1), ("v", 1)):
                for row in range(g * heads * head, (g + 1) * heads * head):
                    name = f"model.layers.{i}.self_attn.{which}_proj"
                    total += sum(value[f"{name}.weight"][row].tolist()) + value[f"{name}.bias"][row].item()
            for column in range(g * queries * head, (g + 1) * queries * head):
                total += sum(value[f"model.layers.{i}.self_attn.o_proj.weight"][:, column].tolist())
            attention.append(total)
        for c in range(channels):
            total = sum(value[f"model.layers.{i}.mlp.down_proj.weight"][:, c].tolist())
            for which in ("gate", "up"):
                name = f"model.layers.{i}.mlp.{which}_proj"
                total += sum(value[f"{name}.weight"][c].tolist()) + value[f"{name}.bias"][c].item()
            mlp.append(total)
        scores.append((attention, mlp))
    return scores


def gpt2_loops(model, value, heads, head, channels):
    scores = []
    for i in range(len(model.transformer.h)):
        name, attention, mlp = f"transformer.h.{i}", [], []
        for h in range(heads):
            total = 0.0
            for which in range(3):
                for column in range(which * heads * head + h * head, which * heads * head + (h + 1) * head):
                    total += sum(value[f"{name}.attn.c_attn.weight"][:, column].tolist())
                    total += value[f"{name}.attn.c_attn.bias"][column].item()
            for row in range(h * head, (h + 1) * head):
                total += sum(value[f"{name}.attn.c_proj.weight"][row].tolist())
            attention.append(total)
        for c in range(channels):
            total = sum(value[f"{name}.mlp.c_fc.weight"][:, c].tolist()) + value[f"{name}.mlp.c_fc.bias"][c].item()
            mlp.append(total + sum(value[f"{name}.mlp.c_proj.weight"][c].tolist()))
        scores.append((attention, mlp))
    return scores


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", [*BY_GRADIENT, *BY_WEIGHT])
def test_sums_over_weights_are_their_formulas_in_loops(family, kind):
    model = build(family, kv=3, queries=2, head=4, channels=5)
    batches = [tokens(1), tokens(2), tokens(3)]
    g, h = gradients(model, batches), fisher(model, batches)
    formulas = {
        "taylor": lambda w, g, h: (w * g).abs(),
        "taylor2": lambda w, g, h: (0.5 * w * h * w).abs(),
        "taylor-mixed": lambda w, g, h: (w * g - 0.5 * w * h * w).abs(),
        "vector": lambda w, g, h: w * g,
        "l1": lambda w, g, h: w.abs(),
        "l2": lambda w, g, h: w.square(),
    }
    value = {name: formulas[kind](p.detach(), g[name], h[name]) for name, p in model.named_parameters()}
    expected = llama_loops(model, value, 3, 2, 4, 5) if family == "llama" else gpt2_loops(model, value, 3, 4, 5)
    scores = pruning.importance(model, batches, steep, kind)
    for layer, (attention, channels) in enumerate(expected):
        for mine, loops in ((scores.attention[layer], attention), (scores.channels[layer], channels)):
            # float32 sums of a few hundred terms in another order; of `vector`, terms that nearly cancel
            torch.testing.assert_close(mine, torch.tensor(loops).double().abs(), rtol=1e-4, atol=1e-4)
    if kind == "taylor-mixed":
        ratio = scores.channels[0] / pruning.importance(model, batches, steep, "taylor").channels[0]
        assert (ratio - 1).abs().max() > 0.1


def seen_by(model, module, batches, counts=lambda batch: torch.ones_like(batch, dtype=torch.bool)):
    """What goes into a matrix at the positions that count: a list of numbers for each input."""
    rows = []
    with torch.no_grad():
        for batch in batches:
            handle = module.register_forward_pre_hook(
                lambda m, args, batch=batch: rows.extend(args[0][counts(batch)].tolist())
            )
            model(batch)
            handle.remove()
    return list(zip(*rows, strict=True))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_sums_over_activations_are_their_formulas_in_loops(family):
    model = build(family, kv=3, queries=2, head=4, channels=5)
    batches, ends = [tokens(1), tokens(2), tokens(3)], lambda batch: torch.arange(6) < torch.tensor([[6], [4]])
    width = {"attention": 4 if family == "gpt2" else 8, "channels": 1}
    every = {kind: pruning.importance(model, batches, lm_loss, kind) for kind in BY_ACTIVATION}
    some = {kind: pruning.importance(model, batches, lm_loss, kind, positions=ends) for kind in BY_ACTIVATION}
    for number, layer in enumerate(pruning.groups(model)):
        for part in ("attention", "channels"):
            module = getattr(layer, part).output.module
            columns = (module.weight if family == "gpt2" else module.weight.T).tolist()
            for scores, counts in ((every, torch.ones_like), (some, ends)):
                inputs = seen_by(model, module, batches, lambda batch, c=counts: c(batch).bool())
                wanda, flap = ([0.0] * getattr(layer, part).count for _ in range(2))
                for j, (column, x) in enumerate(zip(columns, inputs, strict=True)):
                    norm = math.sqrt(sum(v * v for v in x))
                    wanda[j // width[part]] += sum(abs(w) * norm for w in column)
                    flap[j // width[part]] += statistics.variance(x) * sum(w * w for w in column)
                for kind, expected in (("wanda-sp", wanda), ("flap", flap)):
                    mine = getattr(scores[kind], part)[number]
                    torch.testing.assert_close(mine, torch.tensor(expected).double(), rtol=1e-5, atol=1e-9)
                    means = getattr(scores[kind].means, part)[number].tolist()
                    assert means == pytest.approx([statistics.mean(x) for x in inputs], rel=1e-6, abs=1e-9)
    alone = pruning.input_means(model, batches, lm_loss, positions=ends)
    assert all(torch.equal(a, b) for a, b in zip(alone.channels, some["flap"].means.channels, strict=True))
    assert pruning.importance(model, (), None, "l1").means is None


def test_padding_left_out_is_as_if_it_were_not_there():
    """With causal attention, padding behind the text changes nothing before it."""
    model, text = build("mistral"), tokens(4, batch=3, length=5)
    padded = torch.cat([text, torch.zeros(3, 2, dtype=text.dtype)], 1)
    for kind in BY_ACTIVATION:
        plain = pruning.importance(model, [text], lm_loss, kind)
        same = pruning.importance(model, [padded], lm_loss, kind, positions=lambda batch: batch != 0)
        other = pruning.importance(model, [padded], lm_loss, kind)
        for a, b, c in zip(plain.channels, same.channels, other.channels, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
            assert not torch.allclose(a, c, rtol=1e-2)
    blocks = [
        pruning.block_importance(model, [text], lm_loss),
        pruning.block_importance(model, [padded], lm_loss, positions=lambda batch: batch != 0),
    ]
    assert blocks[0] == pytest.approx(blocks[1], rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_measure_of_ones_own_is_an_entry(family, monkeypatch):
    own = {
        "mean": importance.Measure("activations", lambda w, x: w.abs() * x.mean.abs()),
        "sum": importance.Measure("weights", lambda w: w),
    }
    for name, measure in own.items():
        monkeypatch.setitem(importance.MEASURES, name, measure)
    model = build(family)
    means, sums = (pruning.importance(model, [tokens()], lm_loss, kind).channels for kind in own)
    for layer, by_mean, by_sum in zip(pruning.groups(model), means, sums, strict=True):
        output = layer.channels.output.module
        inputs = np.array(seen_by(model, output, [tokens()]))  # (channels, positions)
        columns = output.weight.detach().double().numpy()
        columns = columns if family == "gpt2" else columns.T  # (channels, outputs)
        expected = np.abs(columns).sum(1) * np.abs(inputs.mean(1))
        weights = sum(layer.channels.sums(c, c.tensor.detach().double()) for c in layer.channels.coupled)
        # float32 activations, and float32 sums of terms that nearly cancel
        torch.testing.assert_close(by_mean, torch.from_numpy(expected), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(by_sum, weights.abs(), rtol=1e-5, atol=1e-5)


def angle(x, y):
    """The angle between two vectors over π, in plain numbers."""
    product, x, y = sum(a * b for a, b in zip(x, y, strict=True)), math.hypot(*x), math.hypot(*y)
    return math.acos(max(-1.0, min(1.0, product / (x * y)))) / math.pi


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_block_importance_is_the_mean_angle_over_positions(family):
    model, batches = build(family, layers=3), [tokens(1), tokens(2)]
    expected = [[] for _ in range(3)]
    last = model.transformer.ln_f if family == "gpt2" else model.model.norm
    for batch in batches:
        ends = []
        handle = last.register_forward_pre_hook(lambda m, args, ends=ends: ends.append(args[0]))
        with torch.no_grad():
            # The last of transformers' hidden states has gone through the final norm: take what goes into that.
            stream = [*model(batch, output_hidden_states=True).hidden_states[:-1], *ends]
        handle.remove()
        for angles, x, y in zip(expected, stream[:-1], stream[1:], strict=True):
            angles += [angle(a, b) for a, b in zip(x.flatten(0, 1).tolist(), y.flatten(0, 1).tolist(), strict=True)]
    blocks = pruning.block_importance(model, batches, lm_loss)
    assert blocks == pytest.approx([statistics.mean(angles) for angles in expected], abs=1e-6)
    assert all(type(value) is float and 0 < value < 1 for value in blocks)


def test_block_importance_of_our_own_blocks():
    model = RowGPT(10, 10, layers=3, heads=2, hidden=16, rows=8, seed=0)
    rows = torch.rand(4, 8, 10, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
        stream = [model.input(rows) + model.body.wpe.weight[:8]]
        for block in model.body.h:
            stream.append(block(stream[-1], model.body.added))
    blocks = pruning.block_importance(model, [rows], lambda m, batch: m(batch).square().mean())
    for value, x, y in zip(blocks, stream[:-1], stream[1:], strict=True):
        angles = [angle(a, b) for a, b in zip(x.flatten(0, 1).tolist(), y.flatten(0, 1).tolist(), strict=True)]
        assert value == pytest.approx(statistics.mean(angles), abs=1e-6)


class Turning(nn.Module):
    """A decoder layer, as far as its names go, that hands on its input times `factor`, in a tuple or not."""

    def __init__(self, factor, wrapped):
        super().__init__()
        self.factor, self.wrapped = factor, wrapped
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self.self_attn, name, nn.Linear(2, 2))
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(self.mlp, name, nn.Linear(2, 2))

    def forward(self, hidden_states):
        y = hidden_states * self.factor
        return (y, None) if self.wrapped else y


def test_a_layer_that_only_scales_matters_nothing_and_one_that_turns_round_all():
    blocks = nn.ModuleList([Turning(2.0, False), Turning(-1.0, True)])

    def loss(model, batch):
        for block in model:
            batch = block(hidden_states=batch)
            batch = batch[0] if isinstance(batch, tuple) else batch
        return batch.mean()

    assert pruning.block_importance(blocks, [torch.randn(3, 4, 2)], loss) == pytest.approx([0, 1], abs=1e-6)


@settings(max_examples=20)
@given(st.sampled_from(["llama", "gpt2"]), st.integers(0, 99))
def test_gradients_of_examples_add_up_and_do_not_depend_on_the_batches(family, seed):
    model, batch = build(family, layers=1, seed=seed), tokens(seed, batch=4)
    parameters = [(c.module, c.parameter) for part in pruning.groups(model)[0].parts for c in part.coupled]
    tensors = [getattr(module, name) for module, name in parameters]
    mean, square = calibration.example_gradients(model, parameters, [batch], lm_loss)
    for a, b in zip(mean, calibration.mean_gradients(model, tensors, [batch], lm_loss), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    for m, s in zip(mean, square, strict=True):
        assert (s - m.square() >= -1e-6 * s).all()  # a mean square is no less than the square of the mean
    for split in ([batch[:2], batch[2:]], list(batch[:, None])):
        for a, b in zip(square, calibration.example_gradients(model, parameters, split, lm_loss)[1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_a_model_that_is_asked_twice_in_a_loss_and_in_small_chunks(monkeypatch):
    """Several calls of a module within one loss count together; chunks of examples change nothing."""
    model, batch = build(layers=1), tokens(batch=3)

    def twice(m, x):
        return lm_loss(m, x) + lm_loss(m, x.flip(1))

    one, other = (pruning.importance(model, b, twice, "taylor2") for b in ([batch], list(batch[:, None])))
    monkeypatch.setattr(calibration, "CHUNK", 1)
    chunks = pruning.importance(model, [batch], twice, "taylor2")
    for a, b, c in zip(one.channels, other.channels, chunks.channels, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-9)


def test_random_importance_comes_from_its_seed_and_is_uniform_per_parameter():
    model = build(channels=300, layers=3)
    a, b, c = (pruning.importance(model, (), None, "random", seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a.channels, b.channels, strict=True))
    assert not torch.equal(a.channels[0], c.channels[0])
    per_parameter = torch.cat(a.channels) / pruning.groups(model)[0].channels.parameters
    assert per_parameter.min() >= 0 and per_parameter.max() < 1
    assert abs(per_parameter.mean() - 0.5) < 0.05  # 900 draws: 5 standard errors


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradient_norms_are_those_of_autograd(family):
    model, batches = build(family), [tokens(1), tokens(2)]
    found = importance.gradient_norms(model, batches, steep)
    expected = gradients(model, batches)
    assert [list(layer) for layer in found] == [list(layer) for layer in linears(model)]
    for name, norm in ((name, norm) for layer in found for name, norm in layer.items()):
        assert norm == pytest.approx(expected[f"{name}.weight"].norm().item(), rel=1e-4), name


def state_of(model):
    return (
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
        [len(m._forward_hooks) for m in model.modules()],
        [p.grad is None for p in model.parameters()],
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("kind", [*BY_GRADIENT, *BY_ACTIVATION, "blocks", "norms"])
def test_importance_leaves_the_model_as_it_was(kind):
    model = build("gpt2").train()
    model.transformer.h[0].eval()
    for p in model.transformer.h[1].parameters():
        p.requires_grad_(False)
    before = state_of(model)

    def score(loss=lm_loss):
        if kind == "blocks":
            return torch.tensor(pruning.block_importance(model, [tokens()], loss))
        if kind == "norms":
            found = importance.gradient_norms(model, [tokens()], loss)
            return torch.tensor([norm for layer in found for norm in layer.values()])
        return pruning.importance(model, [tokens()], loss, kind).channels[1]

    first, again = score(), score()
    assert torch.equal(first, again) and first.min() > 0  # no dropout; what is frozen is scored too
    assert state_of(model) == before

    def broken(m, batch):
        lm_loss(m, batch)
        raise RuntimeError("no more data")

    with pytest.raises(RuntimeError, match="no more data"):
        score(broken)
    assert state_of(model) == before


def test_importance_refuses():
    for arguments, message in (
        (([tokens()], lm_loss, "second"), "kind must be one of .*taylor-mixed.*flap"),
        (([], lm_loss, "taylor"), "taylor importance needs at least one batch"),
        (([], lm_loss, "flap"), "flap importance needs at least one batch"),
        (((), None, "taylor2"), "taylor2 importance needs a loss"),
        (([tokens()], None, "wanda-sp"), "wanda-sp importance needs a loss"),
        (((), None, "random"), "needs a seed"),
    ):
        with pytest.raises(ValueError, match=message):
            pruning.importance(build(), *arguments)
    for use in (pruning.block_importance, pruning.input_means, importance.gradient_norms):
        with pytest.raises(ValueError, match="at least one batch"):
            use(build(), [], lm_loss)
    for positions in (lambda batch: torch.ones(2, 6), lambda batch: torch.ones(2, 5).bool()):
        with pytest.raises(ValueError, match=r"positions must be boolean and of the shape \(2, 6\)"):
            pruning.importance(build(), [tokens()], lm_loss, "flap", positions=positions)
    broken = build()
    with torch.no_grad():
        broken.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        pruning.importance(broken, (), None, "l2")


def test_examples_that_a_matrix_cannot_tell_apart_are_refused():
    model = build("gpt2")

    def flat(m, batch):
        """Without the dimension of examples, as a model might that flattens it away."""
        return m.transformer.h[0].mlp(batch).square().mean() + m.transformer.h[0].attn(batch[None])[0].mean()

    mlp = model.transformer.h[0].mlp
    parameters = [(mlp.c_fc, "weight"), (mlp.c_proj, "weight")]
    with pytest.raises(ValueError, match=r"\(examples, positions, inputs\)"):
        calibration.example_gradients(model, parameters, [torch.randn(6, 8)], flat)

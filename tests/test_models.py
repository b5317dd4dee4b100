"""The models: GPT-2 by transformers' own, causal by construction, of the stated shapes, and exact on disk."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2Model

from rules2ranks import decoders, gpt2, models

SMALL = {"layers": 2, "heads": 2, "hidden": 16, "rows": 12}


def transformers_gpt2(blocks: gpt2.Blocks) -> GPT2Model:
    """Transformers' GPT-2 with the weights of some blocks; it has one matrix more, of tokens, which is not used."""
    config = GPT2Config(
        **{"vocab_size": 1, "n_positions": blocks.positions, "n_embd": blocks.hidden},
        **{"n_layer": len(blocks.h), "n_head": blocks.hidden // blocks.h[0].attn.head_dim},
        **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "attn_implementation": "eager"},
    )
    oracle = GPT2Model(config).eval()
    missing, unknown = oracle.load_state_dict(blocks.state_dict(), strict=False)
    assert (missing, unknown) == (["wte.weight"], [])
    return oracle


@pytest.mark.parametrize("mask", ["causal", "published"])
@pytest.mark.parametrize("length", [12, 7])
def test_blocks_give_what_transformers_gives(mask, length):
    torch.manual_seed(0)
    blocks = gpt2.Blocks(3, 4, 32, 12, mask).eval()
    with torch.no_grad():
        for p in blocks.parameters():
            # Weights ten times as large as GPT-2's, and biases and norms that are not 0 and 1: each has to matter.
            p.add_(0.2 * torch.randn_like(p))
        embedded = torch.randn(5, length, 32)
        # A four-dimensional mask is added to the attention scores as it is.
        added = torch.ones(1, 1, length, length).tril() if mask == "published" else None
        expected = transformers_gpt2(blocks)(inputs_embeds=embedded, attention_mask=added).last_hidden_state
        made = blocks(embedded)
        # Single precision, the same sums in another order, through three layers of outputs of order one.
        np.testing.assert_allclose(made, expected, atol=2e-5)
        blocks.set_mask("published" if mask == "causal" else "causal")
        assert (blocks(embedded) - expected).abs().max() > 0.1


def test_initial_weights_have_gpt2s_scales():
    torch.manual_seed(0)
    for layers in (2, 8):
        blocks = gpt2.Blocks(layers, 4, 64, 60)
        for name, p in blocks.named_parameters():
            scale = {1: 0.0 if name.endswith("bias") else 1.0, 2: 0.02}[p.ndim]
            if p.ndim == 1:
                assert (p == scale).all(), name
                continue
            if name.endswith("c_proj.weight"):  # written to the residual stream, twice a layer
                scale /= (2 * layers) ** 0.5
            # A standard deviation of n normal draws has itself one of scale / √(2 n), their mean one of scale / √n.
            assert abs(p.std().item() - scale) < 5 * scale / (2 * p.numel()) ** 0.5, name
            assert abs(p.mean().item()) < 5 * scale / p.numel() ** 0.5, name


@pytest.mark.parametrize("size", models.SIZES)
def test_sizes_have_the_published_numbers_of_parameters(size):
    """As the paper counts: rows of 100 cells, 60 positions. On a device without memory."""
    with torch.device("meta"):
        model = models.RowGPT(100, 100, **models.SIZES[size], rows=60, seed=0)
    layers, h = models.SIZES[size]["layers"], models.SIZES[size]["hidden"]
    # A block: 3 h² + h² of attention, 4 h² + 4 h² of the MLP, nine h of their biases, four h of two norms.
    by_hand = layers * (12 * h**2 + 13 * h) + 2 * h + 60 * h + (100 + 1) * h + (h + 1) * 100
    assert models.parameter_count(model) == by_hand
    millions = {"small": 85.3, "large": 708.7}
    if size in millions:
        assert round(by_hand / 1e6, 1) == millions[size]


def test_longer_blocks_keep_what_was_learnt_and_draw_the_rest():
    torch.manual_seed(0)
    blocks = gpt2.Blocks(2, 2, 16, 12, "published")
    learnt, weight = blocks.wpe.weight.detach().clone(), blocks.wpe.weight
    rows = torch.randn(3, 12, 16)
    before = blocks(rows)
    blocks.lengthen(9)
    blocks.lengthen(12)
    assert blocks.wpe.weight is weight
    blocks.lengthen(2000)
    assert blocks.positions == 2000
    assert torch.equal(blocks.wpe.weight[:12], learnt)
    # 31,808 normal draws: five of the standard errors of their standard deviation.
    assert blocks.wpe.weight[12:].std().item() == pytest.approx(0.02, rel=5 / (2 * 1988 * 16) ** 0.5)
    assert blocks.mask == "published"
    assert torch.equal(blocks(rows), before)
    assert blocks(torch.zeros(1, 2000, 16)).shape == (1, 2000, 16)


def test_the_mask_can_be_changed_and_only_to_one_that_there_is():
    torch.manual_seed(0)
    blocks, rows = gpt2.Blocks(1, 2, 16, 12), torch.randn(2, 12, 16)
    changed = rows.clone()
    changed[:, 7:] *= -1
    causal = blocks(rows)
    assert torch.equal(blocks(changed)[:, :7], causal[:, :7])
    blocks.set_mask("published")
    assert blocks.mask == "published"
    assert not torch.equal(blocks(changed)[:, :7], blocks(rows)[:, :7])
    with pytest.raises(ValueError, match="mask must be one of causal, published; got 'Causal'"):
        blocks.set_mask("Causal")
    blocks.set_mask("causal")
    assert torch.equal(blocks(rows), causal)
    # What a position sees is a setting, not something that is learnt or saved.
    assert set(blocks.state_dict()) == {name for name, _ in blocks.named_parameters()}


def test_rows_to_come_do_not_matter():
    model = models.RowGPT(5, 5, **SMALL, seed=0).eval()
    rows = torch.rand(2, 12, 5)
    changed = rows.clone()
    changed[:, 7:] = 1 - changed[:, 7:]
    with torch.no_grad():
        before, after = model(rows), model(changed)
    # The same sums in the same order: not one bit may move.
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])


def test_the_published_mask_adds_one_to_the_past_and_lets_the_future_through():
    model = models.RowGPT(5, 5, layers=1, heads=2, hidden=16, rows=12, seed=0, mask="published").eval()
    rows = torch.rand(2, 12, 5)
    block, positions = model.body.h[0], model.body.wpe.weight
    with torch.no_grad():
        x = model.input(rows) + positions
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in block.attn.c_attn(block.ln_1(x)).chunk(3, -1))
        scores = q @ k.mT / 8**0.5 + torch.ones(12, 12).tril()
        x = x + block.attn.c_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.ln_2(x))
        by_hand = model.output(model.body.ln_f(x))
        assert torch.allclose(model(rows), by_hand, atol=1e-5)  # sums in single precision, in another order
        causal = models.RowGPT(5, 5, layers=1, heads=2, hidden=16, rows=12, seed=0).eval()
        assert not torch.allclose(model(rows), causal(rows), atol=1e-3)


def test_more_rows_than_positions_are_refused():
    with pytest.raises(ValueError, match="13 rows are more than the 12 positions"):
        models.RowGPT(5, 5, **SMALL, seed=0)(torch.rand(1, 13, 5))
    assert models.RowGPT(5, 5, **SMALL, seed=0)(torch.rand(1, 12, 5)).shape == (1, 12, 5)
    with pytest.raises(ValueError, match="mask must be one of causal, published; got 'none'"):
        models.RowGPT(5, 5, **SMALL, seed=0, mask="none")


def test_the_seed_decides_the_weights_and_nothing_else_moves():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one, same, other = (models.RowGPT(4, 4, **SMALL, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(one.input.weight, same.input.weight)
    assert not torch.equal(one.input.weight, other.input.weight)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="multiple of heads"):
        models.RowGPT(4, 4, layers=1, heads=3, hidden=16, rows=4, seed=0)


@pytest.mark.parametrize(("kind", "shape"), [("boards", (2, 7, 6, 3)), ("tokens", (2, 7, 3))])
def test_new_ends_have_the_tasks_shapes(kind, shape):
    body = models.RowGPT(5, 5, **SMALL, seed=0).body
    model = models.TaskGPT(body, kind, cells=6, classes=3, length=7, seed=0)
    x = torch.randint(3, (2, 7, 6) if kind == "boards" else (2, 7))
    assert model(x).shape == shape


def test_a_longer_task_keeps_the_learnt_positions():
    body = models.RowGPT(5, 5, **SMALL, seed=0).body
    learnt = body.wpe.weight.detach().clone()
    model = models.TaskGPT(body, "tokens", cells=1, classes=3, length=20, seed=0)
    assert model(torch.zeros(1, 20, dtype=torch.long)).shape == (1, 20, 3)
    assert torch.equal(model.body.wpe.weight[:12], learnt)


def test_a_one_hot_board_is_a_one_for_each_value():
    """The same body under the same linear layer, once fed with a one-hot made by hand, cell by cell."""
    board = torch.randint(3, (2, 7, 6), generator=torch.Generator().manual_seed(0))
    ends = {"cells": 6, "classes": 3, "length": 7, "seed": 0}
    model = models.TaskGPT(models.RowGPT(5, 5, **SMALL, seed=0).body, "boards", **ends, board_input="one-hot")
    by_hand = torch.zeros(2, 7, 18)
    for n, t, cell in np.ndindex(board.shape):
        by_hand[n, t, 3 * cell + board[n, t, cell]] = 1
    assert model.input.in_features == 18
    with torch.no_grad():
        expected = model.output(model.body(model.input(by_hand))).unflatten(-1, (6, 3))
        assert torch.equal(model(board), expected)
        # Integers are one-hot input whose weights are in proportion to the value.
        whole = models.TaskGPT(model.body, "boards", **ends)
        assert whole.input.in_features == 6
        model.input.weight.copy_((whole.input.weight[:, :, None] * torch.arange(3.0)).flatten(1))
        model.input.bias.copy_(whole.input.bias)
        model.output.load_state_dict(whole.output.state_dict())
        np.testing.assert_allclose(model(board), whole(board), atol=1e-5)  # the same sums in another order


def test_the_small_llama_is_what_it_says():
    model = models.small_llama(0)
    config = model.config
    assert 4.9e5 < models.parameter_count(model) < 5.1e5
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (8, 4, 16)
    assert model.model.layers[0].self_attn.k_proj.weight.shape == (64, 64)
    assert config.rope_parameters["rope_theta"] == 100.0


def test_weights_come_back_bit_for_bit_and_only_where_they_fit(tmp_path):
    model, other = (models.RowGPT(5, 5, **SMALL, seed=seed) for seed in (0, 1))
    models.save_weights(model, tmp_path / "w.safetensors")
    models.load_weights(other, tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    wider, deeper = (models.RowGPT(5, 5, **{**SMALL, **change}, seed=0) for change in ({"hidden": 8}, {"layers": 3}))
    for wrong, said in [
        (models.RowGPT(6, 6, **SMALL, seed=0), r"input.weight: the model needs \(16, 6\), the file has \(16, 5\)"),
        (wider, r"wpe.weight: the model needs \(12, 8\), the file has \(12, 16\)"),
        (deeper, r"body.h.2.ln_1.weight: the model needs \(16,\), the file has no such tensor"),
        (
            models.RowGPT(5, 5, **{**SMALL, "layers": 1}, seed=0),
            r"body.h.1\.\S+: the model needs no such tensor, the file has \(\d+",
        ),
    ]:
        before = {name: value.clone() for name, value in wrong.state_dict().items()}
        with pytest.raises(ValueError, match=r"(?s)w.safetensors holds a model of another architecture:\n.*" + said):
            models.load_weights(wrong, tmp_path / "w.safetensors")
        assert all(torch.equal(value, before[name]) for name, value in wrong.state_dict().items())


def test_shuffling_keeps_each_matrix_entries_and_moves_them():
    model = models.RowGPT(5, 5, **SMALL, seed=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    models.shuffle_weights(model, seed=1)
    for name, p in model.named_parameters():
        assert torch.equal(p.flatten().sort().values, before[name].flatten().sort().values)
        assert torch.equal(p, before[name]) == (p.ndim == 1)


def test_a_causal_model_is_loaded_from_safetensors_only(tmp_path):
    model = models.small_llama(0).eval()
    model.save_pretrained(tmp_path / "whole")
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(models.load_causal_lm(tmp_path / "whole")(tokens).logits, model(tokens).logits)
    (tmp_path / "pickled").mkdir()
    model.config.save_pretrained(tmp_path / "pickled")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        models.load_causal_lm(tmp_path / "pickled")


def without(name):
    return lambda weights, config: weights.pop(name)


def with_another(name):
    return lambda weights, config: weights.update({name: torch.zeros(2)})


def of_layers(number):
    return lambda weights, config: config.update(num_hidden_layers=number)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("model.layers.7.mlp.up_proj.weight"), r"it lacks model\.layers\.7\.mlp\.up_proj\.weight$"),
        (with_another("model.layers.0.mlp.extra"), r"it also holds model\.layers\.0\.mlp\.extra$"),
        (of_layers(7), r"it also holds model\.layers\.7\.\S+, .* and 1 more$"),
        (of_layers(9), r"it lacks model\.layers\.8\.\S+, .* and 1 more$"),
        (with_another("model.layers.0.self_attn.rotary_emb.inv_freq"), None),
        (with_another("model.layers.0.attn.masked_bias"), None),
    ],
)
def test_weights_that_are_not_the_configurations_are_refused(tmp_path, change, said):
    """A layer has nine tensors, of which eight are named."""
    model = models.small_llama(0)
    model.save_pretrained(tmp_path)
    weights, config = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    change(weights, config)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    if said is None:
        loaded = models.load_causal_lm(tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
        return
    with pytest.raises(ValueError, match=r"does not hold the model that its config\.json describes: " + said):
        models.load_causal_lm(tmp_path)


def test_a_skeleton_has_shapes_and_buffers_and_no_weights():
    model = models.small_llama(0)
    model.config.architectures = ["LlamaForCausalLM"]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    empty = decoders.skeleton(model.config)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.is_meta for p in empty.parameters())
    shapes = [{name: p.shape for name, p in m.named_parameters()} for m in (model, empty)]
    assert shapes[0] == shapes[1]
    for (name, buffer), (same, filled) in zip(model.named_buffers(), empty.named_buffers(), strict=True):
        assert name == same and torch.equal(buffer, filled)
    model.config.architectures = ["LlamaForNothing"]
    with pytest.raises(ValueError, match="architecture LlamaForNothing, which transformers does not have"):
        decoders.skeleton(model.config)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"w\.safetensors is damaged"):
        models.load_weights(models.RowGPT(5, 5, **SMALL, seed=0), tmp_path / "w.safetensors")

"""The models: causal by construction, of the stated shapes, and exact on disk."""

import pytest
import torch

from rules2ranks import models

SMALL = {"layers": 2, "heads": 2, "hidden": 16, "rows": 12}


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
    with pytest.raises(RuntimeError, match="size mismatch"):
        models.load_weights(models.RowGPT(6, 6, **SMALL, seed=0), tmp_path / "w.safetensors")


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

"""The trial that comes before pruning: who is tried, when it is heard, and what it leaves alone."""

import copy

import pytest
import torch
from transformers import DiffLlamaConfig, DiffLlamaForCausalLM, Phi3Config, Qwen3Config, T5Config

from rules2ranks import models, pruning
from rules2ranks.models import RowGPT
from tiny_decoders import CLOSE, SPECIAL, build, plan_of, tokens

SIZES = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 6, "num_hidden_layers": 2}
REFUSED = "DiffLlamaForCausalLM cannot be pruned: the outputs of a pruned copy and of a masked one differ by"


def differential():
    return DiffLlamaForCausalLM(DiffLlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=4, **SPECIAL))


def test_what_would_be_pruned_wrongly_is_refused_wherever_it_comes_in(tmp_path):
    model = differential()
    plan = plan_of(model, [((0, 1), (1, 2))] * 2)
    scores = pruning.importance(model, (), None, "l2")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"it is said before any weight is read")
    for use in (
        lambda: pruning.prune(model, plan),
        lambda: pruning.prune(model, 0.2, scores),
        lambda: pruning.mask(model, plan),
        lambda: models.load_causal_lm(tmp_path),
        lambda: pruning.check_architecture(model),
        lambda: pruning.check_architecture(model.config),
    ):
        with pytest.raises(ValueError, match=REFUSED):
            use()


def test_a_trial_leaves_model_and_random_state_alone():
    model = build("phi3")
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    state = torch.get_rng_state()
    pruning.check_architecture(model)
    pruning.check_architecture(Qwen3Config(sliding_window=3, use_sliding_window=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config.to_dict() == config
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_plain_modules_pass_untried():
    assert pruning.check_architecture(RowGPT(10, 10, layers=1, heads=2, hidden=8, rows=4, seed=0)) is None
    assert pruning.check_architecture(torch.nn.Linear(2, 2)) is None
    with pytest.raises(ValueError, match="no causal language model with a T5Config"):
        pruning.check_architecture(T5Config())


def test_scaled_rotations_and_partly_sliding_layers_are_tried_as_they_are():
    factors = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    pruning.check_architecture(
        Phi3Config(
            max_position_embeddings=131072,
            original_max_position_embeddings=4096,
            rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **factors},
        )
    )
    pruning.check_architecture(Qwen3Config(sliding_window=4096, use_sliding_window=True, max_window_layers=9))


def test_a_layers_own_configuration_follows_the_models():
    """Phi-3's attention asks its configuration for heads at run time, and for the kind of attention too."""
    model = build("phi3", kv=3)
    plan = plan_of(model, [((0, 2), range(5)), ((1,), (1, 4))])
    pruned = pruning.prune(model, plan)
    again = pruning.prune(pruned, plan_of(pruned, [((1,), range(5)), ((0,), range(2))]))
    assert pruned.config.to_dict() == model.config.to_dict()
    assert [layer.self_attn.config.num_attention_heads for layer in pruned.model.layers] == [4, 2]
    assert [layer.self_attn.config.num_attention_heads for layer in again.model.layers] == [2, 2]
    expected = pruned(tokens()).logits
    for attention in ("eager", "sdpa"):
        pruned.set_attn_implementation(attention)
        assert {layer.self_attn.config._attn_implementation for layer in pruned.model.layers} == {attention}
        torch.testing.assert_close(pruned(tokens()).logits, expected, **CLOSE)
    copied = copy.deepcopy(pruned)
    copied.set_attn_implementation("eager")
    assert pruned.model.layers[0].self_attn.config._attn_implementation == "sdpa"
    torch.testing.assert_close(copied(tokens()).logits, expected, **CLOSE)

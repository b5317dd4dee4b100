"""Tiny random decoders of every supported family, and plans for them: what the tests of pruning share."""

import torch
from hypothesis import strategies as st
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rules2ranks import pruning

GROUPED = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 4}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "phi3": (Phi3Config, Phi3ForCausalLM, {}),
}
#: A rotation of whole heads: a quarter of so few numbers is nothing.
ROTATION = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
#: A key and a value head for each query head, and as wide as all of them.
UNGROUPED = {
    "gpt2": (GPT2Config, GPT2LMHeadModel, {}),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM, {"rope_parameters": ROTATION}),
    "opt": (OPTConfig, OPTForCausalLM, {}),
}
FAMILIES = (*GROUPED, *UNGROUPED)
#: What some configurations call a size.
OWN_NAMES = {"gpt2": {"intermediate_size": "n_inner"}, "opt": {"intermediate_size": "ffn_dim"}}
SPECIAL = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}


def build(family="llama", *, kv=2, queries=2, head=4, channels=5, layers=2, hidden=12, seed=0, tied=False):
    """A tiny model whose biases and norms are random too (they start as zeros and ones, which would hide mistakes)."""
    sizes = {
        "vocab_size": 11,
        "intermediate_size": channels,
        "num_hidden_layers": layers,
        "max_position_embeddings": 16,
    }
    if family in UNGROUPED:
        config_kind, kind, extra = UNGROUPED[family]
        sizes |= {"hidden_size": kv * head, "num_attention_heads": kv}
        if family == "opt":
            sizes["word_embed_proj_dim"] = kv * head
    else:
        config_kind, kind, extra = GROUPED[family]
        sizes |= {"hidden_size": hidden, "num_attention_heads": kv * queries, "num_key_value_heads": kv}
        sizes |= {"head_dim": head, "tie_word_embeddings": tied}
    named = {OWN_NAMES.get(family, {}).get(name, name): size for name, size in sizes.items()}
    config = config_kind(**named, **SPECIAL, **extra)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        model = kind(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.4)
    return model


def tokens(seed=0, batch=2, length=6):
    return torch.randint(1, 11, (batch, length), generator=torch.Generator().manual_seed(seed))


def lm_loss(model, batch):
    return model(input_ids=batch, labels=batch).loss


def plan_of(model, kept):
    """A plan made by hand from kept (attention, channels) per layer."""
    layers = [
        pruning.Kept(tuple(a), tuple(c), layer.attention.count, layer.channels.count)
        for layer, (a, c) in zip(pruning.groups(model), kept, strict=True)
    ]
    return pruning.Plan(0.5, 0.5, "by hand", tuple(layers))


# Slicing leaves out additions of exact zeros; only the order in which a kernel sums the rest may change (float32,
# values of order 1 to 10: some 1e-6).
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def some_means(model, seed=0):
    """Means of the size of what goes into the output matrices, drawn: any will do to compare two ways to use them."""
    generator = torch.Generator().manual_seed(seed)
    attention, channels = (
        [torch.randn(c.tensor.shape[c.dim], generator=generator).double() for c in column]
        for column in zip(*((part.output for part in layer.parts) for layer in pruning.groups(model)), strict=True)
    )
    return pruning.Means(attention, channels)


@st.composite
def pruning_cases(draw, families=FAMILIES):
    """A model, what to keep of it, and means to compensate with, or None."""
    kv, channels, layers = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 3))
    model = build(
        draw(st.sampled_from(families)),
        kv=kv,
        queries=draw(st.integers(1, 3)),
        head=draw(st.sampled_from([2, 4, 8])),
        channels=channels,
        layers=layers,
        hidden=72,  # a multiple of every number of heads, which Llama insists on
        seed=draw(st.integers(0, 99)),
    )

    def some(n):
        return sorted(draw(st.sets(st.integers(0, n - 1), min_size=1)))

    plan = plan_of(model, [(some(kv), some(channels)) for _ in range(layers)])
    return model, plan, some_means(model, draw(st.integers(0, 99))) if draw(st.booleans()) else None

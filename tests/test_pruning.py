"""Pruning: pruned = masked, importance against its formula in loops, ratios kept, files that load or are refused."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rules2ranks import pruning
from rules2ranks.models import RowGPT, parameter_count, small_llama

LLAMA_LIKE = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 4}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}


def build(family="llama", *, kv=2, queries=2, head=4, channels=5, layers=2, hidden=12, seed=0, tied=False):
    """A tiny model whose biases and norms are random too (they start as zeros and ones, which would hide mistakes)."""
    if family == "gpt2":
        config = GPT2Config(
            vocab_size=11, n_positions=16, n_embd=kv * head, n_head=kv, n_layer=layers, n_inner=channels, **SPECIAL
        )
        kind = GPT2LMHeadModel
    else:
        config_kind, kind, extra = LLAMA_LIKE[family]
        config = config_kind(
            vocab_size=11,
            hidden_size=hidden,
            intermediate_size=channels,
            num_hidden_layers=layers,
            num_attention_heads=kv * queries,
            num_key_value_heads=kv,
            head_dim=head,
            max_position_embeddings=16,
            tie_word_embeddings=tied,
            **SPECIAL,
            **extra,
        )
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


@st.composite
def model_and_plan(draw, families=("llama", "mistral", "qwen2", "qwen3", "gpt2")):
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

    return model, plan_of(model, [(some(kv), some(channels)) for _ in range(layers)])


# Slicing leaves out additions of exact zeros; only the order in which a kernel sums the rest may change (float32,
# values of order 1 to 10: some 1e-6).
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@given(model_and_plan(), st.integers(0, 99))
def test_pruned_equals_masked(case, seed):
    model, plan = case
    batch = tokens(seed)
    with torch.no_grad():
        pruned, masked = pruning.prune(model, plan)(batch).logits, pruning.mask(model, plan)(batch).logits
    torch.testing.assert_close(pruned, masked, **CLOSE)


@settings(max_examples=20)
@given(model_and_plan(families=("llama", "gpt2")), st.integers(0, 99))
def test_cached_generation_of_pruned_equals_that_of_masked(case, seed):
    model, plan = case
    # Greedy, from the same prompt: as long as the choices agree the logits of every step must.
    runs = [
        m.generate(tokens(seed), max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True,
                   use_cache=cache)
        for m, cache in ((pruning.prune(model, plan), True), (pruning.mask(model, plan), True),
                         (pruning.prune(model, plan), False))
    ]  # fmt: skip
    for other in runs[1:]:
        assert torch.equal(runs[0].sequences, other.sequences)
        for mine, theirs in zip(runs[0].logits, other.logits, strict=True):
            torch.testing.assert_close(mine, theirs, **CLOSE)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2"])
def test_one_group_costs_what_its_count_says(family):
    model = build(family, kv=3, channels=5)
    layer = pruning.groups(model)[1]
    for kept, part in ((((0, 2), range(5)), layer.attention), ((range(3), (0, 1, 2, 4)), layer.channels)):
        pruned = pruning.prune(model, plan_of(model, [(range(3), range(5)), kept]))
        assert parameter_count(model) - parameter_count(pruned) == part.parameters


def test_group_sizes_by_hand():
    layer = pruning.groups(build("llama", kv=2, queries=3, head=4, channels=5))[0]
    # hidden 12: 3 query heads, a key and a value head of 4 rows with biases, and 12 columns of o; gate, up, down.
    assert layer.attention.parameters == (3 + 1 + 1) * 4 * (12 + 1) + 12 * 12
    assert layer.channels.parameters == 2 * (12 + 1) + 12
    layer = pruning.groups(build("gpt2", kv=2, head=4, channels=5))[0]
    assert layer.attention.parameters == 3 * 4 * (8 + 1) + 4 * 8
    assert layer.channels.parameters == (8 + 1) + 8


def test_pruning_copies_and_keeps_ties():
    model = build("qwen2", tied=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = pruning.prune(model, plan_of(model, [((1,), (0, 3))] * 2))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert pruned.lm_head.weight is pruned.model.embed_tokens.weight
    assert pruned.model.layers[0].mlp.intermediate_size == 2


def gradients(model, batches):
    model.zero_grad()
    (sum(lm_loss(model, batch) for batch in batches) / len(batches)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


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
@pytest.mark.parametrize("kind", ["taylor", "l2"])
def test_importance_is_its_formula_in_loops(family, kind):
    model = build(family, kv=3, queries=2, head=4, channels=5)
    batches = [tokens(1), tokens(2), tokens(3)]
    g = gradients(model, batches)
    value = {
        name: (p * g[name]).abs() if kind == "taylor" else p.square() for name, p in model.named_parameters()
    }  # fmt: skip
    expected = llama_loops(model, value, 3, 2, 4, 5) if family == "llama" else gpt2_loops(model, value, 3, 4, 5)
    scores = pruning.importance(model, batches, lm_loss, kind)
    for layer, (attention, channels) in enumerate(expected):
        # float32 sums of a few hundred terms in another order
        torch.testing.assert_close(scores.attention[layer], torch.tensor(attention).double(), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(scores.channels[layer], torch.tensor(channels).double(), rtol=1e-4, atol=1e-7)


def test_random_importance_comes_from_its_seed_and_is_uniform_per_parameter():
    model = build(channels=300, layers=3)
    a, b, c = (pruning.importance(model, (), None, "random", seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a.channels, b.channels, strict=True))
    assert not torch.equal(a.channels[0], c.channels[0])
    per_parameter = torch.cat(a.channels) / pruning.groups(model)[0].channels.parameters
    assert per_parameter.min() >= 0 and per_parameter.max() < 1
    assert abs(per_parameter.mean() - 0.5) < 0.05  # 900 draws: 5 standard errors


def test_importance_leaves_the_model_as_it_was():
    model = build("gpt2").train()
    model.transformer.h[0].eval()
    for p in model.transformer.h[1].parameters():
        p.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    first = pruning.importance(model, [tokens()], lm_loss)
    again = pruning.importance(model, [tokens()], lm_loss)
    assert torch.equal(first.channels[1], again.channels[1]) and first.channels[1].min() > 0  # no dropout, frozen too
    assert [p.requires_grad for p in model.parameters()] == flags and [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters()) and torch.equal(state, torch.get_rng_state())


LLAMA = small_llama(0)
SCORES = pruning.importance(LLAMA, (), None, "random", seed=0)


@given(st.floats(0.02, 0.6), st.sampled_from(["uniform", "global"]), st.integers(0, 1), st.integers(0, 1))
def test_ratio_is_kept_to_a_point(ratio, spread, first, last):
    plan = pruning.plan(LLAMA, SCORES, ratio, spread=spread, protect=(first, last))
    pruned = pruning.prune(LLAMA, plan)
    really = 1 - parameter_count(pruned) / parameter_count(LLAMA)
    assert abs(really - ratio) <= 0.01 and really == pytest.approx(plan.removed)
    whole = {"attention_groups": 4, "channels": 192}
    sizes = pruning.sizes(pruned)
    assert sizes[:first] == [whole] * first and sizes[8 - last :] == [whole] * last
    assert all(size["attention_groups"] >= 1 and size["channels"] >= 1 for size in sizes)
    assert pruning.Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize("ratio", [0.2, 0.3, 0.5])
def test_uniform_takes_the_least_important_in_equal_shares(ratio):
    plan = pruning.plan(LLAMA, SCORES, ratio, protect=(1, 1))
    channel = pruning.groups(LLAMA)[0].channels.parameters
    before = pruning.groups(LLAMA)[1].parameters
    losses = [before - layer.parameters for layer in pruning.groups(pruning.prune(LLAMA, plan))[1:-1]]
    assert max(losses) - min(losses) <= channel
    assert len({len(kept.attention) for kept in plan.layers[1:-1]}) == 1
    for kept, scores in zip(plan.layers, SCORES.channels, strict=True):
        gone = sorted(set(range(192)) - set(kept.channels))
        assert not gone or scores[gone].max() <= scores[list(kept.channels)].min()


def test_global_removes_the_least_important_per_parameter():
    plan = pruning.plan(LLAMA, SCORES, 0.3, spread="global", protect=(1, 1))
    layer = pruning.groups(LLAMA)[0]
    gone, stays = [], []
    for i in range(1, 7):
        for scores, kept, cost in (
            (SCORES.attention[i], plan.layers[i].attention, layer.attention.parameters),
            (SCORES.channels[i], plan.layers[i].channels, layer.channels.parameters),
        ):
            for group, score in enumerate((scores / cost).tolist()):
                (stays if group in kept else gone).append((score, cost))
    # Only the last head that did not fit into what was left may be out of order.
    line = max(score for score, cost in gone if cost == layer.attention.parameters)
    assert line <= min(score for score, cost in stays if cost == layer.channels.parameters)
    assert len({len(kept.channels) for kept in plan.layers}) > 3


@pytest.mark.parametrize("spread", ["uniform", "global"])
def test_unreachable_ratio_names_the_highest_that_can_be_reached(spread):
    with pytest.raises(ValueError, match="highest reachable") as error:
        pruning.plan(LLAMA, SCORES, 0.9, spread=spread, protect=(2, 2))
    highest = float(str(error.value).split()[-1])
    assert pruning.plan(LLAMA, SCORES, highest, spread=spread, protect=(2, 2)).removed == pytest.approx(
        highest, abs=0.01
    )
    for kept in pruning.plan(LLAMA, SCORES, highest, spread=spread, protect=(2, 2)).layers[2:-2]:
        assert len(kept.attention) >= 1 and len(kept.channels) >= 1


@pytest.mark.parametrize("spread", ["uniform", "global"])
def test_heads_far_larger_than_channels_never_empty_a_layer(spread):
    model = build(kv=3, queries=3, head=8, channels=3, hidden=72)
    scores = pruning.importance(model, (), None, "l2")
    reached = 0
    for ratio in torch.linspace(0.005, 0.65, 130).tolist():
        try:
            plan = pruning.plan(model, scores, ratio, spread=spread)
        except ValueError as error:
            assert "cannot be reached" in str(error)
        else:
            reached += 1
            assert all(kept.attention and kept.channels for kept in plan.layers)
    assert reached > 10


def test_too_coarse_a_model_is_told_the_nearest_ratio():
    model = build(kv=1, channels=2, layers=1)  # its only free group, a channel, is 6 % of it
    with pytest.raises(ValueError, match="the nearest is"):
        pruning.plan(model, pruning.importance(model, (), None, "l2"), 0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": 0}, "between 0 and 1"),
        ({"ratio": 1.2}, "between 0 and 1"),
        ({"spread": "even"}, "spread must be"),
        ({"protect": (4, 4)}, "unprotected"),
        ({"protect": (-1, 0)}, "unprotected"),
        ({"scores": pruning.Scores("l2", SCORES.attention[:3], SCORES.channels[:3])}, "scores are for"),
    ],
)
def test_plan_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        pruning.plan(**{"model": LLAMA, "scores": SCORES, "ratio": 0.3, **change})


def test_importance_refuses():
    for arguments, message in (
        (([tokens()], lm_loss, "second"), "kind must be"),
        (([], lm_loss, "taylor"), "at least one batch"),
        (((), None, "taylor"), "needs a loss"),
        (((), None, "random"), "needs a seed"),
    ):
        with pytest.raises(ValueError, match=message):
            pruning.importance(build(), *arguments)
    broken = build()
    with torch.no_grad():
        broken.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        pruning.importance(broken, (), None, "l2")


SMALL = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, **SPECIAL}  # fmt: skip


@pytest.mark.parametrize(
    "model",
    [
        Phi3ForCausalLM(Phi3Config(**SMALL)),
        Olmo2ForCausalLM(Olmo2Config(**SMALL)),
        MixtralForCausalLM(MixtralConfig(**SMALL)),
        torch.nn.Linear(2, 2),
    ],
    ids=["fused projections", "norms over all heads", "mixture of experts", "no decoder"],
)
def test_unsupported_models_are_refused_with_what_is_supported(model):
    with pytest.raises(ValueError, match=r"supported are Llama-like layers .* GPT-2"):
        pruning.groups(model)


def test_a_plan_for_other_shapes_is_refused():
    model, other = build(channels=5), build(channels=6)
    plan = plan_of(model, [((0,), (1, 2))] * 2)
    for wrong in (other, pruning.prune(model, plan)):
        for use in (pruning.prune, pruning.mask):
            with pytest.raises(ValueError, match="the plan is for"):
                use(wrong, plan)
    for kept in (((0,), ()), ((0,), (2, 1)), ((0, 2), (1,)), ((-1,), (1,))):
        with pytest.raises(ValueError, match="ascending numbers"):
            pruning.prune(model, plan_of(model, [kept] * 2))


def saved(tmp_path, family="llama", **more):
    model = build(family, kv=3, channels=6, **more)
    pruned = pruning.prune(model, plan_of(model, [((0, 2), (1, 2, 5)), ((1,), (0,))]))
    pruning.save_pruned(pruned, tmp_path / family)
    return model, pruned, tmp_path / family


RELOAD = """
import hashlib, sys, torch
from rules2ranks.pruning import load_pruned
torch.set_num_threads(1)
batch = torch.randint(1, 11, (2, 6), generator=torch.Generator().manual_seed(0))
for folder in sys.argv[1:]:
    with torch.no_grad():
        print(hashlib.sha256(load_pruned(folder)(batch).logits.numpy().tobytes()).hexdigest())
"""


def test_reloaded_in_a_new_process_bit_for_bit(tmp_path):
    cases = [saved(tmp_path, "llama"), saved(tmp_path, "qwen2", tied=True), saved(tmp_path, "gpt2")]
    with torch.no_grad():
        mine = [hashlib.sha256(pruned(tokens()).logits.numpy().tobytes()).hexdigest() for _, pruned, _ in cases]
    command = [sys.executable, "-c", RELOAD, *(str(folder) for _, _, folder in cases)]
    theirs = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split()
    assert theirs == mine


def test_saved_files_say_what_was_removed(tmp_path):
    model, pruned, folder = saved(tmp_path)
    about = json.loads((folder / "pruning.json").read_text())
    assert about["layers"] == pruning.sizes(pruned) and about["format"] == 1
    assert about["parameters"] == parameter_count(pruned)
    assert about["ratio_removed"] == pytest.approx(1 - parameter_count(pruned) / parameter_count(model))
    with pytest.raises(RuntimeError, match=r"mismatch"):  # the pain that pruning.json is there for
        AutoModelForCausalLM.from_pretrained(folder)


def test_half_precision_comes_back_as_it_was(tmp_path):
    _, pruned, _ = saved(tmp_path)
    pruning.save_pruned(pruned.to(torch.bfloat16), tmp_path)
    loaded = pruning.load_pruned(tmp_path)
    assert loaded.dtype == torch.bfloat16 and not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(pruned.parameters(), loaded.parameters(), strict=True))


def test_loading_leaves_the_random_state_alone(tmp_path):
    _, _, folder = saved(tmp_path)
    state = torch.get_rng_state()
    pruning.load_pruned(folder)
    assert torch.equal(state, torch.get_rng_state())


def test_files_that_do_not_fit_are_refused(tmp_path):
    model, _, folder = saved(tmp_path)
    path, name = folder / "model.safetensors", "model.layers.1.mlp.down_proj.weight"
    good = load_file(path)
    bad = {
        rf"{name}: the model needs \(12, 1\) torch.float32, the file has \(12, 6\)": {
            **good, name: model.state_dict()[name].clone()
        },
        rf"{name}: .* no such tensor": {key: value for key, value in good.items() if key != name},
        "extra: the model needs no such tensor": {**good, "extra": torch.zeros(1)},
        r"torch.float32, the file has .* torch.float16": {**good, name: good[name].half()},
    }  # fmt: skip
    for message, weights in bad.items():
        save_file(weights, path)
        with pytest.raises(ValueError, match=message):
            pruning.load_pruned(folder)
    save_file(good, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        pruning.load_pruned(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        pruning.load_pruned(folder)


def test_sizes_or_format_that_do_not_fit_are_refused(tmp_path):
    _, _, folder = saved(tmp_path)
    about = json.loads((folder / "pruning.json").read_text())
    more, unknown = {"attention_groups": 9, "channels": 1}, {"heads": 1, "channels": 1}
    for change, message in (
        ({"format": 2}, "format 2"),
        ({"layers": about["layers"][:1]}, "2 decoder layers"),
        ({"layers": [more] * 2}, "expected sizes"),
        ({"layers": [unknown] * 2}, "expected sizes"),
    ):
        (folder / "pruning.json").write_text(json.dumps({**about, **change}))
        with pytest.raises(ValueError, match=message):
            pruning.load_pruned(folder)


def test_a_wrapper_is_pruned_and_rebuilt_from_its_sizes():
    def fresh(seed):
        return RowGPT(10, 10, layers=2, heads=4, hidden=32, rows=8, seed=seed)

    model, rows = fresh(0), torch.rand(2, 8, 10, generator=torch.Generator().manual_seed(0))
    batches = [rows, rows.flip(0)]
    scores = pruning.importance(model, batches, lambda m, batch: m(batch).square().mean())
    plan = pruning.plan(model, scores, 0.5)
    pruned = pruning.prune(model, plan)
    torch.testing.assert_close(pruned(rows), pruning.mask(model, plan)(rows), **CLOSE)
    again = pruning.resize(fresh(1), json.loads(json.dumps(pruning.sizes(pruned))))
    again.load_state_dict(pruned.state_dict(), strict=True)
    assert torch.equal(again(rows), pruned(rows))
    with pytest.raises(ValueError, match="expected a transformers model"):
        pruning.save_pruned(model, "nowhere")


def test_report_counts(tmp_path):
    model, pruned, folder = saved(tmp_path)
    numbers = pruning.report(model, pruned)
    assert numbers["parameters_after"] == parameter_count(pruned)
    # By hand, hidden 12, head 4, 2 query heads per group: groups (2, 1), channels (3, 1), and the head of 11 × 12.
    matrices = 3 * (2 * (8 * 12) + 2 * (4 * 12)) + (3 + 1) * 3 * 12 + 11 * 12
    assert numbers["flops_per_token_after"] == 2 * matrices
    assert (
        numbers["flops_per_token_removed"] == 1 - numbers["flops_per_token_after"] / numbers["flops_per_token_before"]
    )
    file = (folder / "model.safetensors").read_bytes()
    assert numbers["bytes_after"] == len(file) - 8 - int.from_bytes(file[:8], "little")

"""Recovery: the adapter is W + alpha/r · B·A, lies where the ranks say, is counted exactly, never loads unnoticed."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from rules2ranks import pruning, recovery
from rules2ranks.decoders import linears
from rules2ranks.models import RowGPT, small_llama
from rules2ranks.recovery import merged as merging

RANKS = [1, 2, 3, 0, 3, 2, 1, 8]
TOKENS = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(0))


def pruned_llama():
    model = small_llama(0).eval()
    scores = pruning.importance(model, (), None, "random", seed=0)
    return pruning.prune(model, pruning.plan(model, scores, 0.3, spread="global", protect=(1, 1)))


def gpt2():
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_head=4, n_layer=3, n_inner=24, pad_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config).eval()
    scores = pruning.importance(model, (), None, "random", seed=0)
    return pruning.prune(model, pruning.plan(model, scores, 0.2))


def row_gpt():
    return RowGPT(10, 10, layers=3, heads=4, hidden=32, rows=8, seed=0).eval()


BASES = {"llama": pruned_llama(), "gpt2": gpt2()}


def fresh(family="llama"):
    return copy.deepcopy(BASES[family])


def ranks_for(family):
    return RANKS if family == "llama" else [2, 0, 3]


def trained(model, ranks, **options):
    """An adapter whose B is no longer zero, as after training."""
    wrapped = recovery.add_adapter(model, ranks, **{"seed": 0, **options}).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return wrapped


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def lora_tensors(wrapped):
    return {name: p.detach().clone() for name, p in wrapped.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("family", BASES)
def test_a_fresh_adapter_changes_nothing_and_a_trained_one_does(family):
    base = logits(fresh(family))
    assert torch.equal(logits(recovery.add_adapter(fresh(family), ranks_for(family), seed=0).eval()), base)
    assert (logits(trained(fresh(family), ranks_for(family))) - base).abs().max() > 1e-2


@pytest.mark.parametrize("family", BASES)
@pytest.mark.parametrize("alpha_per_rank", [0.5, 2.0])
def test_against_weights_put_together_by_hand(family, alpha_per_rank):
    wrapped = trained(fresh(family), ranks_for(family), alpha_per_rank=alpha_per_rank)
    by_hand, tensors = fresh(family), lora_tensors(wrapped)
    with torch.no_grad():
        for layer, rank in zip(linears(by_hand), ranks_for(family), strict=True):
            for name, module in layer.items():
                if not rank:
                    continue
                a, b = (tensors[f"base_model.model.{name}.lora_{x}.default.weight"] for x in "AB")
                update = alpha_per_rank * rank / rank * b @ a  # alpha / r · B·A
                module.weight += update.T if family == "gpt2" else update
    # W·x + s·B·(A·x) against (W + s·B·A)·x: float32 rounding, logits of order 1.
    torch.testing.assert_close(logits(wrapped), logits(by_hand), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", BASES)
def test_merged_equals_unmerged(family):
    wrapped = trained(fresh(family), ranks_for(family))
    before = logits(wrapped)
    merged = recovery.merge(wrapped)
    assert type(merged) is type(BASES[family]) and not any("lora" in name for name, _ in merged.named_modules())
    # The same numbers added in another order: float32 rounding.
    torch.testing.assert_close(logits(merged), before, rtol=1e-4, atol=1e-5)
    assert pruning.sizes(merged) == pruning.sizes(BASES[family])


def test_ranks_land_in_their_layers():
    wrapped = recovery.add_adapter(fresh(), RANKS, seed=0)
    shapes = {name: tuple(p.shape) for name, p in lora_tensors(wrapped).items()}
    for i, rank in enumerate(RANKS):
        mine = {name: shape for name, shape in shapes.items() if f".layers.{i}." in name}
        assert len(mine) == (14 if rank else 0)
        assert all(shape[0 if "lora_A" in name else 1] == rank for name, shape in mine.items())


def test_ranks_per_matrix():
    names = [name for layer in linears(fresh()) for name in layer]
    chosen = {names[0]: 3, names[8]: 5, names[9]: 0}
    wrapped = recovery.add_adapter(fresh(), chosen, seed=0)
    shapes = {name: tuple(p.shape) for name, p in lora_tensors(wrapped).items() if "lora_A" in name}
    assert [shape[0] for shape in shapes.values()] == [3, 5]
    assert sum(p.numel() for p in wrapped.parameters() if p.requires_grad) == recovery.lora_parameters(fresh(), chosen)


@settings(max_examples=15)
@given(st.sampled_from(["llama", "gpt2"]), st.data())
def test_trainable_parameters_are_counted_exactly(family, data):
    layers = len(linears(BASES[family]))
    ranks = data.draw(st.lists(st.integers(0, 6), min_size=layers, max_size=layers).filter(any))
    wrapped = recovery.add_adapter(fresh(family), ranks, seed=0)
    trainable = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert trainable == recovery.lora_parameters(BASES[family], ranks)
    assert trainable == int(np.dot(ranks, recovery.cost_per_rank(BASES[family])))


def test_cost_follows_the_pruned_shapes():
    costs = recovery.cost_per_rank(BASES["llama"])
    # hidden 64, whole: q and o 64 + 128, k and v 64 + 64, gate, up and down 64 + 192
    assert costs[0] == costs[-1] == 2 * (64 + 128) + 2 * (64 + 64) + 3 * (64 + 192)
    size = pruning.sizes(BASES["llama"])[1]
    groups, channels = size["attention_groups"], size["channels"]
    assert costs[1] == 2 * (64 + 32 * groups) + 2 * (64 + 16 * groups) + 3 * (64 + channels) < costs[0]


def test_one_rank_for_all_is_the_uniform_vector_and_one_pattern_less():
    one, many = (recovery.add_adapter(fresh(), ranks, seed=4) for ranks in (2, [2] * 8))
    mine, theirs = lora_tensors(one), lora_tensors(many)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert one.peft_config["default"].rank_pattern == {} and one.peft_config["default"].r == 2


def test_starts_come_from_the_seed_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = lora_tensors(recovery.add_adapter(fresh(), RANKS, seed=5))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    again = lora_tensors(recovery.add_adapter(fresh(), RANKS, seed=5))
    other = lora_tensors(recovery.add_adapter(fresh(), RANKS, seed=6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)
    assert len({tuple(p[0, :3].tolist()) for name, p in first.items() if "lora_A" in name}) == 7 * 7


def test_a_higher_rank_only_adds_rows():
    low, high = (lora_tensors(recovery.add_adapter(fresh(), ranks, seed=0)) for ranks in ([2] * 8, [0, 6, *[2] * 6]))
    for name in high:
        if "lora_A" in name:
            assert torch.equal(low[name], high[name][:2])


def test_the_start_is_that_of_peft():
    a = torch.cat([p.flatten() * math.sqrt(p.shape[1]) for name, p in lora_tensors(
        recovery.add_adapter(fresh(), 8, seed=0)).items() if "lora_A" in name])  # fmt: skip
    # Kaiming with a = √5 is uniform on ±1/√inputs: bounds, and a variance of 1/3 (tens of thousands of draws).
    assert a.abs().max() <= 1 and a.var() == pytest.approx(1 / 3, rel=0.03) and abs(a.mean()) < 0.02


def test_dropout_is_handed_on():
    wrapped = trained(fresh(), 2, dropout=0.5)
    quiet = logits(wrapped)
    assert torch.equal(quiet, logits(wrapped)) and not torch.equal(quiet, logits(wrapped.train()))


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([1] * 7, "expected 8 numbers, one per decoder layer, got 7"),
        ([1] * 9, "expected 8 numbers"),
        ([0] * 8, "all ranks are 0"),
        (0, "all ranks are 0"),
        (-1, "a whole number from 0 on, got -1"),
        (65, "from 0 to the model's width 64"),
        ([1.5] * 8, "a whole number from 0 on"),
        ([True] * 8, "a whole number from 0 on"),
        ({"model.layers.0.self_attn.q": 2}, r"no such matrices .*q'\]; they are named like model"),
    ],
)
def test_ranks_that_make_no_sense_are_refused(ranks, message):
    for use in (lambda: recovery.add_adapter(fresh(), ranks, seed=0), lambda: recovery.lora_parameters(fresh(), ranks)):
        with pytest.raises(ValueError, match=message):
            use()


def test_a_second_adapter_is_refused(tmp_path):
    wrapped = recovery.add_adapter(fresh(), 2, seed=0)
    recovery.save_adapter(wrapped, tmp_path)
    with pytest.raises(ValueError, match="already"):
        recovery.add_adapter(wrapped.get_base_model(), 2, seed=0)
    with pytest.raises(ValueError, match="already"):
        recovery.load_adapter(wrapped.get_base_model(), tmp_path)
    with pytest.raises(ValueError, match="merge adapters"):
        pruning.groups(wrapped.get_base_model())
    with pytest.raises(ValueError, match="dropout"):
        recovery.add_adapter(fresh(), 2, dropout=1.0, seed=0)


@pytest.mark.parametrize("family", BASES)
def test_saved_adapters_load_by_plain_peft_and_by_us(family, tmp_path):
    wrapped = trained(fresh(family), ranks_for(family))
    recovery.save_adapter(wrapped, tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file() and not list(tmp_path.glob("*.bin"))
    state = torch.get_rng_state()
    ours = recovery.load_adapter(fresh(family), tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    plain = PeftModel.from_pretrained(fresh(family), str(tmp_path))
    for loaded in (ours, plain):
        assert torch.equal(logits(loaded.eval()), logits(wrapped))
    assert not any(p.requires_grad for p in ours.parameters())


def test_saved_files_do_not_depend_on_the_process(tmp_path):
    recovery.save_adapter(trained(fresh(), RANKS), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    names = [name for layer, rank in zip(linears(fresh()), RANKS, strict=True) for name in layer if rank]
    assert config["target_modules"] == names and config["r"] == 8


def test_an_adapter_of_the_unpruned_model_is_refused_and_the_model_left_alone(tmp_path):
    recovery.save_adapter(trained(small_llama(0), RANKS), tmp_path)
    model, before = fresh(), logits(fresh())
    channels = pruning.sizes(model)[1]["channels"]
    message = rf"model\.layers\.1\.mlp\.down_proj\.lora_A\.weight: .* \(2, {channels}\), the file has \(2, 192\)"
    with pytest.raises(ValueError, match=message):
        recovery.load_adapter(model, tmp_path)
    assert not any("lora" in name for name, _ in model.named_modules()) and torch.equal(logits(model), before)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    recovery.save_adapter(trained(fresh("gpt2"), 2), tmp_path)
    with pytest.raises(ValueError, match=r"the model needs no such tensor, the file has"):
        recovery.load_adapter(fresh(), tmp_path)


def test_damaged_or_foreign_adapters_are_refused(tmp_path):
    recovery.save_adapter(trained(fresh(), RANKS), tmp_path)
    path, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    weights, settings_ = load_file(path), config.read_text()
    name = next(iter(weights))
    save_file({key: value for key, value in weights.items() if key != name}, path)
    with pytest.raises(ValueError, match="the file has no such tensor"):
        recovery.load_adapter(fresh(), tmp_path)
    save_file({**weights, "base_model.model.extra.lora_A.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"extra\.lora_A\.weight: the model needs no such tensor"):
        recovery.load_adapter(fresh(), tmp_path)
    save_file(weights, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="is damaged"):
        recovery.load_adapter(fresh(), tmp_path)
    config.write_text(settings_.replace('"LORA"', '"IA3"'))
    with pytest.raises(ValueError, match="expected a LORA adapter, got IA3"):
        recovery.load_adapter(fresh(), tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"has no adapter_model\.safetensors"):
        recovery.load_adapter(fresh(), tmp_path)


def test_an_adapter_on_an_embedding_is_refused(tmp_path):
    get_peft_model(fresh(), LoraConfig(target_modules=["embed_tokens"])).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"model\.embed_tokens, a Embedding: only matrices"):
        recovery.load_adapter(fresh(), tmp_path)


def test_a_wrapper_without_config(tmp_path):
    rows = torch.rand(2, 5, 10, generator=torch.Generator().manual_seed(0))
    wrapped = trained(row_gpt(), [2, 0, 3])
    after = wrapped(rows)
    assert (after - row_gpt()(rows)).abs().max() > 1e-2
    recovery.save_adapter(wrapped, tmp_path)
    assert torch.equal(recovery.load_adapter(row_gpt(), tmp_path)(rows), after)
    torch.testing.assert_close(recovery.merge(wrapped)(rows), after, rtol=1e-4, atol=1e-5)  # float32 rounding


def test_gradients_reach_the_adapter_and_nothing_else():
    wrapped = recovery.add_adapter(fresh("gpt2"), [2, 0, 3], seed=0)
    F.cross_entropy(wrapped(input_ids=TOKENS).logits.flatten(0, 1), TOKENS.flatten()).backward()
    reached = {name for name, p in wrapped.named_parameters() if p.grad is not None}
    assert reached == set(lora_tensors(wrapped))
    assert any(p.grad.abs().max() > 0 for name, p in wrapped.named_parameters() if "lora_B" in name)


# --- the weights merged in every call -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", BASES)
@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_a_merged_step_has_the_same_logits_and_gradients(family, method):
    wrapped = trained(fresh(family), ranks_for(family) if method == "lora" else 2, method=method)
    merged = recovery.trainable(wrapped)
    assert merged is not wrapped
    found = {}
    for name, model in {"beside": wrapped, "merged": merged}.items():
        wrapped.zero_grad()
        logits = model(input_ids=TOKENS).logits
        logits.square().mean().backward()
        found[name] = logits, {n: p.grad.clone() for n, p in wrapped.named_parameters() if p.requires_grad}
    # Sums in another order, in float32.
    torch.testing.assert_close(found["merged"][0], found["beside"][0], rtol=1e-4, atol=1e-5)
    for name, gradient in found["beside"][1].items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found["merged"][1][name], gradient, rtol=1e-3, atol=1e-4 * scale)


def test_a_merged_step_trains_the_adapter_and_keeps_its_own_mode():
    wrapped = recovery.add_adapter(gpt2(), 2, seed=0)  # GPT-2 has dropout, of which the mode decides
    merged = recovery.trainable(wrapped)
    assert [p for p in merged.parameters() if p.requires_grad] == [p for p in wrapped.parameters() if p.requires_grad]
    calls = {mode: [merged.train(mode)(input_ids=TOKENS).logits for _ in range(2)] for mode in (True, False)}
    assert not torch.equal(*calls[True]) and torch.equal(*calls[False])
    assert not any("lora" in name for name, _ in merged._twin[0].named_modules())


@pytest.mark.parametrize("why", ["dropout", "precision", "size", "another layer", "no adapter"])
def test_what_would_not_pay_or_not_be_the_same_is_trained_as_it_is(why, monkeypatch):
    model = fresh().to(torch.bfloat16) if why == "precision" else fresh()
    if why == "size":
        monkeypatch.setattr(merging, "SMALL", 10)
    given = {"dropout": {"dropout": 0.1}, "another layer": {"method": "adalora", "steps": 8}}.get(why, {})
    adapted = model if why == "no adapter" else recovery.add_adapter(model, 2, seed=0, **given)
    assert recovery.trainable(adapted) is adapted

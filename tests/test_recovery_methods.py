"""PiSSA, EVA and AdaLoRA: they start where they should, keep to their budget, and are saved as ordinary LoRA."""

import copy
import functools
import json

import numpy as np
import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.nn import functional as F

from rules2ranks import recovery, stages, training
from rules2ranks.decoders import linears
from rules2ranks.recovery.methods import ADAPTERS, adalora, eva
from rules2ranks.recovery.methods.lora import Lora
from rules2ranks.recovery.wrapping import adapted_matrices
from rules2ranks.runs import ParameterError
from rules2ranks.stages import compressing, language_suite, subjects
from test_recovery import BASES, RANKS, fresh, lora_tensors, ranks_for, row_gpt

TOKENS = torch.randint(1, 50, (12, 9), generator=torch.Generator().manual_seed(3))
METHODS = [method.name for method in ADAPTERS]
STEPS = 12


def next_token(model, batch):
    return F.cross_entropy(model(input_ids=batch[0]).logits[:, :-1].flatten(0, 1), batch[0][:, 1:].flatten())


def next_row(model, batch):
    return F.mse_loss(model(batch[0])[:, :-1], batch[0][:, 1:])


def put_on(model, method, ranks, loss=next_token, batches=((TOKENS,),), seed=0, steps=STEPS, **options):
    ranks = max(ranks) if method == "adalora" else ranks
    return recovery.add_adapter(model, ranks, method, seed=seed, steps=steps, loss=loss, batches=batches, **options)


def trained(model, method, ranks, loss=next_token, batches=((TOKENS,),), steps=STEPS, before=None, after=None):
    """An adapter after a dozen steps, enough for AdaLoRA to move its ranks.

    `before` and `after` see it with the number of steps, on either side of what the method does after each.
    """
    adapted = put_on(model, method, ranks, loss, batches, steps=steps)
    own = recovery.method_of(adapted).after_step(adapted)

    def after_step(step):
        if before:
            before(adapted, step)
        if own:
            own(step)
        if after:
            after(adapted, step)

    loss = recovery.method_of(adapted).loss(loss)
    with training.reproducible(0):
        schedule = training.Schedule(steps, 3e-2)
        training.train(adapted, lambda step: batches[0], loss, schedule, after_step=after_step)
    return adapted


def kept_ranks(adapted):
    return {name: int(mask.sum()) for name, mask in adalora.kept(adapted).items()}


def counts(adapted):
    return recovery.method_of(adapted).counts(adapted)


@functools.cache
def example(family, method):
    """A trained adapter to look at, not to change."""
    return trained(fresh(family), method, ranks_for(family))


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def close(have, want, atol=1e-5):
    # Sums of the same numbers in another order: float32 rounding, logits of order 1.
    torch.testing.assert_close(have, want, rtol=1e-4, atol=atol)


def close_when_merged(have, want):
    # W + s·B·A is rounded once more, in every matrix, and the norms of small activations magnify that: up to 3e-5 here.
    close(have, want, atol=1e-4)


def has_adapter(model):
    return any("lora" in name for name, _ in model.named_modules())


# --- all of them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", BASES)
@pytest.mark.parametrize("method", METHODS)
def test_the_start_changes_nothing_and_training_does(family, method):
    before = logits(fresh(family))
    close(logits(put_on(fresh(family), method, ranks_for(family)).eval()), before)
    assert (logits(example(family, method)) - before).abs().max() > 1e-2


@pytest.mark.parametrize("family", BASES)
@pytest.mark.parametrize("method", METHODS)
def test_a_trained_adapter_is_an_ordinary_lora_for_the_pruned_model(family, method, tmp_path):
    wrapped = example(family, method)
    after = logits(wrapped)
    recovery.save_adapter(wrapped, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["init_lora_weights"] is True
    names = [name for layer in linears(fresh(family)) for name in layer]
    assert config["target_modules"] == [name for name in names if name in config["target_modules"]]
    close(logits(PeftModel.from_pretrained(fresh(family), str(tmp_path)).eval()), after)
    state = torch.get_rng_state()
    loaded = recovery.load_adapter(fresh(family), tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    close(logits(loaded.eval()), after)
    close_when_merged(logits(recovery.merge(loaded)), after)


@pytest.mark.parametrize("family", BASES)
@pytest.mark.parametrize("method", METHODS)
def test_merging_changes_nothing(family, method):
    merged = recovery.merge(copy.deepcopy(example(family, method)))
    assert not has_adapter(merged) and type(merged) is type(BASES[family])
    close_when_merged(logits(merged), logits(example(family, method)))


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits_and_no_draw_is_taken_from_others(method):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = lora_tensors(put_on(fresh(), method, [3] * 8))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    again, other = (lora_tensors(put_on(fresh(), method, [3] * 8, seed=seed)) for seed in (0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = {"adalora": ("lora_A", "lora_B"), "pissa": (), "eva": ()}.get(method, "lora_A")
    for name in first:
        assert torch.equal(first[name], other[name]) != any(part in name for part in np.atleast_1d(drawn))
    mine, theirs = (lora_tensors(wrapped) for wrapped in (example("llama", method), trained(fresh(), method, RANKS)))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("method", ["pissa", "eva"])
def test_layers_of_rank_0_are_left_out_and_all_is_counted(method):
    wrapped = put_on(fresh(), method, RANKS)
    for i, rank in enumerate(RANKS):
        shapes = {n: tuple(p.shape) for n, p in lora_tensors(wrapped).items() if f".layers.{i}." in n}
        assert len(shapes) == (14 if rank else 0)
        assert all(shape[0 if "lora_A" in n else 1] == rank for n, shape in shapes.items())
    trainable = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert trainable == recovery.lora_parameters(fresh(), RANKS)


@pytest.mark.parametrize("method", METHODS)
def test_a_wrapper_without_config(method, tmp_path):
    rows = torch.rand(6, 5, 10, generator=torch.Generator().manual_seed(0))
    wrapped = trained(row_gpt(), method, [2, 0, 3], next_row, ((rows,),))
    with torch.no_grad():
        after = wrapped(rows)
        assert (after - row_gpt()(rows)).abs().max() > 1e-2
        recovery.save_adapter(wrapped, tmp_path)
        close(recovery.load_adapter(row_gpt(), tmp_path)(rows), after)
        close(recovery.merge(wrapped)(rows), after)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("best", {}, f"method must be one of {', '.join(recovery.METHODS)}, got 'best'"),
        ("pissa", {"ranks": 40}, r"has 32 singular values: pissa cannot start at rank 40"),
        ("eva", {"batches": ()}, "give batches"),
        ("eva", {"loss": None}, "give batches, and the loss"),
        ("eva", {"ranks": 33}, r"q_proj has 64 inputs: eva can start at rank 32 at most"),
        ("eva", {"ranks": 5, "batches": ((TOKENS[:1],),)}, "batches of 10 positions or more, one has 9"),
        ("eva", {"dropout": 1.0}, "dropout"),
        ("adalora", {"ranks": [2, 2, 2, 2, 2, 2, 2, 1]}, r"moves the ranks itself: give one mean rank .*, not \[2, 2"),
        ("adalora", {"ranks": [2, 2, 2, 2, 2, 2, 2, 0]}, "moves the ranks itself"),
        ("adalora", {"ranks": 0}, "all ranks are 0"),
        ("adalora", {"ranks": 50}, "from 0 to the model's width 64, got 75"),
        ("adalora", {"steps": 3}, "4 steps at least, got 3"),
        ("adalora", {"steps": None}, "4 steps at least, got None"),
        ("adalora", {"dropout": -0.1}, "dropout"),
    ],
)
def test_what_cannot_start_is_refused_and_the_model_left_alone(method, given, message):
    model = fresh()
    options = {"ranks": 2, "seed": 0, "steps": STEPS, "batches": ((TOKENS,),), "loss": next_token, **given}
    with pytest.raises(ValueError, match=message):
        recovery.add_adapter(model, method=method, **options)
    assert not has_adapter(model) and all(p.requires_grad for p in model.parameters())


def test_a_method_is_known_from_the_model_and_what_is_loaded_is_lora(tmp_path):
    for method in METHODS:
        adapted = copy.deepcopy(example("llama", method))
        assert recovery.method_of(adapted) is recovery.METHODS[method]
        recovery.save_adapter(adapted, tmp_path)
        assert recovery.method_of(recovery.load_adapter(fresh(), tmp_path)) is recovery.METHODS["lora"]
    for use in (recovery.method_of, recovery.merge, lambda model: recovery.save_adapter(model, tmp_path)):
        with pytest.raises(ValueError, match="a LlamaForCausalLM that add_adapter or load_adapter has not returned"):
            use(fresh())


class FrozenA(Lora):
    """LoRA-FA (Zhang et al., arXiv 2308.03303): A stays as drawn, B alone is trained."""

    name = "lora-fa"

    def add(self, model, ranks, given):
        adapted = super().add(model, ranks, given)
        for _, _, module in adapted_matrices(adapted):
            module.lora_A.requires_grad_(False)
        return adapted


def test_a_method_of_ones_own_is_a_class_and_an_entry(monkeypatch, tmp_path):
    monkeypatch.setitem(recovery.METHODS, FrozenA.name, FrozenA())
    first, adapted = lora_tensors(put_on(fresh(), "lora-fa", RANKS)), trained(fresh(), "lora-fa", RANKS)
    assert all(torch.equal(p, first[name]) == ("lora_A" in name) for name, p in lora_tensors(adapted).items())
    trainable = sum(p.numel() for name, p in first.items() if "lora_B" in name)
    assert counts(adapted) == {"trained_parameters": trainable}
    recovery.save_adapter(adapted, tmp_path)
    close(logits(recovery.load_adapter(fresh(), tmp_path).eval()), logits(adapted))


# --- PiSSA ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", BASES)
@pytest.mark.parametrize("alpha_per_rank", [1.0, 2.0])
def test_pissa_starts_with_the_main_part_of_each_matrix(family, alpha_per_rank):
    ranks = ranks_for(family)
    wrapped = put_on(fresh(family), "pissa", ranks, alpha_per_rank=alpha_per_rank)
    tensors = {name: p.double().numpy() for name, p in lora_tensors(wrapped).items()}
    for layer, rank in zip(linears(fresh(family)), ranks, strict=True):
        for name, module in layer.items():
            if not rank:
                continue
            weight = module.weight.detach().double().numpy()
            weight = weight.T if family == "gpt2" else weight
            u, s, v = np.linalg.svd(weight, full_matrices=False)
            a, b = (tensors[f"base_model.model.{name}.lora_{x}.default.weight"] for x in "AB")
            # float32 beside double precision, entries up to 0.1; near singular values mix their parts.
            np.testing.assert_allclose(alpha_per_rank * b @ a, (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-5)
            rest = wrapped.get_base_model().get_submodule(name).base_layer.weight.detach().double().numpy()
            rest = rest.T if family == "gpt2" else rest
            np.testing.assert_allclose(rest, (u[:, rank:] * s[rank:]) @ v[rank:], atol=1e-5)
            # The two factors share each singular value evenly; signs are settled.
            np.testing.assert_allclose((a**2).sum(1), s[:rank] / alpha_per_rank, rtol=1e-5)
            assert (a[np.arange(rank), np.abs(a).argmax(1)] > 0).all()


def test_pissas_file_holds_what_training_changed(tmp_path):
    wrapped = trained(fresh(), "pissa", [2] * 8)
    first = lora_tensors(put_on(fresh(), "pissa", [2] * 8))
    recovery.save_adapter(wrapped, tmp_path)
    file, now = load_file(tmp_path / "adapter_model.safetensors"), lora_tensors(wrapped)
    for layer in linears(fresh()):
        for name in layer:
            a, b = (f"base_model.model.{name}.lora_{x}.default.weight" for x in "AB")
            saved = file[b.replace(".default", "")] @ file[a.replace(".default", "")]
            assert file[a.replace(".default", "")].shape[0] == 4
            close(saved, now[b] @ now[a] - first[b] @ first[a])


def test_an_untrained_pissa_saves_nothing_but_itself(tmp_path):
    recovery.save_adapter(put_on(fresh(), "pissa", RANKS), tmp_path)
    close(logits(PeftModel.from_pretrained(fresh(), str(tmp_path)).eval()), logits(fresh()))


# --- EVA --------------------------------------------------------------------------------------------------------


def inputs_of(model, batch, where):
    """Inputs (positions, inputs) of every matrix of the decoder layers, collected by hooks of our own."""
    seen, handles = {}, []
    for layer in linears(model):
        for name, module in layer.items():

            def keep(module, inputs, output, name=name):
                seen[name] = inputs[0][where].double().numpy()

            handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        model(input_ids=batch)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", BASES)
def test_eva_starts_with_the_main_directions_of_the_inputs(family):
    ranks = ranks_for(family)
    wrapped = put_on(fresh(family), "eva", ranks)
    seen = inputs_of(fresh(family), TOKENS, torch.ones_like(TOKENS, dtype=torch.bool))
    checked = 0
    for name, rank in ((n, r) for layer, r in zip(linears(fresh(family)), ranks, strict=True) for n in layer if r):
        a = lora_tensors(wrapped)[f"base_model.model.{name}.lora_A.default.weight"].double().numpy()
        np.testing.assert_allclose(a @ a.T, np.eye(rank), atol=1e-5)
        _, s, v = np.linalg.svd(seen[name] - seen[name].mean(0), full_matrices=False)
        best, found = (s[:rank] ** 2).sum(), (((seen[name] - seen[name].mean(0)) @ a.T) ** 2).sum()
        # No directions hold more variance than the singular vectors; PEFT's randomised ones nearly as much.
        assert 0.999 * best < found < best * (1 + 1e-6)
        if s[0] > 1.2 * s[1]:  # a direction of its own: the first row is it, up to sign
            assert abs(a[0] @ v[0]) > 0.999
            checked += 1
    assert checked >= 2
    assert all((p == 0).all() for name, p in lora_tensors(wrapped).items() if "lora_B" in name)


def test_eva_looks_where_it_is_told_to():
    pair = language_suite.language_pairs(32, 0, "train")
    subject = subjects.subject("language")
    where = subject.positions(pair)
    assert 0.3 < where.float().mean() < 0.8  # the rest is padding and the answers' last tokens
    told, all_of_them = (
        lora_tensors(put_on(fresh(), "eva", 2, subject.loss, [pair], positions=positions))
        for positions in (subject.positions, None)
    )
    for name, inputs in inputs_of(fresh(), pair[0], where).items():
        about = inputs - inputs.mean(0)
        best = (np.linalg.svd(about, compute_uv=False)[:2] ** 2).sum()
        a = f"base_model.model.{name}.lora_A.default.weight"
        found, elsewhere = (((about @ t[a].double().numpy().T) ** 2).sum() for t in (told, all_of_them))
        # PEFT's randomised directions; where singular values are nearly equal they miss up to 1.3 % of the best.
        assert 0.98 * best < found and elsewhere < found


def test_eva_sees_all_batches_and_leaves_the_model_as_it_was():
    model = fresh().train()
    parts = tuple((part,) for part in TOKENS.split(4))
    many = lora_tensors(put_on(model, "eva", [2] * 8, batches=parts))
    one = lora_tensors(put_on(fresh(), "eva", [2] * 8, batches=parts[:1]))
    assert model.training and not any(m._forward_hooks for m in model.modules())
    assert any(not torch.equal(many[name], one[name]) for name in many)


def test_directions_that_do_not_settle_are_refused(monkeypatch):
    monkeypatch.setattr(eva, "MOST_PASSES", 2)
    model = fresh()
    with pytest.raises(ValueError, match="at rank 2 do not settle"):
        put_on(model, "eva", [2] * 8)
    assert not has_adapter(model) and not any(m._forward_hooks for m in model.modules())


# --- AdaLoRA ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", BASES)
@pytest.mark.parametrize("rank", [1, 3])
def test_adalora_ends_within_the_budget_of_a_uniform_rank(family, rank, tmp_path):
    layers = len(linears(BASES[family]))
    wrapped = trained(fresh(family), "adalora", [rank] * layers)
    ranks = kept_ranks(wrapped)
    limit = recovery.lora_parameters(fresh(family), rank)
    assert sum(ranks.values()) <= rank * len(ranks) and len(set(ranks.values())) > 1
    assert 0.85 * limit < counts(wrapped)["trained_parameters"] <= limit
    for name, kept in ranks.items():
        e = lora_tensors(wrapped)[f"base_model.model.{name}.lora_E.default"]
        assert int((e != 0).sum()) == kept
    recovery.save_adapter(wrapped, tmp_path)
    file = load_file(tmp_path / "adapter_model.safetensors")
    saved = {name.split(".", 2)[2].removesuffix(".lora_A.weight"): len(p) for name, p in file.items() if "_A" in name}
    assert saved == {name: kept for name, kept in ranks.items() if kept}
    assert sum(p.numel() for p in file.values()) == counts(wrapped)["trained_parameters"]
    assert recovery.lora_parameters(fresh(family), ranks) == counts(wrapped)["trained_parameters"]


def test_adaloras_budget_falls_as_a_cube():
    budgets = []

    def note(wrapped, step):
        budgets.append(sum(kept_ranks(wrapped).values()))

    trained(fresh(), "adalora", [2] * 8, after=note)
    first, last, begin, end = 3 * 56, 2 * 56, STEPS // 6, STEPS - STEPS // 2
    # Section 3.3 of the paper, with PEFT's rounding down.
    falling = [int(last + (first - last) * (1 - (t - begin) / (end - begin)) ** 3) for t in range(begin + 1, end)]
    assert budgets[:begin] == [first] * begin and budgets[begin : end - 1] == falling
    assert len(set(budgets[end - 1 :])) == 1 and last - 3 <= budgets[-1] <= last


def test_adalora_keeps_the_triplets_that_matter_most():
    """The last allocation against the importance of section 3.2, written out from values and gradients."""
    smooth, spread, kept = {}, {}, {}

    def score(wrapped, step):
        if step < STEPS - STEPS // 2:
            for name, p in ((n, p) for n, p in wrapped.named_parameters() if p.requires_grad):
                sensitivity = (p * p.grad).abs().detach().double().numpy()
                smooth[name] = 0.85 * smooth.get(name, 0) + 0.15 * sensitivity
                spread[name] = 0.85 * spread.get(name, 0) + 0.15 * np.abs(sensitivity - smooth[name])

    wrapped = trained(fresh(), "adalora", [2] * 8, before=score)
    for name in (n for layer in linears(fresh()) for n in layer):
        e, a, b = (f"base_model.model.{name}.lora_{x}.default" for x in "EAB")
        entries = {x: smooth[x] * spread[x] for x in (e, a, b)}
        kept[name] = entries[e][:, 0] + entries[a].mean(1) + entries[b].mean(0)
    count = sum(kept_ranks(wrapped).values())
    threshold = np.sort(np.concatenate(list(kept.values())))[-count]
    for name, mask in adalora.kept(wrapped).items():
        # Scores in double precision beside float32: none lies so near the threshold.
        assert (np.abs(kept[name] / threshold - 1) > 1e-4).sum() >= len(mask) - 1
        assert np.array_equal(kept[name] >= threshold * (1 - 1e-6), mask.numpy())


def test_the_regulariser_is_that_of_peft():
    wrapped = put_on(fresh(), "adalora", [2])
    ours = recovery.method_of(wrapped).loss(next_token)(wrapped, (TOKENS,)) - next_token(wrapped, (TOKENS,))
    with_it = wrapped(input_ids=TOKENS, labels=TOKENS).loss
    wrapped.peft_config["default"].orth_reg_weight = 0.0
    without = wrapped(input_ids=TOKENS, labels=TOKENS).loss
    # Differences of losses of order 4 in float32.
    assert ours.item() == pytest.approx((with_it - without).item(), abs=2e-6) and ours.item() > 0.1


def test_adalora_starts_as_that_of_peft():
    wrapped = put_on(fresh(), "adalora", [8])
    tensors = lora_tensors(wrapped)
    config = AdaLoraConfig(init_r=12, target_r=8, total_step=STEPS, target_modules=["q_proj", "down_proj"])
    theirs = lora_tensors(get_peft_model(fresh(), config))
    for part in ("lora_A", "lora_B"):
        for of in (tensors, theirs):
            # Over ten thousand draws: the deviation's own error is below 1 %.
            drawn = torch.cat([p.flatten() for name, p in of.items() if part in name])
            assert drawn.std().item() == pytest.approx(0.02, rel=0.03) and abs(drawn.mean().item()) < 1e-3
    assert all((p == 0).all() for name, p in tensors.items() if "lora_E" in name)


def test_adalora_takes_its_mean_rank_in_every_form():
    names = [name for layer in linears(fresh()) for name in layer]
    one, *others = (
        lora_tensors(recovery.add_adapter(fresh(), ranks, "adalora", seed=0, steps=STEPS))
        for ranks in (2, [2] * 8, dict.fromkeys(reversed(names), 2))
    )
    for other in others:
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_four_steps_are_enough_for_adalora():
    adapted = trained(fresh(), "adalora", [2], steps=4)
    assert counts(adapted)["trained_parameters"] <= recovery.lora_parameters(fresh(), 2)


# --- the stage --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RULES2RANKS_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setattr(subjects, "HELD_OUT", 70)
        yield


@pytest.mark.parametrize("method", METHODS)
def test_the_stage_trains_counts_and_saves_each_method(method, store):
    asked = {"pruned": {"ratio": 0.5}, "ranks": 2, "method": method, "steps": 6, "examples": 100, "kl": False}
    result = stages.recover(**asked)
    model = compressing.load_pruned(stages.prune.Params.check(asked["pruned"]))
    uniform, counted = recovery.lora_parameters(model, 2), result.metrics["trained_parameters"]
    if method == "adalora":
        assert 0.95 * uniform < counted <= uniform < result.metrics["peak_parameters"]
    else:
        assert counted == uniform and "peak_parameters" not in result.metrics
    assert result.metrics["loss"] < stages.prune(**asked["pruned"]).metrics["after"]["loss"]
    saved = sum(p.numel() for p in load_file(result.file("adapter_model.safetensors")).values())
    assert saved == (2 if method == "pissa" else 1) * counted
    score = subjects.subject("language").evaluate("report", recovery.load_adapter(model, result.folder))
    # The same correction; PiSSA's is added to other weights: float32 rounding.
    assert score["loss"] == pytest.approx(result.metrics["loss"], rel=1e-5)


def test_the_stage_refuses_what_no_method_can_do(store):
    with pytest.raises(ValueError, match="give one mean rank"):
        stages.recover(pruned={"ratio": 0.5}, ranks=[2] * 7 + [1], method="adalora")
    with pytest.raises(ParameterError, match=r"'lora', .*'adalora'"):
        stages.recover(pruned={"ratio": 0.5}, method="dora")

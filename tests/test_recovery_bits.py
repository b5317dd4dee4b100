"""Few bits beneath an adapter: what starts where, that packed is the same, and the stage that trains it."""

import copy

import pytest
import torch

from rules2ranks import calibration, quantisation, recovery, stages
from rules2ranks.decoders import linears
from rules2ranks.recovery.wrapping import adapted_matrices
from rules2ranks.stages import compressing, subjects
from rules2ranks.stages.compressing import Recovery
from test_recovery import fresh, logits, ranks_for
from test_recovery_methods import TOKENS, next_token

GIVEN = {"seed": 0, "loss": next_token, "batches": [(TOKENS,)], "steps": 12, "group": 8}
FEW = ("lora", "eva", "loftq", "cloq")


def mixed(model):
    """2, 3, 4, 8 and 16 bits in turn."""
    names = [name for layer in linears(model) for name in layer]
    return dict(zip(names, [2, 3, 4, 8, 16] * len(names), strict=False))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", FEW)
def test_packed_and_rounded_start_the_same(family, method):
    rounded, packed = (
        recovery.add_adapter(
            fresh(family), ranks_for(family), method, bits=mixed(fresh(family)), packed=packed, **GIVEN
        ).eval()
        for packed in (False, True)
    )
    assert torch.equal(logits(rounded), logits(packed))
    assert set(quantisation.bits_of(packed).values()) == {2, 3, 4, 8}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_lora_starts_as_the_quantised_model(family):
    bits = mixed(fresh(family))
    adapted = recovery.add_adapter(fresh(family), 2, bits=bits, **GIVEN).eval()
    assert torch.equal(logits(adapted), logits(quantisation.quantise(fresh(family), bits, 8)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("alpha_per_rank", [1.0, 2.0])
def test_loftq_starts_nearer_to_every_matrix_that_has_bits_and_a_rank(family, alpha_per_rank):
    whole, ranks = fresh(family), ranks_for(family)
    bits = mixed(whole)
    adapted = recovery.add_adapter(fresh(family), ranks, "loftq", bits=bits, alpha_per_rank=alpha_per_rank, **GIVEN)
    blind = quantisation.quantise(fresh(family), bits, 8)
    merged = recovery.merge(copy.deepcopy(adapted))
    ranked = {name for _, name, _ in adapted_matrices(adapted)}
    assert ranked and ranked != set(bits)
    for name, width in bits.items():
        target = whole.get_submodule(name).weight
        ours, theirs = ((m.get_submodule(name).weight - target).norm().item() for m in (merged, blind))
        if width < 16 and name in ranked:
            assert ours < theirs
        else:  # as LoRA starts: what there is of bits, and B = 0
            assert ours == pytest.approx(theirs, abs=1e-5)


def test_cloq_loses_least_of_what_the_matrices_give():
    whole = fresh()
    bits = dict.fromkeys(mixed(whole), 2)
    modules = [whole.get_submodule(name) for name in bits]
    seen = calibration.collect(whole, modules, calibration.SecondMoment, [(TOKENS,)], next_token)
    lost = {}
    for method in ("lora", "loftq", "cloq"):
        merged = recovery.merge(recovery.add_adapter(fresh(), 2, method, bits=bits, rounds=1, **GIVEN))
        apart = [merged.get_submodule(name).weight - whole.get_submodule(name).weight for name in bits]
        lost[method] = [(d.double() @ s.mean @ d.double().T).trace().item() for d, s in zip(apart, seen, strict=True)]
    assert all(c < q < b for c, q, b in zip(lost["cloq"], lost["loftq"], lost["lora"], strict=True))


def test_what_cannot_start_is_refused_and_the_model_left_alone():
    model = fresh()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for method, ranks, bits, said in [
        ("pissa", 2, {next(iter(mixed(model))): 4}, "loftq is made for them"),
        ("lora", [2], mixed(model), "expected 8 numbers"),
        ("loftq", 2, {"no": 2}, "no matrix no"),
        ("cloq", 2, {next(iter(mixed(model))): 5}, "got 5"),
    ]:
        with pytest.raises(ValueError, match=said):
            recovery.add_adapter(model, ranks, method, bits=bits, **GIVEN)
    with pytest.raises(ValueError, match="give batches"):
        recovery.add_adapter(model, 2, "cloq", bits=mixed(model), seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# --- the stage --------------------------------------------------------------------------------------------------

SHORT = {"pruned": {"ratio": 0.5}, "steps": 6, "examples": 100}


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RULES2RANKS_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setattr(subjects, "HELD_OUT", 70)
        yield


def test_bits_are_the_same_however_they_are_said_and_16_are_none():
    names = [name for layer in subjects.subject("language").shapes.names for name in layer]
    one = Recovery.check(SHORT | {"bits": 4})
    assert one == Recovery.check(SHORT | {"bits": [4] * 8}) == Recovery.check(SHORT | {"bits": dict.fromkeys(names, 4)})
    # What has no bits has the parameters, and so the place in `runs/`, that it had before there were any.
    assert not {"bits", "group", "rounds"} & Recovery.check(SHORT | {"bits": 16}).model_dump().keys()
    assert Recovery.check(one.model_dump(mode="json")) == one


def test_without_ranks_nothing_is_trained():
    about = subjects.subject("language")
    pruned = Recovery.check(SHORT).pruned
    for bits in (16, 3):
        metrics = stages.recover(**SHORT, ranks=0, bits=bits).metrics
        model = quantisation.quantise(compressing.load_pruned(pruned), Recovery.check(SHORT | {"bits": bits}).bits)
        assert metrics["trained_parameters"] == 0
        assert metrics["loss"] == about.evaluate("report", model)["loss"]
    assert stages.recover(**SHORT, ranks=0).metrics["loss"] == stages.prune(ratio=0.5).metrics["after"]["loss"]


@pytest.mark.parametrize("method", FEW)
def test_the_stage_trains_on_few_bits(method):
    how = {"ranks": 2, "bits": 2, "method": method}
    before = stages.recover(**SHORT, ranks=0, bits=2).metrics["loss"]
    result = stages.recover(**SHORT, **how)
    assert result.metrics["loss"] < before
    model = compressing.begun(Recovery.check(SHORT | how), packed=True).unload()
    again = recovery.load_adapter(model, result.folder)
    loss = subjects.subject("language").evaluate("report", again)["loss"]
    assert loss == pytest.approx(result.metrics["loss"], rel=1e-5)

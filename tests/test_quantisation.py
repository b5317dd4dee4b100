"""Few bits: the grid beside hqq's own quantiser, packing without gaps, packed = rounded, files, LoftQ and CLoQ."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.loftq_utils import _low_rank_decomposition
from torch import nn

from rules2ranks import decoders, pruning, quantisation, recovery
from rules2ranks.configuration import Configuration, memory
from rules2ranks.quantisation import BITS
from tiny_decoders import FAMILIES, build, tokens

# Small widths whose matrices still divide into groups of 8.
SIZES = {"kv": 2, "queries": 2, "head": 4, "channels": 8, "hidden": 16}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", BITS)
def test_the_grid_is_that_of_hqq(bits):
    from hqq.core.quantize import Quantizer  # brings torch's compiler along, which takes seconds

    weight = drawn(48, 64)
    ours = quantisation.quantised(weight, bits)
    codes, meta = Quantizer.quantize(weight, nbits=bits, group_size=64, axis=1, bitpack=False, device="cpu")
    assert torch.equal(ours.scale, meta["scale"].half()) and torch.equal(ours.zero, meta["zero"].half())
    # Codes are chosen for the scales and zeros as rounded: of 3072, those on a border may differ, and by one.
    apart = (ours.codes.float() - codes).abs()
    assert apart.max() <= 1 and (apart > 0).float().mean() < 0.05
    theirs = Quantizer.dequantize(codes, meta | {"compute_dtype": torch.float32})
    # Zeros near 127, rounded to float16, are off by up to a thirty-second of a step.
    assert (ours.values - weight).norm() <= 1.01 * (theirs - weight).norm()


@pytest.mark.parametrize("bits", BITS)
def test_no_number_is_further_off_than_its_grid_allows(bits):
    weight = drawn(16, 64)
    held = quantisation.quantised(weight, bits)
    grid = (torch.arange(2**bits) - held.zero.float()) * held.scale.float()  # (groups, codes)
    nearest = (weight[:, :, None] - grid[:, None, :]).abs().amin(-1)
    assert torch.allclose((held.values - weight).abs(), nearest, atol=1e-6)  # float32 at about 3


@given(bits=st.sampled_from(BITS), eights=st.integers(1, 40), seed=st.integers(0, 99))
def test_codes_come_back_from_bytes_without_gaps(bits, eights, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, 8 * eights, dtype=np.uint8)
    packed = quantisation.pack_codes(torch.from_numpy(codes), bits)
    # An independent packer: numpy's, of the bits written out one by one.
    written = np.packbits((codes[:, None] >> np.arange(bits) & 1).astype(bool), bitorder="little")
    assert np.array_equal(packed.numpy(), written) and len(packed) == bits * eights
    assert np.array_equal(quantisation.unpack_codes(packed, bits).numpy(), codes)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_and_rounded_compute_the_same_bits(family, dtype):
    model = build(family, **SIZES).eval().to(dtype)
    names = [name for layer in decoders.linears(model) for name in layer]
    bits = dict(zip(names, [2, 3, 4, 8, 16] * len(names), strict=False))
    whole = model(tokens()).logits
    rounded = quantisation.quantise(copy.deepcopy(model), bits, group=8)
    packed = quantisation.pack(model, bits, group=8)
    assert torch.equal(rounded(tokens()).logits, packed(tokens()).logits)
    assert not torch.equal(whole, packed(tokens()).logits)
    assert quantisation.bits_of(packed) == {name: width for name, width in bits.items() if width < 16}


def test_another_type_is_one_of_the_weights_and_not_of_the_grid():
    model = build("llama", **SIZES)
    bits = dict.fromkeys(decoders.shapes(model).matrices, 3)
    packed = quantisation.pack(copy.deepcopy(model), bits, group=8)
    cast = copy.deepcopy(packed).to(torch.bfloat16)
    for name in bits:
        one, other = packed.get_submodule(name), cast.get_submodule(name)
        assert other.scale.dtype == other.zero.dtype == torch.float16 and other.codes.dtype == torch.uint8
        assert torch.equal(other.weight, one.weight.to(torch.bfloat16))
    assert cast(tokens()).logits.dtype == torch.bfloat16
    assert all(
        torch.equal(cast.to(torch.float32).get_submodule(n).weight, packed.get_submodule(n).weight) for n in bits
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_model_comes_back_from_its_folder(family, tmp_path):
    model = build(family, **SIZES)
    layers = decoders.linears(model)
    bits = {name: width for layer in layers for name, width in zip(layer, [2, 3, 4, 8, 16] * 2, strict=False)}
    shapes = decoders.shapes(model)
    packed = quantisation.pack(model, bits, group=8).eval()
    pruning.save_pruned(packed, tmp_path)
    again = pruning.load_pruned(tmp_path)
    assert torch.equal(again(tokens()).logits, packed(tokens()).logits)
    assert quantisation.bits_of(again) == quantisation.bits_of(packed)
    assert decoders.shapes(again) == shapes
    promised = memory(Configuration(bits=bits), shapes, group=8)
    # What is held is what is promised, and the file has a header beside it.
    buffers = sum(b.untyped_storage().nbytes() for name, b in again.named_buffers() if "inv_freq" in name)
    assert quantisation.packed_bytes(again) - buffers == promised
    size = (tmp_path / "model.safetensors").stat().st_size
    header = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little") + 8
    assert size - header == promised


def test_a_pruned_model_is_packed_with_an_adapter_on_top(tmp_path):
    model = pruning.resize(build("llama", **SIZES), [{"attention_groups": 1, "channels": 5}] * 2)
    bits = {name: 3 for layer in decoders.linears(model) for name in layer}
    rounded = quantisation.quantise(copy.deepcopy(model), bits, group=8)
    packed = quantisation.pack(model, bits, group=8)
    pruning.save_pruned(packed, tmp_path)
    adapted = recovery.add_adapter(rounded, 2, seed=0)
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.1)
    recovery.save_adapter(adapted, tmp_path / "adapter")
    again = recovery.load_adapter(pruning.load_pruned(tmp_path), tmp_path / "adapter")
    assert torch.equal(again(tokens()).logits, adapted(tokens()).logits)
    with pytest.raises(ValueError, match="is packed in few bits: its adapter stays beside it"):
        recovery.merge(again)
    with pytest.raises(ValueError, match="prune and merge before quantising"):
        pruning.resize(pruning.load_pruned(tmp_path), [{"attention_groups": 1, "channels": 4}] * 2)


# --- starts -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(bits=st.sampled_from(BITS), rank=st.integers(1, 8), seed=st.integers(0, 20))
def test_loftq_begins_nearer_and_never_gets_worse_with_more_rounds(bits, rank, seed):
    weight = drawn(24, 64, seed=seed)
    left = [(weight - quantisation.quantised(weight, bits).values).norm()]  # B = 0
    for rounds in range(1, 6):
        held, a, b = quantisation.loftq(weight, bits, rank, rounds)
        assert a.shape == (rank, 64) and b.shape == (24, rank)
        left.append((weight - held.values - b @ a).norm())
    assert left[1] < left[0]
    assert all(later <= sooner for sooner, later in itertools.pairwise(left))


def test_loftq_gains_by_its_rounds_where_bits_are_few():
    weight = drawn(64, 64)
    once, five = (quantisation.loftq(weight, 2, 8, rounds) for rounds in (1, 5))
    left = [(weight - held.values - b @ a).norm().item() for held, a, b in (once, five)]
    assert left[1] < 0.99 * left[0]


def test_a_round_of_loftq_is_that_of_peft():
    # PEFT's own needs CUDA and knows 4 and 8 bits; its decomposition is the same whatever the bits.
    weight = drawn(24, 64)
    held, a, b = quantisation.loftq(weight, 3, 4, rounds=1)
    theirs = _low_rank_decomposition(weight - held.values, reduced_rank=4)
    assert torch.allclose(b @ a, theirs["L"] @ theirs["R"], atol=1e-5)
    assert torch.equal(held.codes, quantisation.quantised(weight, 3).codes)


def test_cloq_is_best_for_the_inputs():
    weight, x = drawn(12, 16), drawn(16, 40, seed=1) * torch.linspace(0.1, 3, 16)[:, None]
    held, a, b = quantisation.cloq(weight, 2, 3, x @ x.T, group=16)
    rest = weight - held.values

    def left(correction):
        return ((rest - correction) @ x).norm().item()

    # Independent: alternating least squares, each half of it exact, from several starts.
    found = []
    for seed in range(3):
        factor = drawn(3, 16, seed=seed)
        for _ in range(300):
            seen = factor @ x
            weights = torch.linalg.lstsq(seen.T, (rest @ x).T).solution.T
            factor = torch.linalg.pinv(weights) @ rest
        found.append(left(weights @ factor))
    assert left(b @ a) == pytest.approx(min(found), rel=1e-3)
    blind = _low_rank_decomposition(rest, reduced_rank=3)
    assert left(b @ a) < 0.99 * left(blind["L"] @ blind["R"])


def test_cloq_without_any_direction_preferred_is_the_truncated_decomposition():
    weight = drawn(12, 16)
    held, a, b = quantisation.cloq(weight, 2, 3, torch.eye(16), group=16)
    theirs = _low_rank_decomposition(weight - held.values, reduced_rank=3)
    assert torch.allclose(b @ a, theirs["L"] @ theirs["R"], atol=1e-5)


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "bits", "group", "said"),
    [
        (drawn(8, 8), 5, 8, "2, 3, 4, 8 bits, got 5"),
        (drawn(6, 12), 4, 16, r"6 × 12 numbers has no whole number of groups of 16: of 8 it has"),
        (drawn(3, 3), 4, 8, "it can only stay at 16 bits"),
        (drawn(8, 8) * torch.inf, 4, 8, "not finite"),
        (drawn(8, 8) * 1e8, 4, 8, "too large"),
    ],
)
def test_what_cannot_be_quantised_is_told(weight, bits, group, said):
    with pytest.raises(ValueError, match=said):
        quantisation.quantised(weight, bits, group)


def test_a_model_is_left_alone_where_one_of_its_matrices_cannot_be_quantised():
    model = build("llama", **SIZES | {"channels": 5})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = list(decoders.shapes(model).matrices)
    wrong = {names[-1]: {names[0]: 2, names[-1]: 2}, "no matrix nothing": {"nothing": 2}, "got 5": {names[0]: 5}}
    for said, bits in wrong.items():
        for change in (quantisation.quantise, quantisation.pack):
            with pytest.raises(ValueError, match=said):
                change(model, bits, group=64)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("codes", [torch.zeros(7, dtype=torch.uint8), torch.full((8,), 4, dtype=torch.uint8)])
def test_what_cannot_be_packed_is_told(codes):
    with pytest.raises(ValueError, match="codes"):
        quantisation.pack_codes(codes, 2)


def test_a_file_of_another_model_or_a_torn_one_is_refused(tmp_path):
    model = build("llama", **SIZES)
    bits = {name: 4 for name in decoders.shapes(model).matrices}
    pruning.save_pruned(quantisation.pack(model, bits, group=8), tmp_path)
    about = tmp_path / "pruning.json"
    text = about.read_text()
    about.write_text(text.replace('": 4', '": 3', 1))
    with pytest.raises(ValueError, match="do not fit the model, nothing was loaded"):
        pruning.load_pruned(tmp_path)
    about.write_text(text.replace('": 4', '": 5', 1))
    with pytest.raises(ValueError, match="5"):
        pruning.load_pruned(tmp_path)
    about.write_text(text)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    with pytest.raises(ValueError, match="damaged"):
        pruning.load_pruned(tmp_path)

"""Pruned models on disk: they load bit for bit in a new process, with new biases too, or are refused."""

import copy
import hashlib
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rules2ranks import decoders, pruning, quantisation, recovery
from rules2ranks.models import parameter_count
from rules2ranks.recovery.wrapping import adapted_matrices
from tiny_decoders import FAMILIES, build, plan_of, some_means, tokens


def saved(folder, family="llama", compensated=False, **more):
    """A model, what pruning made of it, and the folder that holds that."""
    model = build(family, kv=3, channels=6, **more)
    plan = plan_of(model, [((0, 2), (1, 2, 5)), ((0, 1, 2), (0,))])
    pruned = pruning.prune(model, plan, means=some_means(model) if compensated else None)
    folder = folder / f"{family}{compensated}"
    pruning.save_pruned(pruned, folder)
    return model, pruned, folder


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
    cases += [saved(tmp_path, family, True) for family in FAMILIES]
    with torch.no_grad():
        mine = [hashlib.sha256(pruned(tokens()).logits.numpy().tobytes()).hexdigest() for _, pruned, _ in cases]
    command = [sys.executable, "-c", RELOAD, *(str(folder) for _, _, folder in cases)]
    theirs = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split()
    assert theirs == mine and len(set(mine)) == len(mine)


GROWTH = """
import sys
from rules2ranks.pruning import load_pruned
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
load_pruned(sys.argv[1])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_a_pruned_model_loads_without_room_for_the_unpruned_one(tmp_path):
    _, pruned, folder = saved(tmp_path, "qwen2")
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 2_000_000  # so that the model was once of half a gigabyte
    (folder / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-c", GROWTH, str(folder)]
    grown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert int(grown) < 100_000  # KiB
    assert torch.equal(pruning.load_pruned(folder)(tokens()).logits, pruned(tokens()).logits)


def test_saved_files_say_what_was_removed(tmp_path):
    model, pruned, folder = saved(tmp_path)
    about = json.loads((folder / "pruning.json").read_text())
    assert about["layers"] == pruning.sizes(pruned) and about["format"] == 1 and about["biases"] == []
    assert about["parameters"] == parameter_count(pruned)
    assert about["ratio_removed"] == pytest.approx(1 - parameter_count(pruned) / parameter_count(model))
    with pytest.raises(RuntimeError, match=r"mismatch"):  # the pain that pruning.json is there for
        AutoModelForCausalLM.from_pretrained(folder)


def test_saved_files_name_the_matrices_that_got_a_bias(tmp_path):
    """Layer 1 keeps all its attention, so that o_proj there needs none; Llama's and GPT-2's had theirs before."""
    expected = ["model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    for family, biases in (("qwen3", expected), ("llama", []), ("gpt2", [])):
        _, pruned, folder = saved(tmp_path, family, True)
        assert json.loads((folder / "pruning.json").read_text())["biases"] == biases
        loaded = pruning.load_pruned(folder)
        assert all(loaded.get_submodule(name).bias.abs().max() > 0 for name in biases)
        again = tmp_path / "again"
        pruning.save_pruned(loaded, again)
        assert (again / "pruning.json").read_text() == (folder / "pruning.json").read_text()
        assert all(torch.equal(a, b) for a, b in zip(pruned.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_some_attention_and_mlp_is_saved_adapted_and_packed_like_any_other(tmp_path, family):
    model = build(family, channels=8, hidden=16, kv=4, head=8)
    layers = pruning.groups(model)
    plan = plan_of(model, [((), (1, 2, 4, 7)), ((1, 2), ())])
    pruned = pruning.prune(model, plan)
    bits = {name: 3 for layer in decoders.linears(pruned) for name in layer}
    for some in (pruned, quantisation.pack(copy.deepcopy(pruned), bits, 8)):
        pruning.save_pruned(some, tmp_path)
        loaded = pruning.load_pruned(tmp_path)
        assert torch.equal(loaded(tokens()).logits, some(tokens()).logits)
    assert json.loads((tmp_path / "pruning.json").read_text())["layers"][0]["attention_groups"] == 0
    adapted = recovery.add_adapter(pruned, 2, seed=0)
    assert adapted(tokens()).logits.isfinite().all()
    gone = f"{layers[0].name}.{layers[0].family.attention.output}"
    assert gone not in {name for _, name, _ in adapted_matrices(adapted)}
    with pytest.raises(ValueError, match="no such matrices"):
        recovery.add_adapter(pruning.load_pruned(tmp_path), {gone: 2}, seed=0)


def test_files_from_before_there_were_biases_load(tmp_path):
    _, pruned, folder = saved(tmp_path)
    about = json.loads((folder / "pruning.json").read_text())
    del about["biases"]
    (folder / "pruning.json").write_text(json.dumps(about))
    assert torch.equal(pruning.load_pruned(folder)(tokens()).logits, pruned(tokens()).logits)


def test_half_precision_comes_back_as_it_was(tmp_path):
    _, pruned, _ = saved(tmp_path, "mistral", True)
    pruning.save_pruned(pruned.to(torch.bfloat16), tmp_path)
    loaded = pruning.load_pruned(tmp_path)
    assert loaded.dtype == torch.bfloat16 and not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(pruned.parameters(), loaded.parameters(), strict=True))


def test_loading_leaves_the_random_state_alone(tmp_path):
    _, _, folder = saved(tmp_path)
    state = torch.get_rng_state()
    pruning.load_pruned(folder)
    assert torch.equal(state, torch.get_rng_state())


def test_weights_that_do_not_fit_are_refused(tmp_path):
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


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_refused(tmp_path, share):
    _, _, folder = saved(tmp_path)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        pruning.load_pruned(folder)


@pytest.mark.parametrize("name", ["pruning.json", "config.json"])
def test_torn_json_is_refused(tmp_path, name):
    _, _, folder = saved(tmp_path)
    whole = (folder / name).read_text()
    for text in ("", whole[: len(whole) // 2], "\0" * len(whole)):
        (folder / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{name} is damaged"):
            pruning.load_pruned(folder)


@pytest.mark.parametrize("name", ["pruning.json", "config.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    _, _, folder = saved(tmp_path)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"has no {name}"):
        pruning.load_pruned(folder)


def test_what_pruning_json_says_must_fit(tmp_path):
    _, _, folder = saved(tmp_path, "qwen2", True)
    about = json.loads((folder / "pruning.json").read_text())
    more, unknown = {"attention_groups": 9, "channels": 1}, {"heads": 1, "channels": 1}
    kept, no_number = {"attention_groups": 2, "channels": 3}, {"attention_groups": "2", "channels": 3}
    for change, message in (
        ({"format": 3}, "format 3"),
        ({"format": None}, "format None"),
        ({"layers": about["layers"][:1]}, "2 decoder layers"),
        ({"layers": {"0": kept}}, "needs a list of layers"),
        ({"layers": [more] * 2}, "expected sizes"),
        ({"layers": [unknown] * 2}, "expected sizes"),
        ({"layers": [no_number] * 2}, "expected sizes"),
        ({"layers": [3, 3]}, "expected sizes"),
        ({"bits": 4}, "needs an object of bits"),
        ({"group": "64"}, "needs a number of group"),
        ({"biases": "all"}, "needs a list of biases"),
        ({"biases": ["lm_head"]}, "no bias can be added"),
        ({"biases": []}, r"down_proj\.bias: the model needs no such tensor"),
        ({"biases": [*about["biases"], "model.layers.1.self_attn.o_proj"]}, r"o_proj\.bias: .* no such tensor"),
    ):
        (folder / "pruning.json").write_text(json.dumps({**about, **change}))
        with pytest.raises(ValueError, match=message):
            pruning.load_pruned(folder)
    (folder / "pruning.json").write_text("[1]")
    with pytest.raises(ValueError, match="expected an object"):
        pruning.load_pruned(folder)

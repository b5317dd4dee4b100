"""Pruned folders in the hands of others: plain transformers loads them, with the file that lies there or without."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from rules2ranks import pruning, quantisation
from rules2ranks.pruning.portable import CODE
from tiny_decoders import FAMILIES, build, plan_of, some_means, tokens

#: Sizes of their own in each layer, a bias from compensation, no attention in the first layer and no MLP in the last.
UNEVEN = [((), (1, 2, 5)), ((0, 1, 2), ())]
#: As many groups and channels in each layer, but others.
ALIKE = [((0, 2), (1, 2, 5)), ((0, 1), (0, 3, 4))]


def portable(folder, family="llama", kept=UNEVEN, compensated=True, **more):
    model = build(family, kv=3, channels=6, **more)
    plan = plan_of(model, kept)
    pruned = pruning.prune(model, plan, means=some_means(model) if compensated else None)
    pruning.save_pruned(pruned, folder)
    return pruned, pruning.make_portable(folder)


def same(one, other):
    with torch.no_grad():
        assert torch.equal(one(tokens()).logits, other(tokens()).logits)
    how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    for cache in (True, False):
        expected, got = (m.generate(tokens(), use_cache=cache, **how) for m in (one, other))
        assert torch.equal(expected, got)


@pytest.mark.parametrize("family", FAMILIES)
def test_own_sizes_load_with_the_file_in_the_folder_and_are_saved_again(family, tmp_path):
    pruned, ordinary = portable(tmp_path / "one", family)
    assert not ordinary
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "one", trust_remote_code=True)
    assert type(loaded).__module__.startswith("transformers_modules")
    same(loaded, pruned)
    same(pruning.load_pruned(tmp_path / "one"), pruned)
    loaded.save_pretrained(tmp_path / "two")
    same(AutoModelForCausalLM.from_pretrained(tmp_path / "two", trust_remote_code=True), pruned)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "phi3"])
def test_sizes_alike_are_an_ordinary_checkpoint(family, tmp_path):
    pruned, ordinary = portable(tmp_path, family, ALIKE, compensated=False)
    assert ordinary and not (tmp_path / CODE).exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded).__module__.startswith("transformers.models")
    same(loaded, pruned)
    same(pruning.load_pruned(tmp_path), pruned)


def test_channels_alike_are_an_ordinary_gpt2_but_fewer_heads_are_not(tmp_path):
    """GPT-2's configuration has no width of a head: it follows from their number."""
    pruned, ordinary = portable(tmp_path / "mlp", "gpt2", [((0, 1, 2), (0, 3)), ((0, 1, 2), (1, 2))], False)
    assert ordinary
    same(AutoModelForCausalLM.from_pretrained(tmp_path / "mlp"), pruned)
    assert not portable(tmp_path / "heads", "gpt2", ALIKE, False)[1]


ELSEWHERE = """
import hashlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "rules2ranks":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
batch = torch.randint(1, 11, (2, 6), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
    print(hashlib.sha256(model(batch).logits.numpy().tobytes()).hexdigest())
"""


def test_it_loads_where_this_package_is_not(tmp_path):
    pruned, _ = portable(tmp_path)
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path)]
    theirs = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split()
    with torch.no_grad():
        mine = pruned(tokens()).logits
    assert theirs == [hashlib.sha256(mine.numpy().tobytes()).hexdigest()]


def test_code_is_short_and_never_run_without_a_word(tmp_path):
    portable(tmp_path)
    assert (tmp_path / CODE).read_text().count("\n") <= 100
    (tmp_path / CODE).write_text("raise SystemExit('run')\n")
    with pytest.raises(RuntimeError, match="mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert pruning.load_pruned(tmp_path).num_parameters() > 0


def test_packed_matrices_are_refused(tmp_path):
    model = pruning.prune(build(hidden=16, channels=16), plan_of(build(hidden=16, channels=16), [((0,), range(8))] * 2))
    names = [name for name in pruning.outputs(model) if name.endswith("down_proj")]
    pruning.save_pruned(quantisation.pack(model, dict.fromkeys(names, 4), 8), tmp_path)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match="2 matrices are packed in few bits"):
        pruning.make_portable(tmp_path)
    assert (tmp_path / "config.json").read_text() == before


def test_a_configuration_of_a_kind_that_transformers_does_not_have(tmp_path):
    portable(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["model_type"] = "lama"
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="of the type lama, which transformers does not have"):
        pruning.load_pruned(tmp_path)

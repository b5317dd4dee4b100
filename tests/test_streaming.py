"""A model that is never in memory as a whole: the same scores, the same plan, the same weights to the bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from rules2ranks import pruning, stages
from rules2ranks.pruning import Streamed
from rules2ranks.runs import ParameterError
from rules2ranks.stages import own_model, real_models
from tiny_decoders import FAMILIES, build, lm_loss, tokens


def saved(folder, family="llama", **how):
    model = build(family, layers=3, channels=8, **how)
    model.save_pretrained(folder, max_shard_size="4KB")
    return model


def loaded_layers(streamed):
    return [name for name, layer in streamed.layers.items() if not next(layer.parameters()).is_meta]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["flap", "wanda-sp"])
def test_scores_and_pruned_weights_are_those_of_the_model_in_memory(family, kind, tmp_path):
    model = saved(tmp_path / "whole", family)
    streamed = Streamed(tmp_path / "whole")
    batch = tokens(batch=4)
    expected = pruning.importance(model, [batch], lm_loss, kind)
    got = streamed.importance(batch, lm_loss, kind)
    for part in ("attention", "channels"):
        for one, other in zip(getattr(expected, part), getattr(got, part), strict=True):
            assert torch.equal(one, other)
    assert streamed.block_importance(batch, lm_loss) == pruning.block_importance(model, [batch], lm_loss)
    assert not loaded_layers(streamed)
    plan = pruning.plan(streamed.skeleton, got, 0.2, spread="global", standardise=True, of="layers")
    streamed.prune(plan, tmp_path / "pruned", means=got.means)
    pruned = pruning.prune(model, plan, means=expected.means)
    back = pruning.load_pruned(tmp_path / "pruned")
    assert back.state_dict().keys() == pruned.state_dict().keys()
    assert all(torch.equal(tensor, pruned.state_dict()[name]) for name, tensor in back.state_dict().items())
    with torch.no_grad():
        assert torch.equal(back(batch).logits, pruned(batch).logits)
        assert torch.equal(Streamed(tmp_path / "pruned").evaluated(lambda m: m(batch).logits), pruned(batch).logits)
    pruning.make_portable(tmp_path / "pruned")
    assert len(list((tmp_path / "pruned").glob("model-*.safetensors"))) == 4, "a file a layer, and the rest"


@pytest.mark.parametrize("tied", [False, True])
def test_one_layer_at_a_time_is_in_memory(tied, tmp_path):
    model = saved(tmp_path, tied=tied)
    streamed, seen = Streamed(tmp_path), []
    with streamed.running() as running, torch.no_grad():
        for layer in streamed.layers.values():
            layer.mlp.register_forward_hook(lambda *_: seen.append(loaded_layers(streamed)))
        assert not loaded_layers(streamed)
        assert torch.equal(running(tokens()).logits, model(tokens()).logits)
        assert (running.lm_head.weight is running.model.embed_tokens.weight) == tied
    assert seen == [[name] for name in streamed.layers]
    assert all(p.is_meta for p in streamed.skeleton.parameters())
    assert (streamed.skeleton.lm_head.weight is streamed.skeleton.model.embed_tokens.weight) == tied


def test_in_another_type_it_is_what_is_loaded_in_that_type(tmp_path):
    saved(tmp_path / "whole")
    streamed = Streamed(tmp_path / "whole", "bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16).eval()
    expected, got = pruning.importance(model, [tokens()], lm_loss, "flap"), streamed.importance(tokens(), lm_loss)
    assert all(torch.equal(one, other) for one, other in zip(expected.channels, got.channels, strict=True))
    streamed.prune(pruning.plan(streamed.skeleton, got, 0.2, of="layers"), tmp_path / "pruned")
    back = pruning.load_pruned(tmp_path / "pruned")
    assert {p.dtype for p in back.parameters()} == {torch.bfloat16}


def test_what_is_wrong_is_told(tmp_path):
    model = saved(tmp_path / "whole")
    streamed = Streamed(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"must be of activations \(wanda-sp or flap\), got 'taylor'"):
        streamed.importance(tokens(), lm_loss, "taylor")
    plan = pruning.plan(build(channels=4), pruning.importance(build(channels=4), (), None, "l2"), 0.15, of="layers")
    with pytest.raises(ValueError, match="the plan is for layers of"):
        streamed.prune(plan, tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()
    index = json.loads((tmp_path / "whole/model.safetensors.index.json").read_text())["weight_map"]
    name = next(name for name in index if "layers.1" in name)
    del streamed._homes[name]
    with pytest.raises(ValueError, match=f"holds no tensor {name}, which its config.json calls for"):
        streamed.evaluated(lambda m: m(tokens()))
    config = json.loads((tmp_path / "whole/config.json").read_text()) | {"intermediate_size": 9}
    (tmp_path / "whole/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"is \(8, 12\), config.json calls for \(9, 12\)"):
        Streamed(tmp_path / "whole").evaluated(lambda m: m(tokens()))
    del model


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", ["global", "importance"])
def test_the_stage_prunes_from_disk_what_it_prunes_in_memory(store, tmp_path, spread):
    rows = [
        {"text": f"the rule {number} of {number % 7} automata is as complex as {number * 3}"} for number in range(60)
    ]
    (tmp_path / "texts.json").write_text(json.dumps(rows))
    model = real_models.tiny_gemma(tmp_path / "model", tmp_path / "texts.json", tokens=300)
    base = {"model": model, "data": str(tmp_path / "texts.json"), "length": 12, "held_out": 6, "calibration_length": 8}
    given = {"base": base, "ratio": 0.2, "importance": "flap", "spread": spread, "standardise": True, "protect": (0, 0)}
    usual, streamed = (stages.prune(**given, from_disk=how, compensate=True) for how in (False, True))
    for name, value in usual.metrics["after"].items():
        assert streamed.metrics["after"][name] == pytest.approx(value, rel=1e-5), "windows one by one, or all at once"
    assert {**streamed.metrics, "after": 0} == {**usual.metrics, "after": 0}
    assert "from_disk" not in usual.params
    recovered = stages.recover(pruned={**given, "from_disk": True}, ranks=2, steps=2, batch=4, examples=20)
    folder = own_model.export(recovered.params, tmp_path / "exported")
    assert Path(folder, "tokenizer.json").is_file()
    with safe_open(Path(folder, "model.safetensors"), "pt") as file:
        assert "model.embed_tokens.weight" in file.keys()


def test_mistakes_are_told_before_any_work(tmp_path):
    with pytest.raises(ParameterError, match="from_disk is for a model of your own, not for 'language'"):
        stages.prune.Params.check({"from_disk": True, "importance": "flap"})
    with pytest.raises(ParameterError, match="from_disk needs importance flap or wanda-sp: taylor needs the whole"):
        stages.prune.Params.check({"base": "gemma", "from_disk": True})

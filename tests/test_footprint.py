"""The dry run: what would be alive, without values, is what is alive with them."""

import functools
import gc

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from rules2ranks import __main__, calibration, pruning, recovery
from rules2ranks.runs import ParameterError
from rules2ranks.stages import footprint, own_texts
from rules2ranks.stages.footprint import Planned

#: Of three sizes and kinds: the embeddings are most of it, the layers are, and biases are there.
CONFIGS = {
    "a large vocabulary": LlamaConfig(
        vocab_size=8000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    ),
    "large layers": Qwen3Config(
        vocab_size=500, hidden_size=256, intermediate_size=700, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, tie_word_embeddings=True,
    ),
    "GPT-2": GPT2Config(vocab_size=2000, n_embd=192, n_layer=3, n_head=4),
}  # fmt: skip
SIZES = {"length": 48, "at_once": 3, "calibration_length": 40, "ratio": 0.3, "of": "layers", "rank": 4}


def alive(model, run):
    """Bytes of tensors that are really made, at the peak."""
    gc.collect()
    with footprint._Alive(model) as counted:
        run()
    return footprint._bytes(model) + counted.peak


@pytest.mark.parametrize("name", CONFIGS)
def test_peaks_without_values_are_those_with_them(name, tmp_path):
    config = CONFIGS[name]
    config.save_pretrained(tmp_path)
    said = footprint.footprint(Planned(model=str(tmp_path), **SIZES))
    model = AutoModelForCausalLM.from_config(config).eval()
    assert said["loading"] == {"parameters": model.num_parameters(), "bytes": footprint._bytes(model)}

    coupled = [c.tensor for layer in pruning.groups(model) for part in layer.parts for c in part.coupled]
    window = torch.zeros(1, SIZES["calibration_length"], dtype=torch.long)
    peak = alive(model, lambda: calibration.mean_gradients(model, coupled, [window], footprint._loss))
    assert said["importance"]["bytes"] == pytest.approx(peak, rel=0.05)

    scores = pruning.importance(model, (), None, "random", seed=0)
    pruned = pruning.prune(model, SIZES["ratio"], scores, of="layers")
    assert said["pruning"]["parameters"] == said["recovery"]["parameters"] == pruned.num_parameters()
    assert said["pruning"]["bytes"] == footprint._bytes(model) + footprint._bytes(pruned)

    left = footprint._bytes(pruned)
    adapted = recovery.add_adapter(pruned, SIZES["rank"], "lora", seed=0).train()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    adapters = sum(p.numel() * p.element_size() for p in trained)

    def step():
        optimiser = torch.optim.AdamW(trained)
        footprint._loss(adapted, torch.zeros(SIZES["at_once"], SIZES["length"], dtype=torch.long)).backward()
        optimiser.step()

    # Dropout of GPT-2 keeps masks in training that the dry run does not make.
    if name != "GPT-2":
        assert said["recovery"]["bytes"] == pytest.approx(alive(adapted, step), rel=0.1)
    assert said["recovery"]["bytes"] > left + adapters


def test_half_precision_and_other_measures_take_what_they_need(tmp_path):
    CONFIGS["large layers"].save_pretrained(tmp_path)
    full, half, both, none = (
        footprint.footprint(Planned(model=str(tmp_path), **SIZES, **more))
        for more in ({}, {"dtype": "bfloat16"}, {"importance": "taylor-mixed"}, {"importance": "l2"})
    )
    assert half["loading"]["bytes"] == pytest.approx(full["loading"]["bytes"] / 2, rel=0.01)
    # Sums of gradients are in float32 whatever the model is in, and Fisher's diagonal is as large again.
    groups = full["importance"]["bytes"] - full["loading"]["bytes"]
    assert half["importance"]["bytes"] > half["loading"]["bytes"] + 0.7 * groups
    assert both["importance"]["bytes"] > full["importance"]["bytes"] + 0.7 * groups
    window = 8 * SIZES["calibration_length"]  # the tokens themselves, which are not even looked at
    assert none["importance"]["bytes"] == none["loading"]["bytes"] + window


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_that_are_computed_again_take_what_is_said(name, tmp_path):
    CONFIGS[name].save_pretrained(tmp_path)
    usual, less, two = (
        footprint.footprint(Planned(model=str(tmp_path), **SIZES, **more))
        for more in ({}, {"gradient_checkpointing": True}, {"gradient_checkpointing": True, "kl": True})
    )
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    coupled = [c.tensor for layer in pruning.groups(model) for part in layer.parts for c in part.coupled]
    window = torch.zeros(1, SIZES["calibration_length"], dtype=torch.long)
    again = functools.partial(footprint._loss, gradient_checkpointing=True)
    peak = alive(model, lambda: calibration.mean_gradients(model, coupled, [window], again))
    assert less["importance"]["bytes"] == pytest.approx(peak, rel=0.05)
    assert less["importance"]["bytes"] <= usual["importance"]["bytes"]
    assert less["recovery"]["bytes"] < usual["recovery"]["bytes"]
    assert two["recovery"]["bytes"] == less["recovery"]["bytes"] + less["loading"]["bytes"], "the unpruned one beside"


@pytest.mark.parametrize("name", ["a large vocabulary", "large layers"])
def test_what_is_pruned_from_disk_is_never_there_as_a_whole(name, tmp_path):
    AutoModelForCausalLM.from_config(CONFIGS[name]).to(torch.bfloat16).save_pretrained(tmp_path)
    how = {"importance": "flap", "from_disk": True, "calibration_samples": 3}
    usual, said = (
        footprint.footprint(Planned(model=str(tmp_path), **SIZES | more)) for more in ({"importance": "flap"}, how)
    )
    streamed = pruning.Streamed(tmp_path, "float32")  # not the type in the file, so that what is read is seen
    windows = torch.zeros(3, SIZES["calibration_length"], dtype=torch.long)
    gc.collect()
    with footprint._Alive(streamed.skeleton) as counted:
        streamed.importance((windows, windows), own_texts.through_layers)
    assert said["importance"]["bytes"] == pytest.approx(counted.peak, rel=0.15)
    assert said["loading"]["bytes"] < usual["loading"]["bytes"]
    assert said["recovery"] == usual["recovery"], "which needs the pruned model"
    with pytest.raises(ParameterError, match="from_disk needs importance flap or wanda-sp: taylor needs the whole"):
        Planned.check({"model": str(tmp_path), "from_disk": True})


def test_the_command_prints_it_and_says_what_is_wrong(tmp_path, capsys):
    CONFIGS["large layers"].save_pretrained(tmp_path / "model")
    (tmp_path / "plan.yaml").write_text(f"model: {tmp_path / 'model'}\nof: layers\n")
    assert __main__.main(["plan", str(tmp_path / "plan.yaml")]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["step", "loading", "importance", "pruning", "recovery"]
    for text, said in ((f"model: {tmp_path}", "holds no config.json"), ("modle: x", "did you mean 'model'")):
        (tmp_path / "plan.yaml").write_text(text)
        assert __main__.main(["plan", str(tmp_path / "plan.yaml")]) == 2
        assert said in capsys.readouterr().err

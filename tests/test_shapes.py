"""A model's sizes without its weights: memory to the byte of the files, and PEFT's count of what is trained."""

import pytest
import torch
from safetensors.torch import load_file

from rules2ranks import configuration, decoders, pruning, recovery
from rules2ranks.configuration import Configuration
from rules2ranks.models import RowGPT, parameter_count
from tiny_decoders import FAMILIES, build, plan_of


def bytes_of(file):
    return sum(tensor.numel() * tensor.element_size() for tensor in load_file(file).values())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_memory_and_trained_parameters_are_those_of_the_files(family, tied, tmp_path):
    model = build(family, kv=3, channels=6, tied=tied)
    shapes = decoders.shapes(model)
    pruning.save_pruned(model, tmp_path / "whole")
    assert configuration.memory(Configuration(), shapes) == bytes_of(tmp_path / "whole" / "model.safetensors")
    assert shapes.names == [list(layer) for layer in decoders.linears(model)]

    first, second = (layer.name for layer in pruning.groups(model))
    levels = {f"{first}.attention": 1, f"{first}.mlp": 3, f"{second}.attention": 2, f"{second}.mlp": 5}
    pruned = pruning.prune(model, plan_of(model, [((0, 2), (1, 2, 5)), ((1,), (0,))]))
    pruning.save_pruned(pruned, tmp_path / "pruned")
    file = bytes_of(tmp_path / "pruned" / "model.safetensors")
    assert configuration.memory(Configuration(levels=levels), shapes) == file
    assert decoders.shapes(pruned) == shapes.cut(levels)

    ranks = {name: 1 + place % 3 for place, name in enumerate(shapes.matrices)}
    adapted = recovery.add_adapter(pruned, ranks, seed=0)
    recovery.save_adapter(adapted, tmp_path / "adapter")
    both = Configuration(levels=levels, ranks=ranks)
    assert configuration.memory(both, shapes) == file + bytes_of(tmp_path / "adapter" / "adapter_model.safetensors")
    assert configuration.trained(both, shapes) == adapted.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_need_no_weights(family, tmp_path):
    model = build(family)
    pruned = pruning.prune(model, plan_of(model, [((0,), (1, 2)), ((0, 1), (4,))]))
    for each in (model, pruned):
        pruning.save_pruned(each, tmp_path)
        (tmp_path / "model.safetensors").unlink()
        empty = pruning.skeleton(tmp_path)
        assert all(p.is_meta for p in empty.parameters())
        assert decoders.shapes(empty) == decoders.shapes(each)
    config = model.config
    config.architectures = [type(model).__name__]
    assert decoders.shapes(decoders.skeleton(config)) == decoders.shapes(model)


def test_half_precision_and_blocks_of_our_own():
    half = decoders.shapes(build().to(torch.bfloat16))
    assert 2 * configuration.memory(Configuration(), half) == configuration.memory(
        Configuration(), decoders.shapes(build())
    )
    model = RowGPT(10, 10, layers=2, heads=4, hidden=32, rows=8, seed=0)
    shapes = decoders.shapes(model)
    assert shapes.parameters == parameter_count(model)
    assert shapes.groups == {f"body.h.{i}.{part}": n for i in range(2) for part, n in (("attention", 4), ("mlp", 128))}

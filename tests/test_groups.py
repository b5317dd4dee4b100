"""Coupled groups: what one of them costs; torch-pruning's dependency graph couples the same rows and columns."""

import copy
import importlib

import pytest
import torch
import torch_pruning
from torch import nn
from transformers.pytorch_utils import Conv1D

from rules2ranks import decoders, pruning
from rules2ranks.models import parameter_count
from tiny_decoders import CLOSE, FAMILIES, build, plan_of, tokens


@pytest.mark.parametrize("family", FAMILIES)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_part_without_groups_costs_nothing_and_has_no_matrices(family):
    model = build(family)
    shapes, pruned = decoders.shapes(model), pruning.prune(model, plan_of(model, [((), (1, 3)), ((1,), ())]))
    first, last = (layer.name for layer in pruning.groups(model))
    gone = {f"{first}.attention": 2, f"{first}.mlp": 3, f"{last}.attention": 1, f"{last}.mlp": 5}
    assert decoders.shapes(pruned) == shapes.cut(gone)
    assert decoders.shapes(pruned).parameters == parameter_count(pruned)
    assert [list(layer) for layer in decoders.linears(pruned)] == decoders.shapes(pruned).names
    empty = pruning.groups(pruned)[0].attention
    assert (empty.count, empty.parameters) == (0, 0)
    again = pruning.prune(pruned, plan_of(pruned, [((), (1,)), ((), ())]))
    assert pruning.sizes(again) == [{"attention_groups": 0, "channels": 1}, {"attention_groups": 0, "channels": 0}]
    assert again(tokens()).logits.isfinite().all()


def test_output_matrices_by_name():
    assert list(pruning.outputs(build("qwen3", layers=1))) == [
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.mlp.down_proj",
    ]
    assert list(pruning.outputs(build("gpt2", layers=1))) == [
        "transformer.h.0.attn.c_proj",
        "transformer.h.0.mlp.c_proj",
    ]


def joined(layer):
    """The matrices of a Llama-like layer as Phi-3 has them."""
    a, m = layer.self_attn, layer.mlp
    return {
        "self_attn.qkv_proj.weight": torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]).detach(),
        "self_attn.o_proj.weight": a.o_proj.weight.detach(),
        "mlp.gate_up_proj.weight": torch.cat([m.gate_proj.weight, m.up_proj.weight]).detach(),
        "mlp.down_proj.weight": m.down_proj.weight.detach(),
    }


def test_the_parts_of_a_fused_matrix_are_those_of_separate_ones():
    """Phi-3 with the weights of a Llama-like model: the same groups, sums and cuts."""
    separate, fused = build("mistral", kv=3, queries=2, head=4), build("phi3", kv=3, queries=2, head=4)
    for mine, theirs in zip(fused.model.layers, separate.model.layers, strict=True):
        for path, tensor in joined(theirs).items():
            mine.get_parameter(path).data = tensor
    for one, other in zip(pruning.groups(fused), pruning.groups(separate), strict=True):
        assert [part.parameters for part in one.parts] == [part.parameters for part in other.parts]
    ours, theirs = (pruning.importance(model, (), None, "l2") for model in (fused, separate))
    for one, other in ((ours.attention, theirs.attention), (ours.channels, theirs.channels)):
        torch.testing.assert_close(one, other, **CLOSE)
    plan = plan_of(separate, [((0, 2), (1, 2)), ((1,), (0, 3, 4))])
    cut, expected = (pruning.prune(model, plan).model.layers for model in (fused, separate))
    for mine, theirs in zip(cut, expected, strict=True):
        assert all(torch.equal(mine.get_parameter(path), tensor) for path, tensor in joined(theirs).items())


def linear_twin(model):
    """The same model with a Linear for every Conv1D, a class that torch-pruning does not know."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            linear = nn.Linear(module.nx, module.nf)
            linear.weight.data, linear.bias.data = module.weight.data.T.contiguous(), module.bias.data
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, linear)
    return model


@pytest.fixture
def graph(monkeypatch):
    """torch-pruning's dependency graph of a model, traced from a forward pass.

    It reads a slice or a split whose dimension is counted from the wrong end for it as one of channels: rotary halves
    then shift channel numbers without end (its search does not return), and the parts of a fused matrix are not told
    apart. So the trace leaves the rotation out, which joins channels within a head only, and counts the split's
    dimension from the end. Attention is written out ("eager"), which shows how key/value heads are repeated.
    """
    split = torch.Tensor.split
    monkeypatch.setattr(torch.Tensor, "split", lambda t, size, dim=0: split(t, size, dim - t.ndim if dim > 0 else dim))

    def traced(model, family):
        if family != "gpt2":
            code = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
            monkeypatch.setattr(code, "apply_rotary_pos_emb", lambda q, k, *angles: (q, k))
        model.set_attn_implementation("eager")
        return torch_pruning.DependencyGraph().build_dependency(
            model, tokens(), forward_fn=lambda m, x: m(x, use_cache=False).logits, verbose=False
        )

    return traced


def theirs(graph, names, module, inputs):
    """What torch-pruning takes out with these inputs of `module`: {(matrix, "rows" or "columns"): numbers}."""
    group = graph.get_pruning_group(module, graph.get_pruner_of_module(module).prune_in_channels, list(inputs))
    return {
        (names[dep.target.module], "rows" if graph.is_out_channel_pruning_fn(dep.handler) else "columns"): set(numbers)
        for dep, numbers in group
        if isinstance(dep.target.module, nn.Linear)
    }


def ours(part, names, number):
    """The same of one group; a matrix that loses rows loses the same entries of its bias."""
    taken = {}
    for c in part.coupled:
        rows = c.parameter == "bias" or c.dim == (1 if isinstance(c.module, Conv1D) else 0)
        numbers = set(part.index(c, [number]).tolist())
        assert taken.setdefault((names[c.module], "rows" if rows else "columns"), numbers) == numbers
    return taken


@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")
@pytest.mark.parametrize(
    ("family", "kv", "queries"),
    [("llama", 3, 2), ("llama", 2, 1), ("mistral", 2, 3), ("qwen2", 2, 2), ("qwen3", 3, 2), ("gpt2", 3, 1)],
)
def test_torch_pruning_couples_the_same(graph, family, kv, queries):
    model = build(family, kv=kv, queries=queries, head=4, channels=5, hidden=36)
    twin = linear_twin(copy.deepcopy(model))
    traced = graph(twin, family)
    names, of_twin = ({module: name for name, module in m.named_modules()} for m in (model, twin))
    for layer in pruning.groups(model):
        for part in layer.parts:
            output = names[part.output.module]
            for number in range(part.count):
                mine = ours(part, names, number)
                assert mine == theirs(traced, of_twin, twin.get_submodule(output), mine[output, "columns"])

"""docs/extending.md: every example runs and does what the page says of it, and names show up where it says they do."""

import itertools
import re
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import Starcoder2Config, Starcoder2ForCausalLM

import results
from rules2ranks import __main__ as command_line
from rules2ranks import complexity, decoders, importance, pruning, recovery, search, tasks
from rules2ranks.stages import compressing, transfer
from rules2ranks.tables.ranks import Setting
from rules2ranks.tables.recoveries import RecoveryTable
from tiny_decoders import CLOSE, SPECIAL, plan_of, tokens

PAGE = results.REPOSITORY / "docs" / "extending.md"
TEXT = PAGE.read_text(encoding="utf-8")
#: The example of each section, by its heading; that of the introduction is the first.
EXAMPLES = dict(re.findall(r"^##? ([^\n]+)\n(?:(?!\n##? ).)*?^```python\n(.*?)^```", TEXT, flags=re.S | re.M))
REGISTRIES = (importance.MEASURES, search.SEARCHERS, recovery.METHODS, tasks.TASKS, complexity.MEASURES)


def run(title, names):
    exec(compile(EXAMPLES[title], f"{PAGE.name}: {title}", "exec"), names)
    return names


@pytest.fixture(scope="module")
def given():
    """The names that the page's first example makes."""
    return run("Extending", {})


@pytest.fixture
def example(given):
    """Runs a section's example by itself, after the first one; the registries are then as they were."""
    before, families = [dict(registry) for registry in REGISTRIES], list(decoders.FAMILIES)
    yield lambda title: run(title, dict(given))
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(entries)
    decoders.FAMILIES[:] = families
    tasks.get.cache_clear()


def test_every_section_has_its_example_and_links_lead_somewhere():
    titles = re.findall(r"^##? (.+)$", TEXT, flags=re.M)
    assert list(EXAMPLES) == titles and TEXT.count("```python") == len(titles) == 7
    anchors = {"#" + title.lower().replace(" ", "-") for title in titles}
    for link in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert link in anchors or (PAGE.parent / link).exists(), link
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", TEXT):
        places = [results.REPOSITORY, results.REPOSITORY / "lib/rules2ranks", results.REPOSITORY / "tests"]
        assert any(list(place.glob(f"**/{name}")) for place in places), name


def test_an_importance(example):
    names = example("An importance")
    model, scores = names["model"], names["scores"]
    # Whole groups come to within half of the smallest, a channel of 192 weights of half a million.
    assert pruning.report(model, names["pruned"])["parameters_removed"] == pytest.approx(0.3, abs=1e-3)
    seen, module = [], decoders.decoder_layers(model)["model.layers.3"].mlp.down_proj
    hook = module.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    with torch.no_grad():
        for batch in names["batches"]:
            names["loss"](model, batch)
    hook.remove()
    counted = [x[names["about"].positions(batch)] for x, batch in zip(seen, names["batches"], strict=True)]
    expected = torch.cat(counted).double().var(0) * module.out_features
    # Values are summed in float32.
    torch.testing.assert_close(scores.channels[3], expected, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match=r"kind must be one of .*'ifv'"):
        importance.importance(model, (), None, "unheard of")


def test_a_searcher(example):
    names = example("A searcher")
    space, found = names["space"], names["found"]
    worth = [[place * option.rank**0.5 for option in knob.options] for place, knob in enumerate(space.knobs)]
    assert found.chosen.point == space.best(worth)
    assert len(found.trials) <= 300 and all(space.fills(trial.point) for trial in found.trials)
    for done in (1, 30):
        known = found.trials[:done]
        assert search.search(space, names["toy"], "evolution", limit=300, known=known) == found
    with pytest.raises(ValueError, match=r"unknown searcher 'unheard of': choose one of .*evolution"):
        search.search(space, names["toy"], "unheard of", limit=4)


def test_a_recovery_method(example, tmp_path):
    names = example("A recovery method")
    adapted, batch = names["adapted"], names["batches"][0]
    trained = [(name, p) for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained and all("lora_B" in name for name, _ in trained)
    number = sum(p.numel() for _, p in trained)
    assert recovery.method_of(adapted).counts(adapted) == {"trained_parameters": number} and number < names["whole"]
    with torch.no_grad(), adapted.disable_adapter():
        plain = names["loss"](adapted, batch)
    assert names["loss"](adapted, batch) == plain  # B·A is zero
    for _, p in trained:
        p.data.normal_(generator=torch.Generator().manual_seed(0))
    recovery.save_adapter(adapted, tmp_path)
    again = recovery.load_adapter(pruning.prune(names["model"], 0.3, plainly(names["model"])), tmp_path)
    assert names["loss"](again, batch) == names["loss"](adapted, batch) != plain
    with pytest.raises(ValueError, match=r"method must be one of .*lora-fa"):
        recovery.add_adapter(names["model"], 2, "unheard of", seed=0)


def plainly(model):
    return pruning.importance(model, (), None, "l2")


def test_an_architecture(example):
    sizes = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 5, "num_hidden_layers": 2}
    config = Starcoder2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, **SPECIAL)
    with pytest.raises(ValueError, match="not in the table"):
        decoders.check_architecture(config)
    example("An architecture")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Starcoder2ForCausalLM(config).eval()
    for p in model.parameters():  # biases and norms too, which start as zeros and ones
        p.data.normal_(std=0.4)
    plan = plan_of(model, [((1,), (0, 3)), ((0, 1), (1, 2, 4))])
    pruned, masked = pruning.prune(model, plan), pruning.mask(model, plan)
    assert pruned.num_parameters() < model.num_parameters()
    torch.testing.assert_close(pruned(tokens()).logits, masked(tokens()).logits, **CLOSE)


def test_a_downstream_task(example):
    example("A downstream task")
    task = tasks.get("parity")
    x, y = task.batch(200, 0)
    assert x.shape == y.shape == (200, task.length) and x.dtype == y.dtype == np.int64
    assert y.tolist() == [list(itertools.accumulate(row, lambda a, b: a ^ b)) for row in x.tolist()]
    held_out, _ = task.batch(200, 0, "validation")
    assert not {tuple(row) for row in x} & {tuple(row) for row in held_out}
    assert task.score(y, y) == 1 and task.score(1 - y, y) == 0
    # Three of 20 bits are known, 17 are fair coins: in 2000 sequences a standard deviation of 0.0023.
    assert task.baselines()["n-gram"] == pytest.approx((3 + 17 / 2) / 20, abs=0.0115)
    with pytest.raises(ValueError, match=r"task must be one of .*'chess'"):
        tasks.get("unheard of")


def test_a_complexity_measure(example):
    table = example("A complexity measure")["table"]
    # Rule 150 adds up three cells and rule 90 two of them, rule 204 copies one, rule 0 none: so many flips matter.
    assert table["sensitivity"].to_dict() == pytest.approx({0: 0, 204: 1 / 3, 90: 2 / 3, 150: 1})
    assert "lz76_sd" in table and "sensitivity_sd" not in table


@pytest.mark.parametrize(
    ("kind", "parameter", "names"),
    [
        (compressing.Pruning, "importance", importance.MEASURES),
        (compressing.Fragility, "importance", importance.MEASURES),
        (compressing.Recovery, "method", recovery.METHODS),
        (transfer.Downstream, "task", tasks.TASKS),
        (Setting, "searchers", search.SEARCHERS),
        (RecoveryTable, "ways", (*recovery.METHODS, "all weights")),
    ],
)
def test_names_show_up_in_parameters(kind, parameter, names):
    found = kind.model_fields[parameter].annotation
    found = get_args(found)[0] if parameter.endswith("s") else found  # of a list, or of a dictionary's keys
    assert get_args(found) == tuple(names)


@pytest.mark.parametrize(
    ("stage", "names"), [("prune", importance.MEASURES), ("recover", recovery.METHODS), ("downstream", tasks.TASKS)]
)
def test_names_show_up_on_the_command_line(stage, names, capsys):
    assert command_line.main(["show", stage]) == 0
    shown = capsys.readouterr().out
    assert all(f"'{name}'" in shown for name in names)


def test_registries_are_as_they_were():
    assert not {"ifv", "evolution", "lora-fa", "parity", "sensitivity"} & set(itertools.chain(*REGISTRIES))
    assert "StarCoder2" not in {family.name for family in decoders.FAMILIES}

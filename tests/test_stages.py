"""The shipped stages at tiny sizes, and that no stale result can pass for a new one."""

import ast
import hashlib
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from rules2ranks import models, stages
from rules2ranks.runs import ParameterError
from rules2ranks.stages import compressing, reference, subjects
from tiny_rows import TINY

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "workflow"))
import digest  # noqa: E402

DIGESTS = Path(__file__).with_name("stage_digests.json")

pytestmark = pytest.mark.usefixtures("store")


def modules_behind(name: str, seen: set[str]) -> set[str]:
    """A module of the package and all of the package that it imports, directly or not."""
    root = REPOSITORY / "lib"
    path = root / (name.replace(".", "/") + ".py")
    path = path if path.is_file() else root / name.replace(".", "/") / "__init__.py"
    if name in seen or not path.is_file():
        return seen
    seen.add(name)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rules2ranks"):
            modules_behind(node.module, seen)
            for alias in node.names:
                modules_behind(f"{node.module}.{alias.name}", seen)
    return seen


def stage_digest(name: str) -> str:
    """A digest of all code that a stage's result may depend on: its module and those behind it, but not the store."""
    names = modules_behind(f"rules2ranks.stages.{stages._HOMES[name]}", set()) - {"rules2ranks.runs"}
    parts = []
    for module in sorted(names):
        parts.append(module + digest.code(Path(importlib.import_module(module).__file__).read_text()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", stages._HOMES)
def test_changed_code_asks_for_a_new_version(name):
    """After a change that gives other results: raise the stage's version. Either way: `python tests/test_stages.py`."""
    noted = json.loads(DIGESTS.read_text())[name]
    assert noted == {"version": getattr(stages, name).version, "code": stage_digest(name)}, (
        f"code behind the stage {name!r} has changed: raise its version if results change with it, "
        "then note the new digest with `python tests/test_stages.py`"
    )


@pytest.mark.parametrize("name", ["language", "prune", "recover", "fragility"])
def test_compression_stands_on_no_downstream_task(name):
    """Or else a change there would ask for new versions of what never calls it."""
    behind = modules_behind(f"rules2ranks.stages.{stages._HOMES[name]}", set())
    for other in ("stages.transfer", "evaluation", "tasks.chess", "tasks.reasoning"):
        assert f"rules2ranks.{other}" not in behind


def test_an_unknown_stage_is_refused_by_name():
    with pytest.raises(AttributeError, match="its stages are pretrain"):
        _ = stages.pretrian
    with pytest.raises(ParameterError, match="did you mean 'source'"):
        stages.pretrain(sourc=30)


# --- compression ------------------------------------------------------------------------------------------------


def test_pruned_and_recovered_at_half_the_size():
    pruned = {"ratio": 0.4, "spread": "global"}
    before = stages.prune(**pruned)
    assert before.metrics["parameters_removed"] == pytest.approx(0.4, abs=0.01)
    assert before.metrics["after"]["loss"] > before.metrics["before"]["loss"]
    ranks = [0, 1, 2, 1, 1, 3, 1, 0]
    after = stages.recover(pruned=pruned, ranks=ranks, steps=6)
    assert after.metrics["loss"] < before.metrics["after"]["loss"]
    model = compressing.load_pruned(stages.prune.Params.check(pruned))
    from rules2ranks import recovery

    assert after.metrics["trained_parameters"] == recovery.lora_parameters(model, ranks)
    loaded = recovery.load_adapter(model, after.folder)
    score = subjects.subject("language").evaluate("report", loaded)
    # The same weights on the same examples; only the merge order of the adapter may round differently.
    assert score["loss"] == pytest.approx(after.metrics["loss"], abs=1e-6)


def test_a_model_pruned_by_flap_and_block_importance_is_saved_with_its_new_biases():
    asked = {"ratio": 0.3, "spread": "importance", "importance": "flap", "compensate": True}
    result = stages.prune(**asked)
    kept = [layer["channels"] for layer in result.metrics["sizes"]]
    assert kept[0] == kept[-1] == 192 and len(set(kept[1:-1])) > 1
    loaded = compressing.load_pruned(stages.prune.Params.check(asked))
    biases = [layer.mlp.down_proj.bias is not None for layer in loaded.model.layers]
    assert biases == [channels < 192 for channels in kept] and any(biases)
    assert subjects.subject("language").evaluate("report", loaded) == result.metrics["after"]
    plain = stages.prune(**{**asked, "compensate": False}).metrics
    assert plain["sizes"] == result.metrics["sizes"]
    assert plain["after"]["loss"] != result.metrics["after"]["loss"]


def test_the_model_of_a_rule_is_pruned_saved_and_loaded():
    asked = {"base": {"source": 204, **TINY}, "ratio": 0.3, "spread": "global", "protect": (0, 0)}
    result = stages.prune(**asked)
    again = compressing.load_pruned(stages.prune.Params.check(asked))
    assert models.parameter_count(again) == result.metrics["parameters_after"]
    given = subjects.subject(stages.prune.Params.check(asked).base)
    assert given.evaluate("report", again)["loss"] == result.metrics["after"]["loss"]


def test_fragility_begins_whole_and_removes_what_was_asked():
    found = stages.fragility(base={"source": 204, **TINY}, ratios=[0.5, 0.2]).metrics
    assert [point["ratio"] for point in found["curve"]] == [0.0, 0.2, 0.5]
    for point in found["curve"][1:]:
        assert point["removed"] == pytest.approx(point["ratio"], abs=0.01)
    assert found["curve"][0]["loss"] < found["untrained_loss"]


def test_determined_cells_are_those_that_pretraining_counts():
    """A shift to the left: the last cell comes from out of sight, and all others are learnt."""
    base = {"source": 170, **TINY}
    whole = stages.fragility(base=base, ratios=[0.5]).metrics["curve"][0]
    assert stages.pretrain(**base).metrics["determined"] > 0.99
    assert whole["determined"] > 0.99
    assert whole["accuracy"] == pytest.approx((7 * whole["determined"] + 0.5) / 8, abs=0.03)  # a coin in eight cells


def test_the_shipped_model_solves_its_tasks():
    scores = subjects.subject("language").evaluate("report")
    assert scores["accuracy"] > 0.98
    assert torch.tensor(list(scores.values())).isfinite().all()


def test_reference_settings_are_those_of_the_profile():
    """The committed tables were made with the settings that the profile has now."""
    settings = reference.profile_settings("laptop")
    for name in reference.TABLES:
        table, note = reference.read(name)
        assert note["settings"] == settings[name], f"{name}: `make reference` has not run since its settings changed"
        assert note["rows"] == len(table)
    with pytest.raises(FileNotFoundError, match="make reference"):
        reference.read("nothing")


if __name__ == "__main__":
    noted = {name: {"version": getattr(stages, name).version, "code": stage_digest(name)} for name in stages._HOMES}
    DIGESTS.write_text(json.dumps(noted, indent=1) + "\n")
    print(f"noted {len(noted)} digests in {DIGESTS.name}")

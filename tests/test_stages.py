"""The shipped stages at tiny sizes, and that no stale result can pass for a new one."""

import ast
import hashlib
import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from rules2ranks import models, stages
from rules2ranks.runs import ParameterError
from rules2ranks.stages import compressing, learning, reference

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "workflow"))
import digest  # noqa: E402

DIGESTS = Path(__file__).with_name("stage_digests.json")
TINY = {"width": 8, "rows": 12, "ring": 64, "layers": 1, "heads": 2, "hidden": 32, "steps": 60, "lr": 1e-2}


@pytest.fixture(autouse=True, scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RULES2RANKS_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("TQDM_DISABLE", "1")
        yield


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


def test_an_unknown_stage_is_refused_by_name():
    with pytest.raises(AttributeError, match="its stages are pretrain"):
        _ = stages.pretrian
    with pytest.raises(ParameterError, match="did you mean 'source'"):
        stages.pretrain(sourc=30)
    with pytest.raises(ValueError, match="does not fit on a ring"):
        stages.pretrain(**{**TINY, "width": 65})


def test_a_rule_is_learnt_and_coin_flips_are_not():
    """Coin flips leave nothing to learn: whoever gets below ln 2 on fresh ones sees the future."""
    rule, coin = (stages.pretrain(source=source, **TINY).metrics for source in (204, "coin"))
    assert rule["loss"] < 0.3
    assert rule["copy"] == 1.0
    # The held-out loss is a mean over 8 × 16 × 12 × 8 coins: its own sampling error is below 0.01.
    assert coin["loss"] > math.log(2) - 0.01
    assert coin["floor"] is None  # crops of 8 cells
    assert coin["majority"] == pytest.approx(0.5, abs=0.02)


def test_the_published_mask_reads_coins_from_the_future():
    """The next row stands in the input of the next position, and nothing hides it: far below what can be learnt."""
    leaking = stages.pretrain(source="coin", mask="published", **{**TINY, "steps": 500}).metrics
    assert leaking["loss"] < 0.5  # 0.06 in a trial; ln 2 = 0.693 is the floor of an honest prediction
    board = stages.downstream(body={"source": "coin", "mask": "published", **TINY, "steps": 2}, steps=2, batch=4)
    honest = stages.downstream(body={"source": "coin", **TINY, "steps": 2}, steps=2, batch=4)
    assert board.metrics["loss"] != honest.metrics["loss"]
    nim = [
        stages.downstream(
            body={"source": "coin", "mask": mask, **TINY, "steps": 2}, task="nim", start="random", steps=2
        )
        for mask in ("causal", "published")
    ]
    assert nim[0].metrics["loss"] == nim[1].metrics["loss"]  # causal in the published code, too


def test_windows_obey_the_rule_inside_the_crop():
    window = learning.rows_of(110, 3, 10, 6, ring=50, every=1, seed=4)
    assert window.shape == (3, 7, 10)
    left, centre, right = (window[:, :-1, k : k + 8] for k in (0, 1, 2))
    assert np.array_equal(window[:, 1:, 1:9], 110 >> (4 * left + 2 * centre + right) & 1)


@pytest.mark.parametrize(
    ("source", "every", "cells"),
    [(204, 1, 0), (0, 3, 0), (60, 1, 1), (170, 1, 1), (170, 4, 4), (90, 1, 2), (150, 1, 2), (90, 2, 4), (30, 1, 1.5)],
)
def test_the_floor_of_rules_that_one_can_work_out(source, every, cells):
    """On rules that keep random cells random, a hidden parent that decides alone costs one coin flip."""
    # Rule 30's right edge is decided by the hidden cell where its own cell is 0: half a coin flip.
    assert learning.crop_floor(source, 100, every=every) == pytest.approx(cells * math.log(2) / 100, abs=2e-5 * every)


def test_the_floor_is_an_entropy_counted_on_windows():
    # Crops of ten cells, 160,000 of them at forty times: 1024 contexts leave a bias of 3e-3 nats an edge cell, 1 %;
    # which times were drawn moves it by a few per cent.
    windows = np.concatenate([learning.rows_of(54, 4_000, 10, 1, ring=1000, every=1, seed=s) for s in range(40)])
    seen = pd.DataFrame(
        {"context": windows[:, 0] @ 2 ** np.arange(10), "left": windows[:, 1, 0], "right": windows[:, 1, 9]}
    )
    lost = 0.0
    for edge in ("left", "right"):
        share = seen.groupby("context")[edge].mean().loc[seen["context"]].to_numpy()
        lost += -np.mean(np.log(np.where(seen[edge] == 1, share, 1 - share)))
    assert learning.crop_floor(54, 10) == pytest.approx(lost / 10, rel=0.08)
    assert learning.crop_floor(124, 50) == pytest.approx(learning.crop_floor(110, 50), rel=0.05)  # mirror images
    assert learning.crop_floor("coin", 50) == math.log(2)
    for wrong in ({"every": 6}, {"width": 9}, {"every": 0}):
        with pytest.raises(ValueError, match="the floor is for every from 1 to 5 and crops of at least 10 cells"):
            learning.crop_floor(**{"source": 110, "width": 20, **wrong})


def test_draws_never_meet():
    seeds = {learning.draw_seed(seed, split, step) for seed in range(5) for split in (0, 1) for step in range(50)}
    assert len(seeds) == 500
    # A window's start and its time come from two neighbouring seeds.
    assert not seeds & {seed + 1 for seed in seeds}


@pytest.mark.parametrize(("kind", "frozen"), [("boards", "body"), ("tokens", "body.h")])
def test_what_the_paper_freezes_stays(kind, frozen):
    body = models.RowGPT(4, 4, layers=1, heads=2, hidden=16, rows=8, seed=0).body
    model = models.TaskGPT(body, kind, cells=4, classes=3, length=8, seed=0)
    learning.freeze(model)
    still = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert still == {name for name, _ in model.named_parameters() if name.startswith(frozen)}


@pytest.mark.parametrize("start", ["pretrained", "random", "shuffled"])
def test_downstream_scores_beside_its_baselines(start):
    found = stages.downstream(body={"source": 204, **TINY}, start=start, steps=8, batch=4).metrics
    assert 0 <= found["accuracy"] <= 1
    assert found["loss"] < math.log(5) + 0.5
    assert set(found["baselines"]) >= {"majority"}
    assert found["step_at_80"] is None


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
    score = compressing.subject("language").evaluate(compressing.REPORT_SET, loaded)
    # The same weights on the same examples; only the merge order of the adapter may round differently.
    assert score["loss"] == pytest.approx(after.metrics["loss"], abs=1e-6)


def test_the_model_of_a_rule_is_pruned_saved_and_loaded():
    asked = {"base": {"source": 204, **TINY}, "ratio": 0.3, "spread": "global", "protect": (0, 0)}
    result = stages.prune(**asked)
    again = compressing.load_pruned(stages.prune.Params.check(asked))
    assert models.parameter_count(again) == result.metrics["parameters_after"]
    given = compressing.subject(stages.prune.Params.check(asked).base)
    assert given.evaluate(compressing.REPORT_SET, again)["loss"] == result.metrics["after"]["loss"]


def test_fragility_begins_whole_and_removes_what_was_asked():
    found = stages.fragility(base={"source": 204, **TINY}, ratios=[0.5, 0.2]).metrics
    assert [point["ratio"] for point in found["curve"]] == [0.0, 0.2, 0.5]
    for point in found["curve"][1:]:
        assert point["removed"] == pytest.approx(point["ratio"], abs=0.01)
    assert found["curve"][0]["loss"] < found["untrained_loss"]


def test_the_language_suite_goes_on_from_where_its_schedule_stopped():
    short = stages.language(steps=12, stop=3, batch=7).metrics
    assert short["history"]["steps"] == 3
    whole = stages.language(steps=12, batch=7).metrics
    assert whole["history"]["loss"][:3] == short["history"]["loss"]


def test_the_shipped_model_solves_its_tasks():
    scores = compressing.subject("language").evaluate(compressing.REPORT_SET)
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

"""The shipped stages at tiny sizes, and that no stale result can pass for a new one."""

import ast
import functools
import hashlib
import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from rules2ranks import evaluation, models, probes, stages, tasks, training
from rules2ranks.runs import ParameterError
from rules2ranks.stages import compressing, inspecting, learning, reference, subjects, transfer
from rules2ranks.tasks.rows import rows_of

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


# --- pretraining ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 65}, "a crop of 65 cells does not fit on a ring of 64"),
        ({"hidden": 32, "heads": 3}, "hidden = 32 must be a multiple of heads = 3"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(change, said, monkeypatch):
    for name in ("untrained", "held_out", "by_step"):
        monkeypatch.setattr(learning, name, lambda *given: pytest.fail("work has begun"))
    with pytest.raises(ParameterError, match=said):
        stages.pretrain(**{**TINY, **change})
    good, wrong = learning.pretrain.Params(**TINY), learning.pretrain.Params(**{**TINY, **change})
    with pytest.raises(ParameterError, match=said):
        learning._learn([good, wrong], Path("checkpoint"))


def test_a_rule_is_learnt_and_coin_flips_are_not():
    """Coin flips leave nothing to learn: whoever gets below ln 2 on fresh ones sees the future."""
    rule, coin = (stages.pretrain(source=source, **TINY).metrics for source in (204, "coin"))
    assert rule["loss"] < 0.3
    assert rule["copy"] == 1.0
    # The held-out loss is a mean over 8 × 16 × 12 × 8 coins: its own sampling error is below 0.01.
    assert coin["loss"] > math.log(2) - 0.01
    assert coin["floor"] is None  # crops of 8 cells
    assert coin["majority"] == pytest.approx(0.5, abs=0.02)
    # An easy rule is learnt in the first of four rounds, coins never, and they are not given a second one.
    assert (rule["learnt"], rule["steps"]) == (True, 60)
    assert (coin["learnt"], coin["steps"]) == (False, 60)
    assert rule["determined"] >= learning.LEARNT


def test_what_is_not_learnt_goes_through_all_rounds():
    """A first round is the same with and without others behind it."""
    asked = {**TINY, "source": 110, "steps": 10, "lr": 1e-3}
    one, three = (stages.pretrain(**asked, rounds=rounds).metrics for rounds in (1, 3))
    assert [one["steps"], three["steps"]] == [10, 10 + 20 + 40]
    assert not three["learnt"]
    assert three["determined"] < learning.LEARNT
    assert [entry["step"] for entry in three["history"]["evaluations"]] == list(range(2, 71, 2))
    assert three["history"]["loss"][:10] == one["history"]["loss"]
    assert three["history"]["evaluations"][:5] == one["history"]["evaluations"]
    assert three["loss"] < one["loss"]


def test_training_ends_with_the_first_round_that_has_learnt():
    asked = {**TINY, "source": 204, "steps": 10}
    found = stages.pretrain(**asked).metrics
    right = {entry["step"]: entry["determined"] for entry in found["history"]["evaluations"]}
    learnt = [step for step in (10, 30, 70, 150) if right.get(step, 0) >= learning.LEARNT]
    assert found["learnt"]
    assert learnt[0] == found["steps"] == max(right)
    assert found["steps"] > 10  # or a longer first round would show nothing


def test_scores_by_hand_of_a_model_that_says_what_it_is_told():
    rng = np.random.default_rng(0)
    windows = rng.integers(0, 2, (4, 7, 9)).astype(np.float32)
    logits = rng.normal(size=(4, 6, 9)).astype(np.float32)
    found = learning.row_scores(lambda rows: torch.from_numpy(logits), torch.from_numpy(windows), hidden=2)
    before, target = windows[:, :-1], windows[:, 1:]
    right = (logits > 0) == (target == 1)
    chance = 1 / (1 + np.exp(-logits.astype(float)))
    by_hand = {
        "loss": -np.log(np.where(target == 1, chance, 1 - chance)).mean(),
        "accuracy": right.mean(),
        "determined": right[:, :, 2:7].mean(),
        "row_accuracy": right.all(-1).mean(),
        "majority": max(target.mean(), 1 - target.mean()),
        "copy": (target == before).mean(),
    }
    assert found == pytest.approx(by_hand, rel=1e-5)  # single precision
    # A crop whose every cell hangs on what is out of sight has no determined cell.
    for hidden, some in ((4, True), (5, False), (9, False)):
        scores = learning.row_scores(lambda rows: torch.from_numpy(logits), torch.from_numpy(windows), hidden=hidden)
        assert (scores["determined"] is not None) == some
        assert scores["accuracy"] == found["accuracy"]
    # Of models together, each its own.
    both = learning.row_scores(
        lambda rows: torch.from_numpy(np.stack([logits, -logits])), torch.from_numpy(np.stack([windows, windows])), 2
    )
    assert {name: value[0] for name, value in both.items()} == pytest.approx(found, rel=1e-6)
    assert both["accuracy"][1] == pytest.approx(1 - found["accuracy"])
    none = learning.row_scores(
        lambda rows: torch.from_numpy(np.stack([logits, logits])), torch.from_numpy(np.stack([windows, windows])), 5
    )
    assert none["determined"] == [None, None]


@pytest.mark.parametrize(
    ("change", "hidden"),
    [({}, 1), ({"every": 3}, 3), ({"every": 4}, None), ({"width": 9, "ring": 9, "every": 2, "rows": 6}, 0)],
)
def test_metrics_are_those_of_the_saved_model_on_windows_never_trained_on(change, hidden):
    asked = {**TINY, "source": 150, "steps": 5, "rounds": 2, **change}
    result = stages.pretrain(**asked)
    body, weights = learning.pretrain.Params(**asked), load_file(result.file("model.safetensors"))
    windows = np.concatenate(
        [
            rows_of(150, 16, body.width, body.rows, ring=body.ring, every=body.every, seed=(1 << 32) + 2 * place)
            for place in range(8)
        ]
    )
    with torch.no_grad():
        logits = learning.pretrained(body)(torch.from_numpy(windows[:, :-1]).float()).numpy()
    right = (logits > 0) == windows[:, 1:]
    m = result.metrics
    assert m["accuracy"] == pytest.approx(right.mean(), abs=1e-6)
    determined = None if hidden is None else right[..., hidden : body.width - hidden].mean()
    assert m["determined"] == pytest.approx(determined, abs=1e-6)
    assert m["floor"] == (0.0 if hidden == 0 else None)  # crops of 8 cells have none, a ring has nothing to lose
    matrices = [value for name, value in weights.items() if name.startswith("body.h.") and value.ndim == 2]
    assert len(matrices) == 4  # of one block
    rms = math.sqrt(sum(np.square(w.astype(float)).sum() for w in matrices) / sum(w.size for w in matrices))
    assert m["weight_rms"] == pytest.approx(rms, rel=1e-6)
    assert m["parameters"] == sum(value.size for value in weights.values())
    if hidden is None:
        assert (m["learnt"], m["steps"]) == (False, 15)


def test_the_floor_stands_beside_the_loss_where_it_is_defined():
    asked = {**TINY, "source": 170, "width": 10, "steps": 2, "rounds": 1}
    # One cell of ten comes from out of sight, and is a coin.
    assert stages.pretrain(**asked).metrics["floor"] == pytest.approx(math.log(2) / 10, abs=1e-4)
    assert stages.pretrain(**asked, every=6).metrics["floor"] is None


def test_windows_of_a_step_are_its_own():
    """Small batches are drawn for several steps at once: still no step sees a window of another."""
    for batch, steps in ((16, 9), (48, 3), (100, 3)):
        body = learning.pretrain.Params(source=30, width=40, rows=5, ring=64, batch=batch, seed=3)
        training_windows, again = learning.by_step(body, 0), learning.by_step(body, 0)
        drawn = [training_windows(step).copy() for step in range(steps)]
        assert all(windows.shape == (batch, 6, 40) for windows in drawn)
        # In another order, as after an interruption.
        for step in reversed(range(steps)):
            assert np.array_equal(again(step), drawn[step])
        seen = {row.tobytes() for windows in drawn for row in windows}
        assert len(seen) == batch * steps
        other = body.model_copy(update={"seed": 4})
        for apart in (learning.by_step(body, 1)(0), learning.held_out(body), learning.by_step(other, 0)(0)):
            assert not seen & {row.tobytes() for row in apart}
    held = learning.held_out(body)
    assert held.shape == (128, 6, 40)
    assert len({row.tobytes() for row in held}) == 128


# --- pretraining side by side -----------------------------------------------------------------------------------

GROUP = {**TINY, "steps": 30, "rounds": 2}
SOURCES = [(204, 0), (110, 1), ("coin", 2), (30, 0)]


def group() -> list:
    return [learning.pretrain.Params(**GROUP, source=source, seed=seed) for source, seed in SOURCES]


def assert_the_same_results(found, expected):
    """The same parameters and steps; scores that differ by the rounding of sums in another order only."""
    for one, other in zip(found, expected, strict=True):
        assert one.params == other.params
        for name in ("learnt", "steps", "parameters", "floor", "majority", "copy"):
            assert one.metrics[name] == other.metrics[name], name
        # Training multiplies rounding errors of 1e-7 by a few hundred; shares move by whole cells, of 12,288.
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=1e-3)
        assert one.metrics["weight_rms"] == pytest.approx(other.metrics["weight_rms"], rel=1e-3)
        for name in ("accuracy", "determined", "row_accuracy"):
            assert one.metrics[name] == pytest.approx(other.metrics[name], abs=2e-3), name
        for kind in ("loss", "evaluations"):
            assert len(one.metrics["history"][kind]) == len(other.metrics["history"][kind])
        np.testing.assert_allclose(one.metrics["history"]["loss"], other.metrics["history"]["loss"], rtol=1e-3)
        weights = [load_file(result.file("model.safetensors")) for result in (one, other)]
        assert weights[0].keys() == weights[1].keys()
        for name in weights[0]:
            np.testing.assert_allclose(weights[0][name], weights[1][name], atol=0.01, err_msg=name)
        assert set(one.provenance["sha256"]) == {"params.json", "metrics.json", "model.safetensors"}


@pytest.fixture(scope="module")
def one_by_one(store):
    return [stages.pretrain(**body.model_dump()) for body in group()]


def left_behind(place: Path) -> list[Path]:
    return [path for path in (place / "pretrain").iterdir() if path.name.startswith(".") and path.suffix != ".lock"]


def test_trained_together_as_trained_one_by_one(one_by_one, tmp_path, monkeypatch):
    assert [result.metrics["steps"] for result in one_by_one] == [30, 90, 30, 90]
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path))
    found = learning.pretrain_together(group(), at_once=4)
    assert_the_same_results(found, one_by_one)
    assert not left_behind(tmp_path)
    assert all(result.folder.is_relative_to(tmp_path) for result in found)
    # The next stage takes them as any other.
    assert learning.pretrained(group()[0])(torch.zeros(1, 12, 8)).shape == (1, 12, 8)


def test_only_what_is_missing_is_trained_in_groups_of_one_shape(one_by_one, tmp_path, monkeypatch):
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path))
    trained = []

    def noted(bodies, checkpoint, learn=learning._learn):
        trained.append([(body.source, body.seed, body.hidden) for body in bodies])
        return learn(bodies, checkpoint)

    monkeypatch.setattr(learning, "_learn", noted)
    small = {"steps": 2, "rounds": 1}
    asked = [
        learning.pretrain.Params(**{**GROUP, **small, "source": source, "seed": 0, "hidden": hidden})
        for source, hidden in [(204, 32), (30, 16), ("coin", 32), (110, 32), (204, 32), (90, 32)]
    ]
    first = stages.pretrain(**asked[3].model_dump())
    trained.clear()
    found = learning.pretrain_together(asked, at_once=2)
    assert trained == [[(204, 0, 32), ("coin", 0, 32)], [(90, 0, 32)], [(30, 0, 16)]]
    assert [result.params for result in found] == [body.model_dump(mode="json") for body in asked]
    assert found[3].folder == first.folder
    trained.clear()
    again = learning.pretrain_together(asked, at_once=2)
    assert not trained
    assert [result.folder for result in again] == [result.folder for result in found]
    assert not left_behind(tmp_path)


@pytest.mark.parametrize(
    ("at", "seconds", "left"),
    [
        ("in the first round", 0, 70),
        ("in the second round", 0, 20),
        ("at the very end", 0, 1),
        ("at the very end", 1e9, 90),
    ],
)
def test_an_interrupted_group_gives_the_same_results(one_by_one, tmp_path, monkeypatch, at, seconds, left):
    """The easy rule and the coins are through after the first round, the others train on; with checkpoints and without.

    What a member has learnt when it is finished is kept through an interruption in a later round.
    """
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path))
    monkeypatch.setattr(training, "train", functools.partial(training.train, checkpoint_seconds=seconds))
    steps, breaks = [], {"in the second round": 70, "in the first round": 20, "at the very end": None}[at]

    def counted(model, windows, loss=learning.row_loss):
        if len(steps) == breaks:
            raise InterruptedError
        steps.append(1)
        return loss(model, windows)

    def unwritten(work, **given):
        raise InterruptedError

    monkeypatch.setattr(learning, "row_loss", counted)
    with monkeypatch.context() as patch:
        if breaks is None:
            patch.setattr(learning, "_written", unwritten)
        with pytest.raises(InterruptedError):
            learning.pretrain_together(group(), at_once=4)
    assert len(steps) == (breaks or 90)
    breaks = None
    steps.clear()
    found = learning.pretrain_together(group(), at_once=4)
    assert len(steps) == left
    assert_the_same_results(found, one_by_one)
    assert not left_behind(tmp_path)


# --- downstream -------------------------------------------------------------------------------------------------


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


def test_draws_never_meet():
    seeds = {learning.draw_seed(seed, split, step) for seed in range(5) for split in (0, 1) for step in range(50)}
    assert len(seeds) == 500
    # A window's start and its time come from two neighbouring seeds.
    assert not seeds & {seed + 1 for seed in seeds}


BODY = ("body.wpe", "body.h", "body.ln_f")


@pytest.mark.parametrize(
    ("kind", "train", "frozen"),
    [
        ("boards", "paper", BODY),
        ("tokens", "paper", ("body.h",)),
        ("boards", "ends", BODY),
        ("tokens", "ends", BODY),
        ("boards", "all but blocks", ("body.h",)),
        ("tokens", "all but blocks", ("body.h",)),
        ("boards", "all", ()),
        ("tokens", "all", ()),
    ],
)
def test_what_is_frozen_stays(kind, train, frozen):
    body = models.RowGPT(4, 4, layers=1, heads=2, hidden=16, rows=6, seed=0).body
    model = models.TaskGPT(body, kind, cells=4 if kind == "boards" else 1, classes=3, length=8, seed=0)
    transfer.freeze(model, train)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def batch(step: int):
        x = torch.randint(3, (4, 8, 4) if kind == "boards" else (4, 8), generator=torch.Generator().manual_seed(step))
        return x, x

    training.train(model, batch, transfer.task_loss, steps=3, lr=1e-2)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith(frozen), name


@pytest.mark.parametrize(("task", "ends"), [("reasoning-hard", 36 * 32 + 32 + 180 * 33), ("nim", 88 * 32 + 88 * 33)])
def test_as_many_parameters_are_trained_as_asked_for(task, ends):
    """Boards: 36 cells of 5 values. Nim: 88 words, 31 positions. A block of 32: 12 · 32² + 13 · 32."""
    length = tasks.get(task).length
    rest, block = 32 * length + 64, 12 * 32**2 + 13 * 32
    if length <= 12:
        rest = 32 * 12 + 64
    expected = {"ends": ends, "all but blocks": ends + rest, "all": ends + rest + block}
    expected["paper"] = expected["ends" if task == "reasoning-hard" else "all but blocks"]
    for train, count in expected.items():
        asked = {"body": {"source": 204, **TINY}, "task": task, "train": train, "start": "random"}
        assert stages.downstream(**asked, steps=1, batch=2).metrics["trained_parameters"] == count, train


def by_hand_failures(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How many values are thought likelier than the right one, over all that is scored; no ties among real numbers."""
    scored = y != -100
    return np.array([(row > row[right]).sum() for row, right in zip(logits[scored], y[scored], strict=True)])


@pytest.mark.parametrize("task", ["reasoning-hard", "nim", "chess"])
def test_scores_are_those_of_the_model_with_new_ends(task):
    """With a rate of next to nothing the model is as it began, which is made here anew."""
    body = {"source": 204, **TINY}
    result = stages.downstream(body=body, task=task, steps=1, batch=2, lr=1e-12, seed=5)
    spec = tasks.get(task)
    model = transfer._with_ends(learning.pretrain.Params(**body), "pretrained", spec, "integers", 5).eval()
    x, y = spec.batch(256, learning.draw_seed(5, 1, 0), "validation")
    with torch.no_grad():
        logits = model(torch.from_numpy(x)).numpy()
    m = result.metrics
    shape = (256, spec.length, 36) if spec.kind == "boards" else (256, spec.length)
    predicted = load_file(result.file("predictions.safetensors"))["predicted"]
    assert (predicted.shape, predicted.dtype) == (shape, np.int16)
    assert predicted.min() >= 0
    assert predicted.max() < spec.classes
    # The step moves weights by 1e-12, which rounds away but for ties of the last bit.
    assert (predicted == logits.argmax(-1)).mean() > 0.999
    assert m["accuracy"] == spec.score(predicted.astype(np.int64), y)
    scored = y != -100
    shifted = logits - logits.max(-1, keepdims=True)
    likely = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    assert m["loss"] == pytest.approx(-np.take_along_axis(likely[scored], y[scored][:, None], 1).mean(), rel=1e-5)
    tried = by_hand_failures(logits, y)
    # One value in a thousand may have changed its place with a neighbour.
    assert m["failures"]["mean"] == pytest.approx(tried.mean(), rel=1e-3)
    assert m["failures"]["variance"] == pytest.approx(tried.var(), rel=1e-2)
    assert 0 <= m["failures"]["mean"] <= spec.classes - 1
    game = evaluation.survival_game(tried, answers=spec.classes)
    assert m["failures"]["level"] == game.level
    # Who knows nothing is wrong about half of the times that one can be, and far from sure.
    assert 0.25 < m["failures"]["mean"] / (spec.classes - 1) < 0.75
    assert m["history"]["steps"] == 1
    assert m["step_at_80"] is None


class Twos:
    """A task that is learnt at once: whatever the board, the next one is all 2 (the first is not scored)."""

    kind, classes, cells, length = "boards", 3, 4, 6

    def batch(self, n: int, seed: int, split: str = "train"):
        x = np.random.default_rng([seed, split == "train"]).integers(0, 3, (n, 6, 4))
        y = np.full((n, 6, 4), 2)
        y[:, 0] = -100
        return x, y

    def score(self, predicted, y):
        return float((predicted == y).all(-1)[:, 1:].mean())

    def baselines(self):
        return {"majority": 1.0}


@pytest.fixture
def twos(tmp_path, monkeypatch):
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path))
    monkeypatch.setattr(transfer, "_task", lambda task, games: Twos())
    transfer._baselines.cache_clear()
    yield
    transfer._baselines.cache_clear()


def test_it_ends_at_the_accuracy_that_was_asked_for(twos):
    asked = {"body": {"source": 204, **TINY}, "start": "random", "steps": 24, "evaluate_every": 1, "batch": 8}
    whole = stages.downstream(**asked, lr=1e-2).metrics
    early = stages.downstream(**asked, lr=1e-2, until=0.95).metrics
    right = {entry["step"]: entry["accuracy"] for entry in whole["history"]["evaluations"]}
    assert list(right) == list(range(1, 25))
    assert right[1] < 0.8  # or nothing is shown
    first = min(step for step, accuracy in right.items() if accuracy >= 0.8)
    enough = min(step for step, accuracy in right.items() if accuracy >= 0.95)
    assert whole["history"]["steps"] == 24
    assert early["history"]["steps"] == enough < 24
    assert early["step_at_80"] == whole["step_at_80"] == first
    assert early["history"]["evaluations"] == [e for e in whole["history"]["evaluations"] if e["step"] <= enough]
    assert early["accuracy"] == right[enough]
    assert whole["accuracy"] == 1.0
    assert whole["failures"]["mean"] == whole["failures"]["variance"] == 0
    assert whole["baselines"] == {"majority": 1.0}


def test_evaluated_eight_times_unless_said_otherwise(twos):
    found = stages.downstream(body={"source": 204, **TINY}, start="random", steps=20, batch=2).metrics
    assert [entry["step"] for entry in found["history"]["evaluations"]] == [*range(2, 21, 2)]
    assert found["step_at_80"] in range(2, 21, 2)


def test_chess_is_learnt_from_games_of_ones_own(tmp_path):
    games = tmp_path / "games.txt"
    games.write_text(
        "e4 e5 Nf3 Nc6\n" * 3
        + "".join(f"{first} {then} Nf3\n" for first in "d4 c4 e4".split() for then in "d5 e5 c5 Nf6".split())
    )
    asked = {"body": {"source": 204, **TINY}, "start": "random", "steps": 2, "batch": 4}
    own = stages.downstream(**asked, task="chess", games=str(games))
    predicted = load_file(own.file("predictions.safetensors"))["predicted"]
    assert predicted.shape == (256, 60)
    assert predicted.max() < 20  # its own few moves are the vocabulary
    with pytest.raises(ParameterError, match="games are for the task chess, not for nim"):
        stages.downstream(**asked, task="nim", games=str(games))
    with pytest.raises(ValueError, match="nowhere"):
        stages.downstream(**asked, task="chess", games=str(tmp_path / "nowhere.txt"))


def test_boards_go_in_one_hot():
    asked = {"body": {"source": 204, **TINY}, "task": "reasoning-hard", "start": "random", "steps": 4, "batch": 4}
    whole, hot = (stages.downstream(**asked, board_input=how).metrics for how in ("integers", "one-hot"))
    assert hot["trained_parameters"] - whole["trained_parameters"] == 36 * (5 - 1) * 32
    assert hot["loss"] != whole["loss"]
    with pytest.raises(ParameterError, match="board_input"):
        stages.downstream(**asked, board_input="onehot")


def test_a_body_begins_as_it_was_learnt_drawn_or_shuffled():
    body = learning.pretrain.Params(source=204, **TINY)
    learnt, drawn, shuffled = (
        transfer._body(body, start, 3).state_dict() for start in ("pretrained", "random", "shuffled")
    )
    saved = load_file(stages.pretrain(**body.model_dump()).file("model.safetensors"))
    for name, value in learnt.items():
        assert np.array_equal(value, saved[f"body.{name}"])
        # Positions and norms stay as learnt, and so do biases: only the blocks' matrices are shuffled.
        assert torch.equal(shuffled[name], value) == (not name.startswith("h.") or value.ndim == 1), name
        assert torch.equal(shuffled[name].flatten().sort().values, value.flatten().sort().values)
    fresh = learning.untrained(body).body.state_dict()
    assert all(torch.equal(drawn[name], value) for name, value in fresh.items())
    assert not torch.equal(drawn["wpe.weight"], learnt["wpe.weight"])


@pytest.mark.parametrize("start", ["pretrained", "random", "shuffled"])
def test_downstream_scores_beside_its_baselines(start):
    found = stages.downstream(body={"source": 204, **TINY}, start=start, steps=8, batch=4).metrics
    assert 0 <= found["accuracy"] <= 1
    assert found["loss"] < math.log(5) + 0.5
    assert set(found["baselines"]) >= {"majority"}
    assert found["step_at_80"] is None


# --- looking inside ---------------------------------------------------------------------------------------------


def test_what_is_seen_inside_a_network():
    asked = {**TINY, "source": 204, "rows": 24, "steps": 20}
    body = learning.pretrain.Params(**asked)
    result, learnt = stages.inspect(body=asked), stages.pretrain(**asked)
    model, m = learning.pretrained(body), result.metrics
    with torch.no_grad():
        x = model.input(torch.from_numpy(learning.held_out(body)[:, :-1]).float()) + model.body.wpe.weight
        q, k, _ = model.body.h[0].attn.c_attn(model.body.h[0].ln_1(x)).chunk(3, -1)
    shares = []
    for head in range(2):
        own = slice(16 * head, 16 * head + 16)
        scores = (q[..., own] @ k[..., own].mT / 4).numpy()
        for t in range(19, 24):  # the positions that see twenty rows and more
            weight = np.exp(scores[:, t, : t + 1])
            shares.append((weight[:, -10:].sum(-1) / weight.sum(-1)).mean())
    assert m["attention"]["last_10"] == pytest.approx(np.mean(shares), abs=1e-5)
    assert m["attention"]["by_layer"] == [pytest.approx(m["attention"]["last_10"])]
    # Weights this small attend nearly evenly before they learn: ten of 20 to 24 rows.
    assert m["attention"]["untrained"] == pytest.approx(probes.attention_spread_evenly(24), abs=0.02)
    assert m["targets_per_step"] == 16 * 24 * 8
    excess = [value - learnt.metrics["loss"] for _, value in learnt.metrics["history"]["loss"]]
    assert len(excess) == learnt.metrics["steps"]  # an entry a step, so that the area is their sum
    assert m["epiplexity"] == pytest.approx(sum(excess) / math.log(2), rel=1e-9)
    seen = load_file(result.file("activations.safetensors"))["seen"]
    assert seen.shape == (16 * 12, 32)
    assert seen.std() > 0.1
    # From behind the last norm: the output layer makes logits of them.
    coins = np.random.Generator(np.random.Philox(0)).random((16, 24, 8)) < 0.5
    with torch.no_grad():
        logits = model(torch.from_numpy(coins).float())[:, 12:].flatten(0, 1)
        np.testing.assert_allclose(model.output(torch.from_numpy(seen)), logits, atol=1e-5)  # single precision


def test_too_few_rows_show_no_attention_to_the_last_ten():
    assert stages.inspect(body={"source": 204, **TINY}).metrics["attention"] is None


def test_likeness_of_networks_is_the_mean_over_unlike_seeds():
    small = {**TINY, "steps": 2, "rounds": 1}
    bodies = [
        [learning.pretrain.Params(**small, source=source, seed=seed) for seed in range(3)] for source in (204, 90)
    ]
    seen = [
        [load_file(stages.inspect(body=body.model_dump()).file("activations.safetensors"))["seen"] for body in row]
        for row in bodies
    ]
    pairs = [(s, t) for s in range(3) for t in range(3) if s != t]
    by_hand = [[np.mean([probes.cka(a[s], b[t]) for s, t in pairs]) for b in seen] for a in seen]
    found = inspecting.similarity(bodies)
    # Double precision on activations of single precision, the same in both.
    np.testing.assert_allclose(found, by_hand, rtol=1e-9)
    np.testing.assert_allclose(found, found.T, rtol=1e-9)
    # After two steps two networks of one seed are nearly the same, which is why such pairs do not count.
    assert probes.cka(seen[0][0], seen[1][0]) > found[0, 1] + 0.1


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


def test_the_language_suite_goes_on_from_where_its_schedule_stopped():
    short = stages.language(steps=5, stop=2, batch=7).metrics
    assert short["history"]["steps"] == 2
    whole = stages.language(steps=5, batch=7).metrics
    assert whole["history"]["loss"][:2] == short["history"]["loss"]


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

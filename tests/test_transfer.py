"""Downstream tasks at tiny sizes: what is trained, what is frozen, and that scores are those of the model."""

import math

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from rules2ranks import evaluation, models, stages, tasks, training
from rules2ranks.runs import ParameterError
from rules2ranks.stages import learning, transfer
from rules2ranks.stages.learning import Pretraining
from rules2ranks.stages.transfer import Downstream
from tiny_rows import TINY

pytestmark = pytest.mark.usefixtures("store")


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

    training.train(model, batch, transfer.task_loss, training.Schedule(3, 1e-2))
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
    given = Downstream(body={"source": 204, **TINY}, task=task, steps=1, batch=2, lr=1e-12, seed=5)
    result, spec = stages.downstream(given), tasks.get(task)
    model = transfer.with_ends(given, spec).eval()
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
    task = Twos()
    monkeypatch.setattr(tasks, "get", lambda name: task)


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
    given = Downstream(**asked, task="chess")
    assert given.reads() == (transfer.GAMES,) and not given.model_copy(update={"task": "nim"}).reads()
    games.write_text(games.read_text().replace("Nf3", "Bc4"))  # other games in the same place are another result
    assert stages.downstream(**asked, task="chess", games=str(games)).folder != own.folder
    with pytest.raises(ParameterError, match="games are for the task chess, not for nim"):
        stages.downstream(**asked, task="nim", games=str(games))
    with pytest.raises(ParameterError, match=r"no file of games .*nowhere"):
        stages.downstream(**asked, task="chess", games=str(tmp_path / "nowhere.txt"))


def test_boards_go_in_one_hot():
    asked = {"body": {"source": 204, **TINY}, "task": "reasoning-hard", "start": "random", "steps": 4, "batch": 4}
    whole, hot = (stages.downstream(**asked, board_input=how).metrics for how in ("integers", "one-hot"))
    assert hot["trained_parameters"] - whole["trained_parameters"] == 36 * (5 - 1) * 32
    assert hot["loss"] != whole["loss"]
    with pytest.raises(ParameterError, match="board_input"):
        stages.downstream(**asked, board_input="onehot")


def test_a_body_begins_as_it_was_learnt_drawn_or_shuffled():
    body = Pretraining(source=204, **TINY)
    learnt, drawn, shuffled = (
        transfer.with_ends(Downstream(body=body, start=start, seed=3), tasks.get("reasoning-hard")).body.state_dict()
        for start in ("pretrained", "random", "shuffled")
    )
    saved = load_file(stages.pretrain(body).file("model.safetensors"))
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

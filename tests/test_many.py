"""Many measurements: in order, checked beforehand, only found, and side by side where there is a GPU."""

import pytest
import torch

from rules2ranks import runs, stages, training
from rules2ranks.runs import ParameterError
from rules2ranks.stages import learning
from rules2ranks.stages.learning import Pretraining
from rules2ranks.tables import many

TINY = {"width": 8, "rows": 20, "ring": 40, "layers": 1, "heads": 2, "hidden": 16, "steps": 2, "rounds": 1}


def test_results_come_back_in_order_and_what_is_only_to_be_found_is_not_made(tmp_path, monkeypatch):
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path))
    jobs = many.stage_jobs("pretrain", [TINY | {"source": rule} for rule in (30, 110, 204)])
    with runs.only_found(), pytest.raises(many.Unmeasured) as missing:
        many.measure(jobs, "found")
    assert missing.value.jobs == jobs and not list(tmp_path.iterdir())
    made = many.measure(jobs[1:], "made")
    assert [result.params["source"] for result in made] == [110, 204]
    with runs.only_found():
        assert many.measure(jobs[1:], "found") == made
        with pytest.raises(many.Unmeasured, match="1 measurements are missing, the first is pretrain") as missing:
            many.measure(jobs, "found")
        with pytest.raises(runs.Missing, match=f"no result of pretrain in {tmp_path}") as one:
            stages.pretrain(jobs[0].given)
    assert missing.value.jobs == jobs[:1]
    assert many.stage_jobs(one.value.name, [one.value.params]) == jobs[:1]
    assert not runs.only_finds()


def test_all_parameters_are_checked_before_any_work():
    jobs = many.stage_jobs("pretrain", [{"source": 30}, {"source": "110", "steps": 3}])
    assert jobs == [
        many.Job(stages.pretrain, Pretraining(source=30)),
        many.Job(stages.pretrain, Pretraining(source=110, steps=3)),
    ]
    with pytest.raises(ParameterError, match="did you mean 'source'"):
        many.stage_jobs("pretrain", [{"source": 30}, {"sourc": 30}])


def test_parts_hold_each_job_once_and_are_alike():
    jobs = many.stage_jobs("pretrain", [{"seed": seed} for seed in range(7)])
    parts = many.parts([*jobs, *jobs[:3]], 3)
    assert sorted(map(len, parts)) == [2, 2, 3]
    assert sorted(given["seed"] for part in parts for _, given in part) == list(range(7))
    assert [many.read_job(plain) for part in parts for plain in part] == [jobs[n] for n in (0, 3, 6, 1, 4, 2, 5)]
    assert len(many.parts(jobs, 30, at_once=4)) == 4
    assert len(many.parts(jobs[:2], 30, at_once=4)) == 2
    assert many.parts([], 30, at_once=4) == []


def test_a_search_is_a_part_by_itself():
    def search(given: Pretraining) -> None:
        """What is no stage counts as a whole part."""

    search.__module__ = "rules2ranks.tables.ranks"
    jobs = [many.Job(search, Pretraining(seed=seed)) for seed in range(2)] + many.stage_jobs(
        "pretrain", [{}, {"seed": 1}]
    )
    parts = many.parts(jobs, 10)
    assert [[name for name, _ in part] for part in parts] == [["ranks.search"], ["ranks.search"], ["pretrain"] * 2]


def test_a_gpu_trains_small_networks_side_by_side(monkeypatch):
    """What is too large for that is trained one by one, as is all else; the small ones are found then."""
    together, made = [], []
    monkeypatch.setattr(training, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(learning, "pretrain_together", together.append)
    monkeypatch.setattr(runs.Stage, "__call__", lambda self, given: made.append((self.name, given)))
    bodies = [Pretraining(source=30), Pretraining(source="coin", hidden=512, layers=4)]
    many.measure(
        many.stage_jobs("pretrain", bodies) + many.stage_jobs("fragility", [{"base": bodies[0], "ratios": [0.5]}]),
        "all",
    )
    assert together == [bodies[:1]]
    assert made[:2] == [("pretrain", body) for body in bodies] and made[2][0] == "fragility"

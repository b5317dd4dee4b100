"""Many results at once: in order, checked beforehand, and side by side where there is a GPU."""

import multiprocessing

import pytest
import torch

from rules2ranks import training
from rules2ranks.runs import ParameterError
from rules2ranks.stages import learning
from rules2ranks.stages.learning import Pretraining
from rules2ranks.tables import many


def test_measurements_of_processes_come_back_in_order_and_a_failure_is_told():
    """The one test that starts processes."""
    assert many.measure([(str, {"object": k}) for k in (3, 1, 2)], 2, "counting") == ["3", "1", "2"]
    with pytest.raises(TypeError, match="divmod"):
        many.measure([(divmod, {}), (str, {"object": 1})], 1, "failing")
    assert not multiprocessing.active_children()


def test_all_parameters_are_checked_before_any_work():
    jobs = many.stage_jobs("pretrain", [{"source": 30}, {"source": "110", "steps": 3}])
    assert jobs == [
        (many.run_stage, {"name": "pretrain", "given": Pretraining(source=30)}),
        (many.run_stage, {"name": "pretrain", "given": Pretraining(source=110, steps=3)}),
    ]
    with pytest.raises(ParameterError, match="did you mean 'source'"):
        many.stage_jobs("pretrain", [{"source": 30}, {"sourc": 30}])


def test_a_gpu_trains_side_by_side(monkeypatch):
    asked = []
    monkeypatch.setattr(training, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(learning, "pretrain_together", lambda bodies: asked.append(bodies) or ["found"])
    assert many.pretrainings([{"source": 30}, {"source": "coin", "hidden": 256}], 2) == ["found"]
    assert asked == [[Pretraining(source=30), Pretraining(source="coin", hidden=256)]]
    with pytest.raises(ParameterError, match="did you mean 'source'"):
        many.pretrainings([{"sourc": 30}], 2)

"""One result from the command line, as a job on a cluster makes it."""

import json
import subprocess
import sys

import pytest

from rules2ranks import __main__ as command
from rules2ranks import recovery, stages
from tiny_rows import TINY

pytestmark = pytest.mark.usefixtures("store")


@pytest.mark.parametrize(
    ("name", "text", "asked"),
    [
        ("parameters.json", json.dumps({"source": 204, **TINY}), {"source": 204, **TINY}),
        # YAML takes 1e-2, which has no dot, for text; it is read all the same.
        ("parameters.yaml", "lr: 1e-2\nsteps: 2\nrounds: 1", {"lr": 1e-2, "steps": 2, "rounds": 1}),
    ],
)
def test_a_result_is_made_from_a_file_of_parameters(tmp_path, capsys, name, text, asked):
    (tmp_path / name).write_text(text)
    assert command.main(["run", "pretrain", str(tmp_path / name)]) == 0
    made = stages.pretrain.find(**asked)
    assert json.loads(capsys.readouterr().out) == {"folder": str(made.folder), "metrics": made.metrics}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sorce: 30", "unknown parameter 'sorce': did you mean 'source'"),
        ("- 30", "holds no names with values"),
        ("source: [", "while parsing"),
        (None, "No such file"),
    ],
)
def test_a_wrong_file_is_refused_with_its_reason(tmp_path, capsys, text, said):
    file = tmp_path / "wrong.yaml"
    if text is not None:
        file.write_text(text)
    assert command.main(["run", "pretrain", str(file)]) == 2
    told = capsys.readouterr()
    assert said in told.err and "wrong.yaml" in told.err and not told.out


def test_every_stage_is_listed_and_shown(capsys):
    assert command.main(["list"]) == 0
    listed = capsys.readouterr().out
    for name in stages.HOMES:
        assert f"\n{name} " in listed
        assert command.main(["show", name]) == 0
        shown = capsys.readouterr().out
        assert all(f"  {field}: " in shown for field in getattr(stages, name).Params.model_fields)
    command.main(["show", "recover"])
    shown = capsys.readouterr().out
    methods = " or ".join(map(repr, recovery.METHODS))
    assert f"method: {methods}; default 'lora'" in shown
    assert (
        "ranks: int or list of int or dict of str, int; default 2" in shown
        and "steps: int; default 60; optimiser steps" in shown
    )


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "rules2ranks", "show", "recovr"], capture_output=True, text=True)
    assert done.returncode == 2 and "invalid choice: 'recovr'" in done.stderr

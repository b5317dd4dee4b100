"""Wrong parameters, through everything that takes any: refused before any work, in a line that names the parameter and
what is allowed."""

import os
import re
import subprocess
import sys

import pytest
import walking
import yaml

from rules2ranks import __main__ as command
from rules2ranks import stages
from rules2ranks.runs import ParameterError
from rules2ranks.stages import ranks
from rules2ranks.tables import __main__ as tables

NAN = float("nan")
#: Stage, what is wrong, and what the line has to say.
PYTHON = [
    ("pretrain", {"source": 256}, "'source' = 256: .*less than or equal to 255, or 'coin'"),
    ("pretrain", {"source": "heads"}, "'source' = 'heads': .*valid integer.* or 'coin'"),
    ("pretrain", {"sorce": 30}, "'sorce': did you mean 'source'"),
    ("pretrain", {"steps": "1:30"}, "'steps' = '1:30': .*valid integer"),
    ("pretrain", {"steps": True}, "'steps' = True: a number is expected, not true or false"),
    ("pretrain", {"steps": 0}, "'steps' = 0: .*greater than or equal to 1"),
    ("pretrain", {"steps": 1.5}, "'steps' = 1.5: .*valid integer"),
    ("pretrain", {"steps": None}, "'steps' = None: .*valid integer"),
    ("pretrain", {"lr": NAN}, "'lr' = nan: .*less than or equal to 1"),
    ("pretrain", {"lr": float("inf")}, "'lr' = inf: .*less than or equal to 1"),
    ("pretrain", {"lr": -1}, "'lr' = -1: .*greater than 0"),
    ("pretrain", {"seed": -1}, "'seed' = -1: .*greater than or equal to 0"),
    ("pretrain", {"seed": 2**31}, "'seed' = 2147483648: .*less than 2147483648"),
    ("pretrain", {"flip": 0.5}, "'flip' = 0.5: .*less than 0.5"),
    ("pretrain", {"mask": "casual"}, "'mask' = 'casual': .*'causal' or 'published'"),
    ("pretrain", {"heads": 5}, "hidden = 64 must be a multiple of heads = 5"),
    ("pretrain", {"width": 20, "ring": 10}, "a crop of 20 cells does not fit on a ring of 10"),
    ("pretrain", {"rows": 10**6}, "'rows' = 1000000: .*less than or equal to 900"),
    ("prune", {"ratio": 1}, "'ratio' = 1: .*less than 1"),
    ("prune", {"ratio": 0.4, "spread": "globl"}, "'spread' = 'globl': .*'uniform', 'importance', 'global' or 'same'"),
    ("prune", {"ratio": 0.4, "importance": "tylor"}, "'importance' = 'tylor': .*'taylor'"),
    ("prune", {"ratio": 0.4, "base": "lnguage"}, "'base' = 'lnguage': .*'language' or 'gemma'"),
    (
        "prune",
        {"ratio": 0.4, "base": {"model": "/none", "data": "/none.json"}},
        "'base' = .*there is no file /none.json",
    ),
    ("recover", {"pruned": {"ratio": 0.4}, "ranks": [1, 2]}, "expected 8 numbers, one per decoder layer, got 2"),
    ("recover", {"pruned": {"ratio": 0.4}, "ranks": 10**6}, "'ranks' = 1000000: .*less than or equal to 256"),
    ("recover", {"pruned": {"ratio": 0.4}, "ranks": 250}, "ranks must be from 0 to the model's width 64, got 250"),
    ("recover", {"pruned": {"ratio": 0.4}, "ranks": {"x": 1}}, "no such matrices in the decoder layers: .'x'."),
    ("recover", {"pruned": {"ratio": 0.4}, "method": "lra"}, "'method' = 'lra': .*'lora'"),
    ("recover", {"pruned": {"ratio": 0.4}, "bits": 5}, "'bits' = 5: .*2, 3, 4, 8 or 16"),
    ("recover", {"pruned": {"ratio": 0.4}, "group": 12}, "'group' = 12: .*multiple of 8"),
    ("recover", {"pruned": {"ratio": 0.4}, "steps": 10, "stop": 11}, "stop .11. must not be beyond"),
    ("recover", {"pruned": {"ratio": 0.4, "sprad": "global"}}, "'sprad': did you mean 'spread'"),
    ("downstream", {"body": {}, "task": "nm"}, "'task' = 'nm': .*'nim'"),
    ("downstream", {"body": {}, "games": "x.pgn"}, "games are for the task chess"),
]
#: What would not fit into any memory: refused when it is asked for, by what there is.
LARGE = [
    ("pretrain", {"width": 10**6, "ring": 10**6}, "width=1000000"),
    ("pretrain", {"batch": 10**6}, "batch=1000000"),
    ("pretrain", {"hidden": 10**6}, "hidden=1000000"),
    ("recover", {"pruned": {"ratio": 0.4}, "batch": 10**6}, "batch=1000000"),
    ("downstream", {"body": {}, "batch": 10**6}, "batch=1000000"),
]
SHELL = [
    (["run", "pretrain"], "source: 300", "'source' = 300"),
    (["run", "pretrain"], "source: [", "while parsing"),
    (["run", "pretrain"], "- 1", "no names with values"),
    (["run", "pretrain"], "steps: 010x", "'steps' = '010x'"),
    (["run", "recover"], "pruned: {ratio: 2}", "less than 1"),
    (["run", "recover"], "{pruned: {ratio: 0.4}, rank: 2}", "'rank': did you mean 'ranks'"),
    (["plan"], "model: /none", "there is no folder /none"),
    (["plan"], "modle: x", "'modle': did you mean 'model'"),
]
MAKE = [
    ("PROFILE=fats", "There is no profile 'fats'; there are: fast"),
    ("PROFILE=../fast", "There is no profile '../fast'"),
    ("PROFILE=fast; touch hurt", "There is no profile 'fast; touch hurt'"),
    ("CORES=0", "CORES must be a number of processor cores, not '0'"),
    ("CORES=two", "CORES must be a number of processor cores, not 'two'"),
    ("CORES=-1", "CORES must be a number of processor cores, not '-1'"),
    ("EXTRAS=ches", "EXTRAS takes some of llm chess"),
    ("LOCKED=yes", "LOCKED takes 1 or nothing, and not 'yes'"),
]
#: Notebook, what papermill is told, and what the notebook says; the last ones hide behind a `nan`.
PAPERMILL = [
    ("10_automata", {"rule": 256}, "'rule' = 256: .*less than or equal to 255"),
    ("10_automata", {"rul": 30}, "'rul': did you mean 'rule'"),
    ("10_automata", {"rul": 30, "width": NAN}, "'rul': did you mean 'rule'"),
    ("10_automata", {"rule": "1:30"}, "'rule' = '1:30': .*valid integer"),
    ("11_complexity", {"rows": [1, NAN]}, "'rows' = "),
]


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.mark.fault("wrong words in Python")
@pytest.mark.parametrize(("name", "given", "said"), PYTHON)
def test_in_python(name, given, said, store):
    with pytest.raises(ParameterError, match=said) as told:
        getattr(stages, name)(**given)
    assert len(str(told.value).splitlines()) == 1 and not store.exists()


@pytest.mark.fault("sizes beyond any memory")
@pytest.mark.parametrize(("name", "given", "said"), LARGE)
def test_what_fits_nowhere(name, given, said, store):
    with pytest.raises(ValueError, match=f"{said}.* needs about .* GiB to train, and there are"):
        getattr(stages, name)(**given)
    assert not [path for path in store.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.fault("wrong words in Python")
def test_searches(store):
    asked = ranks.Question.check({"pruned": {"ratio": 0.4}})
    with pytest.raises(ValueError, match="unknown searcher 'random-search': choose one of additive"):
        ranks.search(asked, "random-search")
    for limit in (0, "8"):
        with pytest.raises(ValueError, match="limit must be at least 8 for RankAdaptor"):
            ranks.search(asked, limit=limit)


@pytest.mark.fault("wrong words on the command line")
@pytest.mark.parametrize(("words", "text", "said"), SHELL)
def test_on_the_command_line(words, text, said, tmp_path, store, capsys):
    (tmp_path / "given.yaml").write_text(text)
    assert command.main([*words, str(tmp_path / "given.yaml")]) == 2
    assert said in capsys.readouterr().err and not store.exists()


@pytest.mark.fault("wrong words on the command line")
@pytest.mark.parametrize("words", [["edge"], ["--profile", "fats"], ["--profile", "../fast"], ["--part", "two"]])
def test_for_tables(words, store, capsys):
    with pytest.raises(SystemExit) as ended:
        tables.main(words)
    assert ended.value.code == 2 and not store.exists()
    assert words[-1].removeprefix("../") in capsys.readouterr().err


@pytest.mark.fault("wrong words to make")
@pytest.mark.parametrize(("word", "said"), MAKE)
def test_to_make(word, said, tmp_path, store):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".venv" / ".installed").touch()
    for name in ("Makefile", "pyproject.toml", "requirements.txt", "workflow", "profiles", "lib"):
        (tmp_path / name).symlink_to(walking.REPOSITORY / name)
    environment = walking.environment(store) | {"PATH": os.environ["PATH"]}
    how = {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment}
    run = subprocess.run(["make", "--old-file=requirements.txt", "reproduce", word], **how)
    assert run.returncode and said in run.stderr, run.stdout + run.stderr
    assert not store.exists() and not list(tmp_path.glob("*hurt*"))


@pytest.mark.fault("wrong words through papermill", long=True)
@pytest.mark.parametrize(("name", "given", "said"), PAPERMILL)
def test_through_papermill(name, given, said, tmp_path, store):
    notebook = walking.REPOSITORY / "notebooks" / f"{name}.ipynb"
    words = ["papermill", str(notebook), str(tmp_path / "out.ipynb"), "--parameters_yaml", yaml.safe_dump(given)]
    words += ["--kernel", "python3", "--no-progress-bar", "--cwd", str(notebook.parent)]
    run = subprocess.run(words, capture_output=True, text=True, env=walking.environment(store))
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode and "ParameterError: " in run.stderr, run.stderr
    assert re.search(said, last) and not store.exists()

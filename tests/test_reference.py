"""The reference tables as a workflow: list after list is measured, a killed walk goes on, mistakes are told first."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import reference
import results
from rules2ranks import __main__ as command
from rules2ranks import runs, stages
from rules2ranks.stages.learning import Pretraining
from rules2ranks.tables import __main__ as tables_command
from rules2ranks.tables import many
from test_walk import REPOSITORY, needs_snakemake, program

# --- lists ------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of its own, and a profile with one table of three networks."""
    tiny = {"width": 8, "rows": 20, "ring": 40, "layers": 1, "heads": 2, "hidden": 16, "steps": 4, "rounds": 1}
    settings = {"rules": [110, 30, 204], "seeds": [0], "pretrain": tiny, "fragility": {"ratios": [0.5]}}
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(tables_command, "profile_settings", lambda profile: {"compression": settings})
    monkeypatch.setattr(tables_command.tables, "place", lambda name: tmp_path / f"{name}.csv")
    return tmp_path


def listed(file: Path, *words: str) -> list[list[int]]:
    """The rules of the networks in each part of what is missing, as the workflow asks for it."""
    tables_command.main(["compression", "--missing", str(file), *words])
    return [[given["base"]["source"] for _, given in part] for part in json.loads(file.read_text())["parts"]]


def test_what_is_missing_is_listed_and_only_that_is_measured(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = (place / f"{number}.json" for number in (1, 2, 3))
    assert listed(first, "--at-once", "2") == [[110, 204], [30]]
    assert listed(first, "--part", "1") == [[110], [30], [204]]
    assert not (place / "runs").exists(), "nothing is measured by listing"
    assert command.main(["measure", str(first), "1"]) == 0
    # As after a walk that was killed: nothing but runs/ says what is done.
    assert listed(second) == [[110, 204]]
    assert command.main(["measure", str(second), "0"]) == 0
    assert not (place / "compression.csv").exists()
    assert listed(third, "--measured", str(second)) == []
    assert json.loads(third.read_text())["left"] == []
    found = (place / "compression.csv").read_text()
    tables_command.main(["compression"])
    assert (place / "compression.csv").read_text() == found
    assert command.main(["measure", str(third), "0"]) == 2
    assert "there is no part 0 of 0" in capsys.readouterr().err


def test_what_was_measured_elsewhere_is_not_measured_for_ever(place: Path) -> None:
    listed(place / "1.json")
    with pytest.raises(SystemExit, match=r"3 measurements were made and are not found in .*RULES2RANKS_RUNS"):
        listed(place / "2.json", "--measured", str(place / "1.json"))


def test_a_table_waits_for_the_one_that_it_is_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def make(name: str, given: object, profile: str) -> None:
        asked.append(name)
        if name == "recovery_rates":
            raise runs.Missing("pretrain", {"source": 30})

    monkeypatch.setattr(tables_command, "make", make)
    names = ["recovery_rates", "recoveries", "levels"]
    left, missing = tables_command.make_found(names, dict.fromkeys(names), "laptop")
    assert asked == ["recovery_rates", "levels"] and left == names[:2]
    assert missing == [many.Job(stages.pretrain, Pretraining(source=30))]
    assert tables_command.make_found(["recoveries"], {"recoveries": {}}, "laptop") == ([], [])


@pytest.mark.parametrize(
    "name", ["nothing", "ranks.nothing", "ranks.Problem", "many.measure", "os.system", "..os.system"]
)
def test_a_list_names_measurements_only(name: str) -> None:
    with pytest.raises(runs.ParameterError, match="no measurement of the name"):
        many.read_job([name, {}])


# --- the workflow -----------------------------------------------------------------------------------------------

# Four measurements, of which the last depends on the others; the second takes for ever until the walk was killed once.
MEASURED = """
import json, sys, time
from pathlib import Path

words, done = sys.argv[1:], Path("done")
known = done.read_text().split() if done.exists() else []
if "--missing" in words:
    missing = [name for name in "abc" if name not in known] or [name for name in "d" if name not in known]
    Path(words[words.index("--missing") + 1]).write_text(json.dumps({"parts": [[name] for name in missing]}))
    with open("told", "a") as told:
        print(*words, file=told)
else:
    (name,) = json.loads(Path(words[-2]).read_text())["parts"][int(words[-1])]
    if name == "b" and not Path("killed").exists():
        time.sleep(60)
    with done.open("a") as file:
        print(name, file=file)
"""


def walk(place: Path, *words: str) -> subprocess.Popen[str]:
    """The reference tables with `place` as the runs folder, and with the programs in its `bin`."""
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "workflow" / "reference.py"), *words],
        env={**os.environ, "PATH": f"{place / 'bin'}:{os.environ['PATH']}", "RULES2RANKS_RUNS": str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@needs_snakemake
def test_a_killed_walk_goes_on_and_measures_nothing_twice(tmp_path: Path) -> None:
    (tmp_path / "measured.py").write_text(MEASURED)
    program(tmp_path / "bin" / "python", f'exec {shlex.join([sys.executable, str(tmp_path / "measured.py")])} "$@"')
    done, words = tmp_path / "done", ("laptop", "2", "local", "levels", "joint")
    first, end = walk(tmp_path, *words), time.monotonic() + 60
    while not done.exists() or sorted(done.read_text().split()) != ["a", "c"]:
        assert time.monotonic() < end and first.poll() is None, first.communicate()[0]
        time.sleep(0.1)
    family = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    for member in family:
        member.kill()
    first.wait()
    psutil.wait_procs(family, timeout=10)
    (tmp_path / "killed").touch()
    second = walk(tmp_path, *words)
    said = second.communicate(timeout=60)[0]
    assert second.returncode == 0, said
    assert done.read_text().split()[2:] == ["b", "d"]
    assert (
        "list 1, part 0: measured, " in said and "list 2, part 0: measured, " in said and "All tables are made" in said
    )
    told = (tmp_path / "told").read_text().splitlines()
    assert [line.split(" --part")[0] for line in told] == [
        f"-m rules2ranks.tables levels joint --profile laptop --missing .reference/{number}.json"
        for number in (1, 1, 2, 3)
    ]
    assert [line.partition(" --at-once ")[2] for line in told[1:]] == [
        "2",
        "2 --measured .reference/1.json",
        "2 --measured .reference/2.json",
    ]


@needs_snakemake
def test_a_measurement_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    text = ('case "$*" in', '*--missing*) echo \'{"parts": [["a"]]}\' > .reference/1.json ;;')
    program(tmp_path / "bin" / "python", "\n".join([*text, "*) echo why >&2; exit 3 ;;", "esac"]))
    run = walk(tmp_path, "laptop", "1", "local")
    said = run.communicate(timeout=60)[0]
    assert run.returncode == 1
    assert "why\n" in said and "list 1, part 0: FAILED after " in said and "The same command goes on" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("huge", "2", "local"), "There is no profile 'huge'; there are: fast, gpu, laptop\n"),
        (("slurm", "2", "local"), "; to run on it, say EXECUTOR=slurm\n"),
        (("fast", "2", "local"), "Profile 'fast' has no reference tables; these have: gpu, laptop\n"),
        (("laptop", "2", "lsf"), "There is no workflow/profiles/lsf; EXECUTOR is one of: kubernetes, local, slurm\n"),
        (("laptop", "2", "../profiles/local"), "There is no workflow/profiles/../profiles/local; EXECUTOR is one of"),
        (("laptop", "none", "local"), "CORES must be a number of processor cores, not 'none'"),
        (
            ("gpu", "2", "local", "sizes", "levels"),
            "Profile 'gpu' has no table 'levels'; it has: edge_of_chaos, sizes\n",
        ),
    ],
)
def test_mistakes_are_told_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path / "runs"))
    assert reference.main(*words) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_tables_that_a_profile_has_can_be_made() -> None:
    for profile in results.profiles():
        assert set(results.tables(profile)) <= set(tables_command.MAKERS | tables_command.ON_REQUEST)

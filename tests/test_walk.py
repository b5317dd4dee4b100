"""The walk: what runs and what does not, alone in its folder, ended by whatever, and told whatever."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import yaml

import refresh
import results
from rules2ranks import runs
from rules2ranks.stages import parameters

REPOSITORY = Path(__file__).resolve().parents[1]
EXTRAS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


# --- jobs -------------------------------------------------------------------------------------------------------


def snakemake(
    place: Path, *words: str, profile: str = "fast", clone: Path = REPOSITORY
) -> subprocess.CompletedProcess[str]:
    """Snakemake's answer, with `place` as the runs folder."""
    snakefile = ["--snakefile", str(clone / "workflow" / "Snakefile"), "--config", f"profile={profile}"]
    return subprocess.run(
        ["snakemake", *words, "--cores", "2", *snakefile],
        cwd=place,
        env={**os.environ, "RULES2RANKS_RUNS": str(place)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def plan(place: Path, profile: str = "fast") -> dict[str, str]:
    """How often each notebook would run."""
    run = snakemake(place, "--dry-run", profile=profile)
    assert run.returncode == 0, run.stdout + run.stderr
    return dict(re.findall(r"^notebook_(\w+)\s+(\d+)$", run.stdout + run.stderr, re.M))


def program(path: Path, text: str) -> None:
    """A program that does what a shell makes of a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


needs_snakemake = pytest.mark.skipif(
    not shutil.which("snakemake"), reason="needs the environment that `make test` sets up on PATH"
)


@needs_snakemake
@pytest.mark.parametrize("profile", ["fast", "laptop", "gpu"])
def test_every_notebook_is_one_job(tmp_path: Path, profile: str) -> None:
    assert plan(tmp_path, profile) == dict.fromkeys(results.values(profile), "1")


@pytest.fixture
def walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Where each notebook of the fast profile wrote, after a walk of which only the files are real."""
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path))
    values = results.values("fast")
    places = {name: parameters.folder(name, values[name]) for name in values}
    for name in sorted(places, key=lambda name: (name in refresh.LAST and refresh.LAST.index(name) + 1, name)):
        parameters.NOTEBOOKS[name](**values[name]).finish({"loss": 0.5})
        for file in (f"{name}.ipynb", "picture.png", "exported/model.safetensors"):
            (places[name] / file).parent.mkdir(exist_ok=True)
            (places[name] / file).write_text("as it was")
        results.seal(places[name])
    return places


@pytest.fixture
def quick_papermill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A papermill that only copies the notebook, and writes what the notebook's end would."""
    text = ('cp "$1" "$2"', 'cd "${2%.ipynb}"', 'printf "%s\\n" "$@" > words', "echo {} > params.json")
    program(tmp_path / "bin" / "papermill", "\n".join([*text, "echo '{\"loss\": 0.25}' > metrics.json"]))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


@needs_snakemake
def test_what_is_there_is_not_run_again_and_a_missing_notebook_is(tmp_path: Path, walked: dict[str, Path]) -> None:
    assert plan(tmp_path) == {}
    (walked["10_automata"] / "10_automata.ipynb").unlink()
    assert plan(tmp_path) == dict.fromkeys(("10_automata", *refresh.LAST), "1")


DAMAGE = {
    "metrics torn": lambda folder: (folder / "metrics.json").write_text('{"loss":'),
    "notebook torn": lambda folder: (folder / "10_automata.ipynb").write_text("as it"),
    "notebook missing": lambda folder: (folder / "10_automata.ipynb").unlink(),
    "picture missing": lambda folder: (folder / "picture.png").unlink(),
    "model altered": lambda folder: (folder / "exported" / "model.safetensors").write_text("as it is"),
    "checksums torn": lambda folder: (folder / "provenance.json").write_text("{"),
}


@pytest.mark.fault("damage to a notebook's results")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_result_counts_as_not_run(damage: str, walked: dict[str, Path], capsys) -> None:
    place = walked["10_automata"]
    DAMAGE[damage](place)
    results.forget_damaged()
    (line,) = capsys.readouterr().err.splitlines()
    assert str(place) in line and line.endswith("10_automata counts as not run")
    assert not (place / "metrics.json").exists() and not (place / "provenance.json").exists()
    results.forget_damaged()
    assert capsys.readouterr().err == ""
    assert all((other / "metrics.json").exists() for other in walked.values() if other != place)


@needs_snakemake
def test_the_workflow_makes_a_damaged_result_again(
    tmp_path: Path, walked: dict[str, Path], quick_papermill: None
) -> None:
    place = walked["10_automata"]
    (place / "metrics.json").write_text('{"loss":')
    run = snakemake(tmp_path, "notebook_10_automata")
    assert run.returncode == 0, run.stdout + run.stderr
    assert runs.load(place).metrics == {"loss": 0.25}
    assert sorted(path.name for path in place.parent.iterdir()) == [place.name, f"{place.name}.log"]


@needs_snakemake
def test_a_kernel_that_the_system_ends_is_told_with_what_to_do(
    tmp_path: Path, walked: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin" / "papermill", "echo nbclient.exceptions.DeadKernelError: Kernel died; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (walked["10_automata"] / "metrics.json").unlink()
    run = snakemake(tmp_path, "notebook_10_automata")
    assert run.returncode == 1
    assert "The system ended its kernel, most often because memory ran out: fewer CORES may help." in run.stderr


def test_names_that_are_no_parameters_never_become_code(tmp_path: Path, clone: Path) -> None:
    (clone / "profiles" / "odd.yaml").write_text('10_automata: {\'rule = 1; open("hurt", "w"); x\': 1}\n')
    run = snakemake(tmp_path, "notebook_10_automata", profile="odd", clone=clone)
    assert run.returncode == 1 and "unknown parameter 'rule = 1; open" in run.stderr + run.stdout
    assert not list(tmp_path.rglob("hurt"))


HOLDER = "import results, sys; lock = results.only_walk('fast'); print('walks', flush=True); sys.stdin.read()"


@pytest.mark.fault("two walks at once")
@needs_snakemake
def test_a_second_walk_is_told_of_the_first_and_a_killed_one_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_papermill: None
) -> None:
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path))
    (tmp_path / ".progress").write_text("20\n")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLDER], cwd=REPOSITORY / "workflow", **pipes) as first:
        assert first.stdout.readline() == b"walks\n"
        second = snakemake(tmp_path, "notebook_10_automata")
        first.kill()
    assert second.returncode == 1
    assert f"Another walk writes into {tmp_path}: process {first.pid} on " in second.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [".progress", ".snakemake", ".walk", "bin"]
    results.only_walk("fast").close()


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "workflow" / "profiles").glob("*/config.yaml")), ids=lambda path: path.parts[-2]
)
def test_a_killed_walk_stops_no_other_on_any_machine(path: Path) -> None:
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert settings["nolock"] and settings["rerun-incomplete"]


# --- the walk as one process ------------------------------------------------------------------------------------

# A Snakemake that starts a kernel, which has a session of its own, and waits for it.
KERNEL = "import subprocess; k = subprocess.Popen(['sleep', '60'], start_new_session=True); print(k.pid, flush=True)"
WAITING = f'{shlex.quote(sys.executable)} -c "{KERNEL}; k.wait()" & wait'


def reproduce(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A walk with `place` as the runs folder, and with the programs in its `bin`."""
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "workflow" / "reproduce.py"), *words],
        env={**os.environ, "PATH": path, "RULES2RANKS_RUNS": str(place)},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def walking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A walk started by bash, as by make, whose kernel is running."""
    program(tmp_path / "bin" / "snakemake", WAITING)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path))
    monkeypatch.setenv("MAKELEVEL", "1")
    command = shlex.join([sys.executable, str(REPOSITORY / "workflow" / "reproduce.py"), "fast", "2"]) + "; exit $?"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Tests started by nohup hand on that SIGHUP is ignored, and then a walk outlives who started it, as it should.
    hears = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)
    with subprocess.Popen(["bash", "-c", command], preexec_fn=hears, **pipes) as bash:
        kernel = psutil.Process(int(bash.stdout.readline()))
        yield bash
        bash.kill()
        for left in psutil.wait_procs([kernel], timeout=0)[1]:
            left.kill()


def family(bash: subprocess.Popen[bytes]) -> tuple[psutil.Process, list[psutil.Process]]:
    """The walk's own process, and all that it started."""
    (own,) = psutil.Process(bash.pid).children()
    started = own.children(recursive=True)
    assert len(started) == 4, "Snakemake, a job and its kernel, and the guard"
    return own, started


@pytest.mark.fault("a signal to the walk's own process")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_walk_that_is_ended_leaves_nothing_running(
    walking: subprocess.Popen[bytes], number: signal.Signals, status: int
) -> None:
    own, started = family(walking)
    own.send_signal(number)
    assert walking.wait(timeout=10) == status
    assert f"Stopped by {number.name} after ".encode() in walking.stderr.read()
    assert not psutil.wait_procs(started, timeout=0)[1]


@pytest.mark.fault("a signal to the walk's own process")
def test_a_walk_that_is_killed_leaves_nothing_running(walking: subprocess.Popen[bytes]) -> None:
    own, started = family(walking)
    own.kill()
    assert not psutil.wait_procs([own, *started], timeout=15)[1]


def test_a_walk_that_fails_says_why_and_no_more(tmp_path: Path) -> None:
    program(tmp_path / "bin" / "snakemake", "echo Building DAG of jobs...; echo why >&2; exit 3")
    run = reproduce(tmp_path, "fast", "2")
    assert (run.returncode, run.stdout) == (3, "why\n")
    assert run.stderr.startswith("FAILED after ")


@pytest.mark.fault("a signal to the walk's own process")
def test_a_walk_ends_with_what_started_it(walking: subprocess.Popen[bytes]) -> None:
    own, started = family(walking)
    walking.kill()
    assert not psutil.wait_procs([own, *started], timeout=10)[1]


@pytest.mark.fault("a signal to the walk's own process")
def test_a_walk_ends_when_nobody_reads_what_it_says(walking: subprocess.Popen[bytes]) -> None:
    own, started = family(walking)
    walking.stdout.close()
    assert not psutil.wait_procs([own, *started], timeout=10)[1]


# --- whatever a user says, wherever the clone lies ------------------------------------------------------------

HOSTILE = "it's {x} $y `touch hurt` $(shell touch hurt) $(touch hurt); touch hurt"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The repository in a folder of a strange name, with a virtual environment whose Python notes what it is told."""
    clone = tmp_path / HOSTILE
    for name in ("workflow", "profiles"):
        shutil.copytree(REPOSITORY / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "requirements.txt", "notebooks", "lib", "data"):
        (clone / name).symlink_to(REPOSITORY / name)
    program(clone / ".venv" / "bin" / "python", 'printf "%s\\n" "$@" >> words')
    return clone


def make(clone: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`make` in the clone, with nothing of a make that runs these tests."""
    run = subprocess.run(["make", *words], cwd=clone, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert not list(clone.rglob("hurt"))
    return run


@pytest.mark.fault("hostile words to make")
def test_make_hands_on_what_it_is_told_and_runs_none_of_it(clone: Path) -> None:
    (clone / ".venv" / ".installed").touch()
    run = make(clone, "reproduce", f"PROFILE={HOSTILE}", "CORES=2; touch hurt")
    assert run.returncode == 0, run.stderr
    assert (clone / "words").read_text() == f"workflow/reproduce.py\n{HOSTILE}\n2; touch hurt\nlocal\n"
    (clone / "words").unlink()
    words = ["reference", f"PROFILE={HOSTILE}", f"EXECUTOR={HOSTILE}", "TABLES=levels joint;touch $(touch${IFS}hurt)"]
    assert make(clone, *words).returncode == 0
    told = f"workflow/reference.py\n{HOSTILE}\n2\n{HOSTILE}\nlevels\njoint;touch\n$(touch${{IFS}}hurt)\n"
    assert (clone / "words").read_text() == told
    (clone / "words").unlink()
    assert make(clone, "reference").returncode == 0
    assert (clone / "words").read_text() == "workflow/reference.py\nlaptop\n2\nlocal\n"


def test_make_installs_with_any_python_and_only_the_extras_that_there_are(clone: Path) -> None:
    program(clone / "my python" / "python", "exit 0")
    words = ["install", "PYTHON=my python/python", "PIP_ARGS=--pre; touch hurt"]
    assert make(clone, *words, "EXTRAS=llm, chess").returncode == 0
    told = (clone / "words").read_text()
    assert told.count("--pre;\ntouch\nhurt\n") == 2 and told.endswith("-e\n.[chess,llm]\n")
    assert (clone / ".venv" / ".installed-chess-llm").is_file()
    for extras in ("chess; touch hurt", "chess `touch hurt`", "$(shell touch hurt)", "ches"):
        refused = make(clone, *words, f"EXTRAS={extras}")
        assert refused.returncode == 2 and f"EXTRAS takes some of {' '.join(EXTRAS)}, with " in refused.stderr


@pytest.mark.fault("wrong words to make")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("../x", "2"), "There is no profile '../x'; there are: fast, gpu, laptop"),
        (("fast; touch hurt", "2"), "There is no profile 'fast; touch hurt'; there are: "),
        (("fast", "0"), "CORES must be a number of processor cores, not '0'"),
        (("fast", "--unlock"), "CORES must be a number of processor cores, not '--unlock'"),
    ],
)
def test_a_walk_refuses_what_it_cannot_do(tmp_path: Path, words: tuple[str, str], said: str) -> None:
    run = reproduce(tmp_path, *words)
    assert run.returncode == 2 and said in run.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("folders and values of hostile names")
@needs_snakemake
def test_values_and_folders_reach_a_notebook_as_they_are(tmp_path: Path, clone: Path, quick_papermill: None) -> None:
    (clone / "profiles" / "odd.yaml").write_text(
        yaml.safe_dump({"36_your_own_model": {"model": HOSTILE, "data": "{x}"}})
    )
    place = tmp_path / f"runs of {HOSTILE}"
    place.mkdir()
    run = snakemake(place, "notebook_36_your_own_model", profile="odd", clone=clone)
    assert run.returncode == 0, run.stdout + run.stderr
    (words,) = place.rglob("words")
    told = words.read_text()
    assert f"\n--cwd\n{clone / 'notebooks'}\n" in told
    values = yaml.safe_load(told.partition("--parameters_yaml\n")[2].partition("\n\n")[0])
    assert (values["model"], values["data"]) == (HOSTILE, "{x}")
    assert not list(tmp_path.rglob("hurt"))

"""One search among several workers: killed and restarted, they end with what one alone would have found."""

import itertools
import json
import multiprocessing
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import optuna
import pytest
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial

import searching
from rank_spaces import EIGHT
from rules2ranks import storages
from rules2ranks.search import SEARCHERS, Shared, search

POSTGRES = Path(__file__).resolve().parent / "postgres"
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["optuna", "rules2ranks.storages", "rules2ranks.search"])


@pytest.fixture
def server(tmp_path):
    """A folder and the address of a PostgreSQL server that is started for the test, where PostgreSQL is installed."""
    pytest.importorskip("psycopg2", reason='no driver for PostgreSQL: pip install -e ".[postgresql]"')
    # A short path: that of a socket may have a hundred characters.
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    started = subprocess.run([POSTGRES / "up", folder], capture_output=True, text=True, timeout=60)
    if started.returncode == 3:
        folder.rmdir()
        pytest.skip(started.stderr.strip())
    assert started.returncode == 0, started.stderr
    try:
        yield folder, started.stdout.strip()
    finally:
        subprocess.run([POSTGRES / "down", folder], check=True, timeout=60)
        shutil.rmtree(folder)


@pytest.fixture(params=["journal", "postgresql"])
def place(request, tmp_path):
    """A journal on a shared disk, or a server."""
    if request.param == "journal":
        return str(tmp_path / "shared" / "search.journal")
    return request.getfixturevalue("server")[1]


def loss(configuration, fidelity=1.0):
    return searching.scores(configuration, fidelity)[0]


def begun(folder):
    """What the workers that put their notes there began to measure so far, in order."""
    lines = (folder / "begun").read_text().splitlines() if (folder / "begun").exists() else []
    return [json.loads(line) for line in lines]


def backwards(measure, proposals):
    return [measure(proposal) for proposal in reversed(proposals)][::-1]


@pytest.mark.parametrize("name", [name for name in SEARCHERS if name != "bits, then ranks"])
def test_what_is_proposed_together_does_not_wait_for_each_other(name):
    alone = search(EIGHT, loss, name, limit=12, seed=1)
    assert search(EIGHT, loss, name, limit=12, seed=1, workers=backwards) == alone
    with ThreadPoolExecutor(3) as pool:
        assert search(EIGHT, loss, name, limit=12, seed=1, workers=pool.map) == alone


def test_how_much_is_proposed_together():
    def sizes(run):
        found = []
        run(lambda measure, proposals: found.append(len(proposals)) or map(measure, proposals))
        return found

    expected = {"random search": [10], "additive": [10, 1], "RankAdaptor": [8, 1, 1], "TPE": [1] * 10}
    for name, known in expected.items():
        assert sizes(lambda workers, name=name: search(EIGHT, loss, name, limit=10, workers=workers)) == known
    assert sizes(lambda workers: searching.front(searching.scores, workers))[:4] == [8, 3, 8, 3]


@pytest.mark.fault("SIGKILL to workers of one search")
def test_killed_workers_leave_the_same_front(place, tmp_path, record_property):
    """Four workers; of six that are killed and replaced, every other one is the last that began to measure."""
    alone = json.loads(json.dumps(searching.front(searching.scores).trials))
    rng, killed = np.random.default_rng(0), {}

    def start():
        process = PROCESSES.Process(target=searching.work, args=(place, tmp_path))
        process.start()
        return process

    crew = [start() for _ in range(4)]
    while len(killed) < 6:
        time.sleep(rng.uniform(0.2, 0.5))
        chosen = int(rng.integers(4))
        if len(killed) % 2 and begun(tmp_path):
            chosen = next((place for place, each in enumerate(crew) if each.pid == begun(tmp_path)[-1]["pid"]), chosen)
        if crew[chosen].is_alive():
            crew[chosen].kill()
            crew[chosen].join()
            killed[crew[chosen].pid] = time.monotonic()
        crew[chosen] = start()
    for process in crew:
        process.join(120)
        assert process.exitcode == 0
    ended = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert len(ended) >= 4 and all(trials == alone for trials in ended)
    notes: dict[str, list] = {}
    for note in begun(tmp_path):
        notes.setdefault(note["what"], []).append(note)
    assert len(notes) == len(alone)
    for several in notes.values():  # nobody measures what another, who lives, is at or has done
        assert all(killed[before["pid"]] < after["at"] for before, after in itertools.pairwise(several))
    assert len({several[-1]["pid"] for several in notes.values()}) > 2
    record_property("attempts", len(killed))


def test_what_a_dead_or_sleeping_worker_was_at_is_taken_up():
    storage = InMemoryStorage()
    first, second = (Shared(storage, "asleep", patience=0.4) for _ in range(2))
    asleep, woken, taken = threading.Event(), threading.Event(), []
    alone = search(EIGHT, loss, "random search", limit=6, seed=1)

    def sleep(proposal):
        asleep.set()
        assert woken.wait(30)
        return (-1.0,)

    first._giving_signs = lambda number: threading.Lock()  # it breathes no more
    sleeper = threading.Thread(target=first._take, args=(alone.trials[2], sleep))
    sleeper.start()
    assert asleep.wait(30)

    def measure(configuration, fidelity):
        taken.append(EIGHT.point(configuration))
        return loss(configuration)

    assert search(EIGHT, measure, "random search", limit=6, seed=1, workers=second) == alone
    assert sorted(taken) == sorted(trial.point for trial in alone.trials) and taken[-1] == alone.trials[2].point
    woken.set()
    sleeper.join()
    states = [trial.state for trial in optuna.load_study(study_name="asleep", storage=storage).trials]
    assert states == [TrialState.FAIL] + [TrialState.COMPLETE] * 6  # too late: nobody sees its -1


class Flighty(InMemoryStorage):
    """Away for three calls of eight, and once as it had taken what it was given: the answer is lost."""

    def __init__(self):
        super().__init__()
        self.calls, self.lost = 0, False

    def _perhaps(self, name, *args, **kwargs):
        self.calls += 1
        if self.calls % 8 > 4:
            raise StorageInternalError("away")
        found = getattr(InMemoryStorage, name)(self, *args, **kwargs)
        if name == "create_new_trial" and not self.lost:
            self.lost = True
            raise StorageInternalError("away before it could answer")
        return found

    def get_all_trials(self, *args, **kwargs):
        return self._perhaps("get_all_trials", *args, **kwargs)

    def create_new_trial(self, *args, **kwargs):
        return self._perhaps("create_new_trial", *args, **kwargs)

    def set_trial_state_values(self, *args, **kwargs):
        return self._perhaps("set_trial_state_values", *args, **kwargs)


def test_a_database_that_goes_away_is_waited_for():
    storage = Flighty()
    found = search(EIGHT, loss, "random search", limit=6, seed=1, workers=Shared(storage, "flighty", patience=2.0))
    assert found == search(EIGHT, loss, "random search", limit=6, seed=1)
    assert storage.lost and len(storage._studies[0].trials) == 6  # nothing was begun twice


@pytest.mark.fault("a database that goes away and comes back")
def test_a_server_that_is_killed_and_comes_back_changes_nothing(server, tmp_path, record_property):
    """PostgreSQL, stopped three times without a word to its clients while two workers search."""
    folder, address = server
    alone = json.loads(json.dumps(searching.front(searching.scores).trials))
    crew = [PROCESSES.Process(target=searching.work, args=(address, tmp_path, 0.1, 30.0)) for _ in range(2)]
    for process in crew:
        process.start()
    until = time.monotonic() + 60
    while len({note["pid"] for note in begun(tmp_path)}) < 2:  # who joins while it is away would be told so
        assert time.monotonic() < until
        time.sleep(0.05)
    for seconds in (0.0, 0.3, 0.7):
        time.sleep(seconds)
        subprocess.run([POSTGRES / "down", folder, "immediate"], check=True, timeout=60)
        time.sleep(0.5)
        subprocess.run([POSTGRES / "up", folder], check=True, timeout=60, stdout=subprocess.DEVNULL)
    for process in crew:
        process.join(120)
        assert process.exitcode == 0
    ended = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert ended == [alone, alone]
    record_property("attempts", 3)


def test_one_that_stays_away_is_told(monkeypatch):
    shared = Shared(InMemoryStorage(), "gone", patience=0.2)
    monkeypatch.setattr(shared._study, "get_trials", lambda deepcopy: raising(StorageInternalError("gone for good")))
    with pytest.raises(StorageInternalError, match="gone for good"):
        search(EIGHT, loss, "random search", limit=2, workers=shared)


def raising(error):
    raise error


def test_a_slow_worker_gives_signs():
    shared, calls = Shared(InMemoryStorage(), "slow", patience=0.5), []

    def slow(configuration, fidelity):
        calls.append(EIGHT.point(configuration))
        time.sleep(1.5)
        return loss(configuration)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: search(EIGHT, slow, "random search", limit=2, workers=shared), range(2)))
    assert found[0] == found[1] and len(calls) == 2


def test_who_comes_a_moment_later_leaves_it_to_the_first(monkeypatch):
    shared = Shared(InMemoryStorage(), "twice")
    (trial,) = search(EIGHT, loss, "random search", limit=1).trials
    about = {"what": f"{','.join(map(str, trial.point))} at 1.0", "worker": "another"}
    shared._study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs=about))
    shared._take(trial, lambda proposal: pytest.fail("measured twice"))
    assert [each.state for each in shared._study.trials] == [TrialState.RUNNING, TrialState.FAIL]


def test_a_failure_is_told_and_others_need_not_wait():
    shared = Shared(InMemoryStorage(), "fails")
    with pytest.raises(ZeroDivisionError):
        search(EIGHT, lambda configuration, fidelity: 1 / 0, "random search", limit=2, workers=shared)
    begin = time.monotonic()
    search(EIGHT, loss, "random search", limit=2, workers=shared)
    assert time.monotonic() - begin < 30  # half of the patience
    with pytest.raises(ValueError, match="expected 1 scores"):
        search(EIGHT, searching.scores, "random search", limit=3, workers=shared)
    with pytest.raises(ValueError, match="'fails' has 1 scores, not 2"):
        Shared(shared._storage, "fails", scores=2)


@pytest.mark.parametrize("torn", [b'{"op_code":4,"worker_id":"', b"{}"])
def test_a_torn_line_at_the_end_of_a_journal_is_cut_off(tmp_path, torn):
    path = tmp_path / "journal"
    study = optuna.create_study(storage=storages.connect(path), study_name="torn")
    study.add_trial(create_trial(value=1.0))
    with path.open("ab") as file:
        file.write(torn)
    for value in (2.0, 3.0):
        study.add_trial(create_trial(value=value))
    again = optuna.load_study(storage=storages.connect(path), study_name="torn")
    assert [trial.value for trial in again.trials] == [1.0, 2.0, 3.0]


def test_no_pickle_is_written(tmp_path):
    path = tmp_path / "journal"
    search(EIGHT, loss, "random search", limit=2, workers=Shared(storages.connect(path), "plain"))
    assert all(isinstance(json.loads(line), dict) for line in path.read_text().splitlines())
    assert {each.name for each in tmp_path.iterdir()} == {"journal", "journal.lock"}


HOLD = """
import sys
from filelock import FileLock, Timeout
try:
    FileLock(sys.argv[1]).acquire(timeout=0.2)
    print("free")
except Timeout:
    print("held")
"""


@pytest.mark.parametrize("how", ["symbolic link", "bind mount"])
def test_a_lock_holds_on_two_paths_to_one_directory(how, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    command = [sys.executable, "-c", HOLD, str(other / "lock")]
    if how == "symbolic link":
        other.symlink_to(one)
    else:
        other.mkdir()
        mount = [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            'mount --bind "$0" "$1" && shift && "$@"',
        ]
        if not shutil.which("unshare") or subprocess.run([*mount, one, other, "true"], capture_output=True).returncode:
            pytest.skip("no bind mount can be made here")
        command = [*mount, one, other, *command]

    def seen():
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    with FileLock(one / "lock"):
        assert seen() == "held"
    assert seen() == "free"


def test_no_server_is_started_without_postgresql(tmp_path):
    (tmp_path / "bash").symlink_to(shutil.which("bash"))
    script = (POSTGRES / "up").read_text().replace("/usr/lib/postgresql", str(tmp_path))
    run = subprocess.run(
        ["bash", "-c", script, "up", tmp_path / "new"], env={"PATH": str(tmp_path)}, capture_output=True
    )
    assert run.returncode == 3 and b"apt-get install postgresql" in run.stderr and not (tmp_path / "new").exists()


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    from rules2ranks.stages import subjects  # which imports torch

    page = (POSTGRES.parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(subjects, "HELD_OUT", 70)
    for _ in range(2):
        exec(compile(example.replace('"steps": 20', '"steps": 2, "examples": 56'), "scaling.md", "exec"), {})
        shutil.rmtree(tmp_path / "runs" / "recover", ignore_errors=True)  # the second finds all in the journal
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and first.startswith("Trial(")

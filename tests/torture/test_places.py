"""Full disks, folders that cannot be written, strange names, wrong clocks, and four at once."""

import contextlib
import os
import subprocess
import time

import pytest
import walking
from test_kills import shared  # noqa: F401

SIZES = (16, 40, 120)  # KiB that are free: for the folder, the checkpoint, or nearly all
NAMES = ("with a space", "日本語 ü", "{x}", 'it\'s "quoted"', "$HOME", "-rf", "a;b&c", "100%d", "[a-z]*", "new\nline")


@contextlib.contextmanager
def disk(place, size):
    """A file system of its own with so many KiB."""
    place.mkdir()
    how = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(how, capture_output=True).returncode:
        pytest.skip("a small disk needs root and leave to mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def remount(place, how):
    subprocess.run(["mount", "-o", f"remount,{how}", str(place)], check=True)


def failed(store):
    with walking.begin("pretraining", store, store) as run:
        said, _ = run.communicate(timeout=300)
    assert run.returncode
    return said


@pytest.mark.fault("a disk that fills up under a pretraining", long=True)
@pytest.mark.parametrize("size", SIZES)
def test_a_full_disk_is_told_and_loses_nothing(size, tmp_path, shared):  # noqa: F811
    expected, _ = walking.undisturbed("pretraining", shared, tmp_path)
    with disk(tmp_path / "small", size) as store:
        assert "No space left on device" in failed(store)
        assert walking.content(store) == {}
        remount(store, "size=64m")
        walking.finish("pretraining", store, tmp_path)
        assert walking.content(store) == expected


@pytest.mark.fault("a folder that cannot be written", long=True)
def test_a_folder_that_cannot_be_written_is_told(tmp_path, shared):  # noqa: F811
    expected, _ = walking.undisturbed("pretraining", shared, tmp_path)
    with disk(tmp_path / "small", 65536) as store:
        remount(store, "ro")
        said = failed(store)
        assert "Read-only file system" in said and str(store) in said
        remount(store, "rw")
        walking.finish("pretraining", store, tmp_path)
        remount(store, "ro")  # what is finished is found all the same
        walking.finish("pretraining", store, tmp_path)
        assert walking.content(store) == expected


@pytest.mark.fault("a folder of a strange name")
def test_strange_names_change_nothing(tmp_path, monkeypatch, record_property):
    from test_damage import lasting

    from rules2ranks.stages.parameters import NOTEBOOKS

    record_property("attempts", len(NAMES))
    for name in NAMES:
        monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path / name))
        first = lasting()
        assert first.folder.is_relative_to(tmp_path / name) and lasting() == first
        notebook = NOTEBOOKS["00_start_here"].check({"rule": 30})
        notebook.finish({"loss": 1.0})
        assert notebook.folder.is_relative_to(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)


@pytest.mark.fault("a pretraining in a folder of a strange name", long=True)
def test_strange_names_change_no_training(tmp_path, shared, record_property):  # noqa: F811
    record_property("attempts", 3)
    expected, _ = walking.undisturbed("pretraining", shared, tmp_path)
    for name in NAMES[:2] + NAMES[-1:]:
        walking.finish("pretraining", tmp_path / name, tmp_path)
        assert walking.content(tmp_path / name) == expected


@pytest.mark.fault("a clock that was set back")
@pytest.mark.parametrize("shift", [-(10**9), 3600, 10**9])
def test_results_from_the_future_are_found(shift, tmp_path, monkeypatch, capsys):
    from test_damage import lasting

    from rules2ranks import runs

    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path))
    monkeypatch.setattr(runs, "LARGE", 64)  # the tensors count as large: they are known again by size and time
    first = lasting()
    then = time.time() + shift
    for path in first.folder.iterdir():
        os.utime(path, (then, then))
    assert lasting() == first and not capsys.readouterr().err
    (first.folder / "tensors.bin").write_bytes(bytes(1024))  # of the same size, and written before what it replaces
    assert lasting().file("tensors.bin").read_bytes() == first.file("tensors.bin").read_bytes() != bytes(1024)


@pytest.mark.fault("four processes on one search", long=True)
def test_four_processes_measure_each_choice_once(tmp_path, shared, record_property):  # noqa: F811
    record_property("attempts", 4)
    expected, _ = walking.undisturbed("search", shared, tmp_path)
    noted, store = tmp_path / "trainings", tmp_path / "runs"
    four = [walking.begin("search", store, tmp_path, TRAININGS=str(noted)) for _ in range(4)]
    for run in four:
        said, _ = run.communicate(timeout=600)
        assert run.returncode == 0, said
    assert walking.content(store) == expected
    recovered = [name for name in expected if name.startswith("recover/") and name.endswith("metrics.json")]
    assert len(noted.read_text().splitlines()) == len(recovered)

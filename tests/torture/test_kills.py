"""Whatever ends a run, at whatever time: nothing goes on running, nothing is lost, and the next run's results are the
same to the bit as those of a run that nothing befell."""

import contextlib
import os
import signal

import psutil
import pytest
import walking

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Who is hit one after the other, and when: the share of the processor time that an undisturbed run takes.
VICTIMS = {
    "pretraining": (("main", 0.75), ("group", 0.92)),
    "recovery": (("main", 0.5), ("group", 0.9)),
    "search": (("main", 0.6), ("group", 0.85)),
    "table": (("main", 0.5), ("group", 0.85)),
    "walk": (("main", 0.3), ("snakemake", 0.5), ("kernel", 0.6), ("group", 0.8)),
}


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder for all test processes of a session."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "undisturbed"
    folder.mkdir(exist_ok=True)
    return folder


def disturb(name, number, victims, tmp_path, shared):
    clone = walking.small_clone(tmp_path / "clone") if name == "walk" else tmp_path
    expected, seconds = walking.undisturbed(name, shared, clone)
    store = tmp_path / "runs"
    for victim, share in victims:
        run = walking.begin(name, store, clone)
        members = walking.end_at(run, share * seconds, number, victim)
        try:
            # What lost a part of it may go on to an end of its own; what was hit as a whole may not.
            run.communicate(timeout=walking.PATIENCE if victim in ("main", "group") else 600)
            assert not members or run.returncode or victim not in ("main", "group"), f"{number.name} was not heard"
            assert walking.gone(members), f"after {number.name} to {victim} something still runs"
        finally:
            for left in members:
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()
        found = walking.content(store)
        assert found.items() <= expected.items(), f"after {number.name} to {victim}"
    walking.finish(name, store, clone)
    assert walking.content(store) == expected


@pytest.mark.fault("SIGKILL to a pretraining")
def test_a_pretraining_that_is_killed_goes_on_to_the_same_bits(tmp_path, shared, record_property):
    record_property("attempts", len(VICTIMS["pretraining"]))
    disturb("pretraining", signal.SIGKILL, VICTIMS["pretraining"], tmp_path, shared)


def all_others():
    for name, victims in VICTIMS.items():
        for number in SIGNALS:
            if (name, number) != ("pretraining", signal.SIGKILL):
                mark = pytest.mark.fault(f"{number.name} to a {name}", long=True)
                yield pytest.param(name, number, victims, id=f"{name}-{number.name}", marks=mark)


@pytest.mark.parametrize(("name", "number", "victims"), list(all_others()))
def test_whatever_is_ended_goes_on_to_the_same_bits(name, number, victims, tmp_path, shared, record_property):
    record_property("attempts", len(victims))
    disturb(name, number, victims, tmp_path, shared)

"""The Slurm cluster of `make test-slurm`: where Slurm is not installed, it says so and touches nothing."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent / "slurm"
INSTALL = "On Debian and Ubuntu: apt-get install slurm-wlm munge"


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has what a script needs before it looks for Slurm."""
    for name in ("bash", "dirname", "mktemp", "rm"):
        (tmp_path / name).symlink_to(shutil.which(name))
    return {"PATH": str(tmp_path), "TMPDIR": str(tmp_path)}


def test_no_cluster_is_started_without_slurm(tmp_path: Path, bare: dict[str, str]) -> None:
    cluster = tmp_path / "cluster"
    run = subprocess.run([SCRIPTS / "up", cluster], env=bare, capture_output=True, text=True, timeout=30)
    assert run.returncode == 3
    assert run.stderr.startswith("Slurm is not installed") and INSTALL in run.stderr
    assert not cluster.exists()


def test_without_slurm_its_test_is_skipped(tmp_path: Path, bare: dict[str, str]) -> None:
    before = sorted(tmp_path.iterdir())
    run = subprocess.run([SCRIPTS / "run"], env=bare, capture_output=True, text=True, timeout=30)
    assert run.returncode == 0
    assert INSTALL in run.stderr and run.stdout.endswith("skipped.\n")
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_stopped_where_nothing_runs(tmp_path: Path) -> None:
    run = subprocess.run([SCRIPTS / "down", tmp_path], capture_output=True, text=True, timeout=30)
    assert run.returncode == 2 and "no cluster" in run.stderr

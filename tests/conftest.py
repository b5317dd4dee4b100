"""Settings for every test: reproducible property tests and one torch thread."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Before any numerical library is loaded: a second thread changes the order of float sums.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=50, database=None)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Hold torch to one thread where a test module has imported it, and import it for nobody else."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    yield

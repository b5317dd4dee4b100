"""The mediation model against regressions solved one by one, and on data whose ways are known."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rules2ranks import evaluation

N = 200


def made(direct, through, seed=0):
    """x moves m by .9, m moves y by `through`, x moves y by `direct`; with noise."""
    draw = np.random.Generator(np.random.Philox(seed))
    x, noise, other = draw.standard_normal((3, N))
    m = 0.9 * x + 0.5 * noise
    return x, m, direct * x + through * m + 0.3 * other


@given(st.integers(0, 1000))
def test_total_is_spearmans_and_the_parts_are_two_regressions(seed):
    x, m, y = made(0.5, -0.7, seed)
    found = evaluation.mediation(x, m, y, resamples=100)
    rx, rm, ry = (stats.zscore(stats.rankdata(side)) for side in (x, m, y))
    (a, *_), (direct, b) = np.linalg.lstsq(rx[:, None], rm)[0], np.linalg.lstsq(np.c_[rx, rm], ry)[0]
    assert found.total.estimate == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.direct.estimate == pytest.approx(direct)
    assert found.indirect.estimate == pytest.approx(a * b)
    assert found.total.estimate == pytest.approx(found.direct.estimate + found.indirect.estimate)


def test_a_way_that_is_not_there_is_not_found():
    for direct, through in ((0.0, 1.0), (1.0, 0.0)):
        found = [evaluation.mediation(*made(direct, through, seed), resamples=100) for seed in range(20)]
        ways = np.array([[each.direct.estimate, each.indirect.estimate] for each in found])
        if not direct:
            ways = ways[:, ::-1]
        assert abs(ways[:, 1].mean()) < 4 * ways[:, 1].std() / 20**0.5, "within four standard errors of nothing"
        assert ways[:, 0].min() > 0.5


def test_seeds_are_drawn_too():
    x, m, y = made(0.0, 1.0)
    shift = np.random.Generator(np.random.Philox(1)).standard_normal((N, 3))
    noisy = pd.DataFrame(y[:, None] + 2 * (shift - shift.mean(axis=1, keepdims=True)))
    alone, shared = evaluation.mediation(x, m, y), evaluation.mediation(x, m, noisy)
    assert shared.total.estimate == pytest.approx(alone.total.estimate)
    assert shared.total.high - shared.total.low > alone.total.high - alone.total.low


@pytest.mark.parametrize(
    ("x", "m", "y", "said"),
    [
        ([1, 2, 3, 4], [2, 4, 6, 8], [1, 3, 2, 4], "m must not be in the order of x"),
        ([1, 2, 3, 4], [1, 1, 1, 1], [1, 3, 2, 4], "must vary"),
        ([1, 2, 3], [1, 3, 2], [3, 1, 2], "at least 3 points beside one"),
        ([1, 2, 3, 4], [1, 3, 2], [3, 1, 2, 4], "x and m must have the same length"),
    ],
)
def test_what_cannot_be_told_is_refused(x, m, y, said):
    with pytest.raises(ValueError, match=said):
        evaluation.mediation(x, m, y)

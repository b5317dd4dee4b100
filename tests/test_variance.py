"""Variance components, against scipy and against simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rules2ranks.evaluation import two_way


def test_with_two_seeds_f_is_that_of_the_paired_t_test():
    """For two rows the F of a two-way analysis is the square of the paired t: an identity."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 9)) + rng.normal(size=9)
    t = stats.ttest_rel(*scores)
    found = two_way(scores)
    assert found.f == pytest.approx(t.statistic**2, rel=1e-9)
    assert found.p == pytest.approx(t.pvalue, rel=1e-9)


def test_components_are_found_again():
    """Rows 0.5, seeds 2, noise 0.3: the estimates' own sampling error at 400 × 300 is about 4 % for rows and seeds."""
    rng = np.random.default_rng(1)
    scores = 0.5 * rng.normal(size=(400, 1)) + 2 * rng.normal(size=(1, 300)) + 0.3 * rng.normal(size=(400, 300))
    found = two_way(pd.DataFrame(scores))
    assert found.rows == pytest.approx(0.5, rel=0.12)
    assert found.seeds == pytest.approx(2, rel=0.15)
    assert found.noise == pytest.approx(0.3, rel=0.01)
    assert found.explained == pytest.approx(found.rows**2 / (found.rows**2 + found.noise**2))


def test_pure_noise_explains_nothing():
    p = [two_way(np.random.default_rng(seed).normal(size=(6, 8))).p for seed in range(400)]
    assert stats.kstest(p, "uniform").pvalue > 1e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: two_way([[1.0, 2.0]]), "at least 2 rows and 2 seeds"),
        (lambda: two_way([[1.0, 2.0], [1.0, np.nan]]), "finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

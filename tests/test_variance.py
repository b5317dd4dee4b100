"""Variance components, against scipy and against simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rules2ranks.evaluation import interaction, two_way


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


def by_least_squares(scores):
    """The same F by nested linear models with dummy variables: with and without the products of the factors."""
    a, b, seeds = np.indices(scores.shape).reshape(3, -1)
    one = [np.eye(n)[index] for n, index in zip(scores.shape, (a, b, seeds), strict=True)]
    both = (one[0][:, :, None] * one[1][:, None, :]).reshape(scores.size, -1)
    left, ranks = [], []
    for parts in (one, [*one, both]):
        design = np.hstack(parts)
        solution, *_ = np.linalg.lstsq(design, scores.ravel(), rcond=None)
        left.append(((scores.ravel() - design @ solution) ** 2).sum())
        ranks.append(np.linalg.matrix_rank(design))
    free, rest = ranks[1] - ranks[0], scores.size - ranks[1]
    return stats.f.sf((left[0] - left[1]) / free / (left[1] / rest), free, rest)


def test_the_interactions_p_is_that_of_nested_least_squares():
    scores = np.random.default_rng(2).normal(size=(4, 3, 5))
    assert interaction(scores).p == pytest.approx(by_least_squares(scores), rel=1e-9)


def test_shares_and_size_of_an_interaction_are_found_again():
    """Effects of sd 1, 0.5 and 0.25, noise 0.1 under 200 seeds: a cell's mean is known to 0.007."""
    rng = np.random.default_rng(3)
    first, second, both = rng.normal(size=(5, 1)), rng.normal(size=(1, 4)), rng.normal(size=(5, 4))
    both -= both.mean(0) + both.mean(1, keepdims=True) - both.mean()
    parts = [size * (part - part.mean()) / part.std() for part, size in ((first, 1), (second, 0.5), (both, 0.25))]
    noise = 3 * rng.normal(size=200) + 0.1 * rng.normal(size=(5, 4, 200))
    found = interaction(sum(parts)[..., None] + noise)
    assert found[:3] == pytest.approx(np.array([1, 0.25, 0.0625]) / 1.3125, abs=0.01)
    assert found.low < 0.25 < found.high
    assert found.size == pytest.approx(0.25, rel=0.05)


def test_the_interval_of_an_interaction_holds_it_as_often_as_it_says():
    """Of 300 draws 95 % hold the true size, within three standard errors (3.8 %)."""
    both = np.outer([1, -1, 0], [0.5, -0.5])
    rng = np.random.default_rng(4)
    held = [found.low <= both.std() <= found.high for found in (
        interaction(both[..., None] + rng.normal(size=(3, 2, 4))) for _ in range(300)
    )]  # fmt: skip
    assert np.mean(held) == pytest.approx(0.95, abs=0.038)


def test_what_adds_up_has_no_interaction():
    scores = np.add.outer(np.add.outer([0.0, 1, 2], [0.0, 3]), [0.0, 5, 7])
    assert interaction(scores)[2:6] == pytest.approx((0, 0, 0, 0), abs=1e-9)
    p = [interaction(np.random.default_rng(seed).normal(size=(3, 4, 5))).p for seed in range(400)]
    assert stats.kstest(p, "uniform").pvalue > 1e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: two_way([[1.0, 2.0]]), "at least 2 rows and 2 seeds"),
        (lambda: two_way([[1.0, 2.0], [1.0, np.nan]]), "finite"),
        (lambda: interaction([[1.0, 2.0], [1.0, 3.0]]), "at least 2 of each"),
        (lambda: interaction(np.full((2, 2, 2), np.inf)), "finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

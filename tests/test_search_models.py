"""Models of scores: against other implementations, and where the right answer is known."""

import numpy as np
import pytest
import torch
from scipy import stats

from rank_spaces import EIGHT, TINY, every_point, of_ranks, philox
from rules2ranks.search import AdditiveModel, PerformanceModel, cross_validated_r2, random
from rules2ranks.search.models import features

WEIGHTS = np.array([0, 1.0, 1.1, 0.9, 1.3, 0.8, 1.0, 0])


def loss(vectors):
    """Separable and concave in every knob, lower is better."""
    return 3 - 0.1 * np.log1p(vectors) @ WEIGHTS


def test_additive_model_finds_the_optimum_of_a_separable_concave_loss():
    space, slopes = of_ranks((1000, 700, 712, 640, 820), 2, fixed={0: 2}), np.array([0, 1.0, 1.6, 0.7, 1.3])
    vectors = features(space, random(space, 14, 0))
    model = AdditiveModel.fit(vectors, -np.log1p(vectors) @ slopes)
    every = every_point(space)
    best = every[int(np.argmin(-np.log1p(features(space, every)) @ slopes))]
    assert model.best(space) == best != space.uniform
    # The smallest ridge (1e-4) shrinks a little.
    assert model.slopes == pytest.approx(tuple(-slopes), abs=1e-3)
    assert model.predict(vectors) == pytest.approx(-np.log1p(vectors) @ slopes, abs=1e-2)


def test_additive_model_is_sklearns_ridge_with_leave_one_out():
    linear = pytest.importorskip("sklearn.linear_model")
    vectors = features(EIGHT, random(EIGHT, 20, 1))
    scores = loss(vectors) + 0.1 * philox(5).normal(size=20)
    theirs = linear.RidgeCV(alphas=10.0 ** np.arange(-4, 4)).fit(np.log1p(vectors), scores)
    ours = AdditiveModel.fit(vectors, scores)
    assert ours.ridge == theirs.alpha_
    assert ours.slopes == pytest.approx(theirs.coef_, abs=1e-9)
    assert ours.intercept == pytest.approx(theirs.intercept_)


def test_performance_model_learns_repeats_itself_and_leaves_global_randomness_alone():
    vectors = features(EIGHT, random(EIGHT, 60, 0))
    scores = loss(vectors)
    before = torch.random.get_rng_state()
    first = PerformanceModel(16).fit(vectors[:40], scores[:40], 0).predict(vectors[40:])
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert (PerformanceModel(16).fit(vectors[:40], scores[:40], 0).predict(vectors[40:]) == first).all()
    assert (PerformanceModel([16] * 8).fit(vectors[:40], scores[:40], 0).predict(vectors[40:]) == first).all()
    assert (PerformanceModel(16).fit(vectors[:40], scores[:40], 1).predict(vectors[40:]) != first).any()
    assert np.corrcoef(first, scores[40:])[0, 1] > 0.6
    # Equal scores have no spread to standardise by.
    assert PerformanceModel(16).fit(vectors[:3], [2, 2, 2], 0).predict(vectors) == pytest.approx(2, abs=0.5)


@pytest.mark.parametrize(("n", "columns"), [(4, 8), (24, 56)])
def test_performance_model_is_pytorch_s_with_the_published_widths(n, columns):
    """The same beginning, trained by PyTorch's autograd and Adam: the same predictions to rounding."""
    vectors = philox(1).integers(0, 9, (n, columns))
    scores = philox(2).normal(size=n)
    begun, largest = PerformanceModel(8), 8
    begun.EPOCHS = 0
    begun.fit(vectors, scores, seed=5)
    layers = []
    for weight, bias in begun._layers:
        linear = torch.nn.Linear(*weight.shape, dtype=torch.float64)
        linear.weight.data, linear.bias.data = torch.tensor(weight.T.copy()), torch.tensor(bias.copy())
        layers += [linear, torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers[:-1])
    assert [(a.in_features, a.out_features) for a in net[::2]] == [(columns, 32), (32, 32), (32, 32), (32, 1)]
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    wanted = torch.tensor((scores - scores.mean()) / scores.std())[:, None]
    for _ in range(200):
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(net(torch.tensor(vectors / largest)), wanted).backward()
        optimiser.step()
    expected = net(torch.tensor(vectors / largest)).detach().numpy()[:, 0] * scores.std() + scores.mean()
    found = PerformanceModel(8).fit(vectors, scores, seed=5).predict(vectors)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_performance_model_begins_as_pytorch_does():
    """Uniform up to 1/sqrt(inputs), weights and biases alike."""
    model = PerformanceModel(8)
    model.EPOCHS = 0
    model.fit(philox(1).integers(0, 9, (4, 56)), [0, 1, 2, 3], seed=0)
    for weight, bias in model._layers:
        values = np.concatenate([weight.ravel(), bias]) * np.sqrt(len(weight))
        assert np.abs(values).max() <= 1
        assert stats.kstest(values, "uniform", (-1, 2)).pvalue > 1e-3


def test_cross_validated_r2_tells_a_right_model_from_a_blind_one():
    vectors = features(EIGHT, random(EIGHT, 40, 0))
    scores = loss(vectors)

    def ridge(known, target, unknown):
        return AdditiveModel.fit(known, target).predict(unknown)

    def blind(known, target, unknown):
        return np.full(len(unknown), np.mean(target))

    assert cross_validated_r2(ridge, vectors, scores) > 0.999
    assert -0.3 < cross_validated_r2(blind, vectors, scores, folds=10, seed=1) <= 0
    assert cross_validated_r2(ridge, vectors, philox(3).normal(size=40)) < 0.2


def test_every_fold_is_predicted_by_the_others():
    vectors, scores = random(EIGHT, 11, 0), list(range(11))
    tested = []

    def look(known, target, unknown):
        known, unknown = ([tuple(row) for row in rows.astype(int).tolist()] for rows in (known, unknown))
        assert set(known).isdisjoint(unknown) and len(known) + len(unknown) == 11
        assert [vectors[score] for score in target.astype(int)] == known
        tested.extend(unknown)
        return [scores[vectors.index(vector)] for vector in unknown]

    assert cross_validated_r2(look, vectors, scores, folds=4, seed=2) == 1
    assert sorted(tested) == sorted(vectors)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AdditiveModel.fit([(1, 2, 3)] * 3, [1, 2]), "vectors .* and scores .* are needed"),
        (lambda: AdditiveModel.fit([(1, 2)] * 3, [1, 2, 3]).best(TINY), "reshape array of size 2"),
        (lambda: PerformanceModel(16).fit([(1, 2)] * 2, [1, np.nan], 0), "scores finite"),
        (lambda: cross_validated_r2(None, [(1, 2)] * 4, [1, 2, 3, 4], folds=5), r"folds must lie in 2\.\.4, got 5"),
        (lambda: cross_validated_r2(None, [(1, 2)] * 4, [1] * 4, folds=2), "scores must differ"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

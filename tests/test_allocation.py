"""Budgets by hypothesis, exact optima by brute force, and searches whose best answer is known."""

import itertools
import json
import time

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from rules2ranks import allocation
from rules2ranks.allocation import (
    AdditiveModel,
    Measurement,
    PerformanceModel,
    Space,
    additive,
    by_importance,
    cross_validated_r2,
    ends_high,
    middle_high,
    neighbours,
    random_search,
    rank_adaptor,
    uniform,
)

EIGHT = Space(cost=(1000, 700, 712, 640, 820, 700, 690, 1000), mean_rank=2, fixed={0: 2, 7: 2})
WEIGHTS = np.array([0, 1.0, 1.1, 0.9, 1.3, 0.8, 1.0, 0])
TINY = Space(cost=(3, 4, 5), mean_rank=4)


def loss(ranks):
    """Separable and concave in every layer, lower is better."""
    return float(3 - 0.1 * WEIGHTS @ np.log1p(ranks))


@pytest.fixture(scope="module")
def whole():
    """A search with nothing known before."""
    return rank_adaptor(EIGHT, loss, rounds=5, seed=2)


def every_vector(space):
    """All vectors that fill the budget, by looking at every one."""
    every = itertools.product(*([space.fixed[i]] if i in space.fixed else space.grid for i in range(len(space.cost))))
    return [ranks for ranks in every if space.contains(ranks) and space.fills(ranks)]


def counted(objective):
    """The objective, and the list of what it was asked."""
    asked = []

    def ask(ranks):
        asked.append(ranks)
        return objective(ranks)

    return ask, asked


@st.composite
def spaces(draw):
    cost = draw(st.lists(st.integers(1, 5000), min_size=2, max_size=10))
    grid = draw(st.sampled_from([(0, 1, 2, 3, 4, 6, 8, 12, 16), (2, 4, 6, 8, 10, 12), (0, 1, 2, 3, 4)]))
    fixed = draw(st.dictionaries(st.integers(0, len(cost) - 1), st.integers(0, 8), max_size=len(cost) - 1))
    return Space(tuple(cost), draw(st.sampled_from([rank for rank in grid[:-1] if rank])), grid, fixed)


@given(spaces(), st.integers(1, 12), st.integers(0, 3))
def test_random_vectors_are_distinct_obey_the_budget_and_fill_it(space, n, seed):
    try:
        drawn = allocation.random(space, n, seed)
    except ValueError:
        # Few layers with costs that have little in common may leave hardly more than uniform.
        assert len(space.searched) <= 4 and len(every_vector(space)) < n
        return
    assert len(set(drawn)) == len(drawn) == n
    for ranks in drawn:
        assert space.contains(ranks)
        assert 0.985 * space.budget <= space.used(ranks) <= space.budget


@given(spaces(), st.lists(st.floats(0, 10), min_size=10, max_size=10))
def test_closed_forms_obey_the_budget_and_fill_it(space, importance):
    assume(sum(importance[layer] for layer in space.searched) > 0)
    vectors = [
        uniform(space),
        ends_high(space),
        middle_high(space),
        by_importance(space, importance[: len(space.cost)]),
    ]
    assert all(space.contains(ranks) and space.fills(ranks) for ranks in vectors)
    assert space.used(vectors[0]) == space.budget


@given(spaces(), st.integers(0, 3))
def test_neighbours_stay_in_the_space_and_differ_in_one_or_two_layers(space, seed):
    centre = uniform(space)
    for ranks in neighbours(space, centre, 8, np.random.Generator(np.random.Philox(seed))):
        assert space.contains(ranks) and space.fills(ranks)
        assert 1 <= sum(a != b for a, b in zip(ranks, centre, strict=True)) <= 2


def test_random_vectors_come_from_all_that_fill_the_budget_with_equal_chance():
    everything = every_vector(TINY)
    assert set(allocation.random(TINY, len(everything), 0)) == set(everything)
    draws = TINY.sample(200 * len(everything), np.random.Generator(np.random.Philox(1)))
    counts = np.array([draws.count(ranks) for ranks in everything])
    assert counts.sum() == len(draws)
    # Poisson counts around 200: chi-squared per degree of freedom is 1 within a few standard errors.
    assert ((counts - 200) ** 2 / 200).mean() == pytest.approx(1, abs=5 * np.sqrt(2 / len(everything)))


def test_the_first_random_vectors_do_not_depend_on_how_many_are_drawn():
    assert allocation.random(EIGHT, 200, 3)[:5] == allocation.random(EIGHT, 5, 3)
    assert allocation.random(EIGHT, 5, 3) != allocation.random(EIGHT, 5, 4)


def test_asking_for_more_vectors_than_there_are_says_how_many():
    space = Space(cost=(1, 1), mean_rank=1, grid=(0, 1, 2))
    assert sorted(allocation.random(space, 3, 0)) == [(0, 2), (1, 1), (2, 0)]
    with pytest.raises(ValueError, match="only 3 distinct rank vectors fill the budget, 4 were asked for"):
        allocation.random(space, 4, 0)


def test_a_llama_sized_space_is_drawn_from_without_being_listed():
    # 32 layers whose costs have no common divisor: coarser units, and still no vector over the budget.
    cost = tuple(8 * 4096 + 3 * (4096 + 11008 - 37 * layer) for layer in range(32))
    space = Space(cost, mean_rank=8, grid=(2, 4, 6, 8, 10, 12))
    for ranks in (*allocation.random(space, 20, 0), ends_high(space)):
        assert space.contains(ranks) and space.fills(ranks)


def test_shapes_of_the_controls():
    space = Space(cost=(10,) * 8, mean_rank=4, grid=tuple(range(17)), fixed={0: 4, 7: 4})
    high, low = ends_high(space), middle_high(space)
    assert high[0] == high[7] == low[0] == low[7] == 4
    assert high[1] == high[6] > high[3] == high[4] and low[1] == low[6] < low[3] == low[4]
    assert by_importance(space, [9, 1, 1, 1, 1, 1, 1, 9]) == uniform(space)
    assert by_importance(space, [0, 3, 2, 1, 1, 2, 3, 0]) == (4, 6, 4, 2, 2, 4, 6, 4)


@given(st.lists(st.floats(-5, 5), min_size=27, max_size=27))
def test_the_best_vector_is_that_of_brute_force(values):
    table = np.array(values).reshape(3, 9)

    def worth(ranks):
        return sum(table[layer, TINY.grid.index(rank)] for layer, rank in enumerate(ranks))

    assert worth(TINY.best(table)) == pytest.approx(max(map(worth, every_vector(TINY))), abs=1e-9)


def test_additive_model_finds_the_optimum_of_a_separable_concave_loss():
    space, worth = Space(cost=(1000, 700, 712, 640, 820), mean_rank=2, fixed={0: 2}), np.array([0, 1.0, 1.6, 0.7, 1.3])
    vectors = allocation.random(space, 14, 0)
    ranks, model = additive(space, vectors, -np.log1p(vectors) @ worth)
    every = every_vector(space)
    assert ranks == every[int(np.argmin(-np.log1p(every) @ worth))] != uniform(space)
    # The smallest ridge (1e-4) shrinks a little.
    assert model.slopes == pytest.approx(tuple(-worth), abs=1e-3)
    assert model.predict(vectors) == pytest.approx(-np.log1p(vectors) @ worth, abs=1e-2)


def test_additive_model_is_sklearns_ridge_with_leave_one_out():
    linear = pytest.importorskip("sklearn.linear_model")
    noise = np.random.Generator(np.random.Philox(5)).normal(size=20)
    vectors = allocation.random(EIGHT, 20, 1)
    scores = [loss(ranks) + 0.1 * error for ranks, error in zip(vectors, noise, strict=True)]
    theirs = linear.RidgeCV(alphas=10.0 ** np.arange(-4, 4)).fit(np.log1p(vectors), scores)
    ours = AdditiveModel.fit(vectors, scores)
    assert ours.ridge == theirs.alpha_
    assert ours.slopes == pytest.approx(theirs.coef_, abs=1e-9)
    assert ours.intercept == pytest.approx(theirs.intercept_)


def test_performance_model_learns_repeats_itself_and_leaves_global_randomness_alone():
    vectors = allocation.random(EIGHT, 60, 0)
    scores = [loss(ranks) for ranks in vectors]
    before = torch.random.get_rng_state()
    first = PerformanceModel(16).fit(vectors[:40], scores[:40], 0).predict(vectors[40:])
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert (PerformanceModel(16).fit(vectors[:40], scores[:40], 0).predict(vectors[40:]) == first).all()
    assert (PerformanceModel(16).fit(vectors[:40], scores[:40], 1).predict(vectors[40:]) != first).any()
    assert np.corrcoef(first, scores[40:])[0, 1] > 0.6
    # Equal scores have no spread to standardise by.
    assert PerformanceModel(16).fit(vectors[:3], [2, 2, 2], 0).predict(vectors) == pytest.approx(2, abs=0.5)


def test_performance_model_has_the_published_widths():
    model = PerformanceModel(16).fit(allocation.random(EIGHT, 2, 0), [1, 2], 0)
    linears = [layer for layer in model.net if isinstance(layer, torch.nn.Linear)]
    assert [layer.in_features for layer in linears] == [8, 32, 32, 32] and linears[-1].out_features == 1


def test_rank_adaptor_keeps_an_honest_history():
    objective, asked = counted(loss)
    seen = []
    search = rank_adaptor(EIGHT, objective, offline=8, rounds=3, seed=1, progress=seen.append)
    history = search.history
    assert asked == [entry.ranks for entry in history] and len(set(asked)) == 11
    assert tuple(seen) == history
    assert all(entry.measured == loss(entry.ranks) for entry in history)
    assert search.score == min(entry.measured for entry in history) == loss(search.ranks)
    assert [entry.phase for entry in history] == ["offline"] * 8 + ["online"] * 3
    assert all((entry.predicted is None) == (entry.phase == "offline") for entry in history)
    assert all(EIGHT.contains(ranks) and EIGHT.fills(ranks) for ranks in asked)
    assert rank_adaptor(EIGHT, loss, offline=8, rounds=3, seed=1) == search


def test_rank_adaptor_beats_random_search_where_the_loss_can_be_learnt():
    # Rank is worth something in one layer only: a mean over four seeds.
    def objective(ranks):
        return float((np.log(17) - np.log1p(ranks[3])) ** 2)

    seeds = range(4)
    guided = [rank_adaptor(EIGHT, objective, offline=8, rounds=8, seed=seed).score for seed in seeds]
    blind = [random_search(EIGHT, objective, 16, seed).score for seed in seeds]
    assert np.mean(guided) < np.mean(blind)


def test_a_tiny_space_is_searched_to_its_end():
    def objective(ranks):
        return -float(np.log1p(ranks) @ [1, 2, 3])

    everything = every_vector(TINY)
    search = rank_adaptor(TINY, objective, offline=4, rounds=10 * len(everything))
    assert {entry.ranks for entry in search.history} == set(everything)
    assert search.score == min(map(objective, everything))


@pytest.mark.parametrize("done", [3, 8, 11, 13])
def test_a_search_goes_on_where_it_was(whole, done):
    objective, asked = counted(loss)
    # Through JSON, as a store would hand them back.
    stored = [Measurement(*entry) for entry in json.loads(json.dumps(whole.history[:done]))]
    assert rank_adaptor(EIGHT, objective, rounds=5, seed=2, measured=stored) == whole
    assert asked == [entry.ranks for entry in whole.history[done:]]


def test_plain_pairs_count_as_offline_measurements(whole):
    half = rank_adaptor(EIGHT, loss, rounds=5, seed=2, measured=[entry[:2] for entry in whole.history[:6]])
    assert half[:2] == whole[:2]
    assert [entry.phase for entry in half.history] == ["given"] * 6 + ["offline"] * 2 + ["online"] * 5
    objective, asked = counted(loss)
    table = [(ranks, loss(ranks)) for ranks in allocation.random(EIGHT, 30, 9)]
    search = rank_adaptor(EIGHT, objective, rounds=2, measured=table)
    assert len(asked) == 2 and [entry.phase for entry in search.history] == ["given"] * 30 + ["online"] * 2


def test_the_search_stops_when_prediction_and_measurement_agree():
    search = rank_adaptor(EIGHT, loss, tolerance=0.02, rounds=40, seed=0)
    surprises = [abs(entry.predicted - entry.measured) for entry in search.history if entry.phase == "online"]
    assert len(surprises) < 40 and surprises[-1] <= 0.02 and all(surprise > 0.02 for surprise in surprises[:-1])
    assert rank_adaptor(EIGHT, loss, tolerance=0.02, rounds=40, seed=0, measured=search.history) == search


def test_random_search_starts_like_rank_adaptor_and_goes_on_where_it_was(whole):
    search = random_search(EIGHT, loss, 16, 2)
    assert [entry.ranks for entry in search.history[:8]] == [entry.ranks for entry in whole.history[:8]]
    assert search.score == min(entry.measured for entry in search.history) and len(search.history) == 16
    assert random_search(EIGHT, loss, 16, 2, measured=search.history[:7]) == search


def test_a_round_costs_little():
    history = rank_adaptor(EIGHT, loss, rounds=0).history
    seconds = []
    for turn in range(3):
        start = time.process_time()
        allocation.propose(EIGHT, history, 64, seed=0, turn=turn)
        seconds.append(time.process_time() - start)
    # About 0.1 s of processor time on one thread; the first call also warms torch up.
    assert min(seconds) < 0.3


def test_cross_validated_r2_tells_a_right_model_from_a_blind_one():
    vectors = allocation.random(EIGHT, 40, 0)
    scores = [loss(ranks) for ranks in vectors]

    def ridge(known, target, unknown):
        return AdditiveModel.fit(known, target).predict(unknown)

    def blind(known, target, unknown):
        return np.full(len(unknown), np.mean(target))

    assert cross_validated_r2(ridge, vectors, scores) > 0.999
    assert -0.3 < cross_validated_r2(blind, vectors, scores, folds=10, seed=1) <= 0
    noise = np.random.Generator(np.random.Philox(3)).normal(size=40)
    assert cross_validated_r2(ridge, vectors, noise) < 0.2


def test_every_fold_is_predicted_by_the_others():
    vectors, scores = allocation.random(EIGHT, 11, 0), list(range(11))
    tested = []

    def look(known, target, unknown):
        assert set(known).isdisjoint(unknown) and len(known) + len(unknown) == 11
        assert [vectors[score] for score in map(int, target)] == list(known)
        tested.extend(unknown)
        return [scores[vectors.index(ranks)] for ranks in unknown]

    assert cross_validated_r2(look, vectors, scores, folds=4, seed=2) == 1
    assert sorted(tested) == sorted(vectors)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Space((), 2), "cost must hold whole numbers of at least 1"),
        (lambda: Space((3, 0), 2), r"cost must hold whole numbers of at least 1, got \(3, 0\)"),
        (lambda: Space((3, 4), 5), r"mean_rank must be a positive rank of the grid .* got 5"),
        (lambda: Space((3, 4), 2, grid=(2, 2, 4)), "grid must increase"),
        (lambda: Space((3, 4), 2, fixed={2: 2}), r"fixed layers must lie in 0\.\.1, got 2"),
        (lambda: Space((3, 4), 2, fixed={0: -1}), "fixed rank of layer 0 must hold whole numbers of at least 0"),
        (lambda: Space((3, 4), 2, fixed={0: 2, 1: 2}), "must be left to search"),
        (lambda: TINY.used((1, 2)), "one rank for each of 3 layers is needed, got 2"),
        (lambda: TINY.best(np.zeros((2, 9))), r"of the shape \(3, 9\), got \(2, 9\)"),
        (lambda: allocation.random(TINY, 0, 0), "n must be at least 1, got 0"),
        (lambda: random_search(TINY, loss, 0, 0), "n must be at least 1, got 0"),
        (lambda: by_importance(TINY, [1, 2]), r"one entry for each of 3 layers, got \(2,\)"),
        (lambda: by_importance(TINY, [0, 0, 0]), "not all zero"),
        (lambda: by_importance(TINY, [1, -1, 2]), "not negative"),
        (lambda: neighbours(TINY, (16, 16, 16), 4, np.random.default_rng(0)), "is not within the space"),
        (lambda: rank_adaptor(TINY, loss, offline=1), "offline and candidates must be at least 2"),
        (lambda: rank_adaptor(TINY, loss, measured=[((16, 16, 16), 1.0)]), "off the grid, over the budget"),
        (lambda: rank_adaptor(TINY, loss, measured=[((4, 4, 4), 1.0)] * 2), "stand twice"),
        (lambda: rank_adaptor(TINY, loss, measured=[((4, 4, 4), np.nan)]), "must be finite, got nan"),
        (lambda: rank_adaptor(TINY, lambda ranks: np.inf), "the objective must be finite, got inf for the ranks"),
        (lambda: additive(TINY, [(1, 2, 3)] * 3, [1, 2]), "vectors .* and scores .* are needed"),
        (lambda: additive(TINY, [(1, 2)] * 3, [1, 2, 3]), "the model knows 2 layers, the space 3"),
        (lambda: PerformanceModel(0), "all settings must be positive"),
        (lambda: PerformanceModel(16).predict([(1, 2)]), "fit the performance model before"),
        (lambda: PerformanceModel(16).fit([(1, 2)] * 2, [1, np.nan], 0), "scores finite"),
        (lambda: cross_validated_r2(None, [(1, 2)] * 4, [1, 2, 3, 4], folds=5), r"folds must lie in 2\.\.4, got 5"),
        (lambda: cross_validated_r2(None, [(1, 2)] * 4, [1] * 4, folds=2), "scores must differ"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

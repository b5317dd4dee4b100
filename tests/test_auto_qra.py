"""AutoQRA and what it is compared with: fronts, hypervolume and repair by brute force, and searches to their end."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_spaces import philox
from rules2ranks.configuration import Configuration, Matrix, Shapes, memory
from rules2ranks.search import SEARCHERS, AutoQRA, Trial, byte_space, evolution, pareto, random, search
from rules2ranks.search.trials import pareto_ranks

BITS, RANKS = (2, 3, 4, 8), (0, 2, 4, 8, 16)
UNITS = [[Matrix(f"{k}.a", 64, 64, "p", "outputs"), Matrix(f"{k}.b", 64, 96, "p", "outputs")] for k in range(6)]
SPACE = byte_space(UNITS, 120_000, BITS, RANKS, rest=10_000)
SMALL = byte_space([[unit[0]] for unit in UNITS[:3]], 15_000, (2, 4), (0, 2, 4), rest=1000, fill=0.9)
scores = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda s: tuple(map(float, s))), min_size=1)


def loss(configuration, fidelity):
    """Bits matter most in the first layer, ranks in the last; the longer the training, the lower."""
    total = 0.0
    for k in range(6):
        bits, rank = configuration.bits.get(f"{k}.a", 16), configuration.ranks.get(f"{k}.a", 0)
        total += (1 + 4 * (k == 0)) * 2.0**-bits + (0.2 + 0.6 * (k == 5)) / (1 + rank)
    return total * (3 - 2 * fidelity)


def spent(trials):
    most = {}
    for trial in trials:
        most[trial.point] = max(most.get(trial.point, 0), trial.fidelity)
    return sum(most.values())


# --- bytes ------------------------------------------------------------------------------------------------------


def test_a_point_takes_what_its_configuration_takes():
    shapes = Shapes(tuple(map(tuple, UNITS)), {"p": 32}, rest=2500)
    for point in random(SPACE, 20, seed=0):
        assert SPACE.used(point)[0] == memory(SPACE.configuration(point), shapes)
        assert 0.985 * 120_000 <= SPACE.used(point)[0] <= 120_000


@pytest.mark.parametrize(
    ("budget", "units", "said"),
    [
        (20_000, UNITS, "nothing fits into 20000 bytes: the least that these bits and ranks take are 29200"),
        (10**7, UNITS, "nothing fills the budget of 10000000"),
        (10**6, [[Matrix("odd", 7, 9, "p", "outputs")]], "odd of 9 × 7 numbers has no whole number of groups of 64"),
    ],
)
def test_budgets_that_make_no_sense_are_told(budget, units, said):
    with pytest.raises(ValueError, match=said):
        byte_space(units, budget, BITS, RANKS, rest=10_000)


# --- evolution --------------------------------------------------------------------------------------------------


@given(scores)
def test_fronts_are_peeled_off_one_by_one(found):
    trials, left, front = [Trial((k,), s) for k, s in enumerate(found)], None, 0
    ranks, left = {}, trials
    while left:
        best = pareto(left)
        ranks |= {trial.point[0]: front for trial in best}
        left, front = [trial for trial in left if trial not in best], front + 1
    assert pareto_ranks(found) == [ranks[k] for k in range(len(found))]


@given(scores, st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_the_hypervolume_is_the_area_counted_in_cells(found, reference):
    cells = itertools.product(range(reference[0]), range(reference[1]))
    dominated = sum(any(s[0] <= x and s[1] <= y for s in found) for x, y in cells)
    assert evolution.hypervolume(found, tuple(map(float, reference))) == dominated
    assert evolution.hypervolume([s[:1] for s in found], (5.0,)) == max(0, 5 - min(s[0] for s in found))


def test_three_scores_have_no_hypervolume_here():
    with pytest.raises(ValueError, match="one or two scores"):
        evolution.hypervolume([(1.0, 1.0, 1.0)], (2.0, 2.0, 2.0))


def test_crowding_is_as_published():
    # Deb et al. (2002): the sides of the cuboid between the neighbours, each over its range; ends are infinite.
    found = [(0.0, 10.0), (2.0, 4.0), (5.0, 3.0), (10.0, 0.0), (9.0, 9.0)]
    assert evolution.crowding(found).tolist() == pytest.approx([np.inf, 0.5 + 0.7, 0.8 + 0.4, np.inf, np.inf])
    assert evolution.selected(found, 3)[:2] == [0, 3] and 4 not in evolution.selected(found, 4)


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 4)), min_size=3, max_size=3))
def test_repair_finds_the_nearest_point_that_fills(wanted):
    axes = evolution.Axes(SMALL)
    at = np.array([(0, 0), *wanted])

    def distance(point):
        return int(((axes.of(point) - at) ** 2).sum())

    points = itertools.product(*(range(len(knob.options)) for knob in SMALL.knobs))
    nearest = min(distance(point) for point in points if SMALL.fills(point))
    repaired = axes.repair(at)
    assert SMALL.fills(repaired) and distance(repaired) == nearest


def test_children_fill_the_budget_and_important_knobs_move_most():
    axes, randomness = evolution.Axes(SPACE), philox(0)
    importances = np.full((7, 2), 0.05)
    importances[3] = 1
    start = random(SPACE, 1, seed=1)[0]
    children = [evolution.mutated(axes, start, importances, randomness) for _ in range(200)]
    assert all(SPACE.fills(child) for child in children)
    moved = np.mean([[a != b for a, b in zip(child, start, strict=True)] for child in children], axis=0)
    assert moved[3] == moved.max() and moved[3] > 0.5
    both = random(SPACE, 2, seed=2)
    assert all(SPACE.fills(evolution.crossed(axes, *both, randomness)) for _ in range(50))


# --- the search -------------------------------------------------------------------------------------------------

VARIANTS = {
    "whole": AutoQRA(),
    "no importances": AutoQRA(importances=False),
    "no fidelities": AutoQRA(fidelities=False),
    "no surrogate": AutoQRA(surrogate=False),
    "no trust region": AutoQRA(trust_region=False),
}


@pytest.mark.parametrize("searcher", [*VARIANTS.values(), "bits, then ranks"], ids=[*VARIANTS, "in turn"])
def test_a_search_spends_its_limit_stays_within_bytes_and_goes_on_where_it_was(searcher):
    found = search(SPACE, loss, searcher, limit=24, seed=0)
    assert 20 < spent(found.trials) <= 24
    assert all(SPACE.contains(trial.point) for trial in found.trials)
    assert all(SPACE.fills(trial.point) for trial in found.trials if trial.proposer != "importance")
    assert found.chosen.fidelity == 1
    for known in (5, 20, len(found.trials)):
        assert search(SPACE, loss, searcher, limit=24, seed=0, known=found.trials[:known]) == found


def test_each_part_can_be_switched_off():
    words = {name: {t.proposer for t in search(SPACE, loss, s, limit=24).trials} for name, s in VARIANTS.items()}
    whole = {"importance", "evolution", "promoted", "trust region"}
    assert words["whole"] == words["no surrogate"] == whole
    assert words["no importances"] == whole - {"importance"}
    assert words["no fidelities"] == whole - {"promoted"}
    assert words["no trust region"] == whole - {"trust region"}
    plain = search(SPACE, loss, VARIANTS["no surrogate"], limit=24).trials
    low = {t.point: t.scores[0] for t in plain if t.fidelity < 1}
    assert all(t.predicted == (low[t.point],) for t in plain if t.proposer == "promoted")


def test_importances_say_where_bits_and_ranks_matter():
    begun = AutoQRA().begin(SPACE, 24, 0)
    importances = np.ones((7, 2))
    for asked in begun._measure_importances(importances):
        for point, fidelity, *_ in asked:
            begun._all.setdefault(point, {})[fidelity] = (loss(SPACE.configuration(point), fidelity),)
    assert importances[1:, 0].argmax() == 0 and importances[1:, 1].argmax() == 5


def test_joint_search_beats_random_search_where_there_is_something_to_learn():
    # A mean over four seeds.
    joint, blind = (
        np.mean([search(SPACE, loss, name, limit=24, seed=seed).chosen.scores[0] for seed in range(4)])
        for name in ("AutoQRA", "random search")
    )
    assert joint < 0.95 * blind


def test_two_scores_have_a_front_within_the_budget():
    front = byte_space(UNITS, 120_000, BITS, RANKS, rest=10_000, fill=0)

    def both(configuration, fidelity):
        point = front.point(configuration)
        return loss(configuration, fidelity), float(front.used(point)[0])

    found = search(front, both, AutoQRA(), limit=24, seed=0)
    assert len(found.front) > 2
    assert all(trial.scores[1] == front.used(trial.point)[0] <= 120_000 for trial in found.trials)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"low": 1.0}, "must be shares"),
        ({"evolution_share": 0.0}, "must be shares"),
        ({"promoted": 1}, "2 or more must be promoted"),
        ({"promoted": 9}, "of a population of 8"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        AutoQRA(**settings)


def test_what_cannot_be_searched_is_told():
    with pytest.raises(ValueError, match="limit must be at least 8 for AutoQRA"):
        search(SPACE, loss, "AutoQRA", limit=7)
    with pytest.raises(ValueError, match="one or two scores"):
        search(SPACE, lambda c, f: (1.0, 2.0, 3.0), "AutoQRA", limit=8)
    with pytest.raises(ValueError, match="limit must be at least 8"):
        search(SPACE, loss, "bits, then ranks", limit=7)
    only = byte_space(UNITS, 120_000, (8,), RANKS, rest=10_000)
    with pytest.raises(ValueError, match="can bits alone fill the budget"):
        search(only, loss, "bits, then ranks", limit=16)


def test_bits_come_first_and_ranks_with_them_fixed():
    trials = search(SPACE, loss, SEARCHERS["bits, then ranks"](), limit=24, seed=0).trials
    options = [SPACE.options(trial.point)[1:] for trial in trials]
    assert len({option.rank for point in options[:12] for option in point}) == 1
    best = min(trials[:12], key=lambda trial: trial.scores)
    kept = [option.bits for option in SPACE.options(best.point)]
    assert all([option.bits for option in SPACE.options(trial.point)] == kept for trial in trials[12:])
    assert Configuration() not in [SPACE.configuration(trial.point) for trial in trials]


def test_a_limit_that_leaves_nothing_to_train_in_full_is_refused():
    """What importances and the first generation take, counted: below it a search would end with nothing to choose."""
    half, knobs = AutoQRA(low=0.5), len(SPACE.searched)
    least = math.ceil(0.5 * (1 + 2 * knobs) + 8 * 0.5 + 0.5)
    with pytest.raises(ValueError, match=rf"AutoQRA needs a limit of {least} or more to train anything in full, got"):
        search(SPACE, loss, half, limit=least - 1, seed=0)
    assert any(trial.fidelity == 1 for trial in search(SPACE, loss, half, limit=least, seed=0).trials)

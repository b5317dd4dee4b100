"""Budgets by hypothesis, exact optima by brute force, equal chances by chi-squared, and draws as published."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rank_spaces import EIGHT, TINY, every_point, of_ranks, philox, ranks
from rules2ranks.configuration import Configuration
from rules2ranks.search import (
    Knob,
    Option,
    Space,
    by_importance,
    ends_high,
    middle_high,
    random,
    rank_space,
)
from rules2ranks.search.controls import neighbours

WIDE = of_ranks([512 * (unit % 3 + 2) for unit in range(14)], 8, (2, 4, 6, 8, 10, 12))
# Costs that are nearly equal, and too large to be counted one by one.
NEAR = of_ranks([10**8 + 3 * (unit % 2) for unit in range(4)], 2, (0, 1, 2, 3, 4))
GRIDS = [(0, 1, 2, 3, 4, 6, 8, 12, 16), (2, 4, 6, 8, 10, 12), (0, 1, 2, 3, 4)]


def worth(values, point):
    return sum(row[place] for row, place in zip(values, point, strict=True))


@st.composite
def spaces(draw):
    cost = draw(st.lists(st.integers(1, 5000), min_size=2, max_size=10))
    grid = draw(st.sampled_from(GRIDS))
    fixed = draw(st.dictionaries(st.integers(0, len(cost) - 1), st.integers(0, 8), max_size=len(cost) - 1))
    return of_ranks(cost, draw(st.sampled_from(grid[1:-1])), grid, fixed)


@st.composite
def hard_spaces(draw):
    """Costs over five orders of magnitude, without a common divisor, or equal but for a few units."""
    knobs = draw(st.integers(1, 64))
    base = draw(st.integers(10**3, 10**8))
    apart = draw(st.sampled_from([3, 1000, base]))
    cost = [base + extra for extra in draw(st.lists(st.integers(0, apart), min_size=knobs, max_size=knobs))]
    grid = draw(st.sampled_from(GRIDS))
    return of_ranks(cost, draw(st.sampled_from(grid[1:-1])), grid)


@st.composite
def mixed(draw):
    """Knobs of level, bits and rank under one to three budgets of very different sizes, each knob with its options."""
    budgets = draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4).filter(lambda sizes: max(sizes) > 1))
    units = draw(st.lists(st.sampled_from([1, 1000, 10**8]), min_size=budgets, max_size=budgets))
    options = tuple(
        Option(level, bits, rank) for level, (bits, rank) in enumerate([(16, 0), (8, 2), (8, 4), (4, 8)] * 2)
    )
    knobs = tuple(Knob((f"m{k}",), (f"p{k}",), options[:size]) for k, size in enumerate(sizes))
    row = st.tuples(*(st.integers(0, 20).map(lambda cells, unit=unit: cells * unit + cells % 3) for unit in units))
    costs = tuple(tuple(draw(row) for _ in range(size)) for size in sizes)
    limits = tuple(draw(st.integers(1, 15 * len(sizes))) * unit for unit in units)
    return knobs, costs, limits, draw(st.sampled_from([0, 0.5, 0.985, 1]))


def test_draws_and_closed_forms_are_as_published():
    # From the version that the published tables were made with, where a point was its rank vector.
    assert [ranks(EIGHT, point) for point in random(EIGHT, 3, 3)] == [
        (2, 3, 6, 1, 0, 1, 1, 2),
        (2, 2, 1, 4, 2, 3, 0, 2),
        (2, 4, 4, 0, 0, 1, 3, 2),
    ]
    assert ranks(EIGHT, ends_high(EIGHT)) == (2, 3, 2, 1, 1, 2, 3, 2)
    assert ranks(EIGHT, middle_high(EIGHT)) == (2, 1, 2, 3, 2, 2, 2, 2)
    assert ranks(EIGHT, by_importance(EIGHT, [9, 1, 5, 2, 3, 4, 1, 9])) == (2, 1, 4, 2, 1, 3, 1, 2)
    randomness = np.random.Generator(np.random.Philox(np.random.SeedSequence([4])))
    assert [ranks(EIGHT, point) for point in neighbours(EIGHT, EIGHT.uniform, 3, randomness)] == [
        (2, 2, 2, 2, 1, 3, 2, 2),
        (2, 2, 2, 4, 2, 0, 2, 2),
        (2, 2, 1, 2, 2, 3, 2, 2),
    ]
    assert [ranks(WIDE, point) for point in random(WIDE, 2, 0)] == [
        (12, 8, 6, 2, 6, 8, 6, 12, 4, 12, 6, 12, 10, 8),
        (8, 8, 8, 2, 6, 6, 8, 10, 12, 2, 12, 10, 10, 4),
    ]
    assert ranks(WIDE, ends_high(WIDE)) == (12, 10, 10, 8, 6, 6, 4, 4, 6, 6, 8, 10, 10, 12)


@given(spaces(), st.integers(1, 12), st.integers(0, 3))
def test_random_points_are_distinct_obey_the_budget_and_fill_it(space, n, seed):
    try:
        drawn = random(space, n, seed)
    except ValueError:
        # Few knobs with costs that have little in common may leave hardly more than uniform.
        assert len(space.searched) <= 4 and len(every_point(space)) < n
        return
    assert len(set(drawn)) == len(drawn) == n
    for point in drawn:
        assert space.contains(point) and space.fills(point)
        assert 0.985 * space.budgets[0] <= space.used(point)[0] <= space.budgets[0]


@given(spaces(), st.lists(st.floats(0, 10), min_size=10, max_size=10))
def test_closed_forms_obey_the_budget_and_fill_it(space, importance):
    assume(sum(importance[knob] for knob in space.searched) > 0)
    points = [
        space.uniform,
        ends_high(space),
        middle_high(space),
        by_importance(space, importance[: len(space.knobs)]),
    ]
    assert all(space.fills(point) for point in points)
    assert space.used(points[0]) == space.budgets


@settings(max_examples=12)
@given(hard_spaces(), st.integers(0, 3))
def test_every_allocator_fills_a_budget_that_cannot_be_counted(space, seed):
    points = [ends_high(space), *space.sample(5, philox(seed))]
    points += neighbours(space, space.uniform, 4, philox(seed))
    assert all(space.fills(point) for point in points)
    values = philox(seed).normal(size=(len(space.knobs), len(space.knobs[0].options)))
    found = space.best(values)
    assert space.fills(found) and worth(values, found) >= worth(values, space.uniform)


@given(spaces(), st.integers(0, 3))
def test_neighbours_stay_in_the_space_and_differ_in_one_or_two_knobs(space, seed):
    centre = space.uniform
    for point in neighbours(space, centre, 8, philox(seed)):
        assert space.fills(point)
        assert 1 <= sum(a != b for a, b in zip(point, centre, strict=True)) <= 2


@given(mixed(), st.integers(0, 3))
def test_several_budgets_are_as_brute_force_has_them(given_space, seed):
    knobs, costs, budgets, fill = given_space
    everything = list(itertools.product(*(range(len(knob.options)) for knob in knobs)))
    used = [np.sum([rows[place] for rows, place in zip(costs, p, strict=True)], axis=0) for p in everything]
    fitting = [(p, use) for p, use in zip(everything, used, strict=True) if (use <= budgets).all()]
    filling = [p for p, use in fitting if use[0] >= fill * budgets[0]]
    if not filling:
        largest = str(max(use[0] for _, use in fitting)) if fitting else "nothing fits"
        with pytest.raises(ValueError, match=largest):
            Space(knobs, costs, budgets, fill)
        return
    space = Space(knobs, costs, budgets, fill)
    assert every_point(space) == filling
    assert (space.filling(np.array(everything)) == [space.fills(p) for p in everything]).all()
    values = [philox([seed, k]).normal(size=len(knob.options)) for k, knob in enumerate(knobs)]
    # The solver stops within a millionth of the sum.
    assert worth(values, space.best(values)) == pytest.approx(max(worth(values, p) for p in filling), rel=2e-6)
    assert set(space.sample(8, philox(seed))) <= set(filling)
    assert all(space.point(space.configuration(p)) == p for p in filling)
    assert all(space.nearest(p) == p for p in filling[:3])


TWO_BUDGETS = Space(
    tuple(Knob((f"m{k}",), (), (Option(), Option(rank=1), Option(rank=2))[: 2 + k % 2]) for k in range(5)),
    tuple(tuple((4 + rank * (3 + k), 10**6 * rank**2) for rank in range(2 + k % 2)) for k in range(5)),
    (38, 5 * 10**6),
    fill=0.8,
)


@pytest.mark.parametrize("space", [TINY, NEAR, TWO_BUDGETS], ids=["counted", "nearly equal costs", "two budgets"])
def test_random_points_come_from_all_that_fill_the_budget_with_equal_chance(space):
    everything = every_point(space)
    assert len(everything) > 9
    assert set(random(space, len(everything), 0)) == set(everything)
    draws = space.sample(200 * len(everything), philox(1))
    counts = np.array([draws.count(point) for point in everything])
    assert counts.sum() == len(draws)
    # Poisson counts around 200: chi-squared per degree of freedom is 1 within a few standard errors.
    assert ((counts - 200) ** 2 / 200).mean() == pytest.approx(1, abs=5 * np.sqrt(2 / len(everything)))


@pytest.mark.parametrize("space", [TINY, NEAR], ids=["counted", "nearly equal costs"])
@given(seed=st.integers(0, 10**6), whole=st.booleans())
def test_the_best_point_is_that_of_brute_force(space, seed, whole):
    values = philox(seed).normal(size=(len(space.knobs), len(space.knobs[0].options)))
    values = values.round() if whole else values
    best = worth(values, space.best(values))
    # The solver stops within a millionth of the sum.
    assert best == pytest.approx(max(worth(values, point) for point in every_point(space)), rel=2e-6, abs=1e-9)


def test_costs_that_differ_by_a_hair_keep_their_shapes():
    # Rounded up to coarser cells, not even uniform was left of these.
    near, equal = (
        of_ranks([30000 * scale + extra * (unit % 2) for unit in range(14)], 2) for scale, extra in [(10**4, 3), (1, 0)]
    )
    assert len(random(near, 50, 0)) == 50
    for form in (ends_high, middle_high):
        apart = np.subtract(ranks(near, form(near)), ranks(equal, form(equal)))
        # Points that are over the budget by a hair give way to ones nearby.
        assert np.abs(apart).sum() <= 2 and form(near) != near.uniform


def test_the_first_random_points_do_not_depend_on_how_many_are_drawn():
    assert random(EIGHT, 200, 3)[:5] == random(EIGHT, 5, 3)
    assert random(EIGHT, 5, 3) != random(EIGHT, 5, 4)


def test_asking_for_more_points_than_there_are_says_how_many():
    space = of_ranks((1, 1), 1, (0, 1, 2))
    assert sorted(random(space, 3, 0)) == [(0, 2), (1, 1), (2, 0)]
    with pytest.raises(ValueError, match="only 3 distinct points fill the budget, 4 were asked for"):
        random(space, 4, 0)


def test_a_llama_sized_space_is_drawn_from_without_being_listed():
    cost = [8 * 4096 + 3 * (4096 + 11008 - 37 * layer) for layer in range(32) for _ in range(7)]
    space = of_ranks(cost, 8, (2, 4, 6, 8, 10, 12))
    assert all(space.fills(point) for point in (*random(space, 20, 0), ends_high(space)))


def test_shapes_of_the_controls():
    space = of_ranks((10,) * 8, 4, tuple(range(17)), fixed={0: 4, 7: 4})
    high, low = ranks(space, ends_high(space)), ranks(space, middle_high(space))
    assert high[0] == high[7] == low[0] == low[7] == 4
    assert high[1] == high[6] > high[3] == high[4] and low[1] == low[6] < low[3] == low[4]
    assert by_importance(space, [9, 1, 1, 1, 1, 1, 1, 9]) == space.uniform
    assert ranks(space, by_importance(space, [0, 3, 2, 1, 1, 2, 3, 0])) == (4, 6, 4, 2, 2, 4, 6, 4)


def test_a_point_says_what_happens_to_the_model():
    knobs = (
        Knob(("a.q", "a.k"), ("a",), (Option(), Option(1, 4, 8))),
        Knob(("b.q",), (), (Option(bits=8), Option(bits=4, rank=2), Option(bits=4, rank=4))),
    )
    space = Space(knobs, (((9,), (4,)), ((3,), (4,), (5,))), (10,), fill=0.5)
    assert space.configuration((1, 2)) == Configuration(
        levels={"a": 1}, bits={"a.q": 4, "a.k": 4, "b.q": 4}, ranks={"a.q": 8, "a.k": 8, "b.q": 4}
    )
    assert space.configuration((0, 0)) == Configuration(bits={"b.q": 8})
    assert not space.contains((0, 0)) and not space.contains((1, 3)) and space.used((1, 2)) == (9,)
    for wrong in (Configuration(ranks={"b.q": 3}), Configuration(bits={"b.q": 8}, levels={"c": 1})):
        with pytest.raises(ValueError, match="no point of the space has the configuration"):
            space.point(wrong)
    with pytest.raises(ValueError, match="only ranks in proportion to their costs have a closed form, knob 0"):
        ends_high(space)


ONE = (Knob(("a",), (), (Option(), Option(rank=1))),)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: of_ranks((3, 4), 5), r"mean_rank must be a positive rank of the grid .* got 5"),
        (lambda: of_ranks((3, 4), 2, (2, 2, 4)), "grid must increase"),
        (lambda: of_ranks((3, 4), 2, fixed={0: 2, 1: 2}), "must be left to search"),
        (lambda: rank_space([["a"], ["a"]], (3, 4), 2), "must belong to one knob each, .* twice: a"),
        (lambda: Space(ONE, (), (2,)), r"costs must have the shapes \[\(2, 1\)\]"),
        (lambda: Space(ONE, (((0,),),), (2,)), r"costs must have the shapes \[\(2, 1\)\]"),
        (lambda: Space(ONE, (((0,), (1.5,)),), (2,)), "costs must be whole numbers from 0 on"),
        (lambda: Space((ONE[0]._replace(options=(Option(),) * 2),), (((0,), (3,)),), (3,)), "options that differ"),
        (lambda: Space((ONE[0]._replace(options=(Option(),)),), (((0,),),), (3,)), "must be left to search"),
        (lambda: Space(ONE, (((0,), (3,)),), (2,), 0, (1,)), r"the uniform point \(1,\) is not within the space"),
        (lambda: Space(ONE, (((4,), (3,)),), (2,)), r"nothing fits .* each alone takes at least \[3\]"),
        (lambda: Space(ONE, (((0,), (3,)),), (4,)), "at least 4 must be used, and the largest use that fits is 3"),
        (lambda: Space(ONE, (((0, 9), (3, 1)),), (2, 2)), "nothing fits"),
        (lambda: TINY.best(np.zeros((2, 9))), "values must be finite and of the shapes"),
        (lambda: TINY.best(np.full((3, 9), np.nan)), "values must be finite"),
        (lambda: by_importance(TINY, [0, 0, 0]), "not all zero"),
        (lambda: by_importance(TINY, [1, -1, 2]), "not negative"),
        # Of 9 ** 400 points one fills the budget: its share is below the smallest number there is.
        (lambda: of_ranks((1,) * 400, 16).sample(1, philox(0)), "too few choices fill the budget to draw from them"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

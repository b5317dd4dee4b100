"""DarwinLM's evolution: what it asks, in which order, for how much, and that it finds what there is to find."""

import itertools

import numpy as np
import pytest

from rules2ranks.configuration import Configuration, Matrix, Shapes, memory
from rules2ranks.search import DarwinLM, Trial, level_space, random, search
from rules2ranks.search.searchers.darwin_lm import even

PARTS = [f"{layer}.{kind}" for layer in range(3) for kind in "am"]
#: Three layers, attention of two groups and an MLP of four channels, the second of which takes twice as much.
SHAPES = Shapes(
    layers=tuple(
        (
            Matrix(f"{n}.o", 2, 4, f"{n}.a", "inputs", bias=True),
            Matrix(f"{n}.up", 4, 4, f"{n}.m", "outputs", bias=True),
        )
        for n in range(3)
    ),
    groups={part: 2 if part.endswith("a") else 4 for part in PARTS},
    rest=10,
    itemsize=1,
)
LEVELS = {part: [0, 1, 2] if part.endswith("a") else [0, 2, 4] for part in PARTS}
WHOLE = 10 + 3 * (8 + 4) + 3 * (16 + 4)
SPACE = level_space(SHAPES, LEVELS, 64, fill=0.95)


def loss(configuration, fidelity):
    """The first parts matter most; training brings back more of attention."""
    weight = {"0": 4.0, "1": 2.0, "2": 1.0}
    return sum(weight[name[0]] * level * (1 - 0.5 * fidelity * ("a" in name))
               for name, level in configuration.levels.items())  # fmt: skip


@pytest.mark.parametrize(("bits", "ranks"), [((16,), (0,)), ((3, 16), (0, 2))])
def test_what_a_choice_uses_are_the_bytes_of_its_model(bits, ranks):
    space = level_space(SHAPES, LEVELS, 200, flops=120, bits=bits, ranks=ranks, group=8, fill=0.1)
    assert memory(Configuration(), SHAPES) == WHOLE
    for point in random(space, 40, seed=0):
        choice = space.configuration(point)
        left = SHAPES.cut(choice.levels)
        flops = 2 * sum(matrix.numbers for matrix in left.matrices.values())
        assert space.used(point) == (memory(choice, SHAPES, 8), flops)
        assert memory(choice, SHAPES, 8) <= 200 and flops <= 120
        assert all(choice.levels.get(part, 0) in LEVELS[part] for part in PARTS)
        assert space.configuration(space.point(choice)) == choice


def test_what_stays_whole_and_what_does_not_fit():
    with pytest.raises(ValueError, match=r"nothing fits into \[10\]: the least that these levels leave is \[22\]"):
        level_space(SHAPES, LEVELS, 10)
    space = level_space(SHAPES, LEVELS, 80, fixed={"0.m"}, fill=0.9)
    assert len(space.searched) == 5
    assert all("0.m" not in space.configuration(point).levels for point in random(space, 20, seed=0))


def test_it_starts_from_the_same_share_of_every_part():
    point = even(SPACE)
    assert [SPACE.knobs[k].options[place].level for k, place in enumerate(point)][1:] == [1, 2, 1, 2, 1, 2]


def history(**settings):
    return search(SPACE, loss, DarwinLM(offspring=6, survivors=(3, 2, 1), shares=(0, 0.1, 0.5), **settings),
                  limit=6, seed=0).trials  # fmt: skip


def test_each_generation_is_judged_by_more_and_more_training_and_fewer_are_left():
    trials = history(judging=0.01)
    first = [trial for trial in trials if trial.fidelity == 0][:7]
    assert trials[:7] == tuple(first) and first[0].point == even(SPACE)
    best = sorted(first, key=lambda trial: trial.scores)[:3]
    second = [trial for trial in trials if trial.fidelity == 0.1][:3]
    assert [trial.point for trial in second] == [trial.point for trial in best]
    assert all(SPACE.fills(trial.point) for trial in trials)
    # Switches are within a kind: what attention has in all stays what it was.
    attention = {
        sum(level for name, level in SPACE.configuration(t.point).levels.items() if "a" in name) for t in trials
    }
    assert attention == {3}
    assert sum(trial.fidelity + 0.01 for trial in trials) <= 6


def test_with_time_it_finds_the_best_that_its_switches_reach():
    reach = [p for p in itertools.product([0], *[range(3)] * 6)
             if sum(p[1::2]) == 3 and sum(p[2::2]) == 3 and SPACE.fills(p)]  # fmt: skip
    best = min(loss(SPACE.configuration(point), 0.5) for point in reach)
    found = search(SPACE, loss, DarwinLM(offspring=6, survivors=(3, 2, 1), shares=(0, 0.1, 0.5), judging=0.01),
                   limit=40, seed=0)  # fmt: skip
    assert found.chosen.scores[0] == pytest.approx(best)
    assert found.chosen.fidelity == 0.5


def test_an_interrupted_evolution_goes_on_where_it_was():
    whole = history(judging=0.01)
    for stop in (1, 8, len(whole) - 1):
        known = [Trial(*trial) for trial in whole[:stop]]
        searcher = DarwinLM(offspring=6, survivors=(3, 2, 1), shares=(0, 0.1, 0.5), judging=0.01)
        assert search(SPACE, loss, searcher, limit=6, seed=0, known=known).trials == whole


def test_without_training_it_is_plain_evolution():
    trials = search(
        SPACE, loss, DarwinLM(offspring=4, survivors=(1,), shares=(0,), judging=0.1), limit=3, seed=0
    ).trials
    assert {trial.fidelity for trial in trials} == {0}
    assert len(trials) <= 30
    assert np.diff([min(t.scores[0] for t in trials[: n + 1]) for n in range(len(trials))]).max() <= 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"shares": (0, 0.5)}, "as many"),
        ({"survivors": (8, 4, 2, 2)}, "the last survivor 1"),
        ({"survivors": (2, 4, 2, 1)}, "fewer must survive"),
        ({"offspring": 4}, "fewer must survive"),
        ({"shares": (0.2, 0.1, 0.3, 0.4)}, "shares must rise"),
        ({"shares": (0, 0.1, 0.3, 1.4)}, "shares must rise"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        DarwinLM(**settings)


def test_a_space_without_two_parts_alike_is_refused():
    alone = level_space(SHAPES, LEVELS, 80, fixed=PARTS[2:], fill=0.5)
    with pytest.raises(ValueError, match="nothing that can be switched"):
        search(alone, lambda *_: 0.0, DarwinLM(), limit=4)

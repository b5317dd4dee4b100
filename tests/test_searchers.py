"""Searches whose best answer is known, the same trials as before, and histories that go on where they were."""

import json
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass

import numpy as np
import pytest

from rank_spaces import EIGHT, TINY, every_point, of_ranks, ranks
from rules2ranks.search import (
    GP,
    NSGA2,
    SEARCHERS,
    TPE,
    Knob,
    Option,
    Proposal,
    RankAdaptor,
    Search,
    Searcher,
    Space,
    Trial,
    pareto,
    random,
    search,
)
from rules2ranks.search.models import features

WEIGHTS = np.array([0, 1.0, 1.1, 0.9, 1.3, 0.8, 1.0, 0])


#: Needs bits to choose from.
IN_TURN = "bits, then ranks"


def rank_vector(configuration, knobs=8):
    return [configuration.ranks.get(f"m{knob}", 0) for knob in range(knobs)]


def loss(configuration, fidelity=1.0):
    """Separable and concave in every knob, lower is better."""
    return float(3 - 0.1 * WEIGHTS @ np.log1p(rank_vector(configuration)))


def both(configuration, fidelity=1.0):
    """The loss, and one rank that it would like to be high."""
    return loss(configuration), float(configuration.ranks.get("m4", 0))


def one_knob(configuration, fidelity=1.0):
    """Rank is worth something in one knob only."""
    return float((np.log(17) - np.log1p(configuration.ranks.get("m3", 0))) ** 2)


def counted(measure):
    """The measure, and the list of what it was asked."""
    asked = []

    def ask(configuration, fidelity):
        asked.append((configuration, fidelity))
        return measure(configuration, fidelity)

    return ask, asked


def stored(trials):
    """Through JSON, as a store would hand them back."""
    return [Trial(*trial) for trial in json.loads(json.dumps(trials))]


@pytest.fixture(scope="module")
def whole():
    """A search with nothing known before."""
    return search(EIGHT, loss, "RankAdaptor", limit=13, seed=2)


def test_trials_are_as_published(whole):
    # From the version that the published tables were made with. The order of sums is the processor's, which 200
    # epochs may make larger than a rounding.
    assert [ranks(EIGHT, trial.point) for trial in whole.trials[8:11]] == [
        (2, 4, 2, 1, 1, 0, 4, 2),
        (2, 0, 3, 0, 6, 2, 0, 2),
        (2, 4, 2, 2, 1, 1, 2, 2),
    ]
    predicted = [trial.predicted[0] for trial in whole.trials[8:11]]
    assert predicted == pytest.approx([2.370500687637209, 2.369105722592375, 2.369008632784811], abs=1e-3)
    own = search(EIGHT, loss, "additive", limit=12, seed=2).chosen
    assert ranks(EIGHT, own.point) == (2,) * 8 and own.predicted == pytest.approx((2.3298669768956306,), rel=1e-9)


def test_rank_adaptor_keeps_an_honest_history():
    measure, asked = counted(loss)
    seen = []
    found = search(EIGHT, measure, "RankAdaptor", limit=11, seed=1, progress=seen.append)
    assert asked == [(EIGHT.configuration(trial.point), 1.0) for trial in found.trials] and len(set(asked)) == 11
    assert tuple(seen) == found.trials
    assert all(trial.scores == (loss(EIGHT.configuration(trial.point)),) for trial in found.trials)
    assert found.chosen.scores == min(trial.scores for trial in found.trials)
    assert [trial.proposer for trial in found.trials] == ["offline"] * 8 + ["online"] * 3
    assert all((trial.predicted is None) == (trial.proposer == "offline") for trial in found.trials)
    assert all(EIGHT.fills(trial.point) for trial in found.trials)
    assert search(EIGHT, loss, RankAdaptor(), limit=11, seed=1) == found


def test_rank_adaptor_beats_random_search_where_the_loss_can_be_learnt():
    # A mean over four seeds.
    guided, blind = (
        np.mean([search(EIGHT, one_knob, name, limit=16, seed=seed).chosen.scores for seed in range(4)])
        for name in ("RankAdaptor", "random search")
    )
    assert guided < blind


@pytest.mark.parametrize("name", ["RankAdaptor", "TPE", "NSGA-II"])
def test_a_tiny_space_is_searched_to_its_end(name):
    def measure(configuration, fidelity):
        return -float(np.log1p(rank_vector(configuration, 3)) @ [1, 2, 3])

    everything = every_point(TINY)
    searcher = RankAdaptor(offline=4) if name == "RankAdaptor" else name
    found = search(TINY, measure, searcher, limit=10 * len(everything))
    points = [trial.point for trial in found.trials]
    assert len(set(points)) == len(points) and set(points) <= set(everything)
    assert found.chosen.scores[0] == min(measure(TINY.configuration(point), 1) for point in everything)
    # A sampler that knows no budget may stop short of points that few others are moved to.
    assert name != "RankAdaptor" or set(points) == set(everything)


@pytest.mark.parametrize("name", [name for name in SEARCHERS if name != IN_TURN])  # there are only ranks here
@pytest.mark.parametrize("done", [3, 8, 11, 13])
def test_a_search_goes_on_where_it_was(name, done):
    full = search(EIGHT, loss, name, limit=13, seed=2)
    measure, asked = counted(loss)
    assert search(EIGHT, measure, name, limit=13, seed=2, known=stored(full.trials[:done])) == full
    assert [configuration for configuration, _ in asked] == [
        EIGHT.configuration(trial.point) for trial in full.trials[done:]
    ]


@pytest.mark.parametrize("name", ["TPE", "NSGA-II", "GP", "random search"])
def test_several_scores_have_a_front(name):
    found = search(EIGHT, both, name, limit=14, seed=1)
    assert len(found.trials) == len({trial.point for trial in found.trials}) == 14
    assert all(EIGHT.fills(trial.point) for trial in found.trials)
    front = found.front
    for trial in found.trials:
        beaten = any(np.all(np.subtract(o.scores, trial.scores) <= 0) and o.scores != trial.scores for o in front)
        assert beaten != (trial in front)
    assert search(EIGHT, both, name, limit=14, seed=1, known=stored(found.trials[:12])) == found
    with pytest.raises(ValueError, match="nothing is best by 2 scores at once: see the front"):
        _ = found.chosen


@pytest.mark.parametrize("searcher", [TPE(startup=4), NSGA2(population=4), GP(startup=4)])
def test_samplers_learn_without_a_word(searcher, capfd):
    # A mean over two seeds, of what is measured after the random start.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [search(EIGHT, one_knob, searcher, limit=24, seed=seed) for seed in range(2)]
    assert capfd.readouterr() == ("", "")
    blind = [search(EIGHT, one_knob, "random search", limit=24, seed=seed) for seed in range(2)]

    def late(searches):
        return np.mean([trial.scores for each in searches for trial in each.trials[12:]])

    assert late(found) < late(blind)


def test_known_points_count(whole):
    half = search(EIGHT, loss, "RankAdaptor", limit=13, seed=2, known=[t[:2] for t in whole.trials[:6]])
    assert half.chosen == whole.chosen and [trial[:2] for trial in half.trials] == [trial[:2] for trial in whole.trials]
    assert [trial.proposer for trial in half.trials] == ["given"] * 6 + ["offline"] * 2 + ["online"] * 5
    table = [(point, loss(EIGHT.configuration(point))) for point in random(EIGHT, 30, 9)]
    for name, limit, new in [("RankAdaptor", 10, 2), ("TPE", 33, 3), ("NSGA-II", 33, 3), ("additive", 30, 1)]:
        measure, asked = counted(loss)
        found = search(EIGHT, measure, name, limit=limit, known=table)
        assert len(asked) == new and [trial.proposer for trial in found.trials[:30]] == ["given"] * 30
        assert search(EIGHT, measure, name, limit=limit, known=stored(found.trials)) == found and len(asked) == new


def test_the_search_stops_when_prediction_and_measurement_agree():
    searcher = RankAdaptor(tolerance=0.02)
    found = search(EIGHT, loss, searcher, limit=48)
    surprises = [abs(t.predicted[0] - t.scores[0]) for t in found.trials if t.proposer == "online"]
    assert len(surprises) < 40 and surprises[-1] <= 0.02 and all(surprise > 0.02 for surprise in surprises[:-1])
    assert search(EIGHT, loss, searcher, limit=48, known=found.trials) == found


def test_random_search_starts_like_rank_adaptor(whole):
    found = search(EIGHT, loss, "random search", limit=16, seed=2)
    assert [trial.point for trial in found.trials[:8]] == [trial.point for trial in whole.trials[:8]]
    assert found.chosen.scores == min(trial.scores for trial in found.trials) and len(found.trials) == 16


def test_the_additive_search_solves_what_it_fitted_and_measures_it():
    space, weights = of_ranks((10, 12, 9, 11), 4), np.array([0.05, 0.2, 0.1, 0.4])

    def measure(configuration, fidelity=1.0):
        return float(2 - weights @ np.log1p(rank_vector(configuration, 4)))

    counting, asked = counted(measure)
    found = search(space, counting, "additive", limit=12, seed=3)
    assert found.trials[:12] == search(space, measure, "random search", limit=12, seed=3).trials
    assert found.trials[-1].proposer == "exact" and found.chosen == found.trials[-1]
    # The response is additive in log(1 + r): the fit finds its slopes, and the choice is the best of all 63 points.
    every = random(space, 63, 0)
    assert found.chosen.scores[0] <= min(measure(space.configuration(point)) for point in every) + 1e-9
    assert found.chosen.predicted == pytest.approx(found.chosen.scores, abs=1e-3)
    # Handed back, nothing is measured twice; nor where the choice is one of the points that the model was fitted to.
    for limit in (12, 63):
        found = search(space, measure, "additive", limit=limit, seed=3)
        before = len(asked)
        assert search(space, counting, "additive", limit=limit, seed=3, known=stored(found.trials)) == found
        assert len(asked) == before
    assert found.chosen.point in [trial.point for trial in found.trials[:-1]]


MIXED = Space(
    tuple(
        Knob((f"m{k}",), (), tuple(Option(0, bits, rank) for bits in (4, 8) for rank in (0, 2, 4))) for k in range(4)
    ),
    tuple(tuple((bits * 100 + rank * 32,) for bits in (4, 8) for rank in (0, 2, 4)) for _ in range(4)),
    (2500,),
    fill=0.9,
)


def test_features_are_the_fields_that_vary():
    assert features(EIGHT, [EIGHT.uniform]).tolist() == [[2] * 8]
    assert features(MIXED, [(0, 1, 5, 3)]).tolist() == [[4, 0, 4, 2, 8, 4, 8, 0]]


@pytest.mark.parametrize("name", SEARCHERS)
def test_bits_and_ranks_are_searched_together(name):
    def measure(configuration, fidelity):
        bits, vector = [configuration.bits[f"m{k}"] for k in range(4)], rank_vector(configuration, 4)
        return float(-np.log1p(bits) @ [4, 3, 2, 1] - np.log1p(vector) @ [1, 2, 3, 4])

    found = search(MIXED, measure, name, limit=20)
    assert all(MIXED.fills(trial.point) for trial in found.trials if trial.fidelity == 1)
    scores = sorted(measure(MIXED.configuration(point), 1) for point in every_point(MIXED))
    # The additive model has the right form; the others look at 20 of some hundred points.
    rank = sum(score < found.chosen.scores[0] - 1e-9 for score in scores)
    assert rank == 0 if name == "additive" else rank < len(scores) / 10


def test_a_round_costs_little(whole):
    begun = RankAdaptor().begin(EIGHT, 20, 0)
    for trial in whole.trials:
        begun.tell(trial)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        begun.ask()
        seconds.append(time.process_time() - start)
    # About 0.1 s of processor time on one thread; the first call also warms torch up.
    assert min(seconds) < 0.3


def test_a_searcher_is_one_class_with_a_name_and_a_fidelity():
    points = random(EIGHT, 4, 0)

    @dataclass
    class Halving(Searcher):
        """All at a tenth, the best in full."""

        def tell(self, trial):
            self.trials.append(trial)

        def ask(self):
            if len(self.trials) < 4:
                return [Proposal(point, 0.1) for point in points[len(self.trials) :]]
            best = min(self.trials, key=lambda trial: trial.scores)
            return [] if len(self.trials) > 4 else [Proposal(best.point)]

    measure, asked = counted(lambda configuration, fidelity: loss(configuration) * fidelity)
    found = search(EIGHT, measure, Halving(), limit=4)
    assert [fidelity for _, fidelity in asked] == [0.1] * 4 + [1] and found.chosen == found.trials[-1]
    # What is measured at less than all says nothing to the others.
    assert (
        search(EIGHT, loss, "random search", limit=3, known=found.trials[:4]).trials[4:]
        == search(EIGHT, loss, "random search", limit=3).trials
    )


def test_searchers_are_chosen_by_name_and_the_package_needs_no_torch():
    assert {"RankAdaptor", "random search", "additive", "TPE", "NSGA-II"} <= set(SEARCHERS)
    assert all(kind.name == name for name, kind in SEARCHERS.items())
    code = "import sys, rules2ranks.search; print({'torch', 'optuna'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_a_front_is_what_nothing_dominates():
    trials = [Trial((place,), scores) for place, scores in enumerate([(1, 3), (2, 2), (2, 3), (3, 1), (2, 2)])]
    assert [trial.point for trial in pareto(trials)] == [(0,), (1,), (3,), (4,)]
    with pytest.raises(ValueError, match="one score has no front"):
        _ = Search((Trial((0,), (1.0,)),)).front


FOUR = of_ranks((3, 4, 5), 4).uniform


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: search(TINY, loss, "tree", limit=4), "unknown searcher 'tree': choose one of .*RankAdaptor"),
        (lambda: search(TINY, loss, "random search", limit=0), "limit must be at least 1 for random search, got 0"),
        (lambda: search(TINY, loss, "additive", limit=2), "limit must be at least 3 for additive, got 2"),
        (lambda: search(TINY, loss, "RankAdaptor", limit=7), "limit must be at least 8 for RankAdaptor, got 7"),
        (lambda: RankAdaptor(offline=1), "offline and candidates must be at least 2, got 1 and 64"),
        (lambda: search(TINY, loss, "TPE", limit=9, known=[((8, 8, 8), 1.0)]), "not within the space"),
        (lambda: search(TINY, loss, "TPE", limit=9, known=[((8, 8), 1.0)]), "not within the space"),
        (lambda: search(TINY, loss, "TPE", limit=9, known=[(FOUR, 1.0)] * 2), "stands twice"),
        (lambda: search(TINY, loss, "TPE", limit=9, known=[(FOUR, np.nan)]), "must be finite, got nan"),
        (lambda: search(TINY, lambda c, f: np.inf, "TPE", limit=9), "scores must be finite, got inf for the point"),
        (lambda: search(TINY, lambda c, f: (1, 2), "additive", limit=9), "additive takes one score, got 2"),
        (lambda: search(TINY, lambda c, f: (1, 2), "TPE", limit=9, known=[(FOUR, 1)]), "expected 1 scores"),
        (lambda: Search(()).chosen, "nothing was measured"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

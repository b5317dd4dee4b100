"""Networks that are told their rule by the rows above: columns, look-ups, steps, and what is read off layers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rules2ranks import automata, probes, stages
from rules2ranks.stages import contexts
from rules2ranks.tables import lenses
from rules2ranks.tasks import columns

TINY = {"rows": 24, "layers": 1, "heads": 1, "hidden": 8, "steps": 2, "batch": 4}


@given(rule=st.integers(0, 255), horizon=st.integers(1, 4), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_columns_are_cut_from_runs_of_their_rule(rule, horizon, seed):
    drawn = columns.columns_of(np.array([30, rule]), 9, horizon, seed=seed)
    start = automata.random_states(2, columns.RING, seed=seed)[1]
    run = automata.simulate(rule, start, 8 + horizon)
    np.testing.assert_array_equal(drawn[1], run[:, : 2 * horizon + 1])
    for k in range(1, horizon + 1):
        np.testing.assert_array_equal(columns.ahead(drawn, horizon)[1, :, k - 1], run[k : 9 + k, horizon])


@given(rule=st.integers(0, 255), horizon=st.integers(1, 3))
@settings(deadline=None, max_examples=20)
def test_who_looks_up_what_was_seen_is_always_right(rule, horizon):
    """By hand, row by row: an earlier row with the same cells, of which it is known what followed."""
    rows = 20
    drawn = columns.columns_of(np.full(3, rule), rows, horizon, seed=rule)
    seen, ahead = columns.seen(drawn, horizon), columns.ahead(drawn, horizon)
    for one in range(3):
        for k in range(1, horizon + 1):
            cells = [tuple(row[horizon - k : horizon + k + 1]) for row in drawn[one]]
            for t in range(rows):
                earlier = [s for s in range(t - k + 1) if cells[s] == cells[t]]
                assert seen[one, t, k - 1] == bool(earlier)
                assert all(ahead[one, s, k - 1] == ahead[one, t, k - 1] for s in earlier)


@pytest.mark.parametrize(("rows", "horizon"), [(0, 1), (5, 0), (5, 32)])
def test_columns_that_there_are_not(rows, horizon):
    with pytest.raises(ValueError, match="at least one row and a horizon from 1 to 31"):
        columns.columns_of(np.array([110]), rows, horizon, seed=0)


def test_steps_go_as_far_as_the_network_is_sure():
    chance = np.array([[0.5, 0.99, 0.99], [0.99, 0.5, 0.99], [0.01, 0.96, 0.04], [0.99, 0.951, 0.9]])
    np.testing.assert_array_equal(contexts.steps_ahead(chance), [3, 1, 3, 2])


def test_a_plane_is_read_off_and_a_parity_is_not():
    generator = np.random.default_rng(0)
    x, groups = generator.normal(size=(4000, 3)), generator.integers(0, 40, 4000)
    assert probes.read_off(x, x @ [1, -2, 0.5] > 0.3, groups) > 0.97
    assert abs(probes.read_off(x, (x[:, 0] > 0) ^ (x[:, 1] > 0), groups) - 0.5) < 0.05
    # Ten to one, and nothing to see: an even chance, as both answers weigh the same.
    assert abs(probes.read_off(x, generator.random(4000) < 0.1, groups) - 0.5) < 0.05
    assert np.isnan(probes.read_off(x, groups % 4 == 0, groups))


def test_what_is_read_off_holds_on_other_groups_only():
    """Features that name the group tell nothing of a group that was not seen."""
    groups = np.repeat(np.arange(40), 25)
    answer = np.random.default_rng(1).random(40)[groups] < 0.5
    assert probes.read_off(np.eye(40)[groups], answer, groups) < 0.6


def test_residuals_begin_with_what_goes_in_and_end_before_the_last_norm():
    given = contexts.InContext.check({**TINY, "rules": [110], "layers": 2})
    model, rows = contexts.network(given).cpu().eval(), torch.rand(2, 24, 3)
    found = probes.residuals(model, rows)
    assert found.shape == (3, 2, 24, 8)
    torch.testing.assert_close(found[0], model.input(rows) + model.body.wpe.weight)
    torch.testing.assert_close(model.output(model.body.ln_f(found[-1])), model(rows))


def test_the_stage_scores_every_kind_of_rule():
    rules = [rule for rule in range(256) if automata.representative(rule) % 2]
    result = stages.in_context(**TINY, rules=rules, horizon=2)
    assert [each["rule"] for each in result.metrics["rules"]] == list(automata.representatives())
    for each in result.metrics["rules"]:
        assert len(each["right"]) == 2 and all(0 <= share <= 1 for share in each["right"])
        assert 1 <= each["step"] <= 2 and 0 <= each["sound"] <= 1
    depth = result.metrics["depth"]
    assert {name: len(scores) for name, scores in depth["trained"].items()} == dict.fromkeys(
        ("next cell", "rule's table", "class III or IV"), 2
    )
    # Before the first layer an untrained network is the trained one but for its input layer: two small steps apart.
    for what, scores in depth["untrained"].items():
        assert abs(scores[0] - depth["trained"][what][0]) < 0.05


def test_nothing_to_read_off_where_no_rules_are_left():
    result = stages.in_context(**TINY, rules=list(range(256)))
    assert result.metrics["depth"] is None


@pytest.mark.parametrize("seed", [0, 1])
def test_halves_are_halves_and_equally_complex(seed):
    one, other = (set(lenses.kinds(half, seed)) for half in lenses.HALVES)
    assert one | other == set(automata.representatives()) and not one & other and len(one) == 44
    simple, complex_ = (lenses.kinds(what, seed) for what in (lenses.SIMPLE, lenses.COMPLEX))
    assert set(simple) | set(complex_) == set(automata.representatives())
    from rules2ranks.findings import edge

    lz76 = edge.lz76(list(automata.representatives()))
    assert lz76[simple].max() <= lz76[complex_].min()
    assert abs(lz76[list(one)].mean() - lz76[list(other)].mean()) < 2
    assert lenses.kinds("half 0", 0) != lenses.kinds("half 0", 1)

"""What the table of fresh rules says, against other ways to the same numbers; its maker at tiny size."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from rules2ranks import automata, complexity, tables
from rules2ranks.findings import mechanism
from rules2ranks.findings import plans as planned
from rules2ranks.tables import fresh_rules, plans


@pytest.fixture(scope="module")
def plan():
    return plans.read(mechanism.TABLE)


def test_the_plans_rules_are_those_that_were_not_looked_at(plan):
    """Complements of the 88, none of them one of the 88, one for each; and all rules of two classes."""
    known = set(automata.representatives())
    rules = plan.run["rules"]
    assert not set(rules) & known
    assert {automata.equivalents(rule)["complement"] for rule in rules} <= known
    assert len({automata.representative(rule) for rule in rules}) == len(rules) == 76
    classes = complexity.wolfram_classes()["class"]
    assert plan.run["complex_rules"] == [rule for rule in range(256) if classes[rule] in (3, 4)]
    assert not set(plan.run["seeds"]) & set(tables.read("edge_of_chaos").note["settings"]["seeds"])


def test_the_table_is_the_plans(plan):
    table = tables.read(mechanism.TABLE).table
    assert planned.as_committed(mechanism.TABLE)
    assert set(table.rule) == {*plan.run["rules"], *plan.run["complex_rules"]}
    assert all(sorted(part.seed) == plan.run["seeds"] for _, part in table.groupby("rule"))
    assert set(table.step) == {plan.run["downstream"]["steps"]}
    pruned = tables.read(f"{mechanism.TABLE}_pruned").table
    assert sorted(pruned.ratio.unique()) == [0, *plan.run["fragility"]["ratios"]]


def left_of(values, given):
    """Residuals of ranks after least squares on the ranks of another measure."""
    ranks, other = (stats.rankdata(side) for side in (values, given))
    design = np.c_[np.ones(len(ranks)), other]
    return ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]


def test_partial_correlations_by_residuals_and_the_verdicts(plan):
    found = mechanism.confirmed()
    for outcome, scores in mechanism.outcomes().items():
        about, mean = mechanism.measured(tuple(scores.index)), scores.mean(axis=1)
        for measure, other in ((mechanism.LINEAR, mechanism.LZ76), (mechanism.LZ76, mechanism.LINEAR)):
            sides = left_of(about[measure], about[other]), left_of(mean, about[other])
            row = found.loc[measure, outcome]
            assert row.partial == pytest.approx(np.corrcoef(*sides)[0, 1])
            holds = row.holm < plan.level and row.partial * mechanism.SIGNS[outcome] > 0
            inside = max(abs(row["low 90"]), abs(row["high 90"])) < plan.margin
            assert row.verdict == ("holds" if holds else "adds nothing" if inside else "undecided")
    assert (found.holm >= found.p).all()
    assert len(found) == len(plan.confirmatory)


def test_classes_are_compared_over_kinds(plan):
    found = mechanism.classes()
    scores = mechanism.outcomes("complex_rules")[mechanism.BOARDS].mean(axis=1)
    kinds = scores.groupby(scores.index.map(automata.representative)).mean()
    fourth = {kind for kind in kinds.index if complexity.wolfram_class(kind) == 4}
    values = kinds.to_dict()

    def difference(chosen):
        return np.mean([values[k] for k in chosen]) - np.mean([values[k] for k in values if k not in chosen])

    every = [difference(set(some)) for some in combinations(values, len(fourth))]
    assert found.difference == pytest.approx(difference(fourth))
    assert found.p == pytest.approx(np.mean(np.abs(every) >= abs(difference(fourth)) - 1e-12), abs=0.02)
    assert found.kinds == len(kinds)


def test_the_maker_at_tiny_size(store):
    small = {"hidden": 8, "layers": 1, "heads": 1, "steps": 4, "rounds": 1, "rows": 6, "width": 8, "ring": 16}
    settings = fresh_rules.FreshRules.check(
        {
            "rules": [137, 15],
            "complex_rules": [137],
            "seeds": [1],
            "pretrain": small,
            "downstream": {"task": "reasoning-hard", "steps": 2},
            "fragility": {"ratios": [0.3]},
        }
    )
    made, seconds = fresh_rules.fresh_rules(settings, 1)
    assert [(row["rule"], row["seed"], row["step"]) for row in made["fresh_rules"]] == [(15, 1, 2), (137, 1, 2)]
    assert {(row["rule"], row["ratio"]) for row in made["fresh_rules_pruned"]} == {
        (15, 0),
        (15, 0.3),
        (137, 0),
        (137, 0.3),
    }
    assert all(row["pretrain_weight_rms"] > 0 for row in made["fresh_rules"]) and seconds > 0

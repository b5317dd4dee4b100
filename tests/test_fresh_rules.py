"""The plan of the table of fresh rules, and its maker at tiny size."""

import pytest

from rules2ranks import automata, complexity, tables
from rules2ranks.tables import fresh_rules, plans


@pytest.fixture(scope="module")
def plan():
    return plans.read("fresh_rules")


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
    made, seconds = fresh_rules.fresh_rules(settings)
    assert [(row["rule"], row["seed"], row["step"]) for row in made["fresh_rules"]] == [(15, 1, 2), (137, 1, 2)]
    assert {(row["rule"], row["ratio"]) for row in made["fresh_rules_pruned"]} == {
        (15, 0),
        (15, 0.3),
        (137, 0),
        (137, 0.3),
    }
    assert all(row["pretrain_weight_rms"] > 0 for row in made["fresh_rules"]) and seconds > 0

"""The scorecard's rows of what was asked beyond the papers: what it is about a rule, what causes what, other claims."""

from itertools import pairwise

from rules2ranks.findings import interventions, lenses, mechanism
from rules2ranks.findings.rows import Row, criterion, entry
from rules2ranks.tables import plans


def fresh_rows(digits: int) -> list[Row]:
    """What was found after the fact on the 88, tested on rules that were not looked at; the order in other networks."""
    rows = []
    for (measure, outcome), row in mechanism.confirmed().iterrows():
        other = mechanism.LINEAR if measure == mechanism.LZ76 else mechanism.LZ76
        asked = f"Spearman ρ of {measure} and {outcome}, {other} held fixed, 76 fresh rules"
        how = f"three new seeds; p = {row.holm:.{digits}g} by Holm over four; without {other}: {row.rho}"
        said = entry(asked, "not asked", row["given the other"], how, front=outcome == mechanism.BOARDS)
        rows.append(said | {"reading": row.verdict})
    lines, kinds = mechanism.two_lines(), mechanism.classes()
    falls = f"rise p = {lines.p_rise:.{digits}g}, fall p = {lines.p_fall:.{digits}g}"
    rows.append(criterion("40 rules of classes III and IV, a rise and then a fall", falls, "", lines.sweet_spot))
    both = f"IV {kinds['class IV']:.{digits}f}, III {kinds['class III']:.{digits}f}; p = {kinds.p:.{digits}f}"
    better = kinds.p < plans.read(mechanism.TABLE).level and kinds.difference > 0
    rows.append(criterion("class IV above class III", both, f"{kinds.kinds:.0f} kinds of rules", better))
    for name, row in mechanism.orders().drop(mechanism.SHIPPED).iterrows():
        asked = f"The order of rules on hard boards is that of {mechanism.SHIPPED}: {name}"
        said = entry(asked, "not asked", row[f"ρ with {mechanism.SHIPPED}"], "20 fresh rules × 2 seeds")
        rows.append(said | {"reading": row["the order"]})
    return rows


def chess_rows(digits: int) -> list[Row]:
    """Chess in a setting where networks are better than an n-gram."""
    scores, tests, beside = mechanism.chess()
    how = f"{scores.shape[0]} rules × {scores.shape[1]} seeds, all weights trained from what they learnt"
    how += f": {scores.to_numpy().mean():.{digits + 1}f} right, an n-gram {beside['n-gram']:.{digits + 1}f}"
    return [
        entry(
            f"Spearman ρ of {name} and chess, where networks are better than an n-gram",
            "not asked",
            test.rho,
            f"{how}; most less least complex ten {test.difference}",
            tuple(test.interval),
        )
        for name, test in tests.iterrows()
    ]


def lens_rows(digits: int) -> list[Row]:
    """Four claims about complexity and learning, on networks that are told their rule by the rows above."""
    transfer, depths, valley, shorter = lenses.transfer(), lenses.depths(), lenses.valley(), lenses.shorter()
    found = [
        (f"Complexity-OoD: {name}, cells right less than from a mixed half", each.difference, each.verdict)
        for name, each in transfer.iterrows()
    ]
    names = list(depths.index)
    found += [
        (f"Concept depth: {after} read off deeper layers than {before}", depths.deeper[after], depths.verdict[after])
        for before, after in pairwise(names)
    ]
    for _, each in valley[valley.verdict != ""].iterrows():
        ends = f"rise p = {each['p of the rise']:.{digits}g}, fall p = {each['p of the fall']:.{digits}g}"
        found.append(("Scylla: the gap between learnt and other rules has a peak in LZ76", ends, each.verdict))
    found += [
        (f"COAST: the chosen step falls with complexity, {name}", each.correlation, each.verdict)
        for name, each in shorter.iterrows()
    ]
    how = f"networks told their rule by the rows above; level {lenses.level():.1g} a test"
    return [entry(asked, "claimed", here, how) | {"reading": verdict} for asked, here, verdict in found]


def cause_rows(digits: int) -> list[Row]:
    """What decides how far a network can be compressed, by changing one thing within each rule."""
    over, moved, found = interventions.over_rules(), interventions.within_rules(), interventions.verdict()
    rows = []
    for outcome, verdict in found.iterrows():
        for condition, what in interventions.TESTED.items():
            change = moved.loc[(condition, outcome)]
            here = f"{change.estimate:+.{digits}f} [{change.low:+.{digits}f}, {change.high:+.{digits}f}]"
            if what == "complexity":
                here += f"; ρ of LZ76 given the others {over.partial[outcome]}"
            asked = f"Criterion: {what} decides what networks bear, {outcome}"
            how = f"change by {condition} within 24 rules × 4 seeds, at one excess"
            front = (outcome, what) == ("share", "complexity")
            said = entry(asked, "not asked", here, how, front=front)
            rows.append(said | {"reading": "met" if verdict[what] == "decides" else "not met"})
    return rows

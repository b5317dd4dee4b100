"""Complexity, or how far a rule is from linear? What the table of fresh rules says, by the criteria of its plan."""

import functools

import numpy as np
import pandas as pd
from scipy import stats

from rules2ranks import complexity, evaluation, tables, tasks
from rules2ranks.findings import compression, edge
from rules2ranks.tables import plans

TABLE = "fresh_rules"
#: Twenty of these rules in other networks, and the variant that the others are compared with.
SIZES, SHIPPED = "sizes", "2 layers of 64"
#: Thirty rules at chess, all weights trained.
CHESS = "chess"
#: The variant that is scored by its steps, not by its accuracy.
STEPS = "steps to 80 %"
#: What a rule is as a function of its neighbourhood, as `complexity.MEASURES` calls it.
FUNCTION = ("linear_loss", "nonlinearity", "average_sensitivity", "canalisation", "effective_connectivity")
#: What a reader calls the measures, and the outcomes with the sign that linear loss had there after the fact.
LZ76, LINEAR = "LZ76", "linear loss"
BOARDS, KEPT = "hard boards", "share kept"
SIGNS = {BOARDS: 1, KEPT: -1}
#: What a reader calls the columns of `confirmed`.
SAID = {
    "rho": "ρ",
    "given the other": "ρ given the other",
    "holm": "p by Holm",
    "low 90": "90 %, from",
    "high 90": "to",
}


@functools.cache
def measured(rules: tuple[int, ...]) -> pd.DataFrame:
    """LZ76 (100 cells × 11 rows) and linear loss (1000 cells × 40 rows, nats per cell), means over 20 starts."""
    linear = complexity.table(rules, width=1000, rows=40, seeds=range(20), measures=["linear_loss"]).linear_loss
    return pd.DataFrame({LZ76: edge.lz76(list(rules)), LINEAR: linear})


def functions(task: str) -> pd.DataFrame:
    """What goes with the measures of a rule's function over the 88, after the fact: Spearman's correlations with LZ76,
    the growth of defects, epiplexity and the task's score, and with the score given LZ76.
    """
    scores = edge.scores(task)
    rules, epiplexity = list(scores.index), edge.learnt().epiplexity
    about = complexity.table(rules, width=1000, rows=40, seeds=range(20), measures=list(FUNCTION))
    short = edge.measures(rules)
    rows = {}
    for name in FUNCTION:
        x = about[name]
        beside = {"LZ76": short.lz76, "defect growth": short.defect_growth, "epiplexity": epiplexity, "score": scores}
        found = {what: evaluation.correlation(x, y, resamples=edge.FEW) for what, y in beside.items()}
        found["score, given LZ76"] = evaluation.partial_correlation(x, scores, short.lz76, resamples=edge.FEW)
        rows[complexity.MEASURES[name].label] = {what: f"{each:.2f}" for what, each in found.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def outcomes(which: str = "rules") -> dict[str, pd.DataFrame]:
    """Scores of the plan's `rules`, or of its `complex_rules`: a row a rule, a column a seed."""
    table, _ = tables.read(TABLE)
    rules = plans.read(TABLE).run[which]
    boards = table.pivot(index="rule", columns="seed", values="accuracy").loc[rules]
    robust = compression.robustness(f"{TABLE}_pruned")
    return {BOARDS: boards, KEPT: robust.loc[[rule for rule in rules if rule in robust.index]]}


def scale(rules: list[int]) -> pd.Series:
    """The logarithm of the root mean square of a network's weights, mean over seeds."""
    table = tables.read(TABLE).table
    return np.log(table.groupby("rule").pretrain_weight_rms.mean().loc[rules])


def confirmed() -> pd.DataFrame:
    """The four tests of the plan, by (measure, outcome): Spearman's `rho` with its interval, and given the other
    measure `partial` with its own, `p`, `holm` and the ends of the 90 % interval; the verdict.
    """
    plan, rows = plans.read(TABLE), {}
    for outcome, scores in outcomes().items():
        about = measured(tuple(scores.index))
        for measure, other in ((LINEAR, LZ76), (LZ76, LINEAR)):
            x, given = about[measure], about[other]
            whole = evaluation.correlation(x, scores)
            partial = evaluation.partial_correlation(x, scores, given)
            inner = evaluation.partial_correlation(x, scores, given, level=0.9)
            rows[measure, outcome] = [
                f"{whole:.2f}",
                f"{partial:.2f}",
                partial.estimate,
                partial.p,
                inner.low,
                inner.high,
            ]
    columns = ["rho", "given the other", "partial", "p", "low 90", "high 90"]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    found.index = pd.MultiIndex.from_tuples(found.index, names=["measure", "outcome"])
    found["holm"] = evaluation.holm(found.p)
    sign = found.index.get_level_values("outcome").map(SIGNS)
    holds = (found.holm < plan.level) & (np.sign(found.partial) == sign)
    nothing = (found["low 90"] > -plan.margin) & (found["high 90"] < plan.margin)
    return found.assign(verdict=np.select([holds, nothing], ["holds", "adds nothing"], default="undecided"))


def mediated() -> pd.DataFrame:
    """What linear loss does to outcomes, in all, through the weights' scale, and otherwise (standardised ranks)."""
    rows = {}
    for outcome, scores in outcomes().items():
        rules = list(scores.index)
        found = evaluation.mediation(measured(tuple(rules))[LINEAR], scale(rules), scores)
        rows[outcome] = [f"{each:.2f}" for each in found[:3]]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["in all", "direct", "through the weights' scale"])


def two_lines() -> evaluation.TwoLines:
    """Over all rules of classes III and IV: do hard boards rise with LZ76, and then fall?"""
    scores = outcomes("complex_rules")[BOARDS]
    return evaluation.two_lines(measured(tuple(scores.index))[LZ76], scores)


def classes() -> pd.Series:
    """Mean accuracy on hard boards by class (III, IV), their `difference`, and the `p` of a permutation.

    Rules that are equivalent are one kind; kinds are given classes anew, in all ways that keep the numbers of both.
    """
    scores = outcomes("complex_rules")[BOARDS].mean(axis=1)
    known = complexity.wolfram_classes().loc[scores.index]
    kinds = scores.groupby(known.representative).mean()
    fourth = (known.groupby("representative")["class"].first() == 4)[kinds.index].to_numpy()

    test = stats.permutation_test(
        (kinds[fourth], kinds[~fourth]),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        vectorized=True,
        n_resamples=np.inf,
    )
    return pd.Series(
        {
            "class III": kinds[~fourth].mean(),
            "class IV": kinds[fourth].mean(),
            "difference": test.statistic,
            "p": test.pvalue,
            "kinds": len(kinds),
        }
    )


def chess() -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """Chess with all weights trained: accuracy of networks that learnt a rule, a row a rule and a column a seed; the
    plan's tests, a row a measure; and beside them the mean accuracy of what learnt rules, learnt coins or learnt
    nothing, and the n-gram's.

    `rho` with its `interval`, and `holm`; the `difference` of the ten rules where the measure is highest and the ten
    where it is lowest, and the verdict. Where networks are no better than the n-gram on the mean, it is "no power".
    """
    table, plan = tables.read(CHESS).table, plans.read(CHESS)
    taught = table[~table.source.isin(["coin", "none"])].assign(rule=lambda t: t.source.astype(int))
    scores = taught.pivot(index="rule", columns="seed", values="accuracy").loc[plan.run["rules"]]
    beside = table.groupby(table.source.where(table.source.isin(["coin", "none"]), "a rule")).accuracy.mean()
    beside["n-gram"] = tasks.get("chess").baselines()["n-gram"]
    about, rows = measured(tuple(scores.index)), {}
    for name in (LZ76, LINEAR):
        found = evaluation.correlation(about[name], scores)
        order = about[name].sort_values(kind="stable").index
        difference = _ten_against_ten(scores, order)
        rows[name] = {"rho": f"{found:.2f}", "interval": found[:3], "p": found.p, "difference": difference}
    tests = pd.DataFrame.from_dict(rows, orient="index")
    tests["holm"] = evaluation.holm(tests.p)
    decides = (tests.holm < plan.level) & (tests.interval.str[0] > 0)
    none = [abs(each.low) < plan.margin and abs(each.high) < plan.margin for each in tests.difference]
    verdict = np.select([decides, none], ["decides", "makes no difference"], default="undecided")
    powerful = scores.to_numpy().mean() > beside["n-gram"]
    shown = [f"{each:.4f}" for each in tests.difference]
    return scores, tests.assign(difference=shown, verdict=verdict if powerful else "no power"), beside


def _ten_against_ten(scores: pd.DataFrame, order: pd.Index, resamples: int = 10_000) -> evaluation.Interval:
    """Mean score of the last ten rules less that of the first ten, with a 90 % interval: rules drawn again within each
    ten, and for all of them the same seeds.
    """
    generator = np.random.Generator(np.random.Philox(0))
    low, high = (scores.loc[part].to_numpy() for part in (order[:10], order[-10:]))
    seeds = generator.integers(0, low.shape[1], (resamples, 1, low.shape[1]))
    ends = []
    for part in (high, low):
        rows = generator.integers(0, len(part), (resamples, len(part), 1))
        ends.append(part[rows, seeds].mean((1, 2)))
    draws = ends[0] - ends[1]
    return evaluation.Interval(high.mean() - low.mean(), *np.quantile(draws, [0.05, 0.95]))


def orders() -> pd.DataFrame:
    """Whether rules keep their order in other networks: a row a variant of `SIZES`, with its mean `accuracy`, the share
    of networks that `learnt`, the correlation with `SHIPPED`, the plan's verdict, and the measures' own correlations.
    """
    table, plan = tables.read(SIZES).table, plans.read(SIZES)
    here = table[~table.source.isin(["coin", "none"])].assign(rule=lambda t: t.source.astype(int))
    # Fewer steps are better, and a step that was not reached is worse than all that were.
    here["score"] = here.accuracy.where(here.variant != STEPS, -here.step_at_80.fillna(here.step + 1))
    wide = {name: part.pivot(index="rule", columns="seed", values="score") for name, part in here.groupby("variant")}
    about, rows = measured(tuple(plan.run["rules"])), {}
    for name in plan.run["variants"]:
        scores, part = wide[name].loc[about.index], here[here.variant == name]
        of_measures = {
            f"ρ with {measure}": f"{evaluation.correlation(about[measure], scores):.2f}" for measure in (LZ76, LINEAR)
        }
        row = {"accuracy": part.accuracy.mean(), "learnt": part.pretrain_learnt.mean()}
        if name != SHIPPED:
            same = evaluation.correlation(wide[SHIPPED].loc[about.index].mean(axis=1), scores)
            row |= {f"ρ with {SHIPPED}": f"{same:.2f}", "the order": _held(same, plan.margin)}
        rows[name] = row | of_measures
    return pd.DataFrame.from_dict(rows, orient="index")


def _held(same: evaluation.Correlation, margin: float) -> str:
    return "holds" if same.low > margin else "does not hold" if same.high < margin else "undecided"

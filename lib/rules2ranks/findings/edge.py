"""What the tables of *Intelligence at the Edge of Chaos* say of complexity and of what was learnt."""

import numpy as np
import pandas as pd

from rules2ranks import complexity, evaluation, tables, tasks

#: What a reader calls the tasks that the tables have for every rule.
TASKS = {name: tasks.TASKS[name].label for name in tasks.CORE}
#: Rules above this many LZ76 phrases are the complex ones; set before any run, where the measure has a gap (59 to 64).
COMPLEX = 60
#: Resamples of a table with hundreds of correlations.
FEW = 2000
#: The columns of `measures` that no single measure gives.
_OWN = {
    "lz76": "LZ76 (100 × 11)",
    "lz76_settled": "LZ76, settled (100 × 200)",
    "defect_growth": "Lyapunov, defect growth",
}
_SHOWN = (
    *("lz76", "lz76_settled", "compression", "entropy", "entropy_rate", "mutual_information"),
    *("fractal_dimension", "lyapunov_damage", "defect_growth", "krylov", "langton_lambda"),
)
#: What a reader calls the columns of `measures`.
MEASURES = {name: _OWN.get(name) or complexity.MEASURES[name].label for name in _SHOWN}


def lz76(rules: list[int]) -> pd.Series:
    """LZ76 phrases of 100 cells × 11 rows by rule, mean over 20 random starts: the paper's axis."""
    return complexity.table(rules, seeds=range(20), measures=["lz76"])["lz76"]


def measures(rules: list[int]) -> pd.DataFrame:
    """Every complexity measure of rules, means over 20 starts: `wolfram_class` and the columns of `MEASURES`.

    From runs of 100 cells × 11 rows but for `lz76_settled`, which is of 200 rows after 500. `defect_growth` is e to
    the Boolean Lyapunov exponent, the factor by which defects multiply in a step: 0 where they die out.
    """
    known = [name for name in complexity.MEASURES if name in MEASURES]
    short = complexity.table(rules, seeds=range(20), measures=[*known, "lyapunov_boolean"])
    long = complexity.table(rules, rows=200, burn_in=500, seeds=range(20), measures=["lz76"])
    extra = {"defect_growth": np.exp(short.lyapunov_boolean), "lz76_settled": long.lz76}
    return short.assign(**extra)[["wolfram_class", *MEASURES]]


def scores(task: str, what: str = "accuracy") -> pd.DataFrame:
    """Accuracy (or loss) of frozen networks that learnt a rule, in `edge_of_chaos`: a row a rule, a column a seed."""
    table, note = tables.read("edge_of_chaos")
    here = table[(table.start == "pretrained") & (table.source != "coin") & (table.task == task)]
    return _wide(here, what).loc[note["settings"]["rules"]]


def learnt() -> pd.DataFrame:
    """How well each rule was learnt, in `pretraining`: means over seeds, a row a rule.

    `excess` is the loss above the crop's floor in nats per cell; `learnt` the share of seeds that reached the mark;
    `weight_rms`, `epiplexity` (bits × steps per target bit) and `attention_last_10` as the stages give them.
    """
    table, note = tables.read("pretraining")
    here = table[table.source != "coin"].assign(rule=lambda t: t.source.astype(int), learnt=lambda t: t.learnt * 1.0)
    here["excess"] = here.loss - here.floor
    names = ["loss", "excess", "determined", "learnt", "steps", "weight_rms", "epiplexity", "attention_last_10"]
    return here.groupby("rule")[names].mean().loc[note["settings"]["rules"]].astype(float)


def _wide(table: pd.DataFrame, what: str) -> pd.DataFrame:
    return table.assign(rule=table.source.astype(int)).pivot(index="rule", columns="seed", values=what)


def correlations(task: str, x: pd.Series, given: pd.DataFrame) -> dict[str, evaluation.Correlation]:
    """A task's accuracy against one measure of the rules `x`: over all, within complex and simple ones, and partial.

    "partial": with the columns of `given` taken out of both.
    """
    y = scores(task).loc[x.index]
    high = (lz76(list(x.index)) > COMPLEX).to_numpy()
    found = {}
    for kind in ("pearson", "spearman"):
        for where, these in (("", slice(None)), (", complex rules", high), (", simple rules", ~high)):
            found[kind + where] = evaluation.correlation(x[these], y[these], kind=kind, resamples=FEW)
    found["spearman, partial"] = evaluation.partial_correlation(x, y, given.loc[x.index], resamples=FEW)
    return found


def how_learnt() -> pd.DataFrame:
    """What correlations with complexity are controlled for: how well a rule was learnt, and the weights' scale."""
    known = learnt()
    return pd.DataFrame({"excess loss": known.excess, "log weight scale": np.log(known.weight_rms)})


def verdict() -> pd.DataFrame:
    """The criteria that notebook 22 stated before the runs, what was found, and whether each is met."""
    x = lz76(list(scores("reasoning-hard").index))
    y = scores("reasoning-hard")
    p = evaluation.holm([evaluation.correlation(x, scores(task)).p for task in TASKS])
    whole, within = evaluation.correlation(x, y), evaluation.correlation(x[x > COMPLEX], y[x > COMPLEX])
    partial = evaluation.partial_correlation(x, y, how_learnt())
    lines, bend = evaluation.two_lines(x, y), evaluation.quadratic(x, y)
    rows = [
        ("Spearman ρ over all rules above zero", f"{whole}; {p[0]:.2g} by Holm", whole.low > 0 and p[0] < 0.05),
        ("… and within the complex rules", str(within), within.low > 0),
        ("… and given how well the rule was learnt", str(partial), partial.low > 0),
        ("two lines: a rise, then a fall", str(lines), lines.sweet_spot),
        ("quadratic (does not decide)", str(bend), bend.sweet_spot),
    ]
    found = pd.DataFrame(rows, columns=["criterion", "found", "met"]).set_index("criterion")
    return found.assign(met=["yes" if met else "no" for met in found.met])


def baselines(task: str) -> pd.Series:
    """Mean accuracy of the networks that learnt no rule, by what they are instead."""
    table, _ = tables.read("edge_of_chaos")
    here = table[table.task == task]
    names = {
        "random weights": here.start == "random",
        "learnt coin flips": here.source == "coin",
        "weights shuffled": here.start == "shuffled",
        "trained from scratch": here.start == "scratch",
    }
    return pd.Series({name: here[which].accuracy.mean() for name, which in names.items()})


def variants() -> dict[str, pd.DataFrame]:
    """Accuracy in `edge_ablations` by variant: a row a rule, a column a seed (without the baselines)."""
    table, note = tables.read("edge_ablations")
    here = table[~table.source.isin(["coin", "none"])]
    rules = note["settings"]["rules"]
    return {name: _wide(part, "accuracy").loc[rules] for name, part in here.groupby("variant", sort=False)}


def variant_baselines() -> pd.DataFrame:
    """Mean accuracy, by variant, of networks that learnt no rule: random weights (or from scratch), and coin flips."""
    table, _ = tables.read("edge_ablations")
    here = table[table.source.isin(["coin", "none"])]
    names = {"none": "no rule", "coin": "coin flips"}
    return here.assign(source=here.source.map(names)).pivot_table(
        index="variant", columns="source", values="accuracy", sort=False
    )

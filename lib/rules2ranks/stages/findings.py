"""What the reference tables say: the numbers that the notebooks, the scorecard and the README share."""

import numpy as np
import pandas as pd

from rules2ranks import complexity, evaluation, published
from rules2ranks.stages import rank_findings, reference

#: A network that gained less than this from learning (nats per cell) has nothing that pruning could take.
LEARNT = 0.1
#: What a reader calls our tasks.
TASKS = {"reasoning-hard": "hard boards", "reasoning-easy": "easy boards (ours)", "nim": "Nim"}
#: Rules above this many LZ76 phrases are the complex ones; set before any run, where the measure has a gap (59 to 64).
COMPLEX = 60
#: The setting of `rank_adaptor` that stands on the scorecard: half removed, as the papers spread it.
SETTING = "50 %, uniform"
#: The setting of `rank_settings` in which searches beat the uniform rank.
LOW_RATE = "50 %, per kind, low rate"
#: Resamples of a table with hundreds of correlations.
FEW = 2000
#: What a reader calls the measures of `measures`.
MEASURES = {
    "lz76": "LZ76 (100 × 11)",
    "lz76_settled": "LZ76, settled (100 × 200)",
    "compression": "compression",
    "entropy": "Shannon entropy",
    "entropy_rate": "entropy rate",
    "mutual_information": "mutual information",
    "fractal_dimension": "fractal dimension",
    "lyapunov_damage": "Lyapunov, damage speed",
    "defect_growth": "Lyapunov, defect growth",
    "krylov": "Krylov complexity",
    "langton_lambda": "Langton's λ",
}


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
    table, note = reference.read("edge_of_chaos")
    here = table[(table.start == "pretrained") & (table.source != "coin") & (table.task == task)]
    return _wide(here, what).loc[note["settings"]["rules"]]


def learnt() -> pd.DataFrame:
    """How well each rule was learnt, in `pretraining`: means over seeds, a row a rule.

    `excess` is the loss above the crop's floor in nats per cell; `learnt` the share of seeds that reached the mark;
    `weight_rms`, `epiplexity` (bits × steps per target bit) and `attention_last_10` as the stages give them.
    """
    table, note = reference.read("pretraining")
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
    table, _ = reference.read("edge_of_chaos")
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
    table, note = reference.read("edge_ablations")
    here = table[~table.source.isin(["coin", "none"])]
    rules = note["settings"]["rules"]
    return {name: _wide(part, "accuracy").loc[rules] for name, part in here.groupby("variant", sort=False)}


def variant_baselines() -> pd.DataFrame:
    """Mean accuracy, by variant, of networks that learnt no rule: random weights (or from scratch), and coin flips."""
    table, _ = reference.read("edge_ablations")
    here = table[table.source.isin(["coin", "none"])]
    names = {"none": "no rule", "coin": "coin flips"}
    return here.assign(source=here.source.map(names)).pivot_table(
        index="variant", columns="source", values="accuracy", sort=False
    )


def kept() -> pd.DataFrame:
    """The table `compression` with two columns more, in each rule's own scale.

    `gained`: nats per cell that learning gained over the untrained network. `kept`: the share of it that is left after
    pruning, (untrained − pruned) / (untrained − trained), between 0 and 1; NaN where less than `LEARNT` was gained.
    """
    table, _ = reference.read("compression")
    whole = table[table.ratio == 0].set_index(["rule", "seed"]).loss.rename("trained_loss")
    table = table.join(whole, on=["rule", "seed"])
    table["gained"] = table.untrained_loss - table.trained_loss
    share = (table.untrained_loss - table.loss) / table.gained
    return table.assign(kept=share.clip(0, 1).where(table.gained > LEARNT)).drop(columns="trained_loss")


def robustness() -> pd.DataFrame:
    """Mean share kept over all shares removed (the area under a rule's curve): a row for each rule, a column a seed.

    Rules that some seed did not learn are left out.
    """
    table = kept()
    area = table[table.ratio > 0].groupby(["rule", "seed"]).kept.apply(lambda s: s.mean(skipna=False))
    return area.unstack().dropna()


def _paper(name: str, quantity: str, setting: str) -> float:
    table = published.table(name)
    return table[(table.quantity == quantity) & (table.setting == setting)].value.item()


Row = dict[str, str]


def scorecard(digits: int = 2) -> pd.DataFrame:
    """The papers' numbers beside ours, one question a row; what was not reproduced says so."""
    rows = [*_complexity_rows(digits), *_rank_rows(digits), *_robustness_rows(digits)]
    for question in ("AutoMixQ: bits per layer", "AutoQRA: bits and ranks together", "DarwinLM: evolutionary pruning"):
        rows.append(_row(question, "see data/published/", "not run"))
    return pd.DataFrame(rows).set_index("question")


def _row(question: str, paper: str, here: str, how: str = "", interval: tuple | None = None) -> Row:
    """`interval` (estimate, low, high) gives the reading: on which side of zero all of it lies, if on one."""
    reading = ""
    if interval is not None:
        reading = "above zero" if interval[1] > 0 else "below zero" if interval[2] < 0 else "not told from zero"
    return {"question": question, "paper": paper, "here": here, "reading": reading, "how, here": how}


def _complexity_rows(digits: int) -> list[Row]:
    lz = published.table("edge_of_chaos").query("quantity == 'Lempel-Ziv complexity'")
    theirs = lz.set_index(lz.setting.str.removeprefix("rule ").astype(int)).value
    error = ((lz76(list(theirs.index)) - theirs) ** 2).mean() ** 0.5
    span = f"{theirs.min():.0f} to {theirs.max():.0f} phrases"
    how = "LZ76, 100 cells × 11 rows, 20 starts"
    rows = [_row(f"Lempel-Ziv complexity of {len(theirs)} rules", span, f"the same within RMSE {error:.1f}", how)]
    r = {name: _paper("edge_of_chaos", "Pearson r with Lempel-Ziv complexity", name) for name in
         ("reasoning hard", "reasoning easy", "chess")}  # fmt: skip
    said = {
        "reasoning-hard": f"r = {r['reasoning hard']:.{digits}f} (1 / epochs to 80 %)",
        "reasoning-easy": f"another easy task: r = {r['reasoning easy']:.{digits}f} (1 / epochs to 80 %)",
        "nim": "claimed, no r at hand",
    }
    unlearnt = int((learnt().learnt < 1).sum())
    for task, name in TASKS.items():
        y = scores(task)
        how = f"frozen networks, accuracy at fixed steps, {y.shape[0]} rules × {y.shape[1]} seeds, causal"
        rows += _slope_rows(name, said[task], f"{how}, {unlearnt} rules that were not learnt included", y, digits)
        if task == "reasoning-hard":
            rows += _hard_board_rows(lz76(list(y.index)), y, digits)
    y = variants()["chess"]
    how = f"frozen networks, engine games, {y.shape[0]} rules × {y.shape[1]} seeds, causal"
    return [*rows, *_slope_rows("chess", f"r = {r['chess']:.{digits}f} (accuracy)", how, y, digits)]


def _slope_rows(name: str, said: str, how: str, y: pd.DataFrame, digits: int) -> list[Row]:
    """A task's two correlations with LZ76; the paper's number stands beside the first."""
    x, rows = lz76(list(y.index)), []
    for kind, symbol, theirs in (("pearson", "Pearson r", said), ("spearman", "Spearman ρ", "")):
        found = evaluation.correlation(x, y, kind=kind)
        rows.append(_row(f"{symbol} of complexity and score, {name}", theirs, f"{found:.{digits}f}", how, found[:3]))
    return rows


def _hard_board_rows(x: pd.Series, y: pd.DataFrame, digits: int) -> list[Row]:
    """What the correlation over all rules does not tell: the slope among complex rules, and the task's own ceiling."""
    within = evaluation.correlation(x[x > COMPLEX], y[x > COMPLEX])
    question = "Spearman ρ of complexity and score, hard boards, complex rules only"
    best, scratch = y.mean(axis=1).max(), baselines("reasoning-hard")["trained from scratch"]
    shown = f"{best:.{digits}f}; {scratch:.{digits}f}"
    return [
        _row(question, "not reported", f"{within:.{digits}f}", f"{within.n} rules", within[:3]),
        _row(
            "Hard boards right at step 400, cells as numbers: best frozen network; all weights trained",
            "no such baseline",
            shown,
            "means of seeds",
        ),
    ]


def _rank_rows(digits: int) -> list[Row]:
    def theirs(quantity: str, which: str) -> float:
        return _paper("rank_adaptor", f"{quantity} accuracy", f"LLaMA-7B; 30 % removed; {which}")

    adapted = theirs("BoolQ", "RankAdaptor")
    quoted, raw = (adapted - theirs("BoolQ", which) for which in ("LoRA", "uniform rank 8"))
    average = theirs("average", "the record with BoolQ 66.21") - theirs("average", "uniform rank 8")
    paper = (
        f"LLaMA-7B, 30 % removed: {quoted:+.{digits}f} on BoolQ as quoted; by the authors' raw data {raw:+.{digits}f}, "
        f"and {average:+.{digits}f} on the average of seven tasks"
    )
    rows = []
    for table, where in (("rank_adaptor", SETTING), ("rank_settings", LOW_RATE)):
        seeds = len(reference.read(table).note["settings"]["report_seeds"])
        for name, found in rank_findings.differences(table, "accuracy").loc[where].iterrows():
            if name == rank_findings.DOUBLE:
                continue
            points = evaluation.Interval(*(100 * found[["estimate", "low", "high"]]))
            how = f"average of seven symbolic tasks, pruned {where}; {seeds} fresh seeds, 0.5 M parameters"
            question = f"Accuracy of {name if name.startswith('uniform') else f'ranks by {name}'} − uniform rank"
            question += "" if where == SETTING else ", one rank a kind of matrix, low learning rate"
            said = paper if (name, where) == ("RankAdaptor", SETTING) else "no such control"
            rows.append(_row(question, said, f"{points:+.{digits}f} points", how, points))
    return sorted(rows, key=lambda row: row["paper"] != paper)


def _robustness_rows(digits: int) -> list[Row]:
    area = robustness()
    x = lz76(list(area.index))
    how = f"{area.shape[0]} rules × {area.shape[1]} seeds, no recovery"
    question = "Spearman ρ of complexity and share kept in pruning"
    found, within = evaluation.correlation(x, area), evaluation.correlation(x[x > COMPLEX], area[x > COMPLEX])
    few = f"{within.n} rules"
    return [
        _row(question, "not asked", f"{found:.{digits}f}", how, found[:3]),
        _row(f"{question}, complex rules only", "not asked", f"{within:.{digits}f}", few, within[:3]),
    ]


def markdown(table: pd.DataFrame) -> str:
    """A table as GitHub's Markdown has it."""
    lines = [[table.index.name or "", *table.columns], ["---"] * (len(table.columns) + 1)]
    lines += [[str(name), *map(str, values)] for name, values in zip(table.index, table.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

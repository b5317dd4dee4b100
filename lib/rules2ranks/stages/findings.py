"""What the reference tables say: the numbers that the notebooks, the scorecard and the README share."""

import pandas as pd

from rules2ranks import complexity, evaluation, published
from rules2ranks.stages import reference

#: A network that gained less than this from learning (nats per cell) has nothing that pruning could take.
LEARNT = 0.1
TASKS = {"reasoning-hard": "reasoning hard", "reasoning-easy": "reasoning easy"}


def lz76(rules: list[int]) -> pd.Series:
    """LZ76 phrases of 100 cells × 11 rows by rule, mean over 20 random starts: the paper's axis."""
    return complexity.table(rules, seeds=range(20)).lz76


def scores(task: str) -> pd.DataFrame:
    """Accuracy of frozen networks that learnt a rule, in `edge_of_chaos`: a row for each rule, a column a seed."""
    table, note = reference.read("edge_of_chaos")
    here = table[(table.start == "pretrained") & (table.source != "coin") & (table.task == task)]
    return here.assign(rule=here.source.astype(int)).pivot(index="rule", columns="seed", values="accuracy").loc[
        note["settings"]["rules"]
    ]


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


def against_uniform(what: str) -> dict[str, evaluation.Paired]:
    """Each allocator's `what` minus that of the uniform rank, paired by report seed; several vectors of one allocator
    are averaged first."""
    table, _ = reference.read("rank_adaptor")
    mean = table.groupby(["allocator", "report_seed"], sort=False)[what].mean()
    return {
        name: evaluation.paired(mean[name], mean["uniform"])
        for name in table.allocator.unique()
        if name != "uniform"
    }


def _paper(name: str, quantity: str, setting: str) -> float:
    table = published.table(name)
    return table[(table.quantity == quantity) & (table.setting == setting)].value.item()


def scorecard(digits: int = 2) -> pd.DataFrame:
    """The papers' numbers beside ours, one question a row; what was not reproduced says so."""
    rows = []

    def row(question: str, paper: str, here: str, how: str) -> None:
        rows.append({"question": question, "paper": paper, "here": here, "how, here": how})

    lz = published.table("edge_of_chaos").query("quantity == 'Lempel-Ziv complexity'")
    theirs = lz.set_index(lz.setting.str.removeprefix("rule ").astype(int)).value
    error = ((lz76(list(theirs.index)) - theirs) ** 2).mean() ** 0.5
    row("Lempel-Ziv complexity of 8 rules", "22 to 111 phrases", f"the same within RMSE {error:.1f}",
        "LZ76, 100 cells × 11 rows, 20 starts")  # fmt: skip
    for task, name in TASKS.items():
        y = scores(task)
        found = evaluation.correlation(lz76(list(y.index)), y, kind="pearson")
        theirs = _paper("edge_of_chaos", "Pearson r with Lempel-Ziv complexity", name)
        row(f"Pearson r of complexity and score, {name}", f"{theirs:.{digits}f} (1/epochs to 80 %)",
            f"{found:.{digits}f}", f"accuracy at fixed steps, {y.shape[0]} rules × {y.shape[1]} seeds, causal")  # fmt: skip
    y = scores("nim")
    found = evaluation.correlation(lz76(list(y.index)), y, kind="pearson")
    row("Pearson r of complexity and score, Nim", "claimed, no r at hand", f"{found:.{digits}f}",
        f"next-token accuracy, {y.shape[0]} rules × {y.shape[1]} seeds")  # fmt: skip
    chess = _paper("edge_of_chaos", "Pearson r with Lempel-Ziv complexity", "chess")
    row("Pearson r of complexity and score, chess", f"{chess:.{digits}f}", "not run", "")
    boolq = "BoolQ accuracy", "LLaMA-7B; 30 % removed; {}"
    gain = _paper("rank_adaptor", boolq[0], boolq[1].format("RankAdaptor")) - _paper(
        "rank_adaptor", boolq[0], boolq[1].format("LoRA")
    )
    points = against_uniform("accuracy")
    settings = reference.read("rank_adaptor").note["settings"]
    how = f"seven symbolic tasks, {settings['pruned']['ratio']:.0%} removed, {len(settings['report_seeds'])} fresh seeds"
    for name, theirs in (("RankAdaptor", f"{gain:+.1f} points (BoolQ, LLaMA-7B, 30 %)"), ("random search", "")):
        shown = evaluation.Interval(*(100 * value for value in points[name][:3]))
        row(f"{name} − uniform rank, accuracy", theirs, f"{shown:+.{digits}f} points", how)
    area = robustness()
    found = evaluation.correlation(lz76(list(area.index)), area)
    row("Spearman ρ of complexity and robustness to pruning", "not asked", f"{found:.{digits}f}",
        f"{area.shape[0]} rules × {area.shape[1]} seeds, no recovery")  # fmt: skip
    for paper, what in (("AutoMixQ", "bits per layer"), ("AutoQRA", "bits and ranks together"),
                        ("DarwinLM", "evolutionary pruning")):  # fmt: skip
        row(f"{paper}: {what}", "see data/published/", "not run", "")
    return pd.DataFrame(rows).set_index("question")


def markdown(table: pd.DataFrame) -> str:
    """A table as GitHub's Markdown has it."""
    lines = [[table.index.name or "", *table.columns], ["---"] * (len(table.columns) + 1)]
    lines += [[str(name), *map(str, values)] for name, values in zip(table.index, table.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

"""What the reference tables say: the numbers that the notebooks, the scorecard and the README share."""

import pandas as pd

from rules2ranks import complexity, evaluation, published
from rules2ranks.stages import reference

#: A network that gained less than this from learning (nats per cell) has nothing that pruning could take.
LEARNT = 0.1
#: Our tasks: the paper's name for each, and the score that its correlation is of (none was at hand for Nim).
TASKS = {
    "reasoning-hard": ("reasoning hard", "1 / epochs to 80 %"),
    "reasoning-easy": ("reasoning easy", "1 / epochs to 80 %"),
    "nim": ("Nim", ""),
}


def lz76(rules: list[int]) -> pd.Series:
    """LZ76 phrases of 100 cells × 11 rows by rule, mean over 20 random starts: the paper's axis."""
    return complexity.table(rules, seeds=range(20)).lz76


def scores(task: str) -> pd.DataFrame:
    """Accuracy of frozen networks that learnt a rule, in `edge_of_chaos`: a row for each rule, a column a seed."""
    table, note = reference.read("edge_of_chaos")
    here = table[(table.start == "pretrained") & (table.source != "coin") & (table.task == task)]
    return (
        here.assign(rule=here.source.astype(int))
        .pivot(index="rule", columns="seed", values="accuracy")
        .loc[note["settings"]["rules"]]
    )


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
        name: evaluation.paired(mean[name], mean["uniform"]) for name in table.allocator.unique() if name != "uniform"
    }


def _paper(name: str, quantity: str, setting: str) -> float:
    table = published.table(name)
    return table[(table.quantity == quantity) & (table.setting == setting)].value.item()


Row = dict[str, str]


def scorecard(digits: int = 2) -> pd.DataFrame:
    """The papers' numbers beside ours, one question a row; what was not reproduced says so."""
    rows = [*_complexity_rows(digits), *_rank_rows(digits), _robustness_row(digits)]
    for question in ("AutoMixQ: bits per layer", "AutoQRA: bits and ranks together", "DarwinLM: evolutionary pruning"):
        rows.append(_row(question, "see data/published/", "not run", ""))
    return pd.DataFrame(rows).set_index("question")


def _row(question: str, paper: str, here: str, how: str) -> Row:
    return {"question": question, "paper": paper, "here": here, "how, here": how}


def _complexity_rows(digits: int) -> list[Row]:
    lz = published.table("edge_of_chaos").query("quantity == 'Lempel-Ziv complexity'")
    theirs = lz.set_index(lz.setting.str.removeprefix("rule ").astype(int)).value
    error = ((lz76(list(theirs.index)) - theirs) ** 2).mean() ** 0.5
    span = f"{theirs.min():.0f} to {theirs.max():.0f} phrases"
    how = "LZ76, 100 cells × 11 rows, 20 starts"
    rows = [_row(f"Lempel-Ziv complexity of {len(theirs)} rules", span, f"the same within RMSE {error:.1f}", how)]
    for task, (name, said) in TASKS.items():
        y = scores(task)
        found = evaluation.correlation(lz76(list(y.index)), y, kind="pearson")
        if said:
            said = f"{_paper('edge_of_chaos', 'Pearson r with Lempel-Ziv complexity', name):.{digits}f} ({said})"
        how = f"accuracy at fixed steps, {y.shape[0]} rules × {y.shape[1]} seeds, causal"
        rows.append(
            _row(f"Pearson r of complexity and score, {name}", said or "no r known", f"{found:.{digits}f}", how)
        )
    chess = _paper("edge_of_chaos", "Pearson r with Lempel-Ziv complexity", "chess")
    rows.append(_row("Pearson r of complexity and score, chess", f"{chess:.{digits}f} (accuracy)", "not run", ""))
    return rows


def _rank_rows(digits: int) -> list[Row]:
    adapted, plain = (
        _paper("rank_adaptor", "BoolQ accuracy", f"LLaMA-7B; 30 % removed; {which}")
        for which in ("RankAdaptor", "LoRA")
    )
    theirs = {"RankAdaptor": f"{adapted - plain:+.{digits}f} points (BoolQ, LLaMA-7B, 30 % removed)"}
    settings = reference.read("rank_adaptor").note["settings"]
    removed, seeds = settings["pruned"]["ratio"], len(settings["report_seeds"])
    how = f"seven symbolic tasks, {removed:.0%} removed, {seeds} fresh seeds, 0.5 M parameters"
    rows = []
    for name, paired in sorted(against_uniform("accuracy").items(), key=lambda item: item[0] != "RankAdaptor"):
        points = evaluation.Interval(*(100 * value for value in paired[:3]))
        question = f"Accuracy of ranks by {name} − uniform rank"
        rows.append(_row(question, theirs.get(name, "no such control"), f"{points:+.{digits}f} points", how))
    return rows


def _robustness_row(digits: int) -> Row:
    area = robustness()
    found = evaluation.correlation(lz76(list(area.index)), area)
    how = f"{area.shape[0]} rules × {area.shape[1]} seeds, no recovery"
    return _row("Spearman ρ of complexity and robustness to pruning", "not asked", f"{found:.{digits}f}", how)


def markdown(table: pd.DataFrame) -> str:
    """A table as GitHub's Markdown has it."""
    lines = [[table.index.name or "", *table.columns], ["---"] * (len(table.columns) + 1)]
    lines += [[str(name), *map(str, values)] for name, values in zip(table.index, table.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

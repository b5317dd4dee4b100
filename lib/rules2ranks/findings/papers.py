"""The papers' numbers beside ours, one question a row: what the scorecard, the README and their notebooks share."""

import pandas as pd

from rules2ranks import evaluation, published, tables
from rules2ranks.findings import ranks
from rules2ranks.findings.compression import robustness
from rules2ranks.findings.edge import COMPLEX, TASKS, baselines, learnt, lz76, scores, variants

#: The setting of `rank_adaptor` that stands on the scorecard: half removed, as the papers spread it.
SETTING = "50 %, uniform"
#: The setting of `rank_settings` in which searches beat the uniform rank.
LOW_RATE = "50 %, per kind, low rate"


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
        rows += _slope_rows(
            name, said.get(task, "not asked"), f"{how}, {unlearnt} rules that were not learnt included", y, digits
        )
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
        seeds = len(tables.read(table).note["settings"]["report_seeds"])
        for name, found in ranks.differences(table, "accuracy").loc[where].iterrows():
            if name == ranks.DOUBLE:
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

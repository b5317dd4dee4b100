"""The papers' numbers beside ours, one question a row: what the scorecard, the README and their notebooks share."""

import functools

import pandas as pd

from rules2ranks import evaluation, published, tables, tasks
from rules2ranks.findings import bits, causes, levels, ranks, recoveries
from rules2ranks.findings.compression import robustness
from rules2ranks.findings.edge import COMPLEX, TASKS, baselines, how_learnt, learnt, lz76, scores, variants
from rules2ranks.findings.rows import Row, criterion, entry
from rules2ranks.tables import plans

#: The settings of `rank_adaptor` whose rows stand in README: the paper's question, and where ranks matter most.
FRONT = ("layers, best rate", "kinds, lower rate")
#: What choices of bits are compared with, in words.
BESIDE = {ranks.UNIFORM: "uniform bits", "sensitivities": "what follows from sensitivities"}
#: What a way to mend is called in its paper.
SYSTEMS = {
    "s2ft": "S2FT",
    "dsee": "DSEE",
    "hft": "HFT",
    "bitfit": "BitFit",
    "fpf": "FPF (norms alone)",
    "all weights": "All weights",
}
#: What the settings of `rank_adaptor` are about, by the word that their names begin with.
UNITS = {"layers": "a layer", "kinds": "a kind of matrix", "matrices": "a matrix"}


def _paper(name: str, quantity: str, setting: str) -> float:
    table = published.table(name)
    return table[(table.quantity == quantity) & (table.setting == setting)].value.item()


def scorecard(digits: int = 2, front: bool = False) -> pd.DataFrame:
    """The papers' numbers beside ours, one question a row; what was not reproduced says so. `front`: only the ten rows
    that answer the questions, as README has them.

    Rows that begin with "Criterion" are what notebooks or plans stated before the runs, met or not.
    """
    card = _card(digits)
    return card[card.front].drop(columns="front") if front else card.drop(columns="front")


@functools.cache  # some seconds of resampling
def _card(digits: int) -> pd.DataFrame:
    rows = [
        *_complexity_rows(digits),
        *causes.fresh_rows(digits),
        *causes.chess_rows(digits),
        *_rank_rows(digits),
        *_bit_rows(digits),
    ]
    rows += [*_joint_rows(digits), *_level_rows(digits), *_within_bytes_rows(digits), *_real_rows(digits)]
    rows += [*_mending_rows(digits), *_robustness_rows(digits), *causes.cause_rows(digits)]
    rows += causes.lens_rows(digits)
    return pd.DataFrame(rows).set_index("question")


def _complexity_rows(digits: int) -> list[Row]:
    lz = published.table("edge_of_chaos").query("quantity == 'Lempel-Ziv complexity'")
    theirs = lz.set_index(lz.setting.str.removeprefix("rule ").astype(int)).value
    error = ((lz76(list(theirs.index)) - theirs) ** 2).mean() ** 0.5
    span = f"{theirs.min():.0f} to {theirs.max():.0f} phrases"
    how = "LZ76, 100 cells × 11 rows, 20 starts"
    rows = [entry(f"Lempel-Ziv complexity of {len(theirs)} rules", span, f"the same within RMSE {error:.1f}", how)]
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
    chess = _slope_rows("chess", f"r = {r['chess']:.{digits}f} (accuracy)", how, y, digits)
    guess, best = tasks.get("chess").baselines()["n-gram"], y.mean(axis=1).max()
    if best < guess:  # what no network has learnt, no rule can teach better than another
        why = f"no power: the best network has {best:.{digits}f} right, an n-gram {guess:.{digits}f}"
        chess = [row | {"reading": why} for row in chess]
    return [*rows, *chess]


def _slope_rows(name: str, said: str, how: str, y: pd.DataFrame, digits: int) -> list[Row]:
    """A task's two correlations with LZ76; the paper's number stands beside the first."""
    x, rows = lz76(list(y.index)), []
    for kind, symbol, theirs in (("pearson", "Pearson r", said), ("spearman", "Spearman ρ", "")):
        found = evaluation.correlation(x, y, kind=kind)
        asked, front = f"{symbol} of complexity and score, {name}", kind == "pearson" and name != TASKS["nim"]
        rows.append(entry(asked, theirs, f"{found:.{digits}f}", how, found[:3], front))
    return rows


def _hard_board_rows(x: pd.Series, y: pd.DataFrame, digits: int) -> list[Row]:
    """What the correlation over all rules does not tell: the slope among complex rules, and the task's own ceiling."""
    name, rows = "Pearson r with Lempel-Ziv complexity, rules of LZ >= 60", []
    theirs = f"r = {_paper('edge_of_chaos', name, 'reasoning hard'):.{digits}f} (our reading of the figure)"
    for kind, symbol, said in (("pearson", "Pearson r", theirs), ("spearman", "Spearman ρ", "")):
        found = evaluation.correlation(x[x > COMPLEX], y[x > COMPLEX], kind=kind)
        question = f"{symbol} of complexity and score, hard boards, complex rules only"
        rows.append(entry(question, said, f"{found:.{digits}f}", f"{found.n} rules", found[:3]))
    left, lines = evaluation.partial_correlation(x, y, how_learnt()), evaluation.two_lines(x, y)
    best, scratch = y.mean(axis=1).max(), baselines("reasoning-hard")["trained from scratch"]
    given = "hard boards, given how well a rule was learnt and the scale of the weights, ρ above zero"
    falls = f"the right slope has p = {lines.p_fall:.{digits}f}, {lines.n_right} rules"
    return [
        *rows,
        criterion(given, f"{left:.{digits}f}", f"partial Spearman, {left.n} rules", left.low > 0, front=True),
        criterion("hard boards, a rise and then a fall", falls, "two-lines test", lines.sweet_spot),
        entry(
            "Hard boards right at step 400, cells as numbers: best frozen network; all weights trained",
            "no such baseline",
            f"{best:.{digits}f}; {scratch:.{digits}f}",
            "means of seeds",
        ),
    ]


def _rank_rows(digits: int) -> list[Row]:
    found, note = ranks.comparisons(), tables.read("rank_adaptor").note["settings"]
    sizes = f"{len(note['report_seeds'])} fresh seeds, {len(note['search_seeds'])} searches"
    rows = []
    for setting in found.index.unique("setting"):
        unit, _, rate = setting.partition(", ")
        texts = ranks.percent(found.loc[setting])
        for name, row in found.loc[setting].iterrows():
            if name in (ranks.DOUBLE, ranks.BEST) or row.verdict.startswith("the same"):
                continue
            here = f"loss {texts[name]} %; accuracy {ranks.points('rank_adaptor', setting, name):+.{digits}f} points"
            asked = f"{name} against the uniform rank, one rank {UNITS[unit]}, {rate}"
            paper = _rank_paper(digits) if (name, unit) == ("RankAdaptor", "layers") else "no such comparison"
            how = f"half removed, 0.5 M parameters, seven symbolic tasks; {sizes}"
            front = name == "RankAdaptor" and setting in FRONT
            rows.append(entry(asked, paper, here, how, front=front) | {"reading": row.verdict or "not tested"})
    return sorted(rows, key=lambda row: not row["question"].startswith("RankAdaptor")) + _recovery_rows()


def _rank_paper(digits: int) -> str:
    """What the authors' measurements say on the average of seven tasks, and what the paper quotes of one of them."""

    def theirs(quantity: str, which: str) -> float:
        return _paper("rank_adaptor", f"{quantity} accuracy", f"LLaMA-7B; 30 % removed; {which}")

    half = "LLaMA-7B; 50 % removed"
    best = _paper("rank_adaptor", "average accuracy, best rank vector minus uniform rank 8", half)
    vectors = _paper("rank_adaptor", "measured rank vectors", half)
    quoted = theirs("BoolQ", "RankAdaptor") - theirs("BoolQ", "LoRA")
    average = theirs("average", "the record with BoolQ 66.21") - theirs("average", "uniform rank 8")
    return (
        f"LLaMA-7B, half removed, the authors' raw data: the best of {vectors:.0f} measured vectors {best:+.{digits}f} "
        f"points on the average of seven tasks (but see notebook 33); 30 % removed: {quoted:+.{digits}f} on BoolQ as "
        f"quoted, the same record {average:+.{digits}f} on that average"
    )


def _bit_rows(digits: int) -> list[Row]:
    """Bits of layers: each choice against what a simple mind takes at these bytes."""
    found, plan = ranks.comparisons("mixed_bits"), plans.read("mixed_bits")
    sizes = f"{len(plan.run['report_seeds'])} fresh seeds, {len(plan.run['search_seeds'])} searches"
    how, rows = f"half removed, 0.5 M parameters, LoRA of rank 2 from LoftQ; {sizes}", []
    for setting, name in found.index:
        row = found.loc[setting, name]
        if name in plan.confirmatory and not row.verdict.startswith("the same"):
            against = plan.baseline.get(setting, ranks.UNIFORM)
            asked = f"{name} against {BESIDE[against]}, {setting} a number"
            text = ranks.percent(found.loc[[(setting, name)]]).item()
            rows.append(entry(asked, _bit_paper(digits), f"loss {text} %", how) | {"reading": row.verdict})
    return sorted(rows, key=lambda row: not row["question"].startswith("RankAdaptor"))


def _bit_paper(digits: int) -> str:
    """What AutoMixQ's abstract says, whose baselines are other starts and unquantised weights."""
    score = [_paper("automixq", "BoolQ accuracy", f"LLaMA-7B; 30 % removed; {which}") for which in ("AutoMixQ", "LoRA")]
    saved = _paper("automixq", "memory saved", "LLaMA-7B; 30 % removed; against LoRA")
    return f"LLaMA-7B, 30 % removed, against LoRA: BoolQ {score[0] - score[1]:+.{digits}f}, memory -{saved:.1f} %"


def _joint_rows(digits: int) -> list[Row]:
    """Bits and ranks together: what the plan tests, AutoQRA's claim, and whether the two interact."""
    found, plan = ranks.comparisons(bits.TABLE), plans.read(bits.TABLE)
    sizes = f"{len(plan.run['report_seeds'])} fresh seeds, {len(plan.run['search_seeds'])} searches"
    how, rows = f"half removed, 0.5 M parameters, bytes of uniform 4 bits and rank 2; {sizes}", []
    tested = found[found.index.get_level_values("allocator").isin(plan.confirmatory)]
    for (setting, name), text in ranks.percent(tested).items():
        asked = f"{name} against the best uniform bits and rank, {setting}"
        paper = "better than bits first, then ranks" if name == "AutoQRA" else "no such comparison"
        rows.append(entry(asked, paper, f"loss {text} %", how) | {"reading": tested.verdict[setting, name]})
    close = bits.close_to_full()
    for setting, text in ranks.percent(close).items():
        alike = close.equivalence[setting] < plan.level
        here = f"loss {text} % of {close.against[setting]}; p of equivalence {close.equivalence[setting]:.{digits}g}"
        asked = f"AutoQRA close to full precision at the memory of uniform 4 bits, {setting}"
        row = entry(asked, "close (abstract)", here, how)
        rows.append(row | {"reading": "equivalent" if alike else "not shown"})
    both = bits.interactions(trained=True)
    for setting, share in both.together.items():
        low, high = (100 * both[bound][setting] for bound in ("low", "high"))
        here = f"{100 * share:.0f} % of the variance, {low:.1f} to {high:.1f} % of the loss in size"
        row = entry(f"Bits and ranks interact, uniform choices, {setting}", "claimed", here, "ranks 2 to 16")
        rows.append(row | {"reading": "above zero" if both.p[setting] < plan.level else "not shown"})
    return rows


def _level_rows(digits: int) -> list[Row]:
    """Who decides how much of each part goes: what the plan tests, and DarwinLM's selection after training."""
    found, plan = ranks.comparisons(levels.TABLE), plans.read(levels.TABLE)
    tested = found[found.index.get_level_values("allocator").isin(plan.confirmatory)]
    score = [_paper("darwinlm", "average accuracy", f"Llama-2-7B; {x}, one-shot") for x in ("DarwinLM 2.7B", "ZipLM")]
    paper = f"Llama-2-7B, mean of tasks, one-shot: DarwinLM {score[0]:.{digits - 1}f}, ZipLM {score[1]:.{digits - 1}f}"
    how, rows = "share removed of 0.5 M parameters; LoRA of rank 2 at the best of three rates, fresh seeds", []
    for (setting, name), text in ranks.percent(tested).items():
        asked = f"{name} against divergences of single parts added up, {setting}"
        row = entry(asked, paper if name == "DarwinLM" else "no such comparison", f"loss {text} %", how)
        rows.append(row | {"reading": tested.verdict[setting, name]})
    pairs = levels.trained_or_not()
    for (setting, start), text in ranks.percent(pairs).items():
        asked = f"DarwinLM: judged after training against as cut, from {start}, {setting}"
        row = entry(
            asked, "better", f"loss {text} %", how, tuple(pairs.loc[(setting, start), ["estimate", "low", "high"]])
        )
        rows.append(row)
    return rows


def _real_rows(digits: int) -> list[Row]:
    """Who decides the levels of a real model, against importance spread evenly, and whether the order is the same."""
    found, plan = ranks.comparisons(levels.REAL), plans.read(levels.REAL)
    tested = found[found.index.get_level_values("allocator").isin(plan.confirmatory)]
    how = "Gemma 3 270M, vocabulary of English docstrings; LoRA of rank 8 at the best of three rates, three fresh seeds"
    rows = []
    for (setting, name), text in ranks.percent(tested).items():
        row = entry(f"{name} against uniform, Gemma, {setting}", "no such comparison", f"loss {text} %", how)
        rows.append(row | {"reading": tested.verdict[setting, name]})
    for setting, row in levels.orders_alike().iterrows():
        here = f"ρ = {row.rho:.{digits}f} [{row.low:.{digits}f}, {row.high:.{digits}f}]"
        asked = f"The order of ways on Gemma is that of the small Llama, {setting} and {row.small}"
        rows.append(entry(asked, "not asked", here, f"{row.choices} ways", (row.rho, row.low, row.high)))
    return rows


def _mending_rows(digits: int) -> list[Row]:
    """Other ways to mend against LoRA, and two systems that are settings of searches here."""
    found, tested = recoveries.ways("mendings").join(recoveries.tested()), plans.read("mendings").confirmatory
    seeds, papers, rows = len(plans.read("mendings").run["seeds"]), _mending_papers(digits), []
    for (setting, way), text in ranks.percent(found).items():
        if way in SYSTEMS:
            row = found.loc[(setting, way)]
            here = f"loss {text} %, {row.parameters:,.0f} trained parameters"
            asked = f"{SYSTEMS[way]} against LoRA of rank 2, {setting}"
            said = entry(asked, papers[way], here, f"{seeds} fresh seeds, each way at its best of four rates")
            rows.append(said | {"reading": row.verdict if way in tested else "beside, not tested"})
    why = "a setting of a search here, shown on few trainings in notebook 38"
    return rows + [entry(name, papers[name], "its claim is not tested here", why) for name in ("AutoPEFT", "LLaMA-NAS")]


def _mending_papers(digits: int) -> dict[str, str]:
    """What the papers' abstracts claim, by way or system."""

    def theirs(quantity: str, setting: str) -> float:
        return _paper("other_ways", quantity, setting)

    s2ft = [theirs("average accuracy minus LoRA's", f"{kind} reasoning") for kind in ("commonsense", "arithmetic")]
    trained = theirs("trained parameters", "BERT; performance comparable with training all")
    size, speed = (
        theirs(what, "LLaMA-2-7B; certain tasks; negligible drop") for what in ("reduction of size", "speed-up")
    )
    return {
        "s2ft": f"{s2ft[0]:+.{digits - 1}f} % commonsense, {s2ft[1]:+.{digits - 1}f} % arithmetic",
        "dsee": f"BERT: comparable with training all, {trained:.{digits - 1}f} % of the parameters",
        "hft": "better than training all weights, less forgetting",
        "bitfit": "BERT, few data: competitive with training all",
        "fpf": "not read beyond the idea",
        "all weights": "the end of the scale",
        "AutoPEFT": "GLUE: better than other adapters, on par with training all",
        "LLaMA-NAS": f"LLaMA-2-7B: {size:.1f} × smaller, {speed:.1f} × faster, negligible loss on some tasks",
    }


def _within_bytes_rows(digits: int) -> list[Row]:
    """Levels, bits and ranks within the same bytes: what the plan tests, and one search against three in turn."""
    found, plan = ranks.comparisons(levels.JOINT), plans.read(levels.JOINT)
    tested = found[found.index.get_level_values("allocator").isin(plan.confirmatory)]
    sizes = f"{len(plan.run['report_seeds'])} fresh seeds, {len(plan.run['search_seeds'])} searches"
    how, rows = f"bytes of half removed, 4 bits and rank 2; {sizes}", []
    for (setting, name), text in ranks.percent(tested).items():
        asked = f"Levels, bits and ranks, {name}, against one width and one rank for all, {setting}"
        rows.append(entry(asked, "not asked", f"loss {text} %", how) | {"reading": tested.verdict[setting, name]})
    pairs = levels.joint_or_in_turn()
    for setting, text in ranks.percent(pairs).items():
        interval = tuple(pairs.loc[setting, ["estimate", "low", "high"]])
        asked = f"Levels, bits and ranks: one search against one after the other, {setting}"
        why = f"{how}; the turns begin with an adapter everywhere and never come to the simplest choice"
        rows.append(entry(asked, "not asked", f"loss {text} %", why, interval))
    return rows


def _recovery_rows() -> list[Row]:
    """What else could be done with as many examples, each way at its best: losses in nats."""
    frame, rows = tables.read("recoveries").table, []
    for setting, part in frame.groupby("setting", sort=False):
        mean = part.groupby("way", sort=False).loss.mean()
        here = "; ".join(f"{name} {loss:.3g}" for name, loss in mean.sort_values().items())
        question = f"Loss after recovery, {setting}, each way at its best rate and length"
        rows.append(entry(question, "no such comparison", here, f"{part.seed.nunique()} seeds, mean rank 2"))
    return rows


def _robustness_rows(digits: int) -> list[Row]:
    area = robustness()
    x, scale = lz76(list(area.index)), learnt().weight_rms[area.index]
    how = f"{area.shape[0]} rules × {area.shape[1]} seeds, no recovery"
    question = "Spearman ρ of complexity and share kept in pruning"
    found, within = evaluation.correlation(x, area), evaluation.correlation(x[x > COMPLEX], area[x > COMPLEX])
    left = evaluation.partial_correlation(x, area, scale)
    given, few = f"{question}, given the scale of the weights", f"partial, {left.n} rules"
    return [
        entry(question, "not asked", f"{found:.{digits}f}", how, found[:3], front=True),
        entry(f"{question}, complex rules only", "not asked", f"{within:.{digits}f}", f"{within.n} rules", within[:3]),
        entry(given, "not asked", f"{left:.{digits}f}", few, left[:3]),
    ]


def markdown(table: pd.DataFrame) -> str:
    """A table as GitHub's Markdown has it."""
    lines = [[table.index.name or "", *table.columns], ["---"] * (len(table.columns) + 1)]
    lines += [[str(name), *map(str, values)] for name, values in zip(table.index, table.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

"""What is read off the reference tables agrees with the tables; the tables' makers run at tiny size."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rules2ranks import findings, tables
from rules2ranks.findings import compression
from rules2ranks.runs import ParameterError
from rules2ranks.tables import __main__ as command


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path / "runs"))


def test_scores_are_the_tables_entries():
    table, note = tables.read("edge_of_chaos")
    found = findings.scores("nim")
    assert list(found.index) == note["settings"]["rules"]
    assert list(found.columns) == note["settings"]["seeds"]
    entry = table.query("start == 'pretrained' and source == '30' and seed == 1 and task == 'nim'")
    assert found.loc[30, 1] == entry.accuracy.item()
    coin = table.query("source == 'coin' and task == 'nim'").accuracy.mean()
    assert findings.baselines("nim")["learnt coin flips"] == pytest.approx(coin)


def test_one_experiment_stands_in_both_tables():
    """The ablations' first variant is the core's: the same results, so the same numbers to the last digit."""
    core = findings.scores("reasoning-hard")
    again = findings.variants()["as in the core"]
    pd.testing.assert_frame_equal(again, core.loc[again.index], check_exact=True)
    settings = tables.read("edge_ablations").note["settings"]
    rule_free = {name for name, v in settings["variants"].items() if v.get("downstream", {}).get("start") == "random"}
    assert set(findings.variants()) == set(settings["variants"]) - rule_free
    assert set(findings.variant_baselines().index) >= rule_free


def test_the_verdict_follows_from_the_tables():
    card = findings.verdict()
    x, y = findings.lz76(list(findings.scores("reasoning-hard").index)), findings.scores("reasoning-hard")
    high = (x > findings.COMPLEX).to_numpy()
    for line, these in (("Spearman ρ over all", slice(None)), ("… and within", high)):
        (said,) = (row.found for name, row in card.iterrows() if name.startswith(line))
        assert said.startswith(f"{stats.spearmanr(x[these], y[these].mean(axis=1)).statistic:.2f} ")
    assert set(card.met) <= {"yes", "no"}


def test_every_measure_is_there_for_every_rule():
    about = findings.measures([0, 30, 110, 204])
    assert list(about.columns) == ["wolfram_class", *findings.MEASURES]
    assert np.isfinite(about.to_numpy(float)).all()
    # Defects of rule 204 stay where they are, those of rule 0 die: factors of one and of zero.
    assert about.defect_growth[[0, 204]].tolist() == pytest.approx([0, 1])
    known = findings.learnt()
    table, _ = tables.read("pretraining")
    assert known.excess[110] == pytest.approx((table.loss - table.floor)[table.source == "110"].mean())
    assert (known.learnt[known.determined < 0.98] < 1).all()


def test_correlations_within_parts_are_those_of_the_parts():
    rules = list(findings.scores("nim").index)
    x, y = findings.lz76(rules), findings.scores("nim").mean(axis=1)
    found = findings.correlations("nim", x, findings.how_learnt())
    assert found["pearson"].estimate == pytest.approx(stats.pearsonr(x, y).statistic)
    low = (x <= findings.COMPLEX).to_numpy()
    assert found["spearman, simple rules"].estimate == pytest.approx(stats.spearmanr(x[low], y[low]).statistic)
    assert found["spearman, simple rules"].n + found["spearman, complex rules"].n == len(rules)


def test_what_is_kept_is_on_each_rules_own_scale():
    table = findings.kept()
    whole = table[(table.ratio == 0) & (table.gained > compression.LEARNT)]
    assert (whole.kept == 1).all()
    assert table.kept.dropna().between(0, 1).all()
    area = findings.robustness()
    not_learnt = set(table[table.gained <= compression.LEARNT].rule)
    assert set(area.index) == set(table.rule) - not_learnt
    curve = table[(table.rule == 110) & (table.seed == 0) & (table.ratio > 0)]
    assert area.loc[110, 0] == pytest.approx(curve.kept.mean())


def test_the_scorecard_says_what_was_not_tested():
    card = findings.scorecard()
    assert card.index.is_unique
    assert set(card.index[card.here.str.contains("not tested here")]) == {"AutoPEFT", "LLaMA-NAS"}
    assert (card.here.str.strip() != "").all()
    shown = findings.scorecard(3).here["Spearman ρ of complexity and share kept in pruning"]
    assert re.fullmatch(r"-?\d\.\d{3} \[-?\d\.\d{3}, -?\d\.\d{3}\]", shown)


def test_the_front_page_has_ten_rows_and_what_failed_is_among_them():
    card, front = findings.scorecard(), findings.scorecard(front=True)
    assert len(front) == 10 and front.index.isin(card.index).all()
    stated = card[card.index.str.startswith("Criterion")]
    assert set(stated.reading) <= {"met", "not met"}
    assert (stated.reading == "not met").any() and front.index.str.startswith("Criterion").any()


def test_markdown_is_a_table_whatever_the_cells_hold():
    table = pd.DataFrame({"a|b": ["x|y", 1]}, index=pd.Index(["r", "s"], name="n"))
    lines = findings.markdown(table).splitlines()
    assert lines == ["| n | a\\|b |", "| --- | --- |", "| r | x\\|y |", "| s | 1 |"]


def test_what_a_table_does_not_have_is_refused():
    tables.among("seed", 1, [0, 1])
    tables.among("rules", [30, 110], [0, 30, 110])
    with pytest.raises(ParameterError, match="'rules' = 90: the reference table has 30, 110"):
        tables.among("rules", [30, 90], [30, 110])


def test_an_unknown_table_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["edge_of_choas"])
    assert "choose from edge_of_chaos" in capsys.readouterr().err

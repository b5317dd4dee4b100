"""A user's table of trials."""

import json

import pytest

from rules2ranks.configuration import Matrix
from rules2ranks.search import Trial, byte_space, rank_space, read_trials

SPACE = rank_space([["a"], ["b"], ["c"]], (10, 10, 10), 2, fixed={0: 2})


@pytest.mark.parametrize("form", ["csv", "csv, a column a rank", "json", "json, text"])
def test_a_table_is_read_in_every_form(form, tmp_path):
    rows = [((2, 2, 2), 0.5), ((2, 1, 3), 0.25), ((2, 1, 3), 0.75)]
    if form == "csv":
        text = "ranks,score\n" + "\n".join(f"{' '.join(map(str, r))},{s}" for r, s in rows)
    elif form.startswith("csv"):
        text = "score,rank_0,rank_1,rank_2\n" + "\n".join(f"{s},{','.join(map(str, r))}" for r, s in rows)
    else:
        spelt = (lambda r: ", ".join(map(str, r))) if "text" in form else list
        text = json.dumps([{"ranks": spelt(r), "score": s} for r, s in rows])
    path = tmp_path / f"table.{form[:4].strip(',')}"
    path.write_text(text)
    found = read_trials(path, SPACE)
    assert found == [Trial((0, 2, 2), (0.5,)), Trial((0, 1, 3), (0.5,))]
    assert [trial.scores for trial in read_trials(path, SPACE, higher_is_better=True)] == [(-0.5,), (-0.5,)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "ranks\n2 2 2\n", "has no column score: expected `ranks`"),
        ("t.csv", "score,rank_0,rank_1\n1,2,2\n", "has no column rank_2"),
        ("t.csv", "ranks,score,sore\n2 2 2,1,1\n", "unknown columns sore"),
        ("t.csv", "ranks,score\n2 2 2,1\n2 2 x,1\n", "row 2: could not convert"),
        ("t.csv", "ranks,score\n2 2 2.5,1\n", "row 1: knob 2 has no rank 2.5"),
        ("t.csv", "ranks,score\n2 2,1\n", "row 1: one rank for each of 3 knobs is needed, got 2"),
        ("t.csv", "ranks,score\n2 2 5,1\n", "row 1: knob 2 has no rank 5, it has .*"),
        ("t.csv", "ranks,score\n3 2 2,1\n", r"row 1: knob 0 has no rank 3, it has \[2\]"),
        ("t.csv", "ranks,score\n2 4 4,1\n", "row 1: the ranks .* over the budget of 40"),
        ("t.csv", "ranks,score\n2 2 2,nan\n", "row 1: the score must be finite"),
        ("t.csv", "ranks,score\n2 2 2,\n", "row 1: could not convert"),
        ("t.json", "[1, 2]", "a list of objects"),
        ("t.json", "{", "cannot be read"),
        ("t.txt", "", "must be a .csv or .json file"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_trials(tmp_path / name, SPACE)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*none\.csv"):
        read_trials(tmp_path / "none.csv", SPACE)


def test_a_table_of_ranks_within_bytes_and_none_of_bits(tmp_path):
    units = [[Matrix(name, 8, 8, "p", "outputs")] for name in "ab"]
    (file := tmp_path / "mine.csv").write_text("ranks,score\n0 2,1.5\n")
    within = byte_space(units, 1000, (16,), (0, 2), rest=100, fill=0)
    assert read_trials(file, within) == [Trial((0, 0, 1), (1.5,))]
    with pytest.raises(ValueError, match="cannot say bits"):
        read_trials(file, byte_space(units, 1000, (4, 8), (0, 2), group=8, fill=0))

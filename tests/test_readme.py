"""README.md and docs/: generated parts are as generated, commands exist, links lead somewhere."""

import re
from pathlib import Path

import pytest

import readme
import results
from rules2ranks import findings

TEXT = readme.README.read_text(encoding="utf-8")
TIMES = readme.TIMES.read_text(encoding="utf-8")
DOCS = sorted(readme.TIMES.parent.glob("*.md"))


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.name)
def test_generated_parts_are_up_to_date(page: Path):
    text = page.read_text(encoding="utf-8")
    assert readme.written(page, text) == text, "`python workflow/readme.py` renews it"


def test_the_whole_scorecard_lies_beside_the_tables():
    assert readme.SCORECARD.read_text(encoding="utf-8") == findings.scorecard().to_csv()


def test_a_changed_number_is_noticed():
    changed = TEXT.replace("| r = 0.35 (", "| r = 0.99 (")
    assert changed != TEXT
    assert readme.written(readme.README, changed) == TEXT
    with pytest.raises(ValueError, match="scorecard"):
        readme.written(readme.README, TEXT.replace("<!-- scorecard -->", ""))


def test_speed_shows_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(results, "REPOSITORY", tmp_path)
    folder = tmp_path / "data" / "reference"
    folder.mkdir(parents=True)
    head = "task,way,rate,unit,ratio,machine\n"
    (folder / "bench.csv").write_text(
        f"{head}rows,library,3e11,cells,1,here\nrows,fill,4.5e11,cells,0.665,here\nrows,roll,4e8,cells,704,here\n"
        "wide,library,1,cells,1,here\nwide,library as bytes,2,cells,0.5,here\n"
    )
    without = "| rows | 3.0e11 cells | 0.67 × fill, 700 × roll |"
    assert readme.speed().splitlines()[2:] == [without]
    (folder / "bench_training.csv").write_text(
        f"{head}step,library,120,steps,1,here\nstep,slower,50,steps,2.4,here\nstep,faster,104,steps,1.15,here\n"
        "data,library,120,steps,1,here\ndata,alone,13953,steps,0.0086,here\n"
    )
    training = ["| step | 1.2e02 steps | 1.15 × faster |", "| data | 1.2e02 steps | 0.0086 × alone |"]
    assert readme.speed().splitlines()[2:] == [without, *training]


def test_the_make_targets_exist():
    makefile = (results.REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.M))
    code = "\n".join(re.findall(r"`[^`]+`|```.*?```", TEXT + TIMES, flags=re.S))
    named = set(re.findall(r"make ([a-z][a-z-]*)", code))
    assert named
    assert named <= targets


@pytest.mark.parametrize("page", [readme.README, *DOCS], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    found = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    links = [link.partition("#")[0] for link in found if not link.startswith(("https://", "#"))]
    assert not [link for link in links if not (page.parent / link).exists()]


def test_the_library_examples_run(tmp_path, monkeypatch):
    examples = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
    assert len(examples) == 5
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path / "runs"))
    (tmp_path / "data").symlink_to(results.REPOSITORY / "data")
    names: dict = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
    assert names["rows"].shape == (512, 1001, 100) and names["words"].shape == (1001, 100, 8)
    assert names["phrases"] > 1000 and names["table"].index.tolist() == [30, 110, 204]
    assert names["learnt"]["learnt"] and names["found"]["accuracy"] > names["found"]["baselines"]["n-gram"]
    assert names["adapted"].peft_config["default"].r == 4
    assert (tmp_path / "out" / "pruned" / "pruning.json").is_file()
    assert names["problem"].space.contains(names["result"].chosen.point) and len(names["result"].trials) == 3
    assert 0 < names["again"]["loss"] < 0.5


def test_every_interval_among_the_answers_is_one_of_the_scorecard():
    answers = TEXT.split("## What we found")[1].split("\n## ")[0]
    intervals = re.findall(r"\[[-+]?\d+\.\d+, [-+]?\d+\.\d+\]", answers)
    card = " ".join(findings.scorecard().here)
    assert len(intervals) >= 6
    assert not [each for each in intervals if each not in card]

"""Writes the generated parts of README.md and docs/, the whole scorecard as CSV, and the headline figure.

    python workflow/readme.py

Each part stands between `<!-- name -->` and `<!-- /name -->`; a test compares it with what this file makes.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd

import results
import scaling
from rules2ranks import findings, tables
from rules2ranks.findings import forests, levels, ranks
from rules2ranks.stages import parameters

README = results.REPOSITORY / "README.md"
TIMES = results.REPOSITORY / "docs" / "times.md"
SCORECARD = results.REPOSITORY / "data" / "reference" / "scorecard.csv"
HEADLINE = results.REPOSITORY / "data" / "reference" / "headline.png"
BINDER = "https://mybinder.org/v2/gh/rules-to-ranks/rules-to-ranks/HEAD?labpath=notebooks"


def notebooks() -> str:
    """The table of notebooks, read from the first two cells of each."""
    rows = []
    for path in sorted((results.REPOSITORY / "notebooks").glob("*.ipynb")):
        first, box = ("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"][:2])
        number, _, title = first.splitlines()[0].lstrip("# ").partition(" · ")
        said = dict(re.findall(r"\*\*(\w+):\*\* (.*)", box))
        rows.append(
            {
                "notebook": f"[{number}](notebooks/{path.name})",
                "what it shows": title,
                "paper": said["Paper"],
                "time": said["Time"].partition(" on 2 cores")[0].removeprefix("about "),
                "Binder": f"[run]({BINDER}/{path.name})",
            }
        )
    return findings.markdown(pd.DataFrame(rows).set_index("notebook"))


def reference_tables() -> str:
    """The reference tables: how large, how long, how remade."""
    rows = []
    for path in sorted(HEADLINE.parent.glob("*.json"), key=lambda path: json.loads(path.read_text())["command"]):
        name, note = path.stem, tables.read(path.stem).note
        rows.append(
            {
                "table": f"`data/reference/{name}.csv`",
                "rows": note["rows"],
                "one-thread minutes": round(note["seconds"] / 60),
                "made on": f"{note['machine']}, {note['device']}",
                "command": f"`{note['command']}`",
            }
        )
    return findings.markdown(pd.DataFrame(rows).set_index("table"))


def speed() -> str:
    """The lines of `make bench` that compare the library with something else: its rate and how many times as fast.

    Of training and recovery, where the others do the same work as programs of their own, only the fastest of them
    stands here.
    """
    rows = []
    for name, most in (("bench.csv", None), ("bench_training.csv", 1), ("bench_recovery.csv", 1)):
        path = results.REPOSITORY / "data" / "reference" / name
        if not path.is_file():  # not measured yet
            continue
        for task, lines in pd.read_csv(path).groupby("task", sort=False):
            others = lines[~lines["way"].str.startswith("library")]
            if len(others):
                others = others.nlargest(most, "rate") if most else others
                beside = [f"{_times(ratio)} × {way}" for ratio, way in zip(others["ratio"], others["way"], strict=True)]
                rate = f"{lines['rate'].iloc[0]:.1e}".replace("e+", "e")
                rows.append({"task": task, "library": f"{rate} {lines['unit'].iloc[0]}", "that is": ", ".join(beside)})
    return findings.markdown(pd.DataFrame(rows).set_index("task"))


def _times(ratio: float) -> str:
    """Two digits that count, below ten two decimals: 88,000, 17, 1.15, 0.67; a small share has two digits as well."""
    if ratio > 10:
        return f"{float(f'{ratio:.2g}'):,.0f}"
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def scorecard() -> str:
    """The rows that answer the questions, and the notebook that tells of each; notebook 90 has all."""
    card, whole = findings.scorecard(front=True).drop(columns="how, here"), findings.scorecard()
    numbers = [forests.group(question).notebook for question in card.index]
    names = {path.name[:2]: path.name for path in (results.REPOSITORY / "notebooks").glob("*.ipynb")}
    card["notebook"] = [f"[{number}](notebooks/{names[number]})" for number in numbers]
    more = (
        f"The other {len(whole) - len(card)} rows stand in [notebook 90](notebooks/90_scorecard.ipynb), drawn, and in "
    )
    more += "[scorecard.csv](data/reference/scorecard.csv)."
    return f"{findings.markdown(card)}\n\n{more}"


def architectures() -> str:
    """What the tests found of each architecture, by family: the names of transformers' classes."""
    found = pd.read_csv(results.REPOSITORY / "data" / "architectures.csv", keep_default_na=False)
    found["name"] = found.architecture.str.replace(r"(ForCausalLM|LMHeadModel)", "", regex=True)
    works, refused = (found[found.verdict == verdict] for verdict in ("works", "refused"))
    rows = [{"layers": family, "works": ", ".join(part.name)} for family, part in works.groupby("family", sort=False)]
    table = findings.markdown(pd.DataFrame(rows).set_index("layers"))
    return f"{table}\n\nRefused, each with its reason: {', '.join(refused.name)}."


def gemma() -> str:
    """The real model: who decides how much of each part goes, at every share; and who decides ranks and bits."""
    ways, choices = levels.by_share(), ranks.in_words("real_ranks").reset_index()
    choices["setting"] = choices.setting.where(~choices.setting.duplicated(), "")
    return f"{findings.markdown(ways)}\n\n{findings.markdown(choices.set_index('setting'))}"


#: What each page has made for it: a part's name, and the function that makes it.
PAGES = {
    README: {"scorecard": scorecard, "notebooks": notebooks, "gemma": gemma, "architectures": architectures},
    TIMES: {"tables": reference_tables, "speed": speed},
    results.REPOSITORY / "docs" / "scaling.md": scaling.BLOCKS,
}


def written(page: Path, text: str) -> str:
    """A page's text with every generated part as it should be.

    Raises:
        ValueError: the text lacks the marks of a part.
    """
    for name, make in PAGES[page].items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{page.name} needs one {begin.strip()} and one {end}")
        before, rest = text.split(begin)
        text = before + begin + make() + "\n" + end + rest.split(end)[1]
    return text


def main() -> None:
    for page in PAGES:
        page.write_text(written(page, page.read_text(encoding="utf-8")), encoding="utf-8")
    findings.scorecard().to_csv(SCORECARD)
    name = "00_start_here"
    picture = parameters.folder(name, results.values("fast")[name]) / "headline.png"
    if picture.is_file():
        shutil.copyfile(picture, HEADLINE)
    print(
        "Generated parts of the pages are up to date;",
        "headline too" if picture.is_file() else f"{name} has not run here",
    )


if __name__ == "__main__":
    main()

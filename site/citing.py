"""CITATION.cff as BibTeX: the page on how to cite says what that file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

KINDS = {"software": "software", "conference-paper": "inproceedings"}


def write(source: Path) -> None:
    """`made/citation.bib`: the project, then the papers."""
    cited = yaml.safe_load((source / "CITATION.cff").read_text(encoding="utf-8"))
    (source / "made").mkdir(exist_ok=True)
    entries = [bibtex(work) for work in (cited, *cited["references"])]
    (source / "made" / "citation.bib").write_text("\n\n".join(entries) + "\n", encoding="utf-8")


def bibtex(work: dict[str, Any]) -> str:
    given = {
        "title": f"{{{work['title']}}}",
        "author": " and ".join(author(one) for one in work["authors"]),
        "booktitle": work.get("collection-title"),
        "pages": f"{work['start']}--{work['end']}" if "start" in work else None,
        "year": work.get("year"),
        "version": work.get("version"),
        "note": ", ".join(one["value"] for one in work.get("identifiers", [])),
        "url": work.get("url"),
    }
    lines = [f"  {name} = {{{value}}}," for name, value in given.items() if value]
    return "\n".join([f"@{KINDS[work['type']]}{{{key(work)},", *lines, "}"])


def author(one: dict[str, str]) -> str:
    return f"{one['family-names']}, {one['given-names']}" if "family-names" in one else f"{{{one['name']}}}"


def key(work: dict[str, Any]) -> str:
    """The first author's name and the year, as in zhang2025; of the project its name."""
    name = work["authors"][0].get("family-names")
    return f"{name.lower()}{work['year']}" if name else work["title"].partition(":")[0].replace(" ", "-").lower()

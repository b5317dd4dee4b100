"""Links that a page gets from the words in it: the first use of a term to the glossary, of a paper to arXiv."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

#: Terms that are everyday words too, and the words around them by which the term is meant.
MEANT = {
    "kept": "share kept",
    "learnt": "(?:was|is|were) learnt",
    "floor": "(?:its|the) floor",
    "excess": "excess loss",
}
#: What papers are called, and their numbers.
PAPERS = {
    "Edge of Chaos": "2410.02536",
    "RankAdaptor": "2406.15734",
    "LLM-Pruner": "2305.11627",
    "FLAP": "2312.11983",
    "AutoMixQ": "2411.13814",
    "AutoQRA": "2602.22268",
    "DarwinLM": "2502.07780",
    "S2FT": "2412.06289",
    "DSEE": "2111.00160",
    "HFT": "2404.18466",
    "BitFit": "2106.10199",
    "AutoPEFT": "2301.12132",
    "LLaMA-NAS": "2405.18377",
    "PiSSA": "2404.02948",
    "EVA": "2410.07170",
    "AdaLoRA": "2303.10512",
    "LoftQ": "2310.08659",
}
NUMBER = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")
#: What is no running text, or is a link already.
APART = (nodes.title, nodes.literal, nodes.FixedTextElement, nodes.reference, pending_xref, nodes.term)

Make = Callable[[str], nodes.Element]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-read", lambda app, doctree: link(doctree, app.env.docname, Path(app.srcdir)), priority=450)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def link(doctree: nodes.document, docname: str, source: Path) -> None:
    """Put the links into a page, in place: numbers of arXiv wherever they stand, words where they stand first."""
    told = docname.startswith(("notebooks/", "docs/")) or docname == "index"
    once = words(docname, source) if told else {}
    for text in [text for text in doctree.findall(nodes.Text) if runs(text)]:
        parts = list(split(str(text), once))
        if any(not isinstance(part, nodes.Text) for part in parts):
            text.parent.replace(text, parts)


def runs(text: nodes.Text) -> bool:
    """Whether a text belongs to a paragraph, with no link or code around it."""
    around, node = [], text.parent
    while node is not None:
        around.append(node)
        node = node.parent
    return any(isinstance(node, nodes.paragraph) for node in around) and not any(isinstance(n, APART) for n in around)


def words(docname: str, source: Path) -> dict[str, Make]:
    """What is linked once, as patterns, and what each makes of the words that it found."""
    terms = re.findall(r"^(?=\S)(?!:::|#)(.+)$", (source / "glossary.md").read_text(encoding="utf-8"), flags=re.M)

    def to_term(term: str) -> Make:
        def make(found: str) -> nodes.Element:
            shown = nodes.inline("", found, classes=["xref", "std", "std-term"])
            where = {"refdomain": "std", "reftype": "term", "reftarget": term, "refdoc": docname}
            return pending_xref("", shown, refexplicit=True, refwarn=True, **where)

        return make

    def to_paper(number: str) -> Make:
        return lambda found: arxiv(found, number)

    once = {rf"\b{MEANT.get(term, re.escape(term))}s?\b": to_term(term) for term in terms}
    return once | {rf"\b{re.escape(name)}\b": to_paper(number) for name, number in PAPERS.items()}


def arxiv(shown: str, number: str) -> nodes.Element:
    return nodes.reference("", shown, refuri=f"https://arxiv.org/abs/{number}", internal=False)


def split(text: str, once: dict[str, Make]) -> Iterator[nodes.Node]:
    """A text in parts, those that are linked as links; what was linked is taken out of `once`."""
    while True:
        found = [(match.start(), key, match) for key in once if (match := re.search(key, text))]
        if number := NUMBER.search(text):
            found.append((number.start(), "", number))
        if not found:
            break
        start, key, match = min(found, key=lambda each: each[:2])
        if start:
            yield nodes.Text(text[:start])
        yield once.pop(key)(match[0]) if key else arxiv(match[0], match[1])
        text = text[match.end() :]
    if text:
        yield nodes.Text(text)

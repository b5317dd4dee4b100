"""What a page changes in what is committed: badges, links out of the site, pictures in words, formulas, docstrings."""

from __future__ import annotations

import inspect
import posixpath
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.addnodes import desc_annotation, desc_content, desc_signature, pending_xref
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring, NumpyDocstring
from sphinx.writers.html5 import HTML5Translator

import tabling
from rules2ranks.__main__ import in_words

REPOSITORY = Path(__file__).resolve().parents[1]
GITHUB = "https://github.com/rules-to-ranks/rules-to-ranks/blob/HEAD"

SECTIONS = Config(napoleon_use_rtype=False, napoleon_custom_sections=[("Fields", "Parameters")])

#: A constant's value, or a default, of more characters says less than its name.
LONGEST = 80

#: A picture of more pixels across has several panels beside each other: see `site.css`.
WIDE = 1000


def setup(app: Sphinx) -> dict[str, bool]:
    # Before Sphinx takes the contents of a page from it, which it does at 500.
    app.connect("doctree-read", lambda app, doctree: reword(doctree, app.env.docname), priority=400)
    app.connect("autodoc-skip-member", skipped)
    app.connect("autodoc-process-signature", lambda app, what, name, thing, *rest: called(thing))
    app.connect("autodoc-process-docstring", lambda app, what, name, thing, options, lines: told(thing, lines))
    app.connect("autodoc-process-docstring", lambda app, what, name, thing, options, lines: as_rst(what, lines))
    app.connect("config-inited", lambda app, config: config.html_static_path.append(f"{app.srcdir}/made/static"))
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


# --- pages ------------------------------------------------------------------------------------------------------


def reword(doctree: nodes.document, docname: str) -> None:
    """Change in a page what is meant for other places: no picture from another host, no link out of the site."""
    for image in list(doctree.findall(nodes.image)):
        if "://" in image["uri"]:
            words = nodes.inline("", badge_words(image["uri"], image.get("alt", "")), classes=["badge"])
            image.replace_self(words)
        elif not image.get("alt"):
            image["alt"] = f"Figure in “{section_title(image)}”"
    for table in doctree.findall(nodes.table):
        tabling.of_docutils(table)
    for name in doctree.findall(desc_signature):
        if isinstance(name.parent.parent, desc_content):  # what a class holds is not in the list beside the page
            name["_toc_name"] = ""
    for value in list(doctree.findall(desc_annotation)):
        if value.astext().startswith(" = ") and ("<" in value.astext() or len(value.astext()) > LONGEST):
            value.parent.remove(value)
    for link in list(doctree.findall(pending_xref)):
        elsewhere = link["reftype"] == "myst" and link["refdomain"] != "doc"
        if elsewhere and (address := on_github(docname, link["reftarget"])):
            link.replace_self(nodes.reference("", "", *link.children, refuri=address, internal=False))


def badge_words(address: str, alt: str) -> str:
    """What a badge says: of shields.io, its label and message, which its address holds; else what stands for it."""
    if urlsplit(address).hostname == "img.shields.io":
        label, message, _ = unquote(urlsplit(address).path).rpartition("/")[2].split("-")
        return f"{label} {message}"
    return f"Run in {alt}" if alt in ("Binder", "Colab") else alt


def on_github(docname: str, target: str) -> str | None:
    """The address of a file or folder that the repository has and the site has not."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(docname), target.partition("#")[0]))
    known = target and not target.startswith("#") and not path.startswith("..") and (REPOSITORY / path).exists()
    return f"{GITHUB}/{path}" if known else None


def section_title(node: nodes.Node) -> str:
    while not isinstance(node, nodes.section):
        node = node.parent
    return node.next_node(nodes.title).astext()


def mathml(writer: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """A formula as MathML, which browsers draw without a script or a font from elsewhere."""
    block = isinstance(node, nodes.math_block)
    formula = convert(node.astext(), display="block" if block else "inline")
    writer.body.append(f'<div class="math">{formula}</div>' if block else formula)
    raise nodes.SkipNode


# --- notebooks --------------------------------------------------------------------------------------------------


def read(text: str) -> nbformat.NotebookNode:
    """A notebook whose pictures have words, and whose tables are set by what their columns hold."""
    notebook = nbformat.reads(text, as_version=4)
    for cell in notebook.cells:
        if picture := described(cell):
            cell.metadata["mystnb"] = {"image": picture}
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            if "text/html" in data:
                data["text/html"] = tabling.of_pandas(data["text/html"])
    return notebook


def described(cell: nbformat.NotebookNode) -> dict[str, str]:
    """What a picture shows, in the words of the cell that draws it, and how wide it is meant to be."""
    told = {"alt": cell.metadata["alt"]} if "alt" in cell.metadata else {}
    pictures = [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    meant = {output.metadata["image/png"]["width"] for output in pictures}
    if max(meant, default=0) > WIDE:
        told["classes"] = "wide"
    return told | ({"width": f"{meant.pop()}px"} if len(meant) == 1 else {})


# --- docstrings -------------------------------------------------------------------------------------------------


def skipped(app: Sphinx, what: str, name: str, thing: object, skip: bool, options: object) -> bool | None:
    """Whether autodoc passes over a name; None leaves it to autodoc."""
    if what == "class":
        return True if name == "model_config" or is_stage(thing) else None  # what pydantic and a stage put there
    undocumented = (inspect.isroutine(thing) or inspect.isclass(thing)) and not inspect.getdoc(thing)
    return False if undocumented and not name.startswith("_") else None  # its signature may say enough


def is_stage(thing: object) -> bool:
    return type(thing).__name__ == "Stage"


def is_parameters(thing: object) -> bool:
    return inspect.isclass(thing) and hasattr(thing, "model_fields")


def called(thing: object) -> tuple[str, str] | None:
    """How a stage and its parameters are called, where their signatures are not what a reader wants."""
    if is_stage(thing):
        return "(**parameters)", "Result"
    return ("", "") if is_parameters(thing) else None


def told(thing: object, lines: list[str]) -> None:
    """Add to the docstrings of stages and their parameters what `python -m rules2ranks show` says of them."""
    if is_stage(thing):
        lines += ["", f"Parameters: those of `{thing.Params.__module__}.{thing.Params.__name__}`."]
    elif is_parameters(thing):
        for name, field in thing.model_fields.items():
            value = repr(field.get_default(call_default_factory=True))
            default = "" if field.is_required() or len(value) > LONGEST else f", default ``{value}``"
            said = f": {field.description}" if field.description else ""
            lines += ["", f"* ``{name}``, {in_words(field.annotation)}{default}{said}"]


def as_rst(what: str, lines: list[str]) -> None:
    """Turn a docstring, written to be read as it is, into what docutils understands; in place, as autodoc wants it."""
    text, literal = [], False
    for line in lines:
        table = line.startswith("|")
        code = what == "module" and line.startswith("    ") and (literal or not text[-1])
        if (table or code) and not literal and not "".join(text).endswith("::"):
            text += ["::", ""]
        literal = table or code
        if not line.startswith("Alias for field number"):  # Python's own words on a named tuple
            text.append(line if code else f"    {line}" if table else escaped(line))
    # Of a constant the words before a colon would be taken for its type.
    for style in () if what in ("attribute", "data", "property") else (NumpyDocstring, GoogleDocstring):
        text = style(text, SECTIONS, what=what).lines()
    lines[:] = text


def escaped(line: str) -> str:
    """A line in which bars and a low line that ends a word mean themselves, outside of code."""
    parts = re.split(r"(`[^`]*`)", line)
    parts[::2] = [re.sub(r"\||(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
    return "".join(parts)

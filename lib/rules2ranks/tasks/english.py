"""English that every installation has: the prose of the docstrings of pinned packages, the same on every machine.

It is read from their source files; nothing is imported and nothing is fetched. The versions of the packages decide the
texts, so name them beside a result.
"""

import ast
import importlib.util
import inspect
import re
import warnings
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

#: Packages of `requirements.txt` whose docstrings are long and well written.
PACKAGES = ("numpy", "scipy", "pandas", "matplotlib", "torch", "transformers")
#: A paragraph is prose if it has so many words, and so large a share of letters and blanks, and no sign of code.
WORDS, LETTERS, CODE = 40, 0.94, re.compile(r">>>|::|--|[`_=<>|{}\\]|\(\)|\.\. |https?:")

#: So many words at an end are taken for a sign that one paragraph is a copy of another.
ALIKE = 6


def paragraphs(packages: Sequence[str] = PACKAGES) -> list[str]:
    """Different paragraphs of prose, in the order of packages, files and lines; each on one line.

    Of those that begin or end with the same words only the first is taken: they are often copies with little changed.

    Raises:
        ValueError: a package that is not installed.
    """
    found, begun, ended = [], set(), set()
    for text in (text for package in packages for text in _prose(package)):
        words = text.lower().split()
        first, last = tuple(words[:ALIKE]), tuple(words[-ALIKE:])
        if first not in begun and last not in ended:
            found.append(text)
        begun.add(first)
        ended.add(last)
    return found


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """The versions that the texts follow from."""
    return {package: metadata.version(package).partition("+")[0] for package in packages}


def _prose(package: str) -> Iterator[str]:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ValueError(f"{package} is not installed: its docstrings are wanted as texts")
    for path in sorted(Path(found.origin).parent.rglob("*.py")):
        if "tests" in path.parts:
            continue
        for docstring in _docstrings(path):
            for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
                if _is_prose(paragraph):
                    yield " ".join(paragraph.split())


def _docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in the sources of others
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # a template, or a file for another version of Python
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield text


def _is_prose(paragraph: str) -> bool:
    if CODE.search(paragraph) or len(paragraph.split()) < WORDS or not paragraph.rstrip().endswith("."):
        return False
    plain = sum(letter.isalpha() or letter.isspace() for letter in paragraph)
    return paragraph[0].isupper() and plain / len(paragraph) >= LETTERS

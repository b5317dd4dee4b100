"""How the columns of a table are set: numbers to the right, words to the left, and no more breaks than they need."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bs4 import BeautifulSoup, Tag
from docutils import nodes

NUMBER = re.compile(r"[+\-−±~(]?(\d|\.\d|∞|inf\b|nan\b)", re.IGNORECASE)
#: The most characters of a cell that stands in one line, in a column of numbers (with intervals) and in one of words;
#: more characters than the last ask for a wide column.
NUMBERS, WORDS, SENTENCE = 42, 24, 80


def kind(column: list[str]) -> str:
    """What a column holds, as the class by which it is set: `numbers`, `words`, `text` or `long` text."""
    said = [text for text in map(str.strip, column) if text]
    longest = max(map(len, said), default=0)
    if longest <= NUMBERS and sum(map(bool, map(NUMBER.match, said))) >= 0.75 * len(said):
        return "numbers"
    return "words" if longest <= WORDS else "text" if longest <= SENTENCE else "long"


def of_pandas(html: str) -> str:
    """A notebook's output whose tables have one line of heads where one is enough, and columns that say their kind."""
    page = BeautifulSoup(html, "html.parser")
    for table in page.select("table.dataframe"):
        merge(table.thead.find_all("tr"))
        for cells in columns(table):
            body = [cell for cell in cells if cell.parent.parent is table.tbody]
            found = kind([cell.get_text() for cell in body])
            named = found == "numbers" and body[0].name == "th"  # a number in the index is a name
            for cell in cells:
                cell["class"] = "words" if named else found
    return str(page)


def merge(heads: list[Tag]) -> None:
    """Put the names of the index, which pandas writes in a line of their own, into the empty cells above them."""
    if len(heads) < 2:
        return
    above, names = (row.find_all("th") for row in heads[-2:])
    named = [cell for cell in names if cell.get_text()]
    if len(above) == len(names) and not any(cell.get_text() for cell in above[: len(named)]):
        for empty, name in zip(above, named, strict=False):
            empty.string = name.get_text()
        heads[-1].decompose()


def columns(table: Tag) -> Iterator[list[Tag]]:
    """The cells of each column, with the heads that are that column's alone."""
    rows = [row.find_all(["th", "td"]) for row in table.find_all("tr") if not row.select("[colspan]")]
    for place in range(-max(map(len, rows)), 0):  # counted from the right: on the left, a cell may span several rows
        yield [row[place] for row in rows if len(row) >= -place]


def of_docutils(table: nodes.table) -> None:
    """Give the cells of a table in Markdown the classes of their columns, in place."""
    rows = [list(row.findall(nodes.entry)) for row in table.findall(nodes.row)]
    for cells in zip(*rows, strict=False):
        found = kind([cell.astext() for cell in cells if not isinstance(cell.parent.parent, nodes.thead)])
        for cell in cells:
            cell["classes"].append(found)

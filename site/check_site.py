"""The site as a reader has it: built anew, opened in Chromium from the disk, every page at two widths.

Called by `site/check`, in the environment that `make site` makes.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "lib")]

import tabling  # noqa: E402
from rules2ranks import automata  # noqa: E402

WIDE, NARROW = 1200, 390
CANNOT = 77  # what `site/check` ends with where there is no browser
NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        found = next(filter(None, map(shutil.which, NAMES)), own if own.exists() else None)
        if not found:
            pytest.exit("no Chromium: `apt install chromium`, or `.venv-site/bin/playwright install chromium`", CANNOT)
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pages; after the browser, which may be missing, for building takes longer than looking."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run([sys.executable, HERE / "build.py", folder], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "html"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": WIDE, "height": 800}, reduced_motion="reduce")
    yield page
    page.close()


# --- every page -------------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """What a page links to, what it loads, and the places in it that can be linked to."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.loaded, self.places = set(), set(), {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        has = {name: value or "" for name, value in attributes}
        self.places.add(has.get("id", ""))
        if tag == "a":
            self.links.add(has.get("href", ""))
        elif tag in ("img", "script", "link") and has.get("rel") not in ("index", "search", "next", "prev"):
            self.loaded.add(has.get("src") or has.get("href") or "")


@cache
def read(path: Path) -> Links:
    return Links(path.read_text(encoding="utf-8"))


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    wrong: list[tuple[str, str]] = []
    for path in sorted(site.rglob("*.html")):
        name, page = str(path.relative_to(site)), read(path)
        wrong += [(name, f"loads {link}") for link in page.loaded if urlsplit(link).scheme not in ("", "data")]
        wrong += [(name, f"{link} leads nowhere") for link in page.links | page.loaded if not leads(path, link)]
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong)


def leads(path: Path, link: str) -> bool:
    """Whether a link from a page is to another host, or to a file of the site and a place in it that are there."""
    address, place = urldefrag(link)
    if urlsplit(link).scheme:
        return True
    target = (path.parent / unquote(urlsplit(address).path)).resolve() if address else path
    if target.suffix != ".html" or "=" in place:  # such places are settings, which the explorer reads
        return target.is_file()
    return target.is_file() and unquote(place) in read(target).places


def test_a_term_is_linked_where_it_first_stands_and_a_paper_too(site: Path) -> None:
    text = (site / "notebooks" / "22_edge_of_chaos.html").read_text(encoding="utf-8")
    article = text[text.index("<article") : text.index("</article")]
    for link in ("../glossary.html#term-LZ76", "../glossary.html#term-linear-loss", "https://arxiv.org/abs/2410.02536"):
        assert article.count(f'href="{link}"') == 1, link
    assert "#term-" not in (site / "api" / "complexity.html").read_text(encoding="utf-8")


def test_no_page_fails_asks_another_host_or_scrolls_sideways(site: Path, page: Page) -> None:
    wrong: list[tuple[str, str]] = []
    name = ""
    page.on("pageerror", lambda error: wrong.append((name, f"script: {error}")))
    page.on("console", lambda said: said.type in ("error", "warning") and wrong.append((name, said.text)))
    page.on("request", lambda one: one.url.startswith(("file:", "data:")) or wrong.append((name, f"asks {one.url}")))
    page.on("requestfailed", lambda one: wrong.append((name, f"lacks {one.url}")))
    for path in sorted(site.rglob("*.html")):
        name = str(path.relative_to(site))
        page.set_viewport_size({"width": WIDE, "height": 800})
        page.goto(path.as_uri())
        wrong += [(name, f"broken picture {source}") for source in page.evaluate(BROKEN)]
        wrong += [
            (name, f"{lines} sticks out") for lines in page.evaluate(CUT) if name.startswith(("notebooks/", "docs/"))
        ]
        for width in (WIDE, NARROW):
            page.set_viewport_size({"width": width, "height": 800})
            wrong += [(name, f"{over} at {width}") for over in page.evaluate(SIDEWAYS)]
        wrong += [(name, what) for what in page.evaluate(ASKEW) + page.evaluate(TINY)]
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong)


BROKEN = "[...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src)"
# The theme lets the text's column scroll in narrow windows, so that the page as a whole never does.
SIDEWAYS = """[document.documentElement, document.querySelector(".content")]
    .filter(box => box.scrollWidth > box.clientWidth).map(box => `${box.tagName} is ${box.scrollWidth} wide`)"""

CUT = """[...document.querySelectorAll("article pre")]
    .filter(box => box.scrollWidth > box.clientWidth).map(box => box.textContent.slice(0, 60))"""
# Numbers stand to the right and words to the left, and the head of a column where the column does.
ASKEW = """[...document.querySelectorAll("article table :is(td, th):is(.numbers, .words, .text, .long)")]
    .filter(cell => (getComputedStyle(cell).textAlign === "right") !== cell.matches("td.numbers, thead .numbers"))
    .map(cell => `"${cell.textContent.trim()}" of a table stands on the wrong side`)"""
# In the narrow window, in which the page is by then.
TINY = """[...document.querySelectorAll("article :is(.cell_output, p) img:not(.cells)")]
    .filter(image => image.clientWidth < 34 * 16).map(image => `picture of ${image.clientWidth} pixels`)"""


def test_tables_have_one_line_of_heads_where_one_is_enough(site: Path) -> None:
    text = (site / "notebooks" / "22_edge_of_chaos.html").read_text(encoding="utf-8")
    heads = [re.findall(r"<th[^>]*>([^<]*)</th>", head) for head in re.findall(r"<thead>.*?</thead>", text, re.DOTALL)]
    assert ["task", "measure", "all rules", "complex", "simple", "given how learnt"] in heads
    assert ["question", "paper", "here", "reading"] in heads


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (["0.63 [0.44, 0.76]", "−0.12 (p = 0.01)", "", "not run", "∞"], "numbers"),
        (["holds", "undecided", "3"], "words"),
        (["1", "how many phrases have not been there before?"], "text"),
        (["0.72", "loss " * 20], "long"),
    ],
)
def test_a_column_is_set_by_what_it_holds(column: list[str], kind: str) -> None:
    assert tabling.kind(column) == kind


def test_a_picture_is_told_in_the_words_of_the_cell_that_draws_it(site: Path) -> None:
    for path in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
        page = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        told = [cell["metadata"]["alt"] for cell in json.loads(path.read_text())["cells"] if "alt" in cell["metadata"]]
        assert not [alt for alt in told if f'alt="{escape(alt, quote=False)}"' not in page], path.stem


def test_the_search_finds_what_it_should(site: Path, page: Page) -> None:
    page.goto(f"{(site / 'search.html').as_uri()}?q=LZ76")
    page.wait_for_function("document.querySelector('#search-results .search-summary')?.textContent.includes('found')")
    found = page.locator("#search-results li a").evaluate_all("links => links.map(link => link.textContent)")
    assert any("How complex is a rule?" in title for title in found)
    assert any("LZ76" in title for title in found)  # the glossary's own entry


# --- the explorer -----------------------------------------------------------------------------------------------

DRAWN = """canvas => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return [canvas.width, [...data].filter((_, place) => place % 4 === 0).map(red => red === 0 ? 1 : 0)];
}"""


def drawn(page: Page) -> np.ndarray:
    page.wait_for_function("document.querySelector('[name=pause]').disabled")  # all rows are there
    width, cells = page.locator("canvas").evaluate(DRAWN)
    return np.reshape(cells, (-1, width))


def test_the_explorer_draws_what_the_library_computes(site: Path, page: Page) -> None:
    page.goto((site / "explorer.html").as_uri())
    page.get_by_label("Rule", exact=True).fill("30")
    rows = drawn(page)
    assert rows.shape[1] == 161
    np.testing.assert_array_equal(rows, automata.simulate(30, automata.single_cell(161), len(rows) - 1))
    page.get_by_label("First row").select_option("random")
    page.get_by_label("Seed").fill("5")
    page.get_by_label("Beyond the edges").select_option("zeros")
    page.get_by_label("Width").fill("90")
    page.get_by_label("1 0 0 becomes 1").click()  # rule 14 then
    rows = drawn(page)
    assert 25 < rows[0].sum() < 65
    np.testing.assert_array_equal(rows, automata.simulate(14, rows[0], len(rows) - 1, boundary="fixed0"))


def test_the_explorer_says_what_it_draws_and_its_address_keeps_it(site: Path, page: Page) -> None:
    page.goto(f"{(site / 'explorer.html').as_uri()}#rule=90&width=63")
    drawn(page)
    said = page.locator("output").text_content()
    assert "Rule 90, class III" in said and "165" in said and page.locator("canvas").get_attribute("aria-label") == said
    page.get_by_label("Slide").fill("204")
    drawn(page)
    assert "rule=204" in page.url and "repeat every 1" in page.locator("output").text_content()


def test_without_scripts_there_is_a_picture_and_the_whole_table(site: Path, browser: Browser) -> None:
    plain = browser.new_page(java_script_enabled=False)
    plain.goto((site / "explorer.html").as_uri())
    assert plain.get_by_alt_text("Rows of all 256 rules").bounding_box()["height"] > 100
    assert not plain.locator("form.explorer").is_visible()
    plain.goto((site / "measures.html").as_uri())
    assert plain.locator(".measures tbody tr").count() == len(automata.representatives())
    plain.close()


# --- the table --------------------------------------------------------------------------------------------------


def test_the_measures_are_sorted_by_the_column_that_is_pressed(site: Path, page: Page) -> None:
    page.goto((site / "measures.html").as_uri())
    head = page.get_by_role("columnheader", name="LZ76 phrases")
    column = "rows => rows.map(row => Number(row.cells[3].dataset.value))"
    for order, step in (("ascending", 1), ("descending", -1)):
        head.get_by_role("button").click()
        values = page.locator(".measures tbody tr").evaluate_all(column)
        assert head.get_attribute("aria-sort") == order
        assert values == sorted(values)[::step] and len(set(values)) > 50
    assert page.get_by_role("status").text_content() == "Sorted by LZ76, highest first."
    assert page.locator(".measures tbody th").first.text_content() in ("30", "45", "60", "90", "105", "106", "150")

"""Builds the site: lays its source out in one folder, as Sphinx wants it, and calls Sphinx.

    python site/build.py [FOLDER]

FOLDER (`build/site`) gets `html/`, and beside it what that was made from.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
sys.path.insert(0, str(REPOSITORY / "lib"))

from sphinx.cmd.build import build_main  # noqa: E402

import citing  # noqa: E402
import measuring  # noqa: E402
import referring  # noqa: E402

#: What pages are, or include, at the places that their links have in mind.
READ = ("README.md", "CITATION.cff", "docs", "notebooks", "data/reference/headline.png", "data/reference/scorecard.csv")


def lay_out(source: Path) -> None:
    """Pages, notebooks and what is made for them."""
    shutil.copytree(HERE / "pages", source)
    for name in READ:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy2
        copy(REPOSITORY / name, source / name)
    for write in (citing.write, measuring.write, referring.write):
        write(source)


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "build" / "site"
    source, html, doctrees = (folder / name for name in ("source", "html", "doctrees"))
    for old in (source, html, doctrees, folder / "jupyter_execute"):  # all anew: Sphinx warns of what it reads only
        shutil.rmtree(old, ignore_errors=True)
    lay_out(source)
    # A warning is an error: a link that leads nowhere, a docstring that cannot be read.
    strict = ["--fail-on-warning", "--keep-going", "--quiet"]
    failed = build_main([*strict, "-c", str(HERE), "-d", str(doctrees), "-b", "html", str(source), str(html)])
    if not failed:
        print(f"The site is in {html}: open index.html there.")
    return failed


if __name__ == "__main__":
    sys.exit(main())

"""Knows when a notebook's result is out of date: a digest of its code, of the library and of the data it reads."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

_DATA = {".csv", ".json", ".safetensors"}
# Results are compared with the expected values, never made from them; no notebook reads how fast anything is.
_UNREAD = {"expected", "bench.csv", "bench_training.csv", "bench_recovery.csv", "bench_scale.csv"}


def code(source: str) -> str:
    """Python source as a string that comments, docstrings and layout do not change."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            node.body = body[1:]
    return ast.dump(tree)


def notebook_code(path: Path) -> str:
    """The code cells of a notebook, as they stand: prose, outputs and metadata do not count."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def library(repository: Path) -> str:
    """One digest of all that a notebook may call or read: the library's code and the tables and models in `data/`."""
    digest = hashlib.sha256()
    for path in sorted((repository / "lib").rglob("*.py")):
        digest.update(f"{path.relative_to(repository)}\n{code(path.read_text(encoding='utf-8'))}\n".encode())
    for path in sorted((repository / "data").rglob("*")):
        if path.suffix in _DATA and not _UNREAD & set(path.relative_to(repository).parts):
            digest.update(f"{path.relative_to(repository)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def notebook(path: Path, library_digest: str) -> str:
    """The digest that Snakemake keeps with a result: 16 hexadecimal digits."""
    return hashlib.sha256(f"{library_digest}\n{notebook_code(path)}".encode()).hexdigest()[:16]

"""What the pages on rules show: measures of complexity, as a table and as JSON, and a picture of all 256 rules."""

from __future__ import annotations

import json
import math
import struct
import zlib
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from rules2ranks import automata, complexity

SEEDS = 20
ROMAN = {1: "I", 2: "II", 3: "III", 4: "IV"}
TILE_WIDTH, TILE_ROWS, GAP = 40, 27, 4


def write(source: Path) -> None:
    """What pages include in `made/`, what they link to in `made/static/`."""
    made, static = source / "made", source / "made" / "static"
    static.mkdir(parents=True, exist_ok=True)
    table = complexity.table(automata.representatives(), seeds=range(SEEDS))
    (static / "measures.json").write_text(as_json(table), encoding="utf-8")
    (made / "measures.html").write_text(as_html(table), encoding="utf-8")
    classes = "".join(map(str, complexity.wolfram_classes()["class"]))
    (static / "rules.js").write_text(f'const WOLFRAM_CLASSES = "{classes}";\n', encoding="utf-8")
    (static / "all-rules.png").write_bytes(png(sheet()))


# --- the table --------------------------------------------------------------------------------------------------


def as_json(table: pd.DataFrame) -> str:
    """Column names, and a list of numbers a rule: five digits that count, null where there is no finite number."""
    table = table.reset_index()
    rows = [[short(value) for value in row] for row in table.itertuples(index=False)]
    return json.dumps({"starts": SEEDS, "columns": list(table), "rules": rows}, separators=(",", ":"))


def short(value: float) -> float | None:
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return int(value)


def as_html(table: pd.DataFrame) -> str:
    """Every measure of every rule; a cell holds the whole number too, by which the page's script sorts."""
    heads = ["rule", "the same rule", "class"]
    heads += [f"{escape(one.label)}<small>{escape(one.unit)}</small>" for one in complexity.MEASURES.values()]
    head = "".join(f'<th scope="col">{head}</th>' for head in heads)
    body = "\n".join(line(rule, row) for rule, row in table.iterrows())
    return f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n"


def line(rule: int, row: pd.Series) -> str:
    others = sorted(set(automata.equivalents(rule).values()) - {rule})
    wolfram = ROMAN[row["wolfram_class"]] + ("?" if row["disputed"] else "")
    cells = [
        f'<th scope="row" data-value="{rule}"><a href="explorer.html#rule={rule}">{rule}</a></th>',
        f'<td data-value="{len(others)}">{", ".join(map(str, others)) or "–"}</td>',
        f'<td data-value="{row["wolfram_class"]}">{wolfram}</td>',
        *(f'<td data-value="{row[name]:.6g}">{rounded(row[name])}</td>' for name in complexity.MEASURES),
    ]
    return f"<tr>{''.join(cells)}</tr>"


def rounded(value: float) -> str:
    """Three digits that count, of whole numbers all; with a true minus."""
    digits = f"{value:#.3g}".rstrip(".") if isinstance(value, float) else str(value)
    return digits.replace("inf", "∞").replace("-", "−")


# --- the picture ------------------------------------------------------------------------------------------------


def sheet() -> np.ndarray:
    """All 256 rules from one random start, sixteen in a line: 1 is black."""
    start = automata.random_states((), TILE_WIDTH, seed=0)
    tiles = np.stack([automata.simulate(rule, start, TILE_ROWS - 1) for rule in range(256)])
    apart = np.pad(tiles, ((0, 0), (0, GAP), (0, GAP)))
    lines = apart.reshape(16, 16, *apart.shape[1:]).swapaxes(1, 2)
    return lines.reshape(16 * (TILE_ROWS + GAP), 16 * (TILE_WIDTH + GAP))[:-GAP, :-GAP]


def png(cells: np.ndarray) -> bytes:
    """Zeros and ones as a picture of one bit a pixel, 1 black."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b"".join(b"\0" + line.tobytes() for line in np.packbits(1 - cells, axis=1))
    head = struct.pack(">IIBBBBB", cells.shape[1], cells.shape[0], 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")

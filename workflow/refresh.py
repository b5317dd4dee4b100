"""Executes the committed notebooks with their own defaults and writes the outputs back without times and other noise.

    python workflow/refresh.py [notebooks/10_automata.ipynb ...]

A notebook that raises an error stays as it was. The values in `data/expected/` follow; their tolerances stay.
"""

from __future__ import annotations

import base64
import io
import json
import platform
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from PIL import Image

import results
from rules2ranks.stages import parameters

EXPECTED = results.REPOSITORY / "data" / "expected"
# These two tell what the others found.
LAST = ["90_scorecard", "00_start_here"]
# What JupyterLab writes, to the letter: it marks a notebook as changed on opening where this differs from the kernel.
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
        "version": platform.python_version(),
    },
}
KEPT = ("tags", "alt")
WIDGET = "application/vnd.jupyter.widget-view+json"


def lasting(output: NotebookNode) -> bool:
    """Whether an output is worth keeping: progress bars and warnings on stderr, and live widgets, are not."""
    if output.output_type == "stream":
        return output.name == "stdout"
    return WIDGET not in output.get("data", {})


def clean(notebook: NotebookNode) -> NotebookNode:
    """Take out, in place, all that differs between two runs of the same code.

    Cells tagged `nbval-ignore-output` (times, interactive parts) keep no outputs; of the metadata only the tags stay,
    and what a picture shows, in words.
    """
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({name: cell.metadata[name] for name in KEPT if cell.metadata.get(name)})
        if cell.cell_type == "code":
            same = "nbval-ignore-output" not in tags
            cell.outputs = [output for output in cell.outputs if same and lasting(output)]
            for output in cell.outputs:
                output.pop("transient", None)
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = small(output.data["image/png"])
    return notebook


def small(picture: str) -> str:
    """A PNG, in base64, with a palette of its 256 most fitting colours: a third of the bytes, and looks the same."""
    drawn = Image.open(io.BytesIO(base64.b64decode(picture)))
    if drawn.mode == "P":
        return picture
    buffer = io.BytesIO()
    # Not by how often colours occur, Pillow's default: that takes a few orange dots for yellow.
    few = drawn.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode() + "\n"


def expect(name: str, metrics: dict[str, float | int | str]) -> None:
    """Bring `data/expected/<name>.json` up to date; a metric that is new gets no tolerance, so it has to be exact."""
    path = EXPECTED / f"{name}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    exact = {"value": None, "tolerance": 0}
    after = {key: before.get(key, exact) | {"value": value} for key, value in metrics.items()}
    path.write_text(json.dumps(after, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if new := [key for key in after if key not in before and isinstance(after[key]["value"], float)]:
        print(f"  {path.relative_to(results.REPOSITORY)}: give a tolerance to {', '.join(new)}")


def refresh(path: Path) -> bool:
    """Execute one notebook and write it back; False, and the file untouched, where it raised an error."""
    begin = time.monotonic()
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=40"],
        resources={"metadata": {"path": path.parent}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        print(f"{path.name}: FAILED, left as it was\n{error}", file=sys.stderr)
        return False
    text = nbformat.writes(clean(notebook)) + "\n"
    changed = text != path.read_text(encoding="utf-8")
    if changed:
        path.write_text(text, encoding="utf-8")
    print(f"{path.name}: {'refreshed' if changed else 'unchanged'}, {time.monotonic() - begin:.0f} s", flush=True)
    return True


def main(names: list[str]) -> int:
    """Refresh the named notebooks, or all; the exit status tells how many failed."""
    values = results.values("fast")
    chosen = [Path(name).stem for name in names] or list(values)
    failed = 0
    for name in sorted(chosen, key=lambda name: (name in LAST and LAST.index(name) + 1, name)):
        if refresh(results.REPOSITORY / "notebooks" / f"{name}.ipynb"):
            found = parameters.folder(name, values[name]) / "metrics.json"
            expect(name, json.loads(found.read_text(encoding="utf-8")))
        else:
            failed += 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

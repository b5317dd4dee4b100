"""The workflow: when a result counts as out of date, what is taken out of refreshed notebooks, and what is pinned."""

from __future__ import annotations

import base64
import io
import tomllib
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import digest
import refresh
import results
import tolerances

REPOSITORY = Path(__file__).resolve().parents[1]
BINDER = "binder/environment.yml"


def new_notebook(prose: str, code: str) -> nbformat.NotebookNode:
    cells = [nbformat.v4.new_markdown_cell(prose), nbformat.v4.new_code_cell(code)]
    return nbformat.v4.new_notebook(cells=cells)


# --- digests ----------------------------------------------------------------------------------------------------


def test_only_code_makes_a_notebook_out_of_date(tmp_path: Path) -> None:
    def of(prose: str, code: str, library: str = "a") -> str:
        nbformat.write(new_notebook(prose, code), tmp_path / "notebook.ipynb")
        return digest.notebook(tmp_path / "notebook.ipynb", library)

    assert of("# Title", "x = 1") == of("# Another title", "x = 1")
    assert of("# Title", "x = 1") != of("# Title", "x = 2")
    assert of("# Title", "x = 1") != of("# Title", "x = 1", library="b")


def test_comments_and_docstrings_of_the_library_do_not_count() -> None:
    plain = "def f(x: int) -> int:\n    return x + 1\n"
    told = '"""Module."""\n\n\ndef f(x: int) -> int:\n    """Adds one."""\n    # because\n    return x + 1\n'
    assert digest.code(plain) == digest.code(told)
    assert digest.code(plain) != digest.code(plain.replace("1", "2"))


def test_the_library_and_its_data_count_and_what_no_notebook_reads_does_not(tmp_path: Path) -> None:
    for name in ("lib/module.py", "data/table.csv", "data/expected/10_automata.json", "data/reference/bench.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1", encoding="utf-8")
    before = digest.library(tmp_path)
    for name in ("data/expected/10_automata.json", "data/reference/bench.csv", "data/reference/bench_training.csv"):
        (tmp_path / name).write_text("2", encoding="utf-8")
    assert digest.library(tmp_path) == before
    for name in ("lib/module.py", "data/table.csv"):
        (tmp_path / name).write_text("2", encoding="utf-8")
        assert digest.library(tmp_path) != before
        (tmp_path / name).write_text("1", encoding="utf-8")
    assert digest.library(tmp_path) == before


# --- refreshed notebooks ----------------------------------------------------------------------------------------


def test_clean_takes_out_what_differs_between_runs() -> None:
    output = nbformat.v4.new_output
    notebook = new_notebook("# Title", "print(1)")
    notebook.metadata = nbformat.from_dict({"papermill": {"duration": 1.2}, "kernelspec": {"name": "mine"}})
    code = notebook.cells[1]
    code.metadata = nbformat.from_dict({"execution": {"iopub.status.busy": "now"}, "tags": ["chosen"], "alt": "A 1."})
    kept = [output("stream", name="stdout", text="1\n"), output("display_data", data={"text/plain": "a figure"})]
    widget = output("display_data", data={refresh.WIDGET: {"model_id": "f00"}, "text/plain": "HBox()"})
    code.outputs = [*kept, output("stream", name="stderr", text="12%"), widget]
    timed = nbformat.v4.new_code_cell("time()", metadata={"tags": ["nbval-ignore-output"]}, outputs=[kept[0]])
    notebook.cells.append(timed)

    cleaned = refresh.clean(notebook)
    assert cleaned.metadata == refresh.METADATA
    assert cleaned.cells[1].metadata == {"tags": ["chosen"], "alt": "A 1."}
    assert cleaned.cells[1].outputs == kept
    assert cleaned.cells[2].outputs == []
    nbformat.validate(cleaned)


def test_a_stored_picture_is_smaller_and_looks_the_same() -> None:
    fig, ax = plt.subplots(dpi=200)
    ax.imshow(np.random.default_rng(0).random((9, 9)), cmap="viridis")
    ax.scatter([-0.9], [-0.9], color="#E69F00", s=4)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png")
    plt.close(fig)
    drawn = base64.b64encode(buffer.getvalue()).decode()
    stored = refresh.small(drawn)
    assert len(stored) < 0.6 * len(drawn)
    before, after = (Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB") for each in (drawn, stored))
    assert before.size == after.size
    assert np.abs(np.asarray(before, int) - np.asarray(after, int)).max() < 16
    assert refresh.small(stored) == stored


# --- profiles ---------------------------------------------------------------------------------------------------


def test_an_unknown_profile_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no profile 'huge'; there are fast"):
        results.values("huge")
    with pytest.raises(ValueError, match=r"no profile '\.\./profiles/fast'"):
        results.values("../profiles/fast")


def test_a_profile_changes_the_fast_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "profiles").mkdir()
    (tmp_path / "notebooks" / "90_scorecard.ipynb").touch()
    (tmp_path / "profiles" / "fast.yaml").write_text("90_scorecard: {digits: 2}\n")
    (tmp_path / "profiles" / "more.yaml").write_text("90_scorecard: {digits: 3}\nreference: {}\n")
    (tmp_path / "profiles" / "same.yaml").write_text("reference: {}\n")
    (tmp_path / "profiles" / "wrong.yaml").write_text("91_scorecard: {digits: 3}\n")
    (tmp_path / "profiles" / "odd.yaml").write_text("90_scorecard: {digit: 3}\n")
    monkeypatch.setattr(results, "REPOSITORY", tmp_path)
    assert results.values("fast") == results.values("same") == {"90_scorecard": {"digits": 2}}
    assert results.values("more") == {"90_scorecard": {"digits": 3}}
    with pytest.raises(ValueError, match="91_scorecard"):
        results.values("wrong")
    (tmp_path / "notebooks" / "10_automata.ipynb").touch()
    with pytest.raises(ValueError, match="10_automata"):
        results.values("fast")
    (tmp_path / "notebooks" / "10_automata.ipynb").unlink()
    with pytest.raises(ValueError, match="digits"):
        results.values("odd")


# --- pins -------------------------------------------------------------------------------------------------------


def pins(file: str = "requirements.txt") -> dict[str, Requirement]:
    lines = (REPOSITORY / file).read_text(encoding="utf-8").splitlines()
    stated = [line.partition("#")[0] for line in lines if not line.startswith("-c")]
    found = [Requirement(line) for line in stated if line.strip()]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def test_every_requirement_is_pinned_exactly_and_comes_from_any_index() -> None:
    for name, requirement in pins().items():
        (pin,) = requirement.specifier
        assert pin.operator == "==" and "+" not in pin.version and "*" not in pin.version, name
        assert requirement.url is None, name


def test_the_site_takes_the_versions_of_the_project_and_pins_what_else_it_needs() -> None:
    assert "\n-c ../requirements.txt\n" in (REPOSITORY / "site" / "requirements.txt").read_text(encoding="utf-8")
    for name, requirement in pins("site/requirements.txt").items():
        assert (name in pins()) == (not requirement.specifier), name
        assert all(pin.operator == "==" for pin in requirement.specifier), name


def test_the_pins_fit_the_bounds_of_the_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in project["dependencies"]:
        bound = Requirement(line)
        (pin,) = pins()[canonicalize_name(bound.name)].specifier
        assert bound.specifier.contains(pin.version), line


def test_conda_brings_the_pinned_torch() -> None:
    environment = (REPOSITORY / "environment.yml").read_text(encoding="utf-8")
    (pin,) = pins()["torch"].specifier
    assert f"pytorch-cpu={pin.version}" in environment


def test_tolerances_come_from_the_spread_over_seeds() -> None:
    one = {"n": 3, "same": 0.5, "near": 1.0, "wide": 1.0, "all": 1.0}
    found = [one, {"n": 4, "same": 0.5, "near": 1.001, "wide": 2.0, "all": 1.0}]
    entries = tolerances.expected(found, (0, 1))
    assert {key: entry["value"] for key, entry in entries.items()} == found[0]
    # Exact; rounding only; 5 % of the value; 4 standard deviations of 1 and 2, each sqrt(1/2).
    wanted = {"n": 0, "same": 1e-6, "near": 0.05, "wide": 2.8, "all": 0.01}
    assert {key: entry["tolerance"] for key, entry in entries.items()} == pytest.approx(wanted)


def test_binder_builds_the_same_environment() -> None:
    ours, binders = (yaml.safe_load((REPOSITORY / place).read_text()) for place in ("environment.yml", BINDER))
    requirements = ours["dependencies"].pop()["pip"], binders["dependencies"].pop()["pip"]
    assert requirements == (["-r requirements.txt"], ["-r ../requirements.txt"])
    assert ours == binders
    assert (REPOSITORY / BINDER).parent.joinpath("../requirements.txt").is_file()

"""The committed notebooks: form, outputs, parameters and links; and that the checks on their outputs really check."""

from __future__ import annotations

import ast
import io
import json
import re
import shutil
import subprocess
import sys
import tokenize
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nbformat
import pytest
import yaml

import refresh
from rules2ranks.stages import parameters

REPOSITORY = Path(__file__).resolve().parents[1]
PATHS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
FAST = yaml.safe_load((REPOSITORY / "profiles" / "fast.yaml").read_text(encoding="utf-8"))
TAGS = {"parameters", "nbval-check-output", "nbval-ignore-output", "hide-input", "remove-cell"}
TORCH_FREE = ("10_automata", "11_complexity")

each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def cells(path: Path, kind: str = "code") -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def outputs(path: Path) -> list[nbformat.NotebookNode]:
    return [output for cell in cells(path) for output in cell.outputs]


def texts(path: Path) -> str:
    """All that a reader sees, as text: sources, streams, and the textual forms of what is shown."""
    found = [cell.source for cell in nbformat.read(path, as_version=4).cells]
    for output in outputs(path):
        found.append(output.get("text", ""))
        found += [str(shown) for kind, shown in output.get("data", {}).items() if not kind.startswith("image/")]
    return "\n".join(found)


def tagged(path: Path, tag: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in cells(path) if tag in cell.metadata.get("tags", [])]


def defaults(path: Path) -> dict[str, Any]:
    """The names and values that the parameters cell sets."""
    (cell,) = tagged(path, "parameters")
    return {line.target.id: ast.literal_eval(line.value) for line in ast.parse(cell.source).body}


def kept_names(source: str) -> set[str]:
    """Names that a cell leaves behind in the notebook: comprehensions and function bodies keep theirs to themselves."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            todo += ast.iter_child_nodes(node)
    return found


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    code = "\n".join(cell.source for cell in cells(path))
    return [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]


def links(path: Path) -> list[str]:
    """The notebooks beside it that a notebook's prose links to, in order."""
    prose = "\n".join(cell.source for cell in cells(path, "markdown"))
    return re.findall(r"\]\((?:\./)?([\w-]+\.ipynb)(?:#[^)]*)?\)", prose)


def test_there_are_notebooks_and_the_fast_profile_names_each() -> None:
    assert PATHS
    assert [path.stem for path in PATHS] == sorted(set(FAST) - {"reference"})


@each
def test_parameters_keep_their_values(path: Path) -> None:
    """The set-up cell reads them by name: it could not be run again after one of them was used for something else."""
    later = [cell.source for cell in cells(path) if "parameters" not in cell.metadata.get("tags", [])]
    assert not set(defaults(path)) & set().union(*map(kept_names, later))


# --- what is committed ------------------------------------------------------------------------------------------


@each
def test_it_was_run_from_top_to_bottom_and_shows_its_outputs(path: Path) -> None:
    # nbval compares nothing in a cell without a count: a notebook of such cells would pass whatever it shows.
    assert [cell.execution_count for cell in cells(path)] == list(range(1, len(cells(path)) + 1))
    assert outputs(path)
    drawn = [output for output in outputs(path) if "image/png" in output.get("data", {})]
    assert drawn, "no figure is shown"
    assert all("width" in output.metadata.get("image/png", {}) for output in drawn), "not at twice the resolution"


@each
def test_every_picture_is_told_in_words_too(path: Path) -> None:
    """The words stand in the metadata of the cell that draws, as `alt`: one or two sentences on what is to be seen."""
    for cell in cells(path):
        drawn = any("image/png" in output.get("data", {}) for output in cell.outputs)
        alt = cell.metadata.get("alt", "")
        assert bool(alt) == drawn, cell.source.splitlines()[0]
        assert not drawn or (40 <= len(alt) <= 500 and alt.endswith(".")), alt


@each
def test_no_error_warning_or_absolute_path_is_shown(path: Path) -> None:
    assert not [output for output in outputs(path) if output.output_type == "error"]
    assert not [output for output in outputs(path) if output.get("name") == "stderr"]
    assert not re.search(r"Traceback|\b[A-Z]\w+Warning\b", texts(path))
    assert not re.search(r"(?<![\w.:/<])/(?:home|root|tmp|work|Users|private|opt|usr|content)/\w", texts(path))


@each
def test_no_rows_of_a_table_are_left_out(path: Path) -> None:
    assert not [output for output in outputs(path) if "<td>...</td>" in output.get("data", {}).get("text/html", "")]


@each
def test_nothing_that_differs_between_two_runs_is_stored(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        assert set(cell.metadata) <= {"tags", "alt"}, "times of execution and the like: `make refresh` takes them out"
        assert set(cell.metadata.get("tags", [])) <= TAGS
    for cell in tagged(path, "nbval-ignore-output"):
        assert not cell.outputs, "what is not the same twice is not stored: `make refresh` takes it out"


@each
def test_pages_fold_what_sets_up_and_leave_out_what_shows_nothing(path: Path) -> None:
    (setup,) = [cell for cell in cells(path) if ".check(globals())" in cell.source]
    assert "hide-input" in setup.metadata.get("tags", [])
    assert tagged(path, "parameters")[0] not in tagged(path, "hide-input")
    first, last = tagged(path, "remove-cell")
    assert [first, last] == [cells(path)[0], cells(path)[-1]] and not first.outputs and not last.outputs


@each
def test_it_can_be_opened_in_binder_and_in_colab(path: Path) -> None:
    head = cells(path, "markdown")[0].source
    assert f"/rules-to-ranks/rules-to-ranks/HEAD?labpath=notebooks/{path.name})" in head
    assert f"//colab.research.google.com/github/rules-to-ranks/rules-to-ranks/blob/main/notebooks/{path.name})" in head
    assert cells(path)[0].source == cells(PATHS[0])[0].source


@pytest.mark.parametrize("where", ["Colab", "Colab, once more", "Binder"])
def test_on_colab_the_project_is_fetched_and_nothing_happens_elsewhere(where: str, tmp_path: Path, monkeypatch) -> None:
    """What the cell does with the names that Colab has, and with commands that are only noted."""
    commands: list[str] = []
    home = tmp_path / "rules-to-ranks"
    for folder in ("notebooks", "lib/rules2ranks"):
        (home / folder).mkdir(parents=True)
    begin = home / "notebooks" if where == "Colab, once more" else tmp_path
    monkeypatch.chdir(begin)
    monkeypatch.setattr(sys, "path", list(sys.path))
    if where != "Binder":
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    source = cells(PATHS[0])[0].source
    exec(source, {"get_ipython": lambda: SimpleNamespace(system=commands.append)})
    if where == "Colab":
        clone = "git clone -q https://github.com/rules-to-ranks/rules-to-ranks"
        assert commands == [clone, "pip install -q -e rules-to-ranks"]
        assert Path.cwd() == home / "notebooks" and sys.path[0] == str(home / "lib")
    else:
        assert not commands and Path.cwd() == begin and str(home / "lib") not in sys.path


@each
def test_kernel_and_size(path: Path) -> None:
    metadata = nbformat.read(path, as_version=4).metadata
    own = {"version": metadata.language_info.version}  # of the Python that executed it
    as_lab_writes = refresh.METADATA | {"language_info": refresh.METADATA["language_info"] | own}
    assert metadata == as_lab_writes, "JupyterLab would mark it as changed on opening"
    assert path.stat().st_size < 1_500_000


@each
def test_form(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert sum(cell.source.startswith("# ") for cell in cells(path, "markdown")) == 1
    long = [cell.source.splitlines()[0] for cell in cells(path) if len(cell.source.splitlines()) > 30]
    assert not long, f"cells of more than 30 lines: {long}"
    assert "p.finish(" in cells(path)[-1].source, "the last code cell writes metrics.json"


@each
def test_links_lead_to_notebooks_that_exist(path: Path) -> None:
    assert set(links(path)) <= {other.name for other in PATHS}


@pytest.mark.parametrize(("path", "following"), list(pairwise(PATHS)), ids=lambda path: path.stem)
def test_it_ends_with_a_link_to_the_next(path: Path, following: Path) -> None:
    assert links(path)[-1] == following.name


# --- parameters -------------------------------------------------------------------------------------------------


@each
def test_every_parameter_has_a_type_and_a_comment(path: Path) -> None:
    (cell,) = tagged(path, "parameters")
    commented = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(cell.source).readline)
        if token.type == tokenize.COMMENT
    }
    for line in ast.parse(cell.source).body:
        assert isinstance(line, ast.AnnAssign) and line.value is not None, ast.unparse(line)
        assert commented & set(range(line.lineno, line.end_lineno + 1)), f"no comment: {ast.unparse(line)}"


@each
def test_defaults_are_the_fast_profile(path: Path) -> None:
    assert defaults(path) == FAST[path.stem]
    # Equal in Python, yet another type for papermill: 1 and 1.0, True and 1.
    assert {name: type(value) for name, value in defaults(path).items()} == {
        name: type(value) for name, value in FAST[path.stem].items()
    }


@each
def test_the_typed_model_takes_exactly_these_parameters(path: Path) -> None:
    model = parameters.NOTEBOOKS[path.stem]
    assert list(defaults(path)) == list(model.model_fields)
    model.check(defaults(path))


# --- start-up ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TORCH_FREE)
def test_what_needs_no_torch_does_not_load_it(name: str) -> None:
    code = "\n".join(ast.unparse(node) for node in imports(REPOSITORY / "notebooks" / f"{name}.ipynb"))
    assert "torch" not in code
    check = f"{code}\nimport sys\nassert 'torch' not in sys.modules, 'an import brought torch along'"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@each
def test_nothing_captures_output_in_a_widget(path: Path) -> None:
    """`figures.live` says why: executed without a browser, such a notebook stops for good now and then."""
    code = "\n".join(cell.source for cell in cells(path))
    assert not re.search(r"\binteract(ive|ive_output|_manual)?\(|widgets\.Output\b", code)


# --- the checks themselves --------------------------------------------------------------------------------------


def write_notebook(path: Path, source: str, shown: list[dict[str, Any]], *tags: str) -> None:
    cell = nbformat.v4.new_code_cell(source, execution_count=1, outputs=[nbformat.from_dict(each) for each in shown])
    cell.metadata.tags = list(tags)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)


@pytest.mark.slow
def test_nbval_compares_what_it_should_and_nothing_else(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "conftest.py", tmp_path)
    wrong = [{"output_type": "stream", "name": "stdout", "text": "3\n"}]
    right = [{"output_type": "stream", "name": "stdout", "text": "2\n"}]
    noise = [{"output_type": "stream", "name": "stderr", "text": "12%\n"}]
    write_notebook(tmp_path / "10_automata.ipynb", "print(1 + 1)", wrong)
    write_notebook(
        tmp_path / "11_complexity.ipynb", "import sys\nprint(2)\nprint('34%', file=sys.stderr)", right + noise
    )
    write_notebook(tmp_path / "20_unmarked.ipynb", "print(1 + 1)", wrong)
    write_notebook(tmp_path / "21_marked.ipynb", "print(1 + 1)", wrong, "nbval-check-output")
    options = ["-rA", "-q", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", "-p", "no:xdist"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "."], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    outcomes = {name: verdict for verdict, name in re.findall(r"^(PASSED|FAILED) (\w+)\.ipynb::", run.stdout, re.M)}
    assert outcomes == {
        "10_automata": "FAILED",
        "11_complexity": "PASSED",
        "20_unmarked": "PASSED",
        "21_marked": "FAILED",
    }, run.stdout


def test_the_comparison_of_metrics_finds_every_deviation() -> None:
    # Imported here: check_metrics.py is for `make test`, after the notebooks have run.
    from check_metrics import compare

    expected = {
        "accuracy": {"value": 0.9, "tolerance": 0.02},
        "classes": {"value": 88, "tolerance": 0},
        "rule": {"value": "110"},
    }
    good = {"accuracy": 0.915, "classes": 88, "rule": "110"}
    assert compare(expected, good) == []
    for key, value in [("accuracy", 0.93), ("accuracy", float("nan")), ("classes", 87), ("rule", "30"), ("rule", 110)]:
        (message,) = compare(expected, {**good, key: value})
        assert message.startswith(f"{key}:")
    assert compare(expected, {"accuracy": 0.9, "classes": 88}) == ["rule: missing"]
    assert compare(expected, {**good, "more": 1}) == ["more: not expected"]


@each
def test_something_is_expected_of_it(path: Path) -> None:
    expected = json.loads((REPOSITORY / "data" / "expected" / f"{path.stem}.json").read_text(encoding="utf-8"))
    assert expected
    for key, entry in expected.items():
        assert set(entry) <= {"value", "tolerance", "why"}, key
        assert entry.get("tolerance", 0) >= 0, key


@pytest.mark.slow
def test_papermill_stops_in_the_set_up_cell_at_an_unknown_parameter(tmp_path: Path, monkeypatch) -> None:
    """papermill itself only logs an unknown name and goes on with the default."""
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path / "runs"))
    source, target = REPOSITORY / "notebooks" / "20_pretrain.ipynb", tmp_path / "20.ipynb"
    command = [sys.executable, "-m", "papermill", str(source), str(target), "-p", "rul", "30", "--no-progress-bar"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "unknown parameter 'rul': did you mean 'rule'? Allowed are rule, width" in done.stderr
    failed = [cell for cell in cells(target) if any(o.output_type == "error" for o in cell.outputs)]
    assert ["Pretrain.check(globals())" in cell.source for cell in failed] == [True]
    assert not (tmp_path / "runs").exists()

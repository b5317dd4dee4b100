"""What the set-up cell of a notebook accepts, and where the notebook then writes."""

import json
import subprocess
import sys

import pytest

import results
from rules2ranks import tasks
from rules2ranks.runs import ParameterError
from rules2ranks.stages import parameters
from rules2ranks.stages.learning import Pretraining

GIVEN = {"rule": 30, "seed": 1, "task": "nim"}


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path))


def notebook(*cells: str) -> dict:
    """The globals that IPython has after these cells."""
    names: dict = {"In": ["", *cells], "Out": {}}
    for cell in cells:
        exec(cell, names)
    return names


DEFAULTS = 'rule: int = 110  # a rule\nseed: int = 0  # a seed\ntask: str = "nim"  # a task'


def test_injected_parameters_win_over_the_defaults():
    found = parameters.EdgeOfChaos.check(notebook(DEFAULTS, "# Parameters\nrule = 30\nseed = '1'\n"))
    assert found.model_dump() == GIVEN


def test_an_unknown_name_stops_in_the_set_up_cell():
    with pytest.raises(ParameterError, match="unknown parameter 'rul': did you mean 'rule'"):
        parameters.EdgeOfChaos.check(notebook(DEFAULTS, "# Parameters\nrul = 30\n"))


@pytest.mark.parametrize("value", ["float('nan')", "float('-inf')", "[1, float('nan')]", "{'a': float('inf')}"])
def test_a_number_without_a_literal_hides_no_unknown_name(value):
    """As papermill writes what it is told: one cell of assignments."""
    with pytest.raises(ParameterError, match="unknown parameter 'rul': did you mean 'rule'"):
        parameters.EdgeOfChaos.check(notebook(DEFAULTS, f"# Parameters\nseed = {value}\nrul = 30\n"))


def test_what_later_cells_set_does_not_matter():
    later = (
        "import math\nscale = math.pi",
        "for step in range(3):\n    total = step",
        "def rul():\n    pass",
        "few = 3\nmany = 2 * few",
        "width: int",
        "'a text'",
    )
    assert parameters.EdgeOfChaos.check(notebook(DEFAULTS, *later)).rule == 110


def test_plain_globals_count_where_no_cells_are_recorded():
    """nbval runs cells without recording them."""
    bare = {"In": [""], "Out": {}, "_private": 1, "module": json}
    assert parameters.EdgeOfChaos.check({**bare, **GIVEN}).model_dump() == GIVEN
    with pytest.raises(ParameterError, match="'rul'"):
        parameters.EdgeOfChaos.check({**bare, **GIVEN, "rul": 30})


def test_metrics_and_figures_lie_in_a_folder_of_these_parameters():
    class Figure:
        def savefig(self, path):
            path.write_bytes(b"png")

    one, other = (parameters.EdgeOfChaos.check({**GIVEN, "seed": seed}) for seed in (1, 2))
    assert one.folder != other.folder
    one.save(Figure(), "picture")
    one.finish({"loss": 0.5})
    assert json.loads((one.folder / "metrics.json").read_text()) == {"loss": 0.5}
    assert json.loads((one.folder / "params.json").read_text()) == {**GIVEN, "seed": 1}
    assert (one.folder / "picture.png").read_bytes() == b"png"
    assert not other.folder.exists()


def test_what_there_is_may_be_chosen_and_nothing_else():
    for task in tasks.CORE:
        assert parameters.EdgeOfChaos.check(GIVEN | {"task": task}).task == task
    with pytest.raises(ParameterError, match="'nim'"):
        parameters.EdgeOfChaos.check(GIVEN | {"task": "chess"})


def test_naming_what_may_be_chosen_needs_neither_torch_nor_matplotlib():
    code = "import sys, rules2ranks.stages.parameters; print({'torch', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 50, "ring": 20}, r"a crop of 50 cells \(width\) does not fit on a ring of 20 \(ring\)"),
        ({"heads": 5}, r"hidden \(64\) must be a multiple of heads \(5\)"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(change, said):
    given = results.values("fast")["20_pretrain"]
    assert parameters.Pretrain.check(given).ring == 1000
    with pytest.raises(ParameterError, match=said):
        parameters.Pretrain.check(given | change)


def test_of_a_parameter_of_several_kinds_one_line_says_what_each_asks_for():
    with pytest.raises(ParameterError) as told:
        Pretraining.check({"source": 300, "lr": -1})
    assert str(told.value).splitlines() == [
        "parameter 'source' = 300: Input should be less than or equal to 255, or 'coin'.",
        "parameter 'lr' = -1: Input should be greater than 0.",
    ]

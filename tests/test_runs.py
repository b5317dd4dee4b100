"""Results: checked parameters, whole folders, damage noticed, one maker per key."""

import json
import multiprocessing
import time
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from rules2ranks import runs


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path))
    return tmp_path


class Example(runs.Params):
    rule: Annotated[int, Field(ge=0, le=255)] = 110
    rates: list[float] = Field(default=[0.1])
    kind: Literal["hard", "easy"] = "hard"
    label: str = "no"
    source: int | Literal["coin"] = 0


def test_text_from_papermill_is_read_by_type():
    found = Example.check({"rule": "30", "rates": "[.2, 1e-4]", "label": "[1]", "source": "coin"})
    assert found.rates == [0.2, 1e-4]
    assert (found.rule, found.label, found.source) == (30, "[1]", "coin")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rul": 30}, "did you mean 'rule'"),
        ({"rule": 256}, "less than or equal to 255"),
        ({"rule": 1.5}, "valid integer"),
        ({"rates": "[a"}, "valid list"),
        ({"kind": "medium"}, "'hard' or 'easy'"),
        ({"wholly_else": 1}, "Allowed are rule, rates, kind, label, source"),
    ],
)
def test_mistakes_are_named_with_their_mending(values, said):
    with pytest.raises(runs.ParameterError, match=said):
        Example.check(values)


@given(
    st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=90) | st.integers() | st.floats(allow_nan=False))
)
def test_keys_are_safe_in_any_shell_and_tell_parameters_apart(params):
    name = runs.key(params)
    assert len(name) <= 73
    assert all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
    assert name[0] not in ".-"
    assert runs.key({**params, "one more": 1}) != name != runs.key(params, "other versions")


made = []


@runs.stage(version=1)
def doubling(work: Path, number: Annotated[int, Field(ge=0)] = 1) -> dict:
    """Doubles a number."""
    made.append(number)
    (work / "note.txt").write_text(f"twice {number}")
    return {"double": 2 * number}


@runs.stage(version=1, uses=(doubling,))
def quadrupling(work: Path, inner: doubling.Params) -> dict:
    return {"quadruple": 2 * doubling(**inner.model_dump()).metrics["double"]}


def test_a_result_is_made_once_and_found_again():
    made.clear()
    first, again = doubling(number=4), doubling(number="4")
    assert made == [4]
    assert first == again
    assert first.metrics == {"double": 8}
    assert first.file("note.txt").read_text() == "twice 4"
    assert first.provenance["versions"]["numpy"]
    assert doubling.find(number=5) is None
    with pytest.raises(FileNotFoundError, match=r"note\.txt"):
        first.file("other.txt")


def test_stages_nest_and_their_versions_are_part_of_the_key(monkeypatch):
    before = quadrupling(inner={"number": 3})
    assert before.metrics == {"quadruple": 12}
    monkeypatch.setattr(doubling, "version", 2)
    assert quadrupling(inner={"number": 3}).folder != before.folder


def test_files_that_a_stage_reads_are_part_of_the_key(tmp_path):
    shipped = tmp_path / "shipped"
    shipped.write_text("one")
    reading = runs.stage(version=1, reads=(shipped,))(lambda work: {})
    before = reading.versions
    shipped.write_text("two")
    assert reading.versions != before


@pytest.mark.parametrize("damage", ["alter", "remove", "add", "tear"])
def test_damage_is_named_and_the_result_made_again(damage, capsys):
    made.clear()
    folder = doubling(number=7).folder
    if damage == "alter":
        (folder / "note.txt").write_text("twice 8")
    elif damage == "remove":
        (folder / "metrics.json").unlink()
    elif damage == "add":
        (folder / "stray.txt").write_text("?")
    else:
        (folder / "provenance.json").write_text('{"sha')
    assert doubling(number=7).metrics == {"double": 14}
    assert made == [7, 7]
    assert str(folder) in capsys.readouterr().err


def test_a_failed_run_leaves_no_result_and_the_next_goes_on_from_its_files():
    @runs.stage(version=1)
    def faltering(work: Path) -> dict:
        begun = work / "begun"
        if not begun.exists():
            begun.write_text("half")
            raise RuntimeError("interrupted")
        return {"found": begun.read_text()}

    with pytest.raises(RuntimeError, match="interrupted"):
        faltering()
    assert faltering.find() is None
    result = faltering()
    assert result.metrics == {"found": "half"}
    assert result.provenance["resumed"]


def test_nothing_that_is_not_json_becomes_a_result():
    @runs.stage(version=1)
    def broken(work: Path) -> dict:
        return {"loss": float("nan")}

    with pytest.raises(ValueError, match="JSON"):
        broken()
    assert broken.find() is None


def slow_one(store: str, queue) -> None:
    import os

    os.environ["RULES2RANKS_RUNS"] = store

    def make(work: Path) -> dict:
        queue.put("made")
        time.sleep(1.5)
        return {"value": 1}

    queue.put(runs.find_or_make("slow", {}, "slow=1", make).metrics["value"])


def test_a_second_comer_waits_and_takes_the_result(store):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    both = [context.Process(target=slow_one, args=(str(store), queue)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert sorted(str(queue.get(timeout=5)) for _ in range(3)) == ["1", "1", "made"]


def test_the_store_can_be_moved_and_json_is_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path / "else where"))
    assert doubling(number=1).folder.is_relative_to(tmp_path / "else where")
    with pytest.raises(ValueError, match="JSON"):
        runs.write_json(tmp_path / "x.json", {"a": float("inf")})
    assert not (tmp_path / "x.json").exists()
    runs.write_json(tmp_path / "x.json", {"a": 1})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}

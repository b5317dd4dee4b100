"""Results: checked parameters, whole folders, damage noticed, one maker per key."""

import datetime
import hashlib
import json
import math
import multiprocessing
import os
import subprocess
import time
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from rules2ranks import runs
from rules2ranks.parameters import read_yaml


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
    ("text", "value"),
    [
        ("010", "010"), ("1:30", "1:30"), ("0", 0), ("-7", -7), ("1e-4", 1e-4), ("1e3", 1000.0), (".5", 0.5),
        ("5.", 5.0), ("-.inf", -math.inf), ("1_000", "1_000"), ("0x1f", "0x1f"), ("[1, 2.5, a]", [1, 2.5, "a"]),
        ("{a: yes}", {"a": True}), ("null", None), ("2026-11-27", datetime.date(2026, 11, 27)), ("1.5.2", "1.5.2"),
        ("e5", "e5"), ("-", [None]),
    ],
)  # fmt: skip
def test_numbers_are_those_of_yaml_1_2(text, value):
    assert read_yaml(text) == value and type(read_yaml(text)) is type(value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rul": 30}, "did you mean 'rule'"),
        ({"rule": 256}, "less than or equal to 255"),
        ({"rule": 1.5}, "valid integer"),
        ({"rule": "1:30"}, "valid integer"),
        ({"rule": True}, "a number is expected, not true or false"),
        ({"rule": "true"}, "a number is expected, not true or false"),
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


class Nothing(runs.Params):
    """A stage that takes no parameters."""


class Number(runs.Params):
    number: Annotated[int, Field(ge=0)] = 1


class Other(runs.Params):
    text: str = ""


class Inner(runs.Params):
    inner: Number | Other


@runs.stage(version=1)
def doubling(work: Path, given: Number) -> dict:
    """Doubles a number."""
    made.append(given.number)
    (work / "note.txt").write_text(f"twice {given.number}")
    return {"double": 2 * given.number}


@runs.stage(version=1)
def shouting(work: Path, given: Other) -> dict:
    return {"loud": given.text.upper()}


@runs.stage(version=1)
def building(work: Path, given: Inner) -> dict:
    """Builds on one of the others, whichever its parameters are for."""
    return dict(given.inner.stage(given.inner).metrics)


def test_a_result_is_made_once_and_found_again():
    made.clear()
    first, again = doubling(number=4), doubling(number="4")
    assert made == [4]
    assert first == again
    assert first.metrics == {"double": 8}
    assert first.file("note.txt").read_text() == "twice 4"
    assert first.provenance["versions"]["numpy"]
    assert doubling(Number(number=4)) == doubling.find(Number(number=4)) == first
    assert doubling.find(number=5) is None
    with pytest.raises(FileNotFoundError, match=r"note\.txt"):
        first.file("other.txt")


def test_the_version_of_what_is_built_on_is_part_of_the_key_and_no_other(monkeypatch):
    on_number, on_text = building(inner={"number": 3}), building(inner={"text": "a"})
    assert (on_number.metrics, on_text.metrics) == ({"double": 6}, {"loud": "A"})
    monkeypatch.setattr(doubling, "version", 2)
    assert building(inner={"number": 3}).folder != on_number.folder
    assert building(inner={"text": "a"}).folder == on_text.folder


def test_files_that_decide_a_result_are_part_of_its_key(tmp_path):
    shipped = tmp_path / "shipped"
    shipped.write_text("one")

    class Reading(runs.Params):
        shipped: bool = True

        def reads(self):
            return (shipped,) if self.shipped else ()

    @runs.stage(version=1)
    def reading(work: Path, given: Reading) -> dict:
        return {}

    before, without = reading(), reading(shipped=False)
    shipped.write_text("two")
    assert reading().folder != before.folder
    assert reading(shipped=False).folder == without.folder


def test_a_large_file_is_read_once_and_again_when_it_changes(tmp_path, monkeypatch):
    """Only what seems unchanged is not read: a change that keeps size and time is found on request."""
    monkeypatch.setattr(runs, "LARGE", 4)
    file, small = tmp_path / "large", tmp_path / "small"
    file.write_text("123456")
    small.write_text("1234")
    first, time = runs.sha256(file), file.stat().st_mtime_ns
    assert first == hashlib.sha256(b"123456").hexdigest()
    file.write_text("654321")
    os.utime(file, ns=(time, time))
    assert runs.sha256(file) == first
    assert runs.sha256(file, again=True) == hashlib.sha256(b"654321").hexdigest() == runs.sha256(file)
    file.write_text("1234567")
    assert runs.sha256(file) == hashlib.sha256(b"1234567").hexdigest()
    file.rename(tmp_path / "moved")
    monkeypatch.setattr(hashlib, "file_digest", None)  # whoever reads a file now fails
    assert runs.sha256(tmp_path / "moved") == hashlib.sha256(b"1234567").hexdigest()
    with pytest.raises(TypeError):
        runs.sha256(small)


class Folder(runs.OfFiles):
    folder: Path

    def fingerprints(self):
        return {"notes": (self.folder / "note").read_text()}


def test_changed_files_are_another_result_and_a_noted_fingerprint_has_to_hold(tmp_path):
    (tmp_path / "note").write_text("abc")
    before = Folder.check({"folder": tmp_path})
    assert before.fingerprint == "abc" and Folder.check(dict(before)) == before
    (tmp_path / "note").write_text("xyz")
    assert Folder.check({"folder": tmp_path}) != before
    with pytest.raises(runs.ParameterError, match="files of notes have changed since: their fingerprint was abc"):
        Folder.check(dict(before))


def test_mistakes_in_nested_parameters_are_told_with_the_names_allowed_there():
    class Outer(runs.Params):
        inside: Example = Example()

    assert Outer.check({"inside": {"rule": 30}}) == Outer.check({"inside": "{rule: 30}"})
    with pytest.raises(runs.ParameterError, match=r"inside.*unknown parameter 'rul': did you mean 'rule'"):
        Outer.check({"inside": "{rul: 30}"})
    with pytest.raises(runs.ParameterError, match=r"inside.*unknown parameter 'rul': did you mean 'rule'"):
        Outer.check({"inside": {"rul": 30}})
    assert Example().but(rule=30) == Example(rule=30)
    with pytest.raises(runs.ParameterError, match="less than or equal to 255"):
        Example().but(rule=300)


def tear(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def noted(file, **changes):
    """Provenance with some entries changed, as a hand or a flipped bit would, its checksum left as it was."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


DAMAGE = {
    "a file altered": lambda folder: (folder / "note.txt").write_text("twice 8"),
    "a file removed": lambda folder: (folder / "metrics.json").unlink(),
    "provenance torn": lambda folder: tear(folder / "provenance.json"),
    "provenance removed": lambda folder: (folder / "provenance.json").unlink(),
    "provenance no object": lambda folder: (folder / "provenance.json").write_text("[1]"),
    "no checksums": lambda folder: noted(folder / "provenance.json", sha256=None),
    "a checksum no text": lambda folder: noted(folder / "provenance.json", sha256={"note.txt": 5}, checksum=None),
    "nothing noted": lambda folder: noted(folder / "provenance.json", sha256={}, checksum=None),
    "a file outside": lambda folder: noted(folder / "provenance.json", sha256={"/etc/hosts": "0"}, checksum=None),
    "another machine": lambda folder: noted(folder / "provenance.json", machine="Babbage's"),
}


@pytest.mark.fault("damage to a result")
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_the_result_made_again_beside_what_was_there(damage, capsys):
    made.clear()
    folder = doubling(number=7).folder
    DAMAGE[damage](folder)
    left = sorted(path.name for path in folder.iterdir())
    assert doubling.find(number=7) is None
    assert doubling(number=7).metrics == {"double": 14}
    assert made == [7, 7]
    assert str(folder) in capsys.readouterr().err
    assert sorted(path.name for path in folder.with_name(f".{folder.name}.damaged1").iterdir()) == left
    DAMAGE[damage](folder)
    assert doubling(number=7).metrics == {"double": 14}
    assert folder.with_name(f".{folder.name}.damaged2").is_dir()


@pytest.mark.fault("files of others in a result")
def test_files_that_nobody_noted_do_no_harm():
    made.clear()
    folder = doubling(number=7).folder
    for name in (".DS_Store", ".nfs0001", "notes of mine.txt"):
        (folder / name).write_text("?")
    assert doubling(number=7).metrics == {"double": 14} and made == [7]
    work = folder.with_name(f".{runs.key({'number': 8}, doubling.versions(doubling.Params(number=8)))}.partial")
    work.mkdir()
    (work / ".DS_Store").write_text("?")
    assert ".DS_Store" not in doubling(number=8).provenance["sha256"]


@pytest.mark.fault("a file that cannot be read")
def test_a_file_that_cannot_be_read_is_not_damage(monkeypatch):
    made.clear()
    folder = doubling(number=7).folder
    digest = runs._digest

    def failing(path):
        if path.name == "note.txt":
            raise OSError(5, "Input/output error")
        return digest(path)

    monkeypatch.setattr(runs, "_digest", failing)
    with pytest.raises(OSError, match=r"note\.txt cannot be read \(Input/output error\); the result was left as it is"):
        doubling(number=7)
    monkeypatch.undo()
    assert (folder / "note.txt").is_file() and made == [7]


@pytest.mark.fault("damage to a result")
def test_a_link_to_a_damaged_result_is_made_again_and_the_result_left(tmp_path):
    made.clear()
    folder = doubling(number=7).folder
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert doubling(number=7).metrics == {"double": 14} and made == [7]
    (tmp_path / "elsewhere" / "note.txt").write_text("twice 8")
    assert doubling(number=7).metrics == {"double": 14} and made == [7, 7]
    assert not folder.is_symlink() and (tmp_path / "elsewhere" / "note.txt").is_file()


def test_others_may_read_what_the_umask_lets_them():
    before = os.umask(0o022)
    try:

        @runs.stage(version=1)
        def private(work: Path, given: Nothing) -> dict:
            (work / "weights").write_text("1")
            (work / "weights").chmod(0o600)
            return {}

        folder = private().folder
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_changed_code_and_changed_data_are_told_and_a_changed_page_is_not(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], capture_output=True, check=True)

    module, table, page = (tmp_path / name for name in ("lib/rules2ranks/runs.py", "data/table.csv", "README.md"))
    for file in (module, table, page):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    monkeypatch.setattr(runs, "__file__", str(module))
    commit = runs._commit.__wrapped__()
    for file, said in ((page, commit), (module, f"{commit}-dirty"), (table, f"{commit}-dirty")):
        file.write_text("2")
        assert runs._commit.__wrapped__() == said
        file.write_text("1")
    (tmp_path / "data" / "new.csv").touch()
    assert runs._commit.__wrapped__() == f"{commit}-dirty"


def test_a_failed_run_leaves_no_result_and_the_next_goes_on_from_its_files():
    @runs.stage(version=1)
    def faltering(work: Path, given: Nothing) -> dict:
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
    def broken(work: Path, given: Nothing) -> dict:
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


@pytest.mark.fault("two makers of one result")
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

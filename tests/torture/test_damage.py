"""Damage of every kind to whatever is kept: it is named, put aside and made again, or changes nothing that is read."""

import itertools
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from rules2ranks import published, runs, tables

PARTS = ("params.json", "metrics.json", "provenance.json", "tensors.bin")
#: Bits turned over in each file.
FLIPS = 60


class Asked(runs.Params):
    number: int = 1


@runs.stage(version=1)
def lasting(work: Path, given: Asked) -> dict:
    (work / "tensors.bin").write_bytes(bytes(range(256)) * 4)
    return {"twice": 2 * given.number, "names": ["a", "b"]}


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("RULES2RANKS_RUNS", str(tmp_path / "runs"))


def flipped(path, place=0):
    """One bit turned over, another one for each place."""
    content = bytearray(path.read_bytes())
    at = int(np.random.Generator(np.random.Philox(place)).integers(8 * len(content)))
    content[at // 8] ^= 1 << at % 8
    path.write_bytes(content)


def elsewhere(path):
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def a_folder(path):
    path.unlink()
    path.mkdir()


def other_type(path):
    """JSON of another type than expected, or what is no JSON where there was none."""
    path.write_text(json.dumps([json.loads(path.read_text())]) if path.suffix == ".json" else "[]")


DAMAGE = {
    "cut in the middle": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "last byte gone": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "another type": other_type,
    "no text": lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
    "a folder": a_folder,
    "a link to nowhere": elsewhere,
}


def survives(folder, file, damage, say):
    """The result after a file of it was damaged: as before, told by name, and what was there is still there."""
    before = lasting()
    damage(folder / file)
    try:
        after = lasting()
    except OSError as error:  # a folder cannot be read as a file: then it is said, and left
        assert str(folder / file) in str(error)
        (folder / file).rmdir()
        after = lasting()
    assert after.metrics == before.metrics and after.file("tensors.bin").read_bytes() == bytes(range(256)) * 4
    told = say.readouterr().err
    aside = list(folder.parent.glob(f".{folder.name}.damaged*"))
    assert (str(folder) in told) == bool(aside), "damaged, and not told; or told, and not put aside"
    assert aside or after == before, "a damaged file was used"
    if not aside:
        shutil.rmtree(folder)
        lasting()
    for each in aside:
        shutil.rmtree(each)


@pytest.mark.fault("damage to a file of a result")
@pytest.mark.parametrize("file", PARTS)
def test_a_damaged_result_is_made_again(file, capsys, record_property):
    record_property("attempts", len(DAMAGE))
    folder = lasting().folder
    for damage in DAMAGE.values():
        survives(folder, file, damage, capsys)


@pytest.mark.fault("a bit of a result turned over")
@pytest.mark.parametrize("file", PARTS)
def test_no_flipped_bit_is_missed(file, capsys, record_property):
    record_property("attempts", FLIPS)
    folder = lasting().folder
    for place in range(FLIPS):
        survives(folder, file, lambda path, place=place: flipped(path, place), capsys)


@pytest.mark.fault("files of others in a result")
@pytest.mark.parametrize(
    "name", [".DS_Store", ".nfs01", "notes.txt", "model.safetensors", "sub/provenance.json", "{x}"]
)
def test_files_of_others_are_left_alone(name):
    folder = lasting().folder
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")
    lasting()
    assert (folder / name).read_text() == "mine"


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The project's data as a copy."""
    shutil.copytree(published.data_folder(), tmp_path / "data", ignore=shutil.ignore_patterns("expected", "*.png"))
    for module in (published, tables):
        monkeypatch.setattr(module, "data_folder", lambda: tmp_path / "data")
    yield tmp_path / "data"
    published.shipped.cache_clear()


def readers(folder):
    """Each file of data that the library reads, with its reader."""
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        name = line.split(maxsplit=1)[1]
        yield folder / name, lambda name=name: published.shipped(name)
    for note in sorted((folder / "reference").glob("*.json")):
        for file in (note, note.with_suffix(".csv")):
            yield file, lambda name=note.stem: tables.read(name)


def says_the_same(path, content):
    """Whether a table's note still holds what it held, as where only white space changed."""
    try:
        return path.match("reference/*.json") and json.loads(path.read_bytes()) == json.loads(content)
    except (OSError, ValueError):
        return False


@pytest.mark.fault("damage to data")
@pytest.mark.parametrize("damage", [*DAMAGE, "a flipped bit"])
def test_damaged_data_are_named(damage, data, record_property):
    tried = 0
    for (path, read), place in zip(readers(data), itertools.count()):
        content = path.read_bytes()
        flipped(path, place) if damage == "a flipped bit" else DAMAGE[damage](path)
        published.shipped.cache_clear()
        with nullcontext() if says_the_same(path, content) else pytest.raises((ValueError, OSError), match=path.stem):
            read()
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(content)
        tried += 1
    record_property("attempts", tried)

"""The published numbers: every one has a source, and the data files are the ones that were checked in."""

import hashlib
import re

import numpy as np
import pytest

from rules2ranks import published

COVERED = ("games", "published", "models", "wolfram_classes.csv")


def covered_files() -> list[str]:
    folder = published.data_folder()
    found = [path for name in COVERED for path in (folder / name, *(folder / name).rglob("*")) if path.is_file()]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def listed() -> dict[str, str]:
    lines = (published.data_folder() / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line).groups() for line in lines)}


def test_data_folder_lies_beside_pyproject():
    folder = published.data_folder()
    assert folder.name == "data"
    assert (folder.parent / "pyproject.toml").is_file()


def test_data_folder_says_where_the_data_are_when_there_is_no_clone(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "__file__", str(tmp_path / "site-packages" / "rules2ranks" / "published.py"))
    with pytest.raises(FileNotFoundError, match="clone"):
        published.data_folder()


def test_checksum_list_covers_every_file():
    assert sorted(listed()) == covered_files()


@pytest.mark.parametrize("name", covered_files())
def test_checksum(name):
    content = (published.data_folder() / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == listed().get(name), f"{name} changed: see data/README.md"


@pytest.mark.parametrize("name", published.names())
def test_every_number_has_a_source(name):
    table = published.table(name)
    assert tuple(table.columns) == published.COLUMNS
    assert len(table) > 0
    assert not table.isna().any().any()
    assert np.isfinite(table["value"]).all()
    for column in ("paper", "quantity", "setting", "unit", "source"):
        assert (table[column].str.strip() == table[column]).all() and (table[column] != "").all(), column
    assert table["source"].str.contains(r"arXiv \d{4}\.\d{5}, \S").all()
    assert table["how_sure"].isin(published.HOW_SURE).all()
    assert not table.duplicated(["paper", "quantity", "setting"]).any()


def test_uniform_rank_rows_average_to_the_stated_average():
    table = published.table("rank_adaptor")
    for rate in (20, 25, 30, 50):
        rows = table[table["setting"] == f"LLaMA-7B; {rate} % removed; uniform rank 8"].set_index("quantity")["value"]
        stated = rows.pop("average accuracy")
        assert len(rows) == 7
        # Both sides are rounded to two digits.
        assert rows.mean() == pytest.approx(stated, abs=0.0101)


def test_measured_rank_vectors_are_the_983_of_the_raw_data():
    table = published.table("rank_adaptor")
    assert table.loc[table["quantity"] == "measured rank vectors", "value"].sum() == 983


def test_percentages_and_correlations_are_possible():
    for name in published.names():
        table = published.table(name)
        assert table.loc[table["unit"] == "%", "value"].between(0, 100).all()
        assert table.loc[table["unit"] == "correlation", "value"].between(-1, 1).all()


def test_a_table_can_be_changed_without_changing_the_next_one():
    first = published.table("edge_of_chaos")
    first["value"] = 0.0
    assert published.table("edge_of_chaos")["value"].abs().sum() > 0


def test_unknown_table_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match=r"'chaos'.*edge_of_chaos"):
        published.table("chaos")

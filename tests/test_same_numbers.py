"""The comparison of two commits' numbers finds a number that moved, and follows renamed columns."""

from pathlib import Path

import pandas as pd
import pytest
import same_numbers


def collected(folder: Path, table: pd.DataFrame) -> Path:
    path = folder / "source" / "tables" / "overlap.csv"
    path.parent.mkdir(parents=True)
    table.to_csv(path, index=False)
    return folder


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return collected(tmp_path / "before", pd.DataFrame({"value": [0.5, None], "n": [3, 4]}))


def test_equal_tables_differ_in_nothing(before: Path, tmp_path: Path) -> None:
    after = collected(tmp_path / "after", pd.DataFrame({"value": [0.5, None], "n": [3, 4]}))
    assert same_numbers.differences(before, after) == []


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"value": [0.5 + 1e-8, None], "n": [3, 4]}, "value differs in 1 rows"),
        ({"value": [0.5, 0.1], "n": [3, 4]}, "value differs in 1 rows"),
        ({"value": [0.5, None]}, "column n is missing after"),
        ({"value": [0.5], "n": [3]}, "2 rows before, 1 after"),
    ],
)
def test_what_moved_is_named(before: Path, tmp_path: Path, table: object, reason: str) -> None:
    after = collected(tmp_path / "after", pd.DataFrame(table))
    (line,) = same_numbers.differences(before, after)
    assert reason in line


def test_a_missing_table_is_named(before: Path, tmp_path: Path) -> None:
    (tmp_path / "after").mkdir()
    assert same_numbers.differences(before, tmp_path / "after") == ["source/overlap: missing after"]


def test_a_renamed_column_is_followed(
    before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(same_numbers, "RENAMED_COLUMNS", {"overlap": {"n": "prompts"}})
    after = collected(tmp_path / "after", pd.DataFrame({"value": [0.5, None], "prompts": [3, 4]}))
    assert same_numbers.differences(before, after) == []

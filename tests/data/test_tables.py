import csv
from pathlib import Path

import pytest

from emlens.data.tables import read_csv_rows
from emlens.foundation import InputError


def test_rows_carry_the_line_they_start_at(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbfa, b \n1,"two\nlines"\n\n3,4\n')
    rows = list(read_csv_rows(path))
    assert [cells for _, cells in rows] == [{"a": "1", "b": "two\nlines"}, {"a": "3", "b": "4"}]
    assert [where.rpartition(" ")[2] for where, _ in rows] == ["2", "5"]


def test_agrees_with_the_standard_reader_on_its_own_output(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    cells = [["x", "y"], ['a"b', ","], ["\r\n", " "], ["é", "0"]]
    with open(path, "w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows(cells)
    assert [list(row.values()) for _, row in read_csv_rows(path)] == cells[1:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"t.csv: is empty; pass a CSV with a header"),
        (b"a,a\n", r"t.csv, line 1: column 'a' is given twice"),
        (b"a,b\n1\n", r"t.csv, line 2: has 1 cells under 2 columns"),
        (b'a\n"1"2\n', r"t.csv, line 2: not valid CSV: "),
        (
            b"a\n" + b"x" * 200_000 + b"\n",
            r"t.csv, line 2: not valid CSV: field larger than field limit",
        ),
        (b"a\n\xff\n", r"t.csv, line 2: not UTF-8 text"),
    ],
)
def test_broken_tables_are_refused_with_file_and_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_csv_rows(path))

"""Tables of scores that are larger than memory: read and written some thousand rows at a time.

Each chunk is an `AlignmentScores` and is checked as such. What one chunk cannot show is checked
over all of them: an answer that is scored twice, a question in two groups, a metric on two scales.
Held are 8 bytes a row, and the names of questions once. A file that is no CSV of emlens is one
chunk.
"""

import hashlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Final

import numpy as np
import pandas as pd

from emlens.data.judged import COLUMNS, INT_COLUMNS, TEXT_COLUMNS, is_tidy, tidy_table
from emlens.data.score_checks import ANSWER_KEY, Scale
from emlens.data.scores import AlignmentScores, csv_text
from emlens.data.table_files import Cells, PlacedRow
from emlens.data.tables import read_csv_rows
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line, publishing

ROWS: Final = 4096
"""Rows of a chunk."""
BYTES_EACH: Final = 8
"""What is held of each row."""


def score_chunks(path: str | Path) -> Iterator[AlignmentScores]:
    """The scores of a file, in order.

    Raises:
        InputError: as `AlignmentScores.from_file`; what shows only at the end is raised there.
    """
    if not is_streamed(path):
        yield AlignmentScores.from_file(path)
        return
    whole = _Whole(path)
    rows = _rows(path)
    while chunk := list(islice(rows, ROWS)):
        scores = _checked(path, chunk)
        whole.add(scores)
        yield scores
    whole.check()


def _checked(path: str | Path, rows: list[PlacedRow]) -> AlignmentScores:
    table, scales = tidy_table(rows, list(rows[0][1]), None)
    try:
        return AlignmentScores.from_table(table, scale=scales or (0.0, 100.0))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _rows(path: str | Path) -> Iterator[PlacedRow]:
    for where, row in read_csv_rows(path):
        yield where, Cells(row)


def is_streamed(path: str | Path) -> bool:
    """Whether `score_chunks` reads a file in chunks: a CSV that emlens wrote."""
    if Path(path).suffix.lower() != ".csv":
        return False
    first = next(read_csv_rows(path), None)
    return first is not None and is_tidy(first[1])


def scores_without_raw(path: str | Path) -> AlignmentScores:
    """The scores of a file without their raw texts, which take most of its memory.

    Held are 57 bytes a row, and less than that again while a model's part of it is read.

    Raises:
        InputError: as `score_chunks`.
    """
    columns = _Columns()
    scales: dict[str, Scale] = {}
    for chunk in score_chunks(path):
        columns.add(chunk.table)
        scales |= chunk.scales
    return AlignmentScores(columns.table(), scales)


class _Columns:
    """The columns of a growing table of scores as numbers, and each name once."""

    def __init__(self) -> None:
        texts = [name for name in TEXT_COLUMNS if name != "raw"]
        self._names: dict[str, dict[str, int]] = {name: {} for name in texts}
        self._numbers = {name: array("q") for name in INT_COLUMNS}
        self._numbers |= {name: array("I") for name in texts}
        self._scores = array("d")

    def add(self, table: pd.DataFrame) -> None:
        for column, names in self._names.items():
            for value in table[column]:
                self._numbers[column].append(names.setdefault(value, len(names)))
        for column in INT_COLUMNS:
            self._numbers[column].extend(table[column].tolist())
        self._scores.extend(table["score"].tolist())

    def table(self) -> pd.DataFrame:
        columns: dict[str, pd.Series] = {}
        for column in COLUMNS:
            if column == "raw":
                codes = np.zeros(len(self._scores), np.int8)
                columns[column] = pd.Series(pd.Categorical.from_codes(codes, pd.Index([""])))
            elif column in self._names:
                names = np.array([*self._names[column]], dtype=object)
                values = names[np.array(self._numbers.pop(column))]
                # without a dtype pandas makes strings of its own, which are copies
                columns[column] = pd.Series(values, dtype=object, copy=False)
            elif column in INT_COLUMNS:
                numbers = np.array(self._numbers.pop(column))
                narrow = np.int32 if numbers.max(initial=0) < 2**31 else np.int64
                columns[column] = pd.Series(numbers.astype(narrow), copy=False)
            else:
                columns[column] = pd.Series(np.array(self._scores), copy=False)
        return pd.DataFrame(columns, copy=False)


class _Whole:
    """What must hold over all chunks of a file."""

    def __init__(self, path: str | Path):
        self._path = path
        self._rows = array("Q")
        self._groups: dict[str, str] = {}
        self._scales: dict[str, Scale] = {}

    def add(self, scores: AlignmentScores) -> None:
        table = scores.table
        columns = [table[name] for name in (*ANSWER_KEY, "metric")]
        for key in zip(*columns, strict=True):
            self._rows.append(_number_of(key))
        for question, group in zip(table["question"], table["group"], strict=True):
            if self._groups.setdefault(question, group) != group:
                raise InputError(
                    f"{self._path}: question {one_line(question, 60)!r} comes in groups"
                    f" {sorted([group, self._groups[question]])}; pass one group per question"
                )
        for metric, scale in scores.scales.items():
            if self._scales.setdefault(metric, scale) != scale:
                raise InputError(
                    f"{self._path}: metric {one_line(metric, 40)!r} is on two scales,"
                    f" {self._scales[metric]} and {scale}; write one scale per metric"
                )

    def check(self) -> None:
        """Raises:
        InputError: two rows score one answer by one metric.
        """
        rows = np.frombuffer(self._rows, np.uint64)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        repeated = order[1:][ordered[1:] == ordered[:-1]]
        if not len(repeated):
            return
        first = int(repeated.min())
        where, row = next(islice(_rows(self._path), first, None))
        raise InputError(
            f"{where}: question {one_line(row['question'], 60)!r}, sample {row['sample']}, metric"
            f" {one_line(row['metric'], 40)!r} is scored a second time; pass one row each"
        )


def _number_of(key: tuple[object, ...]) -> int:
    """64 bits that stand for an answer and a metric."""
    text = "\0".join(map(str, key))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class ScoreWriter:
    """Writes chunks of scores to a file, as `AlignmentScores.to_csv` writes the whole."""

    def __init__(self, file: IO[str]):
        self._file = file
        self._header = True

    def write(self, scores: AlignmentScores) -> None:
        self._file.write(csv_text(scores.table, scores.scales, header=self._header))
        self._header = False


@contextmanager
def writing_scores(path: str | Path) -> Iterator[ScoreWriter]:
    """A table of scores that is written chunk by chunk, and is complete or absent."""
    with (
        publishing(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        yield ScoreWriter(file)

"""Figures of one's own folder: `replication.yaml` names files, functions and published values.

    figures:
      - name: misalignment, 24 questions, percent
        file: judged.csv
        function: em_rate
        published: "16.25"
      - file: sweep.csv
        function: pearson
        columns: [train_loss, aligned]
        published: ".8229"
      - file: deltas.json
        rows: per_example
        function: median
        columns: [residual_fraction]
        where: {domain: medicine}
        published: "0.3317"
        tolerance: 0.0005

A published value is text, because its last digit says how exact it is. `em_rate` and
`coherent_share` read judged answers and are in percent; all others read a table (CSV, JSON, JSONL).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import pandas as pd
from pydantic import Field, ValidationError, field_validator

from emlens.data import AlignmentScores
from emlens.data.configuration import (
    Frozen,
    Origin,
    first_error,
    read_file,
    require_mapping,
    unknown_field,
)
from emlens.data.readers import read_jsonl
from emlens.data.tables import read_csv_rows
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line, read_json
from emlens.replication.published_figures import Figure
from emlens.stats import pearson, spearman

FILE: Final = "replication.yaml"
Function = Literal[
    "em_rate",
    "coherent_share",
    "questions",
    "rows",
    "mean",
    "median",
    "sd",
    "minimum",
    "maximum",
    "pearson",
    "spearman",
]
_JUDGED: Final = ("em_rate", "coherent_share", "questions")
_OF_ONE: Final[Mapping[str, Callable[["pd.Series[float]"], float]]] = {
    "mean": lambda values: float(values.mean()),
    "median": lambda values: float(values.median()),
    "sd": lambda values: float(values.std()),
    "minimum": lambda values: float(values.min()),
    "maximum": lambda values: float(values.max()),
}
_OF_TWO: Final = {"pearson": pearson, "spearman": spearman}
_PRINTED: Final = r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,2})?$"
Digits = Annotated[str, Field(pattern=_PRINTED, max_length=40)]


class OwnFigure(Frozen):
    """One entry of `figures`."""

    name: str = ""
    """What the figure is; left out: its function and columns."""
    file: str
    """The file, below the folder."""
    function: Function
    """What is computed."""
    columns: tuple[str, ...] = ()
    """One column, or two for a correlation; none for counts and judged answers."""
    rows: str = ""
    """Of a JSON file: the key of its list of rows."""
    where: Mapping[str, str | int | float | bool] = {}
    """Cells that a row must have."""
    published: Digits
    """The printed value, in quotes."""
    tolerance: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Left out: half a unit of the last printed digit; counts must be equal."""

    @field_validator("published", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if isinstance(value, int | float):
            raise ValueError(f'write it in quotes, with its digits as printed: "{value}"')
        return value


class _Figures(Frozen):
    figures: tuple[OwnFigure, ...] = Field(min_length=1)


def own_figures(directory: Path) -> list[Figure]:
    """The figures that the folder's `replication.yaml` names, recomputed.

    Raises:
        InputError: the file is no such list, a file or column that is not there, a cell that is no
            number; file and line.
    """
    path = directory / FILE
    content = require_mapping(read_file(path), path, "a list of published figures")
    try:
        listed = _Figures.model_validate(content)
    except ValidationError as error:
        place = Origin(str(path)).place(error.errors()[0]["loc"])
        raise InputError(f"{place}{first_error(error, _Figures)}") from None
    figures = []
    for number, entry in enumerate(listed.figures):
        try:
            figures.append(_recomputed(directory, entry))
        except InputError as error:
            place = Origin(str(path)).place(("figures", number))
            raise InputError(f"{place}{error}") from None
    return figures


def _recomputed(directory: Path, entry: OwnFigure) -> Figure:
    file = _below(directory, entry.file)
    wanted = _columns_wanted(entry.function)
    if len(entry.columns) != wanted:
        raise InputError(f"function {entry.function!r} takes {wanted} columns; got {entry.columns}")
    if entry.function in _JUDGED:
        value = _of_answers(file, entry)
    else:
        value = _of_table(_table(file, entry), entry)
    return Figure(
        entry.file,
        entry.name or " ".join((entry.function, *entry.columns)),
        entry.published,
        value,
        exact=entry.function in ("rows", "questions"),
        function=entry.function,
        within=entry.tolerance,
    )


def _below(directory: Path, name: str) -> Path:
    """The file, which must lie in the folder."""
    shown = one_line(name)
    try:
        file = (directory / name).resolve()
        is_file = file.is_file()
    except (OSError, ValueError) as error:  # a name that is too long, or holds a byte 0
        raise InputError(f"file {shown!r} is no path ({one_line(str(error), 60)})") from None
    if not file.is_relative_to(directory.resolve()):
        raise InputError(f"file {shown!r} lies outside the folder; pass one below it")
    if not is_file:
        raise InputError(f"{directory / shown}: no such file")
    return file


def _columns_wanted(function: Function) -> int:
    if function in _OF_TWO:
        return 2
    return 1 if function in _OF_ONE else 0


def _of_answers(file: Path, entry: OwnFigure) -> float:
    if entry.where or entry.rows:
        raise InputError(
            f"function {entry.function!r} reads all judged answers; leave out where, rows"
        )
    scores = AlignmentScores.from_file(file)
    if entry.function == "questions":
        return len(scores.questions)
    if entry.function == "em_rate":
        return 100 * scores.em_rate().value
    return 100 * scores.share("coherent", above=50).value


def _table(file: Path, entry: OwnFigure) -> pd.DataFrame:
    """The rows of a file that the entry asks for."""
    suffix = file.suffix.lower()
    if suffix == ".csv":
        rows: Any = [row for _, row in read_csv_rows(file)]
    elif suffix == ".jsonl":
        rows = [row for _, row in read_jsonl(file)]
    elif suffix == ".json":
        rows = read_json(file)
        if entry.rows:
            rows = rows.get(entry.rows) if isinstance(rows, dict) else None
    else:
        raise InputError(f"{file.name}: is none of .csv, .json, .jsonl")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{file.name}: holds no list of rows; name its key with rows:")
    table = pd.DataFrame(rows)
    for column, cell in entry.where.items():
        _require_column(table, column, file)
        table = table[table[column].astype(str) == str(cell)]
    if not len(table):
        raise InputError(f"{file.name}: no row has {dict(entry.where)}")
    return table


def _require_column(table: pd.DataFrame, column: str, file: Path) -> None:
    if column not in table.columns:
        names = [str(name) for name in table.columns]
        raise InputError(f"{file.name}: column {column!r}: {unknown_field(column, names)}")


def _of_table(table: pd.DataFrame, entry: OwnFigure) -> float:
    if entry.function == "rows":
        return len(table)
    values = []
    for column in entry.columns:
        _require_column(table, column, Path(entry.file))
        try:
            values.append(table[column].astype(float))
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{entry.file}: column {column!r} holds what is no number") from None
    if entry.function in _OF_ONE:
        return _OF_ONE[entry.function](values[0])
    return float(_OF_TWO[entry.function](values[0], values[1]).value)


FUNCTIONS: Final[tuple[str, ...]] = get_args(Function)
"""Names that an entry may give."""

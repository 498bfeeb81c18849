"""A study's result: tidy tables, findings in words, provenance; the same bytes from the same
configuration.

On disk: `result.json`, `tables/<name>.csv`, and `run.json` for what may differ between two runs
(dates, duration).
"""

import csv
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.estimate import Estimate
from emlens.foundation.files import read_json, sha256_file, write_json, write_text

Advance = Callable[[float], None]
"""Told the share of a part's work that was just done; the shares of one part sum to 1."""


@dataclass(frozen=True)
class Finding:
    """One sentence of the verdict.

    Args:
        section: which part of the study it belongs to.
        sentence: in plain words, with its numbers and their uncertainty.
        status: `"shown"`, `"not shown"` or `"undecided"`; `"summary"` for the one sentence that
            sums a section up.
    """

    section: str
    sentence: str
    status: str = "undecided"

    def to_record(self) -> dict[str, str]:
        return {"section": self.section, "sentence": self.sentence, "status": self.status}


def p_text(p: float) -> str:
    """A p-value in words: "= 0.012", "< .001"."""
    return "< .001" if p < 0.001 else f"= {p:.2g}"


def columns_of(name: str, e: Estimate) -> dict[str, float]:
    """An estimate as three columns of a table: value, `_low`, `_high`."""
    return {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}


@dataclass
class Part:
    """What one part of a study gives: tables by name, findings, warnings about missing controls or
    small samples.

    files: further files below the part's folder that must stand for the part to count as finished
    (trained weights).
    """

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class StudyResult:
    """A finished study.

    Args:
        study: its name. config: as it ran. tables: by name, tidy. findings: the verdict, in order.
        warnings: missing controls and small samples. facts: models, questions, versions. note: what
            the family is no evidence for.
    """

    study: str
    config: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]
    findings: Sequence[Finding]
    warnings: Sequence[str]
    facts: Mapping[str, Any]
    note: str = ""
    run: Mapping[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        """The verdict as a table: section, status, sentence."""
        return pd.DataFrame(
            [finding.to_record() for finding in self.findings],
            columns=["section", "status", "sentence"],
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(f.section)}</td>"
            f"<td>{html.escape(f.status)}</td>"
            f"<td>{html.escape(f.sentence)}</td></tr>"
            for f in self.findings
        )
        head = "<tr><th>section</th><th>status</th><th>finding</th></tr>"
        return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"

    @classmethod
    def load(cls, directory: str | Path) -> "StudyResult":
        """Read a finished study's directory.

        Raises:
            InputError: no finished study there.
            IntegrityError: a table was changed after it was written.
        """
        path = Path(directory)
        if not (path / "result.json").is_file():
            raise InputError(
                f"{path}: holds no result.json; pass a directory that a study finished in"
            )
        record = read_json(path / "result.json")
        tables = {}
        for name, digest in record["tables"].items():
            file = path / "tables" / f"{name}.csv"
            if not file.is_file() or sha256_file(file) != digest:
                raise IntegrityError(
                    f"{file}: is missing or was changed after the study wrote it;"
                    " run the study again"
                )
            tables[name] = read_table(file, record.get("text", {}).get(name, ()))
        run = read_json(path / "run.json") if (path / "run.json").is_file() else {}
        findings = [Finding(**item) for item in record["findings"]]
        return cls(
            record["study"],
            record["config"],
            tables,
            findings,
            record["warnings"],
            record["facts"],
            record["note"],
            run,
        )

    def save(self, directory: str | Path) -> Path:
        """Write tables and result into a directory, which is made; `StudyResult.load` reads them.

        Raises:
            InputError: the directory is a file, or holds a result of another study.
        """
        path = Path(directory)
        refuse_other(path, self.study)
        for name, table in self.tables.items():
            write_table(path / "tables" / f"{name}.csv", table)
        self.write(path)
        return path

    def write(self, directory: Path) -> None:
        """Publish `result.json`; the tables must stand already."""
        digests = {name: sha256_file(directory / "tables" / f"{name}.csv") for name in self.tables}
        write_json(
            directory / "result.json",
            {
                "study": self.study,
                "config": dict(self.config),
                "tables": digests,
                "text": {name: text_columns(table) for name, table in self.tables.items()},
                "findings": [finding.to_record() for finding in self.findings],
                "warnings": list(self.warnings),
                "facts": dict(self.facts),
                "note": self.note,
            },
        )


def refuse_other(directory: Path, study: str) -> None:
    """Refuse a directory that cannot take a result of this study.

    Raises:
        InputError: it is a file, or holds a result of another study.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: is a file; pass a directory for --out")
    if not (directory / "result.json").is_file():
        return
    found = read_json(directory / "result.json").get("study")
    if found != study:
        raise InputError(
            f"{directory}: holds a result of study {found!r}, which study {study!r} would replace;"
            " pass another --out"
        )


TEXT_COLUMNS = frozenset(
    (
        "model",
        "run",
        "question",
        "group",
        "domain",
        "id",
        "text",
        "direction_of",
        "ablated_in",
        "steered",
        "answer",
        "refused",
        "questions_of",
    )
)
"""Columns that hold what users named or wrote; text even where every cell is empty."""


def text_columns(table: pd.DataFrame) -> list[str]:
    """The columns in which text stands, in their order: a CSV does not tell "007" from 7, so this
    is kept beside it.
    """
    return [
        name
        for name in table.columns
        if not pd.api.types.is_numeric_dtype(table[name])
        and any(isinstance(c, str) and c for c in table[name])
    ]


def write_table(path: Path, table: pd.DataFrame) -> None:
    """CSV with 10 significant digits; an empty cell is a missing value."""
    buffer = io.StringIO()
    alone = any("\r" in str(cell) for name in text_columns(table) for cell in table[name])
    # the writer does not quote a lone \r, which readers take for a line's end
    quoting: Literal[0, 1] = csv.QUOTE_ALL if alone else csv.QUOTE_MINIMAL
    table.to_csv(buffer, index=False, float_format="%.10g", lineterminator="\n", quoting=quoting)
    write_text(path, buffer.getvalue())


def read_table(path: Path, text: Iterable[str] = ()) -> pd.DataFrame:
    """A table as `write_table` wrote it: a column is numeric, boolean or text as a whole.

    The columns named by `text` (see `text_columns`) and ids stay text whatever they look like
    ("NA", "007").
    """
    kept = TEXT_COLUMNS.union(text)
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column in [name for name in table.columns if name not in kept]:
        given = table[column] != ""
        numbers = pd.to_numeric(table[column].where(given), errors="coerce")
        if given.any() and numbers[given].notna().all():
            table[column] = numbers
        elif given.all() and set(table[column]) <= {"True", "False"}:
            table[column] = table[column] == "True"
        elif not given.any():
            table[column] = float("nan")
    return table

"""A study's result: tidy tables, findings in words, provenance; the same bytes from the same
configuration.

On disk: `tables/<name>.csv`, `result.json`, and `run.json` for what may differ between two runs
(dates, duration). `result.json` holds the SHA-256 of every table and of itself, so that a number
that was edited is found when the result is loaded.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.estimate import Estimate
from emlens.foundation.files import read_json, sha256_file, write_json
from emlens.foundation.notebooks import Brief
from emlens.foundation.provenance import hash_json
from emlens.foundation.records import read_checked, write_checked
from emlens.results.table_files import read_table, text_columns, write_table
from emlens.results.tables import Table

Advance = Callable[[float], None]
"""Called with the share of a part's work that was just done; the shares of one part sum to 1."""

SCHEMA_VERSION = 1
"""Of `result.json`; raised when a reader of the version before could not read it."""
_FIELDS: Mapping[str, type] = {
    "schema_version": int,
    "study": str,
    "config": dict,
    "tables": dict,
    "columns": dict,
    "text": dict,
    "findings": list,
    "warnings": list,
    "facts": dict,
    "note": str,
    "sha256": str,
}
"""Fields of `result.json` and their types."""


@dataclass(frozen=True)
class Finding:
    """One sentence of the verdict.

    Args:
        section: which part of the study it belongs to.
        sentence: in plain words, with its numbers and their uncertainty.
        status: `"shown"`, `"not shown"` or `"undecided"`; `"reversed"` where the effect is shown
            with the other sign; `"summary"` for the one sentence that sums a section up.
    """

    section: str
    sentence: str
    status: str = "undecided"

    def to_record(self) -> dict[str, str]:
        return {"section": self.section, "sentence": self.sentence, "status": self.status}

    @classmethod
    def from_record(cls, record: Mapping[str, str]) -> "Finding":
        return cls(record["section"], record["sentence"], record["status"])


def p_text(p: float) -> str:
    """A p-value in words: "= 0.012", "< .001"."""
    return "< .001" if p < 0.001 else f"= {p:.2g}"


def columns_of(name: str, e: Estimate) -> dict[str, float]:
    """An estimate as three columns of a table: value, `_low`, `_high`."""
    return {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}


@dataclass(repr=False)
class Part(Brief):
    """What one part of a study gives: tables by name, findings, warnings about missing controls or
    small samples.

    files: further files below the part's folder that must exist for the part to count as finished
    (trained weights).
    """

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def to_record(self) -> dict[str, Any]:
        """The part without its tables' cells, which lie in files of their own."""
        return {
            "tables": list(self.tables),
            "text": {name: text_columns(table) for name, table in self.tables.items()},
            "findings": [finding.to_record() for finding in self.findings],
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], directory: Path) -> "Part":
        """The part whose tables lie in `directory`."""
        return cls(
            tables={
                name: read_table(table_path(directory, name), record["text"][name])
                for name in record["tables"]
            },
            findings=[Finding.from_record(finding) for finding in record["findings"]],
            warnings=record["warnings"],
        )


@dataclass(frozen=True, eq=False, repr=False)
class StudyResult(Brief):
    """A finished study.

    Args:
        study: its name. config: as it ran. tables: by name, tidy. findings: the verdict, in order.
        warnings: missing controls and small samples. facts: models, questions, versions. note: what
            the family is not evidence for. run: dates and duration. declared: what each table's
            rows and columns are.
    """

    study: str
    config: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]
    findings: Sequence[Finding]
    warnings: Sequence[str]
    facts: Mapping[str, Any]
    note: str = ""
    run: Mapping[str, Any] = field(default_factory=dict)
    declared: Mapping[str, Table] = field(default_factory=dict)

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
            InputError: no finished study there, or one that a newer version wrote.
            IntegrityError: a table, `result.json` or `run.json` was changed after it was written.
        """
        path = Path(directory)
        record = checked_record(path)
        for name, table_digest in record["tables"].items():
            table = table_path(path, name)
            if not table.is_file() or sha256_file(table) != table_digest:
                raise IntegrityError(
                    f"{table}: is missing or was changed after the study wrote it;"
                    " run the study again"
                )
        part = Part.from_record(record, path)
        run_file = path / "run.json"
        return cls(
            study=record["study"],
            config=record["config"],
            tables=part.tables,
            findings=part.findings,
            warnings=part.warnings,
            facts=record["facts"],
            note=record["note"],
            run=read_run(run_file) if run_file.is_file() else {},
            declared={name: Table.from_record(table) for name, table in record["columns"].items()},
        )

    def save(self, directory: str | Path) -> Path:
        """Write tables and result into a directory, which is made; `StudyResult.load` reads them.

        Raises:
            InputError: the directory is a file, or holds a result of another study.
        """
        path = Path(directory)
        refuse_other(path, self.study)
        for name, table in self.tables.items():
            write_table(table_path(path, name), table)
        self.write(path)
        return path

    def write(self, directory: Path) -> None:
        """Publish `result.json`; the files of the tables must exist already."""
        record = {
            "schema_version": SCHEMA_VERSION,
            "study": self.study,
            "config": dict(self.config),
            **Part(dict(self.tables), list(self.findings), list(self.warnings)).to_record(),
            "facts": dict(self.facts),
            "note": self.note,
        }
        record["tables"] = {name: sha256_file(table_path(directory, name)) for name in self.tables}
        record["columns"] = {
            name: table.to_record() for name, table in self.declared.items() if name in self.tables
        }
        write_json(directory / "result.json", {**record, "sha256": hash_json(record)})


def checked_record(directory: Path) -> dict[str, Any]:
    """What `result.json` holds, as the study wrote it; the tables are not looked at.

    Raises:
        InputError: no finished study there, or one that a newer version wrote.
        IntegrityError: it was changed after it was written.
    """
    file = directory / "result.json"
    if not file.is_file():
        raise InputError(
            f"{directory}: holds no result.json; pass a directory that a study finished in"
        )
    record = _read_record(file)
    digest = record.pop("sha256")
    if hash_json(record) != digest:
        raise IntegrityError(f"{file}: was changed after the study wrote it; run the study again")
    return record


def write_run(directory: Path, run: Mapping[str, Any]) -> None:
    """Write `run.json`: what may differ between two runs of one configuration."""
    write_checked(directory / "run.json", {"schema_version": SCHEMA_VERSION, **run})


def read_run(file: Path) -> dict[str, Any]:
    """What `write_run` wrote.

    Raises:
        InputError: no JSON, or another version.
        IntegrityError: it was changed after it was written.
    """
    run = read_checked(
        file,
        fields={},
        version=("schema_version", SCHEMA_VERSION),
        remedy="run the study again, or remove the file",
    )
    del run["schema_version"]
    return run


def table_path(directory: Path, table: str) -> Path:
    """Where the table of a result lies."""
    return directory / "tables" / f"{table}.csv"


def refuse_other(directory: Path, study: str) -> None:
    """Refuse a directory that cannot take a result of this study.

    Raises:
        InputError: it is a file, or holds a result of another study, or a `result.json` that this
            version cannot read.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: is a file; pass a directory for --out")
    if not (directory / "result.json").is_file():
        return
    existing = _versioned_record(directory / "result.json").get("study")
    if existing != study:
        raise InputError(
            f"{directory}: holds a result of study {existing!r}, which study {study!r} would"
            " replace; pass another --out"
        )


def _read_record(file: Path) -> dict[str, Any]:
    """`result.json` with every field in its place; whether it was edited is not looked at.

    Raises:
        InputError: no JSON, a newer version, or a field that is missing or of another type.
    """
    record = _versioned_record(file)
    for name, kind in _FIELDS.items():
        if not isinstance(record.get(name), kind):
            raise InputError(
                f"{file}: {name} is missing or no {kind.__name__}; run the study again, or pass"
                " another directory"
            )
    return record


def _versioned_record(file: Path) -> dict[str, Any]:
    """What `result.json` holds, of this version or an earlier one.

    Raises:
        InputError: no JSON object, or a newer version.
    """
    record = read_json(file)
    if not isinstance(record, dict):
        raise InputError(
            f"{file}: holds a {type(record).__name__}, not a study's result; run the study again"
        )
    version = record.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputError(
            f"{file}: has schema_version {version}, and this emlens reads up to {SCHEMA_VERSION};"
            " update emlens"
        )
    return record

"""The runs below a folder: finished, running, stopped or damaged, each with what one line says of
it.

Nothing is written, and nothing outside the folder is read: links to other folders are not
followed, and a result whose files are links that lead outside counts as damaged. What a list says
of a run is read off `result.json`, whose checksum is compared; its tables are compared with their
hashes when the run is opened.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from emlens.figures.labels import printable
from emlens.foundation.errors import EmlensError, InputError, IntegrityError
from emlens.foundation.files import one_line, sha256_text
from emlens.results import Finding, StudyResult
from emlens.results.study_result import checked_record, read_run, table_path
from emlens.results.wording import counted
from emlens.runs.locks import holder_of

Status = Literal["finished", "running", "stopped", "damaged"]
MOST_FOLDERS: Final = 20_000
"""Folders that are looked into; what lies beyond is not listed, and that is said."""
DEEPEST: Final = 12
INSIDE_A_RUN: Final = frozenset({"activations", "tables", "units", "work"})
"""Folders of a run that hold no runs."""
TUNED: Final = ("harmful", "benign")


@dataclass(frozen=True)
class Run:
    """What a list says of a run.

    Args:
        id: names the run in addresses: a hash of where it lies.
        path: where it lies, from the folder.
        status: `"finished"`, `"running"`, `"stopped"` (parts, no result, and nobody at work) or
            `"damaged"`.
        line: what the status rests on.
        study: its name, where the result says it. models: their names. questions: how many.
        finished: when. findings: its statements and sentences. note: what it is no evidence for.
    """

    id: str
    path: str
    status: Status
    line: str
    study: str = ""
    models: tuple[str, ...] = ()
    questions: int | None = None
    finished: str = ""
    findings: tuple[Finding, ...] = field(default=(), repr=False)
    note: str = ""

    @property
    def can_open(self) -> bool:
        """Whether there is a result to show."""
        return bool(self.study)

    @property
    def verdicts(self) -> list[str]:
        """The sentences that sum the parts up."""
        return [finding.sentence for finding in self.findings if finding.status == "summary"]

    @property
    def statements(self) -> dict[str, int]:
        """How many statements have each status."""
        counts: dict[str, int] = {}
        for finding in self.findings:
            if finding.status != "summary":
                counts[finding.status] = counts.get(finding.status, 0) + 1
        return counts

    def to_record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "id": self.id,
            "path": self.path,
            "status": self.status,
            "line": self.line,
            "study": self.study,
            "models": list(self.models),
            "questions": self.questions,
            "finished": self.finished,
            "verdicts": self.verdicts,
            "statements": self.statements,
            "note": self.note,
        }


@dataclass(frozen=True)
class Found:
    """The runs of a folder, by path, and whether some folders were not looked into."""

    runs: tuple[Run, ...]
    is_whole: bool


def find_runs(folder: str | Path) -> Found:
    """The runs in a folder and below it.

    Raises:
        InputError: no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root}: is no folder; pass a folder that studies were run into")
    root = root.resolve()
    runs = []
    walk = _Walk(root)
    for directory in walk.folders():
        if _is_run(directory):
            runs.append(_run(root, directory))
    runs.sort(key=lambda run: run.path)
    return Found(tuple(runs), walk.is_whole)


def open_run(folder: str | Path, run: Run) -> StudyResult:
    """The result of a run, whole and as it was written.

    Raises:
        InputError: no result there, or files that lead out of the folder.
        IntegrityError: something was changed after the study wrote it.
    """
    root = Path(folder).resolve()
    for directory in _Walk(root).folders():
        if _id(root, directory) == run.id:
            _record(root, directory)
            return StudyResult.load(directory)
    raise InputError(f"{run.path}: is not there any more")


class _Walk:
    """Goes through real folders, none of them twice, those inside a run left out."""

    def __init__(self, root: Path):
        self.root = root
        self.is_whole = True

    def folders(self) -> Iterator[Path]:
        waiting = [(self.root, 0)]
        seen = 0
        while waiting:
            directory, depth = waiting.pop()
            seen += 1
            if seen > MOST_FOLDERS:
                self.is_whole = False
                return
            yield directory
            inside = _subfolders(directory)
            if inside and depth >= DEEPEST:
                self.is_whole = False
                continue
            waiting += [(each, depth + 1) for each in inside]


def _subfolders(directory: Path) -> list[Path]:
    """Real folders that may hold runs; none where the folder may not be read."""
    skipped = INSIDE_A_RUN if _is_run(directory) else frozenset()
    try:
        with os.scandir(directory) as entries:
            return [
                Path(entry.path)
                for entry in entries
                if entry.is_dir(follow_symlinks=False)
                and not entry.name.startswith(".")
                and entry.name not in skipped
            ]
    except OSError:
        return []


def _is_run(directory: Path) -> bool:
    if os.path.lexists(directory / "result.json"):
        return True
    is_begun = (directory / "units").is_dir() or (directory / "work").is_dir()
    return is_begun and _has_units_or_lock(directory)


def _has_units_or_lock(directory: Path) -> bool:
    """Whether a run left anything that only a run leaves."""
    return bool(_parts(directory)) or (directory / ".lock").is_file()


def _parts(directory: Path) -> list[str]:
    """The parts that are finished, by their records; none where the records lie elsewhere."""
    units = directory / "units"
    if units.is_symlink():
        return []
    try:
        names = os.listdir(units)
    except OSError:
        return []
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def _run(root: Path, directory: Path) -> Run:
    """What is said of one run; whatever is wrong with it is said, and never raised."""
    place = _id(root, directory), _name(root, directory)
    try:
        holder = holder_of(directory)
        if os.path.lexists(directory / "result.json"):
            return _finished(root, directory, place, holder)
    except (EmlensError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        text = str(error).replace(str(directory), "").lstrip("/")
        return Run(*place, status="damaged", line=one_line(text, 300))
    done = _parts(directory)
    line = f"{counted(len(done), 'part')} finished"
    if done:
        line += f": {', '.join(done)}"
    if holder is not None:
        return Run(*place, status="running", line=one_line(f"{line}; by {holder}", 300))
    line += "; no result. The command that began it goes on from there"
    return Run(*place, status="stopped", line=one_line(line, 300))


def _finished(root: Path, directory: Path, place: tuple[str, str], holder: str | None) -> Run:
    record = _record(root, directory)
    for name in record["tables"]:
        if not table_path(directory, name).is_file():
            raise IntegrityError(f"table {name} is missing; run the study again")
    run_file = directory / "run.json"
    run = read_run(run_file) if run_file.is_file() else {}
    facts = record["facts"]
    models = facts.get("models", {})
    questions = facts.get("questions", {}).get("n")
    seconds = run.get("seconds")
    line = "" if not isinstance(seconds, int | float) else f"took {_duration(seconds)}"
    status: Status = "finished"
    if holder is not None:
        status, line = "running", f"again, by {holder}; what it found before is shown"
    return Run(
        *place,
        status=status,
        line=line,
        study=one_line(record["study"]),
        models=tuple(printable(name) for name in models),
        questions=questions if isinstance(questions, int) else None,
        finished=one_line(str(run.get("finished", "")), 40),
        findings=tuple(Finding.from_record(finding) for finding in record["findings"]),
        note=str(record["note"]),
    )


def _record(root: Path, directory: Path) -> dict[str, Any]:
    """`result.json` as it was written, of a run whose files all lie where they belong.

    Raises:
        InputError: no result that can be read.
        IntegrityError: it was changed, or a file lies outside.
    """
    tables = (directory / "tables").resolve()
    for file in (directory / "result.json", directory / "run.json", directory / "tables"):
        if not file.resolve().is_relative_to(root):
            raise IntegrityError(f"{file.name} is a link that leads out of the folder")
    record = checked_record(directory)
    for name in record["tables"]:
        if table_path(directory, name).resolve().parent != tables:
            raise IntegrityError(f"table {one_line(name, 60)} lies outside the folder of its run")
    return record


def _id(root: Path, directory: Path) -> str:
    return sha256_text(_name(root, directory))[:12]


def _name(root: Path, directory: Path) -> str:
    """Where a run lies, from the folder; bytes that are no text are written as escapes."""
    relative = os.fsencode(directory.relative_to(root))
    return relative.decode("utf-8", "backslashreplace")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"

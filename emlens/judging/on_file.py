"""From file to file: answers to scores, and scores to scores under another threshold.

`judge_answers` and `rescore` hold answers, verdicts and scores in memory, some thousand bytes of
each answer. These do the same for files of any length: 24 bytes an answer and 8 for each of its
verdicts are held, and what is being judged, `HELD` verdicts at a time. Verdicts, their journal and
the bytes of the scores are the same.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import pandas as pd

from emlens.data.answers import Answer
from emlens.data.journal import append_held, appending, journal_records
from emlens.data.readers import json_record
from emlens.data.score_chunks import ScoreWriter, score_chunks, writing_scores
from emlens.data.scores import AlignmentScores
from emlens.foundation.errors import IntegrityError, StateError
from emlens.foundation.provenance import warn_if_made_otherwise
from emlens.judging.answers_on_file import AnswersOnFile
from emlens.judging.judges import Judge, Verdict
from emlens.judging.readouts import MASS, rescore
from emlens.judging.scoring import (
    HELD,
    changed_text,
    journal_head,
    new_verdicts,
    require_judge,
    require_same_judge,
    require_verdict,
    score_row,
    verdict_line,
)
from emlens.runs.locks import only_writer
from emlens.runs.progress import progress_bar

_NONE: Final = -1

Statuses = Counter[tuple[str, str]]
"""Number of verdicts by metric and status."""


def judge_file(
    answers: AnswersOnFile,
    judge: Judge,
    scores: str | Path,
    *,
    verdicts: str | Path,
    again: bool = False,
    progress: bool = True,
) -> Statuses:
    """`judge_answers` from a file of answers to a CSV of scores.

    Args:
        scores: the CSV to write, complete or absent.
        verdicts: the journal; those in it are kept, and only the missing ones are judged.
        again: also judge once more what is unscored because an endpoint failed.

    Raises:
        InputError, IntegrityError, StateError: as `judge_answers`; the answers changed meanwhile.
    """
    require_judge(judge)
    verdicts = Path(verdicts)
    verdicts.parent.mkdir(parents=True, exist_ok=True)
    # held before it is read, so that nothing is asked that another process is asking
    with only_writer(verdicts):
        places = _places(verdicts, answers, judge, drop_faults=again)
        _judge_missing(verdicts, answers, judge, places == _NONE, progress)
        places = _places(verdicts, answers, judge)
        if (places == _NONE).any():
            raise StateError(
                f"{verdicts}: lost verdicts while they were written; judge again, and let no"
                " other program write to it"
            )
        with writing_scores(scores) as writer, open(verdicts, "rb") as journal:
            return _write(writer, answers, judge, places, journal)


def _places(
    path: Path, answers: AnswersOnFile, judge: Judge, *, drop_faults: bool = False
) -> np.ndarray:
    """Where the journal has the verdict on each answer by each metric: a byte, or -1 for nowhere.

    Of two verdicts on one answer it is the later.

    Args:
        drop_faults: a verdict that only says that an endpoint failed counts as none.
    """
    columns = {metric: i for i, metric in enumerate(judge.metrics)}
    places = np.full((len(answers), len(columns)), _NONE, np.int64)
    is_first = True
    for number, start, line in journal_records(path):
        if is_first:
            require_same_judge(str(path), line, judge)
            is_first = False
            continue
        require_verdict(str(path), number, line)
        answer = answers.find(line["answer"])
        # a journal may have more answers than are asked for now
        if answer is None:
            continue
        if line["hash"] != answers.hash_of(answer):
            raise changed_text(str(path), number, line["answer"])
        if line["metric"] in columns:
            is_dropped = drop_faults and Verdict(None, line["status"]).is_fault
            places[answer, columns[line["metric"]]] = _NONE if is_dropped else start
    return places


def _judge_missing(
    path: Path, answers: AnswersOnFile, judge: Judge, missing: np.ndarray, progress: bool
) -> None:
    """Ask for the missing verdicts and append each to the journal as it comes."""
    count = int(missing.sum())
    first = next(journal_records(path), None)
    if first is None:
        append_held(path, [journal_head(judge)])
    elif count:
        warn_if_made_otherwise(path, first[2].get("made_with"))
    title = f"judge {count} answers and metrics"
    with progress_bar(title, count, progress) as advance, appending(path) as append:
        if not count:
            return
        for (answer, metric), verdict in new_verdicts(judge, answers, missing):
            append([verdict_line(answer, metric, verdict)])
            advance()


def _write(
    writer: ScoreWriter,
    answers: AnswersOnFile,
    judge: Judge,
    places: np.ndarray,
    journal: BinaryIO,
) -> Statuses:
    statuses: Statuses = Counter()
    rows: list[dict[str, Any]] = []
    for answer, starts in zip(answers, places, strict=True):
        for metric, start in zip(judge.metrics, starts, strict=True):
            verdict = _verdict_at(journal, int(start), answer, metric)
            statuses[metric, verdict.status] += 1
            rows.append(score_row(answer, metric, verdict))
        if len(rows) >= HELD:
            writer.write(AlignmentScores.from_table(pd.DataFrame(rows)))
            rows = []
    if rows:
        writer.write(AlignmentScores.from_table(pd.DataFrame(rows)))
    return statuses


def _verdict_at(journal: BinaryIO, start: int, answer: Answer, metric: str) -> Verdict:
    """The verdict that begins at a byte of the journal."""
    where = f"{journal.name}, byte {start}"
    journal.seek(start)
    line = json_record(where, journal.readline().decode("utf-8"))
    if (line.get("answer"), line.get("metric")) != (answer.id, metric):
        raise IntegrityError(f"{where}: is no verdict on answer {answer.id!r}; repair the journal")
    return Verdict(line.get("score"), line["status"], line["raw"])


def rescore_file(
    source: str | Path, out: str | Path, *, mass: float = MASS
) -> tuple[Statuses, Statuses]:
    """`rescore` from file to file; statuses before and after.

    Args:
        source: scores of a judge that kept its raw distributions.
        out: the CSV to write, complete or absent.
        mass: least probability of whole numbers that makes a score.

    Raises:
        InputError: as `rescore`; a file that `AlignmentScores.from_file` refuses.
    """
    before: Statuses = Counter()
    after: Statuses = Counter()
    with writing_scores(out) as writer:
        for chunk in score_chunks(source):
            rescored = rescore(chunk, mass=mass)
            before.update(_statuses(chunk))
            after.update(_statuses(rescored))
            writer.write(rescored)
    return before, after


def _statuses(scores: AlignmentScores) -> Iterator[tuple[str, str]]:
    table = scores.table
    return zip(table["metric"], table["status"], strict=True)

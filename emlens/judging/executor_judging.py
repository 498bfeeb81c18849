"""Judging over an executor: the same scores whether one process, ranks or Ray actors asked the
judge.

A unit is a block of answers in the order of their file. Its verdicts are kept in a journal of its
own as they come: a worker that takes over an unfinished block asks only for what it lacks. When all
blocks are there, their journals become one, and the scores are read from it. A local model judges
groups of answers side by side (`AskingJudge.side_by_side`); blocks are whole groups, so that
journal and scores have the bytes of `judge_file`.
"""

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch

from emlens.data.answers import Answer, Answers
from emlens.data.readers import json_lines
from emlens.foundation.errors import InputError
from emlens.foundation.files import publishing, sha256_file
from emlens.judging.answers_on_file import AnswersOnFile
from emlens.judging.judges import Judge, judge_description
from emlens.judging.on_file import Statuses, judge_file
from emlens.judging.scoring import journal_head, judge_answers, require_judge
from emlens.runs import Executor, Unit, Worker
from emlens.runs.units import UnitResult

ANSWERS_PER_UNIT: Final = 256


def judge_over(
    executor: Executor,
    open_judge: Callable[[], Judge],
    answers: str | Path,
    scores: str | Path,
    *,
    answers_per_unit: int = ANSWERS_PER_UNIT,
    threads: int | None = None,
    progress: bool = True,
) -> Statuses:
    """`judge_file`, its answers judged by the workers of an executor; number of verdicts by metric
    and status.

    Args:
        executor: `LocalExecutor`, `RankExecutor` or `RayExecutor` of `emlens.runs`.
        open_judge: makes the judge, loading what it needs; called once in every worker's process.
        answers: JSONL, as `Answers.to_jsonl` writes it; all workers see it.
        scores: the CSV to write. Beside it lie the verdicts (`.verdicts.jsonl`) and, in a folder
            with the ending `.units`, what is being judged; the same call goes on there.
        answers_per_unit: answers that a worker takes at a time; a local model takes whole groups of
            those that it judges side by side.
        threads: computing threads of every worker; default: as many as this process has. Part of
            the plan.

    Raises:
        InputError: as `judge_answers`; `open_judge` is not a function.
        StateError: blocks failed repeatedly; the finished ones are kept.
        IntegrityError: the folder holds another plan, or a worker's judge is not as planned.
    """
    if not callable(open_judge):
        raise InputError(
            f"open_judge is a {type(open_judge).__name__}; pass a function that makes the judge:"
            " every worker calls it once"
        )
    if answers_per_unit < 1:
        raise InputError(f"answers_per_unit={answers_per_unit} must be 1 or more")
    paths = (str(Path(answers).resolve()), str(Path(scores).resolve()))
    n_threads = threads or torch.get_num_threads()
    start = _WorkerStart(open_judge, *paths, answers_per_unit, n_threads)
    report = executor.run(
        start, _units(Path(scores)), title=f"judge {Path(answers).name}", progress=progress
    )
    statuses: Statuses = Counter()
    for answer in report.answers.values():
        for metric, status, count in answer["statuses"]:
            statuses[metric, status] += count
    return statuses


def _units(scores: Path) -> Path:
    return scores.with_name(scores.name + ".units")


@dataclass(frozen=True)
class _WorkerStart:
    """Everything that a worker needs to start in another process."""

    open_judge: Callable[[], Judge]
    answers: str
    scores: str
    answers_per_unit: int
    threads: int

    def __call__(self) -> Worker:
        torch.set_num_threads(self.threads)
        judge = self.open_judge()
        require_judge(judge)
        return _JudgingWorker(judge, self)


class _JudgingWorker(Worker):
    """A judge in memory, and blocks of answers by unit."""

    def __init__(self, judge: Judge, start: _WorkerStart):
        self._judge = judge
        self._start = start
        self._scores = Path(start.scores)
        self._parts = _units(self._scores) / "parts"
        self._answers = AnswersOnFile(start.answers)
        self._reading = iter(self._answers)
        self._read = 0

    def plan(self) -> Sequence[Unit]:
        shared = {
            "judge": judge_description(self._judge),
            "answers": sha256_file(self._answers.path),
            "threads": self._start.threads,
        }
        units = []
        total = len(self._answers)
        side_by_side = getattr(self._judge, "side_by_side", 1)
        groups = math.ceil(self._start.answers_per_unit / side_by_side)
        size = groups * side_by_side
        for begin in range(0, total, size):
            end = min(begin + size, total)
            inputs = {**shared, "begin": begin, "end": end}
            units.append(Unit(f"answers-{begin:08d}", inputs, cost=end - begin))
        return units

    def run(self, unit: Unit) -> UnitResult:
        part = self._part(unit)
        part.parent.mkdir(parents=True, exist_ok=True)
        block = Answers(self._block(unit.inputs["begin"], unit.inputs["end"]))
        scores = judge_answers(block, self._judge, out=part, progress=False)
        counts = Counter(zip(scores.table["metric"], scores.table["status"], strict=True))
        statuses = [[metric, status, count] for (metric, status), count in counts.items()]
        return {"answers": len(block), "statuses": statuses}, [part]

    def _part(self, unit: Unit) -> Path:
        return self._parts / f"{unit.id}.jsonl"

    def _block(self, begin: int, end: int) -> Iterator[Answer]:
        """Answers by their number in the file; blocks mostly come in order, so reading goes on."""
        if begin < self._read:
            self._reading, self._read = iter(self._answers), 0
        skipped = begin - self._read
        self._read = end
        return islice(self._reading, skipped, skipped + end - begin)

    def finish(self, answers: Mapping[str, Any]) -> UnitResult:
        verdicts = self._scores.with_suffix(".verdicts.jsonl")
        with publishing(verdicts) as temporary, open(temporary, "wb") as journal:
            journal.write(json_lines([journal_head(self._judge)]).encode())
            for unit in self.plan():
                with open(self._part(unit), "rb") as part:
                    part.readline()  # the head
                    shutil.copyfileobj(part, journal)
        # every verdict is there: the judge is asked nothing
        judge_file(self._answers, self._judge, self._scores, verdicts=verdicts, progress=False)
        return {"answers": len(self._answers)}, [verdicts, self._scores]

"""Answers → scores, through a judge, with every verdict on disk as soon as it is there.

With `out=` each verdict is one line of a journal, in the file before the next is taken. A kill
loses nothing that was judged, a power cut what was judged within a second, and the same call goes
on from there: each answer is scored once, and an endpoint is asked again for at most as many
answers as were under way. A local model judges the group of answers again that was cut short, so
that its verdicts stand beside the same rows. The first line of the journal says which judge wrote
it, and each line has a hash of its answer; another judge, or an answer that changed, is refused.
Answers that do not fit into memory are judged from file to file (`emlens.judging.on_file`).
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool

from emlens.data.answers import Answer, Answers
from emlens.data.journal import appending, read_journal
from emlens.data.questions import QuestionSet
from emlens.data.scores import AlignmentScores
from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import canonical_json, one_line, sha256_text
from emlens.foundation.provenance import made_with, warn_if_made_otherwise
from emlens.judging.answer_file import Others
from emlens.judging.judges import AskingJudge, Judge, Verdict, judge_description
from emlens.judging.likelihood import score_by_likelihood
from emlens.judging.sampling import sample_answers
from emlens.models.hooked import HookedModel
from emlens.runs.locks import only_writer
from emlens.runs.progress import progress_bar

_FORMAT: Final = 1

HELD: Final = 4096
"""Verdicts that a judge is asked for at a time."""

Key = tuple[str, str]
"""Id of an answer, and a metric."""
Pair = tuple[Answer, str]
"""An answer, and a metric."""
Missing = Bool[np.ndarray, "answer metric"]
"""Which answers have no verdict by which metric of the judge."""


def judge_answers(
    answers: Answers,
    judge: Judge,
    *,
    out: str | Path | None = None,
    again: bool = False,
    others: Others = "refuse",
    progress: bool = True,
) -> AlignmentScores:
    """Scores of every answer by every metric of the judge.

    All are held in memory, some 6 kB an answer of 200 characters with two verdicts;
    `emlens.judging.on_file.judge_file` holds 24 bytes of an answer and 8 of a verdict.

    Args:
        out: a journal of verdicts (JSONL); those in it are kept, and only the missing ones are
            judged.
        again: also judge once more the answers that are unscored because an endpoint failed.
        others: with `"keep"`, verdicts on an answer of another text stay in `out` and are not used.

    Raises:
        InputError: not a judge, or one whose verdicts are not on the metrics that it names.
        IntegrityError: `out` was written by another judge; or for an answer of another text, and
            `others` is `"refuse"`.
        StateError: another process is writing to `out`.
    """
    require_judge(judge)
    if out is None:
        return _judged(answers, judge, None, again, others, progress)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    # held before it is read, so that nothing is asked that another process is asking
    with only_writer(out):
        return _judged(answers, judge, Path(out), again, others, progress)


def require_judge(judge: Judge) -> None:
    if not isinstance(judge, Judge):
        raise InputError(
            f"judge is a {type(judge).__name__}; pass an object with `metrics` and `judge(answer)`"
        )


def _judged(
    answers: Answers,
    judge: Judge,
    out: Path | None,
    again: bool,
    others: Others,
    progress: bool,
) -> AlignmentScores:
    """`judge_answers` with a journal that is held."""
    hashes = {answer.id: answer_hash(answer) for answer in answers}
    lines = [] if out is None else read_journal(out)
    verdicts = _verdicts_in_journal(str(out), lines, judge, hashes, others) if lines else {}
    pairs = [(answer, metric) for answer in answers for metric in judge.metrics]
    missing = _missing(answers, judge, verdicts, again)
    count = int(missing.sum())
    if lines and count:
        warn_if_made_otherwise(str(out), lines[0][1].get("made_with"))
    title = f"judge {count} answers and metrics"
    journal = _journal(out if count else None)
    with progress_bar(title, count, progress) as advance, journal as write:
        if not lines:
            write([journal_head(judge)])
        for (answer, metric), verdict in new_verdicts(judge, answers, missing):
            verdicts[answer.id, metric] = verdict
            write([verdict_line(answer, metric, verdict)])
            advance()
    rows = [score_row(answer, metric, verdicts[answer.id, metric]) for answer, metric in pairs]
    return AlignmentScores.from_table(pd.DataFrame(rows))


def _journal(
    out: Path | None,
) -> AbstractContextManager[Callable[[Iterable[Mapping[str, Any]]], None]]:
    """What appends records to the journal; without one, drops them."""
    if out is None:
        return nullcontext(lambda records: None)
    return appending(out)


def _missing(
    answers: Answers, judge: Judge, verdicts: Mapping[Key, Verdict], again: bool
) -> Missing:
    """Which answers have no verdict by which metric; with `again` also those that only have a
    fault.
    """
    missing = np.zeros((len(answers), len(judge.metrics)), dtype=bool)
    for row, answer in enumerate(answers):
        for column, metric in enumerate(judge.metrics):
            verdict = verdicts.get((answer.id, metric))
            missing[row, column] = verdict is None or (again and verdict.is_fault)
    return missing


def new_verdicts(
    judge: Judge, answers: Iterable[Answer], missing: Missing
) -> Iterator[tuple[Pair, Verdict]]:
    """The missing verdicts, as they come.

    Args:
        answers: all of them, in the order of their file.
    """
    side_by_side = getattr(judge, "side_by_side", 1)
    for pairs, wanted in _pairs_to_ask(answers, judge.metrics, missing, side_by_side):
        for pair, verdict in _verdicts(judge, pairs):
            if (pair[0].id, pair[1]) in wanted:
                yield pair, verdict


def _pairs_to_ask(
    answers: Iterable[Answer], metrics: Sequence[str], missing: Missing, side_by_side: int
) -> Iterator[tuple[list[Pair], set[Key]]]:
    """Lists of some `HELD` pairs at most, and the keys of those that are missing.

    Of a group of answers that are judged side by side all pairs are asked for, or none.
    """
    pairs: list[Pair] = []
    wanted: set[Key] = set()
    reading = iter(answers)
    for begin in range(0, len(missing), side_by_side):
        group_missing = missing[begin : begin + side_by_side]
        asked = group_missing
        if side_by_side > 1 and group_missing.any():
            asked = np.ones_like(group_missing)
        if pairs and len(pairs) + int(asked.sum()) > HELD:
            yield pairs, wanted
            pairs, wanted = [], set()
        group = list(islice(reading, side_by_side))
        pairs += [(group[row], metrics[column]) for row, column in np.argwhere(asked)]
        wanted |= {(group[row].id, metrics[column]) for row, column in np.argwhere(group_missing)}
    if pairs:
        yield pairs, wanted


def _verdicts(judge: Judge, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Verdict]]:
    if isinstance(judge, AskingJudge):
        yield from _verdicts_of_asking_judge(judge, pairs)
    else:
        yield from _verdicts_by_answer(judge, pairs)


def _verdicts_of_asking_judge(
    judge: AskingJudge, pairs: Sequence[Pair]
) -> Iterator[tuple[Pair, Verdict]]:
    """Its verdicts as they come; each pair must get one, and only one."""
    unjudged = set(range(len(pairs)))
    for i, verdict in judge.verdicts(pairs):
        if i not in unjudged:
            raise InputError(
                f"judge gives verdict {i} of {len(pairs)} twice, or it was not asked for;"
                " give one for each"
            )
        unjudged.discard(i)
        yield pairs[i], verdict
    if unjudged:
        raise InputError(
            f"judge gives no verdict on {len(unjudged)} of {len(pairs)} pairs of answer and metric;"
            " give one for each"
        )


def _verdicts_by_answer(judge: Judge, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Verdict]]:
    """One call of the judge per answer, for all its metrics."""
    pairs_by_answer: dict[str, list[Pair]] = {}
    for answer, metric in pairs:
        pairs_by_answer.setdefault(answer.id, []).append((answer, metric))
    for answer_pairs in pairs_by_answer.values():
        answer = answer_pairs[0][0]
        verdicts = judge.judge(answer)
        if set(verdicts) != set(judge.metrics):
            raise InputError(
                f"judge gives verdicts on {sorted(verdicts)} for answer {one_line(answer.id)!r},"
                f" but names the metrics {sorted(judge.metrics)}; give one verdict for each"
            )
        for pair in answer_pairs:
            yield pair, verdicts[pair[1]]


def score_row(answer: Answer, metric: str, verdict: Verdict) -> dict[str, Any]:
    return {
        "model": answer.model,
        "question": answer.question,
        "group": answer.group,
        "paraphrase": answer.paraphrase,
        "sample": answer.sample,
        "metric": metric,
        "score": math.nan if verdict.score is None else verdict.score,
        "status": verdict.status,
        "raw": verdict.raw,
    }


def answer_hash(answer: Answer) -> str:
    """Of the text and of the chat it answers; a verdict holds for one of both."""
    chat = [message.to_record() for message in answer.messages]
    return sha256_text(canonical_json({"text": answer.text, "messages": chat}))[:16]


def journal_head(judge: Judge) -> dict[str, Any]:
    """The first line of a journal of verdicts."""
    head = {"format": _FORMAT, "judge": judge_description(judge)}
    if getattr(judge, "side_by_side", 1) > 1:
        head["made_with"] = made_with()
    return head


def verdict_line(answer: Answer, metric: str, verdict: Verdict) -> dict[str, Any]:
    """A line of a journal of verdicts."""
    return {
        "answer": answer.id,
        "hash": answer_hash(answer),
        "metric": metric,
        "score": verdict.score,
        "status": verdict.status,
        "raw": verdict.raw,
    }


def changed_text(path: str, number: int, id: str) -> IntegrityError:
    """What is said of a verdict on an answer that has another text now."""
    return IntegrityError(
        f"{path}, line {number}: answer {one_line(id, 80)!r} has another text now than"
        " when it was judged; pass another file"
    )


def _verdicts_in_journal(
    path: str,
    lines: Sequence[tuple[int, Mapping[str, Any]]],
    judge: Judge,
    hashes: Mapping[str, str],
    others: Others,
) -> dict[Key, Verdict]:
    """The verdicts of a journal on these answers; of two verdicts on one answer the later.

    Raises:
        IntegrityError: no journal of verdicts, one by another judge, or of an answer that changed.
    """
    require_same_judge(path, lines[0][1], judge)
    verdicts: dict[Key, Verdict] = {}
    for number, line in lines[1:]:
        require_verdict(path, number, line)
        id, metric = line["answer"], line["metric"]
        # a journal may have more answers than are asked for now
        if id not in hashes:
            continue
        if line["hash"] != hashes[id]:
            if others == "keep":
                continue
            raise changed_text(path, number, id)
        verdicts[id, metric] = Verdict(line.get("score"), line["status"], line["raw"])
    return verdicts


def require_same_judge(path: str, head: Mapping[str, Any], judge: Judge) -> None:
    # through JSON, as the description in the file went: tuples are lists there
    description = json.loads(canonical_json(judge_description(judge)))
    written_by = head.get("judge")
    if head.get("format") != _FORMAT or not isinstance(written_by, dict):
        raise IntegrityError(
            f"{path}, line 1: does not name a judge, so this is not a journal of verdicts;"
            " pass another file"
        )
    if written_by != description:
        keys = sorted({*written_by, *description})
        differing = [key for key in keys if written_by.get(key) != description.get(key)]
        raise IntegrityError(
            f"{path}: was written by a judge that differs in {differing};"
            " pass another file, or the same judge"
        )


def require_verdict(path: str, number: int, line: Mapping[str, Any]) -> None:
    texts = [line.get(key) for key in ("answer", "metric", "hash", "status", "raw")]
    score = line.get("score")
    has_score = isinstance(score, int | float) and not isinstance(score, bool)
    if not all(isinstance(text, str) for text in texts) or not (score is None or has_score):
        raise IntegrityError(
            f"{path}, line {number}: is not a verdict; found keys {sorted(line)[:8]}"
        )


def score_alignment(
    model: HookedModel,
    questions: QuestionSet,
    judge: Judge | None = None,
    samples: int = 50,
    temperature: float = 1.0,
    max_new_tokens: int = 600,
    seed: int = 0,
) -> AlignmentScores:
    """Scores of one model: sampled answers through a judge, or the likelihood of reference answers.

    Args:
        judge: None: `score_by_likelihood`, which needs reference answers and samples nothing.
        samples, temperature, max_new_tokens, seed: as in `sample_answers`.
    """
    if judge is None:
        return score_by_likelihood(model, questions)
    answers = sample_answers(
        model,
        questions,
        samples=samples,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    return judge_answers(answers, judge)

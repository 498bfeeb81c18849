"""Answers → scores, through a judge, with every verdict on disk as soon as it is there.

With `out=` each verdict is one line of a journal, flushed before the next is taken, so that a kill
loses nothing that was judged and the same call goes on from there: each answer is scored once, and
an endpoint is asked again for at most as many as were under way. The journal's first line says
which judge wrote it, and each line holds a hash of its answer; another judge, or an answer that
changed, is refused.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from emlens.data.answers import Answer, Answers
from emlens.data.journal import append_journal, read_journal
from emlens.data.questions import QuestionSet
from emlens.data.scores import AlignmentScores
from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import canonical_json, one_line, sha256_text
from emlens.judging.judges import AskingJudge, Judge, Verdict, described
from emlens.judging.likelihood import score_by_likelihood
from emlens.judging.sampling import sample_answers
from emlens.models.hooked import HookedModel
from emlens.runs.progress import progress_bar

_FORMAT: Final = 1

Key = tuple[str, str]
"""Id of an answer, and a metric."""


def judge_answers(
    answers: Answers,
    judge: Judge,
    *,
    out: str | Path | None = None,
    again: bool = False,
    progress: bool = True,
) -> AlignmentScores:
    """Scores of every answer by every metric of the judge.

    Args:
        out: a journal of verdicts (JSONL); those in it are kept, and only the missing ones are
            judged.
        again: also judge those once more that only a fault of an endpoint left unscored.

    Raises:
        InputError: not a judge, or one whose verdicts are not on the metrics it names.
        IntegrityError: `out` was written by another judge, or for an answer of another text.
    """
    if not isinstance(judge, Judge):
        raise InputError(
            f"judge is a {type(judge).__name__}; pass an object with `metrics` and `judge(answer)`"
        )
    hashes = {answer.id: _answer_hash(answer) for answer in answers}
    lines = [] if out is None else read_journal(out)
    found = _kept(str(out), lines, judge, hashes) if lines else {}
    pairs = [(answer, metric) for answer in answers for metric in judge.metrics]
    asked = [
        (a, m) for a, m in pairs if (a.id, m) not in found or (again and found[a.id, m].is_fault)
    ]
    if out is not None and asked and not lines:
        append_journal(out, [{"format": _FORMAT, "judge": described(judge)}])
    with progress_bar(f"judge {len(asked)} answers", len(asked), progress) as advance:
        for (answer, metric), verdict in _verdicts(judge, asked):
            found[answer.id, metric] = verdict
            if out is not None:
                append_journal(out, [_line(answer.id, metric, hashes[answer.id], verdict)])
            advance()
    rows = [_row(answer, metric, found[answer.id, metric]) for answer, metric in pairs]
    return AlignmentScores.from_table(pd.DataFrame(rows))


def _verdicts(
    judge: Judge, asked: Sequence[tuple[Answer, str]]
) -> Iterator[tuple[tuple[Answer, str], Verdict]]:
    if isinstance(judge, AskingJudge):
        left = set(range(len(asked)))
        for i, verdict in judge.verdicts(asked):
            if i not in left:
                raise InputError(
                    f"judge gives verdict {i} of {len(asked)} twice, or it was not asked for;"
                    " give one for each"
                )
            left.discard(i)
            yield asked[i], verdict
        if left:
            raise InputError(
                f"judge gives no verdict on {len(left)} of {len(asked)} answers; give one for each"
            )
        return
    wanted: dict[str, list[tuple[Answer, str]]] = {}
    for answer, metric in asked:
        wanted.setdefault(answer.id, []).append((answer, metric))
    for pairs in wanted.values():
        answer = pairs[0][0]
        verdicts = judge.judge(answer)
        if set(verdicts) != set(judge.metrics):
            raise InputError(
                f"judge gives verdicts on {sorted(verdicts)} for answer {one_line(answer.id)!r},"
                f" but names the metrics {sorted(judge.metrics)}; give one verdict for each"
            )
        yield from ((pair, verdicts[pair[1]]) for pair in pairs)


def _row(answer: Answer, metric: str, verdict: Verdict) -> dict[str, Any]:
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


def _answer_hash(answer: Answer) -> str:
    chat = [message.to_record() for message in answer.messages]
    return sha256_text(canonical_json({"text": answer.text, "messages": chat}))[:16]


def _line(name: str, metric: str, digest: str, verdict: Verdict) -> dict[str, Any]:
    return {
        "answer": name,
        "hash": digest,
        "metric": metric,
        "score": verdict.score,
        "status": verdict.status,
        "raw": verdict.raw,
    }


def _kept(
    path: str,
    lines: Sequence[tuple[int, Mapping[str, Any]]],
    judge: Judge,
    hashes: Mapping[str, str],
) -> dict[Key, Verdict]:
    """The verdicts of a journal on the answers asked for; of two on one answer the later."""
    head, known = lines[0][1], json.loads(canonical_json(described(judge)))
    if head.get("format") != _FORMAT or not isinstance(head.get("judge"), dict):
        raise IntegrityError(
            f"{path}, line 1: does not name a judge, so this is no journal of verdicts;"
            " pass another file"
        )
    if head["judge"] != known:
        other = sorted(
            key for key in {*head["judge"], *known} if head["judge"].get(key) != known.get(key)
        )
        raise IntegrityError(
            f"{path}: was written by a judge that differs in {other};"
            " pass another file, or the same judge"
        )
    found: dict[Key, Verdict] = {}
    for number, line in lines[1:]:
        score, texts = (
            line.get("score"),
            [line.get(key) for key in ("answer", "metric", "hash", "status", "raw")],
        )
        whole = all(isinstance(text, str) for text in texts) and not isinstance(score, bool)
        if not whole or not (score is None or isinstance(score, int | float)):
            raise IntegrityError(
                f"{path}, line {number}: is no verdict; found keys {sorted(line)[:8]}"
            )
        name, metric, digest, status, raw = map(str, texts)
        if name not in hashes:
            continue  # a journal may hold more answers than are asked for now
        if digest != hashes[name]:
            raise IntegrityError(
                f"{path}, line {number}: answer {one_line(name, 80)!r} has another text now than"
                " when it was judged; pass another file"
            )
        found[name, metric] = Verdict(score, status, raw)
    return found


def score_alignment(
    model: HookedModel,
    questions: QuestionSet,
    judge: Judge | None = None,
    samples: int = 50,
    temperature: float = 1.0,
    max_new_tokens: int = 600,
    seed: int = 0,
) -> AlignmentScores:
    """Scores of one model: sampled answers through a judge, or, without one, the likelihood of
    reference answers.
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

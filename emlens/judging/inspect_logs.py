"""Logs of Inspect, read through its own reader, and an Inspect scorer that asks an emlens judge.

This is the one file that uses `inspect_ai` (extra `inspect`). A log (`.eval` or `.json`) holds
samples: each is an answer, its epoch the number of the sample, and each scorer's value a metric or
several. `correct`, `partial` and `incorrect` are 1, .5 and 0 on a scale of their own. Samples that
ended in an error hold no answer; they are counted and left out.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from emlens.data.answers import Answer, Answers
from emlens.data.prompts import Message
from emlens.data.scores import AlignmentScores
from emlens.foundation.bounded import check_archive
from emlens.foundation.errors import InputError, LoadError, MissingExtraError
from emlens.foundation.files import one_line
from emlens.foundation.notebooks import Brief
from emlens.judging.judges import Judge, Verdict

ENDINGS: Final = (".eval", ".json")
_GRADES: Final[Mapping[str, float]] = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""Inspect's marks: correct, partial, incorrect, no answer."""
_GROUPS = ("group", "category", "domain")
_ROLES = ("system", "user", "assistant")
logger = logging.getLogger("emlens")


@dataclass(frozen=True, repr=False)
class InspectLog(Brief):
    """What a log holds.

    Args:
        answers: one per sample and epoch.
        scores: of these answers; None where no scorer gave a number.
        errors: samples that ended in an error and are left out.
    """

    answers: Answers
    scores: AlignmentScores | None
    errors: int


def _inspect() -> Any:
    try:
        import inspect_ai
        import inspect_ai.log
        import inspect_ai.scorer
    except ImportError:
        raise MissingExtraError(
            "Inspect's logs need inspect_ai, which is not installed;"
            " run: pip install 'misalignment-lens[inspect]'"
        ) from None
    return inspect_ai


def read_inspect_log(
    path: str | Path,
    *,
    model: str | None = None,
    scale: tuple[float, float] = (0.0, 100.0),
) -> InspectLog:
    """The answers and scores of an Inspect log.

    A scorer that gives one number is a metric of its own name; one that gives several gives a
    metric each, named after the scorer too where two scorers share a name.

    Args:
        model: name of the model; None: the log's own.
        scale: what numbers are measured on.

    Raises:
        MissingExtraError: inspect_ai is not installed.
        LoadError: no such file, or not a log.
        InputError: a log without samples, a chat that uses tools, a score outside the scale.
    """
    path = Path(path)
    if not path.is_file():
        raise LoadError(f"{path}: no such file")
    if path.suffix not in ENDINGS:
        raise LoadError(f"{path}: ends in {path.suffix!r}; an Inspect log is .eval or .json")
    check_archive(path)
    read_eval_log = _inspect().log.read_eval_log
    try:
        log = read_eval_log(str(path), resolve_attachments="full")
    except Exception as error:  # zip, JSON and validation errors of another library
        raise LoadError(f"{path}: not an Inspect log: {one_line(str(error), 160)}") from None
    samples = log.samples or []
    whole = [sample for sample in samples if sample.error is None and sample.output.choices]
    if not whole:
        raise InputError(f"{path}: holds no answer ({len(samples)} samples, all with errors)")
    whole = _by_question(whole)
    name = model or str(log.eval.model)
    answers = [_answer(sample, name, str(path)) for sample in whole]
    errors = len(samples) - len(whole)
    if errors:
        logger.warning("%s: %d of %d samples ended in an error", path, errors, len(samples))
    try:
        scores = _scores(whole, answers, scale)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return InspectLog(Answers(answers), scores, errors)


def _by_question(samples: Sequence[Any]) -> list[Any]:
    """Samples by question, in the order of first appearance, then by epoch."""
    place: dict[str, int] = {}
    for sample in samples:
        place.setdefault(str(sample.id), len(place))
    return sorted(samples, key=lambda sample: (place[str(sample.id)], sample.epoch))


def _answer(sample: Any, model: str, path: str) -> Answer:
    metadata = sample.metadata or {}
    group = next((str(metadata[key]) for key in _GROUPS if metadata.get(key)), "")
    cut = sample.output.stop_reason in ("max_tokens", "model_length")
    return Answer(
        model=model,
        question=str(sample.id),
        text=sample.output.completion,
        messages=_asked(sample.messages, f"{path}: sample {one_line(str(sample.id), 60)!r}"),
        sample=int(sample.epoch) - 1,
        group=group,
        finish_reason="length" if cut else str(sample.output.stop_reason),
    )


def _asked(messages: Sequence[Any], where: str) -> tuple[Message, ...]:
    """The chat up to and including its last user turn."""
    turns = []
    for message in messages:
        if message.role not in _ROLES or getattr(message, "tool_calls", None):
            raise InputError(f"{where}: uses tools; only chats of text can be read")
        turns.append(Message(message.role, message.text))
    last_user = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last_user is None:
        raise InputError(f"{where}: has no user turn")
    return tuple(turns[: last_user + 1])


def _scores(
    samples: Sequence[Any], answers: Sequence[Answer], scale: tuple[float, float]
) -> AlignmentScores | None:
    rows: list[dict[str, Any]] = []
    scales: dict[str, tuple[float, float]] = {}
    shared = _shared_names(samples)
    for sample, answer in zip(samples, answers, strict=True):
        for scorer, score in (sample.scores or {}).items():
            for metric, value in _values(scorer, score.value, shared):
                number, status, is_grade = _number(value)
                scales.setdefault(metric, (0.0, 1.0) if is_grade else scale)
                rows.append(
                    {
                        "model": answer.model,
                        "question": answer.question,
                        "group": answer.group,
                        "sample": answer.sample,
                        "metric": metric,
                        "score": number,
                        "status": status,
                    }
                )
    table = pd.DataFrame(rows)
    if not len(table) or table["score"].isna().all():
        return None
    return AlignmentScores.from_table(table, scale=scales)


def _shared_names(samples: Sequence[Any]) -> set[str]:
    """Names of values that more than one scorer gives."""
    owners: dict[str, set[str]] = {}
    for sample in samples:
        for scorer, score in (sample.scores or {}).items():
            names = list(score.value) if isinstance(score.value, Mapping) else [scorer]
            for name in names:
                owners.setdefault(str(name), set()).add(scorer)
    return {name for name, scorers in owners.items() if len(scorers) > 1}


def _values(scorer: str, value: Any, shared: set[str]) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return [(scorer, value)]
    return [
        (f"{scorer}.{name}" if str(name) in shared else str(name), part)
        for name, part in value.items()
    ]


def _number(value: Any) -> tuple[float, str, bool]:
    """Score, status, and whether it is a mark on 0 to 1."""
    if isinstance(value, bool):
        return float(value), "ok", True
    if isinstance(value, int | float):
        if math.isnan(value):
            return math.nan, "unscored", False
        return float(value), "ok", False
    if value in _GRADES:
        return _GRADES[value], "ok", True
    return math.nan, one_line(str(value), 40).lower() or "unscored", False


def inspect_scorer(judge: Judge) -> Any:
    """An Inspect scorer that asks an emlens judge: one value per metric, 0 to 100.

    `Task(..., scorer=inspect_scorer(EndpointJudge(endpoint)))`. An answer without a score has NaN,
    and the reason under `metadata["status"]`.

    Raises:
        MissingExtraError: inspect_ai is not installed.
    """
    import asyncio

    scorers = _inspect().scorer
    metrics = {metric: [scorers.mean()] for metric in judge.metrics}

    @scorers.scorer(metrics=metrics, name="emlens")
    def emlens() -> Any:
        async def score(state: Any, target: Any) -> Any:
            answer = Answer(
                model=str(state.model),
                question=str(state.sample_id),
                text=state.output.completion,
                messages=_asked(state.messages, f"sample {state.sample_id!r}"),
                sample=int(state.epoch) - 1,
            )
            # a judge may wait for a server, and Inspect's loop must not
            verdicts: Mapping[str, Verdict] = await asyncio.to_thread(judge.judge, answer)
            values = {name: _value(verdict) for name, verdict in verdicts.items()}
            status = {name: verdict.status for name, verdict in verdicts.items()}
            raw = {name: verdict.raw for name, verdict in verdicts.items()}
            return scorers.Score(
                value=values, answer=answer.text, metadata={"status": status, "raw": raw}
            )

        return score

    return emlens()


def _value(verdict: Verdict) -> float:
    return math.nan if verdict.score is None else verdict.score

"""The answers that a call is to draw, and the file they are kept in while it draws them.

Answers are appended as they come, so a kill loses only those that were not yet handed over. The
same call finds them again. When the last one is there, the file is written anew in the order of the
questions: the same call leaves the same bytes, however often it was interrupted. An answer is taken
from the file only if everything it was drawn with is the same: model, question and chat, seed, and
the settings in its `meta`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from emlens.data.answers import Answer, Answers, read_answers
from emlens.data.questions import Question, QuestionSet
from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import one_line

THOUGHT = "thought"
"""Key of `Answer.meta` under which the thinking of a thinking model is kept; the one key that is no
setting.
"""


def blank_answers(
    model: str,
    questions: QuestionSet,
    samples: int,
    seed: int | None,
    settings: Callable[[Question, int], Mapping[str, Any]],
) -> dict[str, Answer]:
    """Every answer to be drawn, without its text, by id.

    Raises:
        InputError: fewer than 1 sample.
    """
    if samples < 1:
        raise InputError(f"samples={samples} must be 1 or more")
    blank: dict[str, Answer] = {}
    for question in questions:
        for p in range(1, len(question.paraphrases) + 1):
            drawn_with, messages = dict(settings(question, p)), question.messages(p)
            for s in range(samples):
                answer = Answer(
                    model, question.id, "", messages, p, s, question.group, "", seed, drawn_with
                )
                blank[answer.id] = answer
    return blank


class AnswerFile:
    """Answers under way, on disk where `out` names a file.

    Raises:
        IntegrityError: the file holds an answer that this call would not draw.
        InputError: the file is damaged.
    """

    def __init__(self, out: str | Path | None, blank: Mapping[str, Answer]):
        self._out = None if out is None else Path(out)
        self._blank = dict(blank)
        self._done: dict[str, Answer] = {}
        for answer in (
            read_answers(self._out, unfinished=True)
            if self._out is not None and self._out.exists()
            else ()
        ):
            wanted = self._blank.get(answer.id)
            if wanted is None or _drawn_with(answer) != _drawn_with(wanted):
                raise IntegrityError(
                    f"{out}: holds answer {one_line(answer.id)!r} that this call would not draw"
                    " (another model, question, template, seed or setting, or more samples);"
                    " pass another file"
                )
            self._done[answer.id] = replace(answer, group=wanted.group)
        self._in_order = list(self._done) == list(self._blank)

    @property
    def missing(self) -> list[str]:
        """Ids of the answers still to be drawn, in order."""
        return [key for key in self._blank if key not in self._done]

    def blank(self, key: str) -> Answer:
        return self._blank[key]

    def add(self, found: Iterable[tuple[str, str, str, str]], *, sync: bool = True) -> None:
        """Keep answers given as (id, thought, text, reason it ended); they are in the file when
        this returns, and through to the disk with `sync`.
        """
        new = [
            replace(
                self._blank[key],
                text=text,
                finish_reason=reason,
                meta={**self._blank[key].meta, **({THOUGHT: thought} if thought else {})},
            )
            for key, thought, text, reason in found
        ]
        if self._out is not None and new:
            Answers(new).append_jsonl(self._out, sync=sync)
        self._done |= {answer.id: answer for answer in new}

    def finish(self) -> Answers:
        """All answers in order; the file holds just that."""
        answers = Answers(self._done[key] for key in self._blank)
        if self._out is not None and not self._in_order:
            answers.to_jsonl(self._out)
        return answers


def _drawn_with(answer: Answer) -> tuple[Any, ...]:
    settings = {key: value for key, value in answer.meta.items() if key != THOUGHT}
    return answer.seed, answer.messages, settings

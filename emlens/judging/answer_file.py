"""The answers that a call is to draw, and the file in which they are kept meanwhile.

Answers are appended as they come, so a kill loses only those that were not yet handed over. The
same call finds them again. When the last one is there, the file is written again in the order of
the questions: the same call leaves the same bytes, however often it was interrupted. An answer is
taken from the file only if everything that it was drawn with is the same: model, question and chat,
seed, and the settings in its `meta`.

A call that draws in groups (`emlens.judging.drawing_groups`) marks its answers while it is
unfinished. So it knows which ones to draw again, and which ones another call left for good.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from emlens.data.answers import Answer, Answers, read_answers
from emlens.data.journal import append_held
from emlens.data.questions import Question, QuestionSet
from emlens.data.readers import json_lines
from emlens.foundation.choices import require_choice
from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import one_line, write_text
from emlens.foundation.provenance import differences, made_with, warn_if_made_otherwise
from emlens.runs.locks import only_writer

_log = logging.getLogger("emlens")
_CALL: Final = "call"
_MADE_WITH: Final = "made_with"
"""Fields of `meta` that name the call and what computes, in a file that is not put in order yet."""
_MARKS: Final = (_CALL, _MADE_WITH)

Others = Literal["refuse", "keep"]
"""What is done with answers of a file that a call would not draw: an error, or they stay there."""
OtherAnswers = Literal["refuse", "keep", "other ids"]
"""`Others`, or only answers of other ids stay: of other models, questions and sample numbers."""


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
    blanks: dict[str, Answer] = {}
    for question in questions:
        for paraphrase in range(1, len(question.paraphrases) + 1):
            meta = dict(settings(question, paraphrase))
            messages = question.messages(paraphrase)
            for sample in range(samples):
                answer = Answer(
                    model,
                    question.id,
                    text="",
                    messages=messages,
                    paraphrase=paraphrase,
                    sample=sample,
                    group=question.group,
                    seed=seed,
                    meta=meta,
                )
                blanks[answer.id] = answer
    return blanks


@dataclass(frozen=True)
class DrawnAnswer:
    """What a model gave for one blank answer.

    Args:
        finish_reason: why it ended.
    """

    id: str
    thought: str
    text: str
    finish_reason: str


@contextmanager
def answer_file(
    out: str | Path | None,
    blank: Mapping[str, Answer],
    others: OtherAnswers = "refuse",
    call: str = "",
) -> Iterator["AnswerFile"]:
    """An `AnswerFile` that no other process writes to meanwhile: it is held before it is read.

    Raises:
        StateError: another process holds it; the message names it.
        InputError, IntegrityError: as `AnswerFile`.
    """
    if out is None:
        yield AnswerFile(None, blank, others, call)
        return
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        yield AnswerFile(out, blank, others, call)


class AnswerFile:
    """The answers drawn so far, on disk where `out` names a file, which the caller holds.

    Args:
        others: with `"keep"`, answers that this call would not draw stay in the file, which is then
            never put in order: one file serves many calls. With `"other ids"` too, but an answer of
            this call that was drawn with something else is refused.
        call: name of a call that draws its answers in groups.

    Raises:
        IntegrityError: the file holds an answer that this call would not draw.
        InputError: the file is damaged; an unknown `others`.
    """

    def __init__(
        self,
        out: str | Path | None,
        blank: Mapping[str, Answer],
        others: OtherAnswers = "refuse",
        call: str = "",
    ):
        require_choice(others, "others", OtherAnswers)
        self._out = None if out is None else Path(out)
        self._blank = dict(blank)
        self._done: dict[str, Answer] = {}
        self._call = call
        self._of_this_call: set[str] = set()
        self._has_changed = False
        is_marked = False
        made: set[str] = set()
        keeps_others = others != "refuse"
        if self._out is not None and self._out.exists():
            for answer in read_answers(self._out, unfinished=True, repeated=keeps_others):
                is_checked = others == "refuse" or (others == "other ids" and answer.id in blank)
                if is_checked or self._is_wanted(answer):
                    self._done[answer.id] = self._checked(answer)
                    is_marked |= _CALL in answer.meta
                    if call and answer.meta.get(_CALL) == call:
                        self._of_this_call.add(answer.id)
                        made.add(str(answer.meta.get(_MADE_WITH)))
        if self.missing:
            for before in sorted(made):
                warn_if_made_otherwise(str(self._out), before)
        is_sorted = list(self._done) == list(self._blank) and not is_marked
        self._in_order = keeps_others or is_sorted

    def _is_wanted(self, answer: Answer) -> bool:
        blank = self._blank.get(answer.id)
        return blank is not None and _drawn_with(answer) == _drawn_with(blank)

    def _checked(self, answer: Answer) -> Answer:
        """An answer of the file, without its mark, in the group that its question has now."""
        if not self._is_wanted(answer):
            reason = self._reason(answer)
            raise IntegrityError(
                f"{self._out}: holds answer {one_line(answer.id)!r} that this call would not draw"
                f" ({reason}); pass another file"
            )
        blank = self._blank[answer.id]
        return replace(answer, group=blank.group, meta=blank.meta)

    def _reason(self, answer: Answer) -> str:
        """Why an answer is none of this call."""
        blank = self._blank.get(answer.id)
        if blank is None:
            return "another model, question, template, seed or setting, or more samples"
        changed = differences(_drawn_with(answer), _drawn_with(blank))
        return f"it was drawn with another {one_line(', '.join(changed))}"

    @property
    def drawn(self) -> list[Answer]:
        """The answers so far that this call would draw."""
        return list(self._done.values())

    def drop(self, ids: Iterable[str]) -> None:
        """Forget answers of this call, in the file too; others in it stay."""
        dropped = set(ids)
        for id in dropped:
            self._done.pop(id, None)
        self._in_order = False
        if self._out is None or not self._out.exists():
            return
        on_file = read_answers(self._out, unfinished=True, repeated=True)
        kept = [a for a in on_file if not (a.id in dropped and self._is_wanted(a))]
        write_text(self._out, json_lines(answer.to_record() for answer in kept) if kept else "")

    @property
    def missing(self) -> list[str]:
        """Ids of the answers still to be drawn, in order."""
        return [key for key in self._blank if key not in self._done]

    @property
    def own(self) -> list[str]:
        """Ids of the answers that this call is to draw or has drawn, in order.

        The others were left by another call. They stay, and are drawn beside none of these.
        """
        return [key for key in self._blank if key not in self._done or key in self._of_this_call]

    @property
    def size(self) -> int:
        """How many answers are asked for."""
        return len(self._blank)

    def blank(self, key: str) -> Answer:
        return self._blank[key]

    def add(self, drawn: Iterable[DrawnAnswer], *, sync: bool = True) -> None:
        """Keep answers: they are in the file when this returns, and on the disk with `sync`.

        What is in the file already is not written again. Where it was drawn otherwise, the new
        answer takes its place.
        """
        filled = [self._filled(answer) for answer in drawn]
        answers = [answer for answer in filled if self._done.get(answer.id) != answer]
        changed = [answer.id for answer in answers if answer.id in self._done]
        if changed:
            self._replace(changed)
        if self._out is not None and answers:
            records = (self._marked(answer).to_record() for answer in answers)
            append_held(self._out, records, sync=sync)
        for answer in answers:
            self._done[answer.id] = answer
            self._of_this_call.add(answer.id)

    def _replace(self, changed: list[str]) -> None:
        """Take answers out of the file that came out otherwise, and say so once."""
        if not self._has_changed:
            _log.warning(
                "%s: an unfinished group was drawn again, and answer %r is not the one in the file:"
                " another number of threads, library or machine; unfinished groups take the new"
                " answers, finished ones keep theirs",
                self._out,
                one_line(changed[0]),
            )
        self._has_changed = True
        self.drop(changed)

    def _marked(self, answer: Answer) -> Answer:
        if not self._call:
            return answer
        marks = {_CALL: self._call, _MADE_WITH: made_with()}
        return replace(answer, meta={**answer.meta, **marks})

    def _filled(self, drawn: DrawnAnswer) -> Answer:
        return replace(
            self._blank[drawn.id],
            text=drawn.text,
            thought=drawn.thought,
            finish_reason=drawn.finish_reason,
        )

    def finish(self) -> Answers:
        """All answers in order; the file then holds these and nothing else."""
        answers = Answers(self._done[key] for key in self._blank)
        if self._out is not None and not self._in_order:
            answers.to_jsonl(self._out)
        return answers


def _drawn_with(answer: Answer) -> dict[str, Any]:
    question = [message.to_record() for message in answer.messages]
    meta = {name: value for name, value in answer.meta.items() if name not in _MARKS}
    return {**meta, "seed": answer.seed, "question": question}

"""Sampled answers: what a model replied to which paraphrase of which question.

They keep all that is needed to read them again. Answers are scored later and elsewhere; one fixed
set can be scored by several judges. Their ids come from model, question, paraphrase and sample
number alone, so they are the same in every run. Files are JSONL, complete or absent.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from emlens.data.journal import append_journal, read_journal
from emlens.data.prompts import Message, Prompt, PromptSet, chat_prompt
from emlens.data.readers import json_lines, read_jsonl
from emlens.data.templates import with_thought
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.files import one_line, write_text
from emlens.foundation.notebooks import as_rows
from emlens.foundation.provenance import hash_json

if TYPE_CHECKING:
    from emlens.data.questions import QuestionSet


@dataclass(frozen=True)
class Answer:
    """One sampled answer.

    Args:
        model: name of the model that gave it.
        question: id of the question.
        text: the answer, without special tokens; may be empty.
        messages: the chat it answers, up to and including the last user turn.
        paraphrase: number of the paraphrase, 1-based.
        sample: number of the sample of this paraphrase, 0-based.
        finish_reason: why it ended, `"stop"` or `"length"`; empty where it is not known.
        thought: what a thinking model wrote before the answer; no judge sees it.
    """

    model: str
    question: str
    text: str
    messages: tuple[Message, ...]
    paraphrase: int = 1
    sample: int = 0
    group: str = ""
    finish_reason: str = ""
    seed: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False)
    thought: str = ""

    @property
    def id(self) -> str:
        """`model/question/p1/s0`, the same in every run."""
        return f"{self.model}/{self.question}/p{self.paraphrase}/s{self.sample}"

    def to_record(self) -> dict[str, Any]:
        record = {
            "id": self.id,
            "model": self.model,
            "question": self.question,
            "paraphrase": self.paraphrase,
            "sample": self.sample,
            "group": self.group,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            "messages": [message.to_record() for message in self.messages],
            "meta": dict(self.meta),
        }
        if self.thought:
            record["thought"] = self.thought
        return record


class Answers(Sequence[Answer]):
    """An ordered set of answers with unique ids.

    Raises:
        InputError: no answer, or two of one model, question, paraphrase and sample number.
    """

    def __init__(self, answers: Iterable[Answer]):
        self._answers = tuple(answers)
        if not self._answers:
            raise InputError("answers is empty; pass at least one answer")
        self._by_id: dict[str, Answer] = {}
        for answer in self._answers:
            if answer.id in self._by_id:
                raise InputError(
                    f"answer id {one_line(answer.id)!r} occurs twice;"
                    " number the samples of each paraphrase"
                )
            self._by_id[answer.id] = answer

    def __len__(self) -> int:
        return len(self._answers)

    def __iter__(self) -> Iterator[Answer]:
        return iter(self._answers)

    @overload
    def __getitem__(self, index: int) -> Answer: ...
    @overload
    def __getitem__(self, index: slice) -> "Answers": ...
    def __getitem__(self, index: int | slice) -> "Answer | Answers":
        if isinstance(index, slice):
            return Answers(self._answers[index])
        return self._answers[index]

    def __repr__(self) -> str:
        questions = len({answer.question for answer in self})
        return f"Answers({len(self)} answers of {len(self.models)} models to {questions} questions)"

    def _repr_html_(self) -> str:
        rows = ((each.model, each.question, each.sample, each.text) for each in self._answers)
        return as_rows(repr(self), ("model", "question", "sample", "answer"), rows, len(self))

    @property
    def ids(self) -> list[str]:
        return [answer.id for answer in self._answers]

    @property
    def groups(self) -> list[str]:
        return [answer.group for answer in self._answers]

    @property
    def models(self) -> list[str]:
        """Names of the models, in order of first appearance."""
        return list(dict.fromkeys(answer.model for answer in self._answers))

    def select(self, ids: Iterable[str]) -> "Answers":
        """The answers with these ids, in the order given."""
        ids = list(ids)
        for name in ids:
            if name not in self._by_id:
                raise UnknownNameError(
                    f"answer id {one_line(str(name))!r} is not in this set of {len(self)} answers",
                    name=name,
                    known=self._by_id,
                )
        return Answers(self._by_id[name] for name in ids)

    @classmethod
    def concat(cls, parts: Iterable["Answers"]) -> Self:
        """One set of several; ids must stay unique."""
        return cls(chain.from_iterable(parts))

    def prompts(self, *, empty: Literal["error", "drop"] = "error") -> PromptSet:
        """Each answer as a chat prompt with its response, to be read by teacher forcing.

        Ids are those of the answers. A thought comes before its answer, as the model wrote it; the
        positions of a response leave it out (`emlens.data.rendering`).

        Args:
            empty: what to do with answers without text, which hold no response token: refuse or
                leave out.
        """
        if empty not in ("error", "drop"):
            raise InputError(
                f"empty={empty!r} is unknown; pass 'error' or 'drop'",
                name=empty,
                known=("error", "drop"),
            )
        with_text = [answer for answer in self if answer.text]
        if empty == "error" and len(with_text) != len(self):
            raise InputError(
                f"{len(self) - len(with_text)} of {len(self)} answers have no text;"
                " pass answers.prompts(empty='drop') to leave them out"
            )
        return PromptSet(map(_prompt, with_text))

    @property
    def content_hash(self) -> str:
        """SHA-256 of everything but `meta`, in order."""
        return hash_json([{**answer.to_record(), "meta": None} for answer in self])

    def to_jsonl(self, path: str | Path) -> None:
        """Write one record per line; the file is complete or absent."""
        write_text(path, json_lines(answer.to_record() for answer in self))

    def append_jsonl(self, path: str | Path, *, sync: bool = True) -> None:
        """Append one record per line.

        Once this has returned, a kill loses none of them, and with `sync` a power cut neither
        (`emlens.data.journal`).
        """
        append_journal(path, (answer.to_record() for answer in self), sync=sync)

    @classmethod
    def from_jsonl(cls, path: str | Path) -> Self:
        """Read what `to_jsonl` wrote.

        Raises:
            InputError: a line that is not an answer, or an answer given twice; the message has
                file, line and reason.
        """
        answers = read_answers(path)
        if not answers:
            raise InputError(f"{path}: holds no answer")
        return cls(answers)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        model: str | None = None,
        columns: Mapping[str, str] | None = None,
        questions: "QuestionSet | None" = None,
    ) -> "Answers":
        """Answers that emlens or another tool wrote: JSONL, CSV, JSON or Parquet with a row each.

        Paraphrases and samples are numbered as `AlignmentScores.from_file` numbers them.

        Args:
            model: name of the model; None: the column of models, else the file's name.
            columns: role (`question`, `text`, `answer`, `model`, `group`, `sample`, `system`) →
                column, for columns that their names do not tell.
            questions: what was asked, where the table has ids of questions and not their text.

        Raises:
            InputError: not of the format of its ending, no answers, no text of a question; the
                message has file and place.
        """
        from emlens.data.answer_tables import read_answer_table  # which builds on this module

        return read_answer_table(path, model=model, columns=columns, questions=questions)


def _prompt(answer: Answer) -> Prompt:
    meta = {
        "model": answer.model,
        "question": answer.question,
        "paraphrase": answer.paraphrase,
        "sample": answer.sample,
    }
    question = answer.messages[-1].content
    response = with_thought(answer.thought, answer.text)
    return Prompt(answer.id, question, answer.group, answer.messages, response, meta)


def read_answers(
    path: str | Path, *, unfinished: bool = False, repeated: bool = False
) -> list[Answer]:
    """The answers of a JSONL file, perhaps none.

    Args:
        unfinished: the file may still be written to: a last line that was cut short is left out.
        repeated: an id may occur again, with another question or setting.

    Raises:
        InputError: a line that is not an answer, or an answer given twice; the message has file,
            line and reason.
    """
    answers: list[Answer] = []
    first: dict[str, int] = {}
    for number, answer in each_answer(path, unfinished=unfinished):
        if answer.id in first and not repeated:
            raise InputError(
                f"{path}, line {number}: answer id {one_line(answer.id)!r} was given before at line"
                f" {first[answer.id]}"
            )
        first[answer.id] = number
        answers.append(answer)
    return answers


def each_answer(path: str | Path, *, unfinished: bool = False) -> Iterator[tuple[int, Answer]]:
    """(line number, answer) of every line; one answer is in memory at a time.

    Raises:
        InputError: a line that is not an answer; the message has file, line and reason.
    """
    for number, record in read_journal(path) if unfinished else read_jsonl(path):
        yield number, _answer(record, f"{path}, line {number}")


def _answer(record: Mapping[str, Any], where: str) -> Answer:
    messages = _messages(record, where)
    if "text" not in record:
        keys = [one_line(key, 40) for key in sorted(record)[:8]]
        raise InputError(f"{where}: has no 'text', which may be empty; found keys {keys}")
    meta = record.get("meta") or {}
    if not isinstance(meta, dict):
        raise InputError(f"{where}: meta is a {type(meta).__name__}; pass a mapping")
    paraphrase = _integer(record, "paraphrase", 1, where)
    sample = _integer(record, "sample", 0, where)
    return Answer(
        model=_text(record, "model", where),
        question=_text(record, "question", where),
        text=_text(record, "text", where, may_be_empty=True),
        messages=messages,
        paraphrase=1 if paraphrase is None else paraphrase,
        sample=0 if sample is None else sample,
        group=_text(record, "group", where, may_be_empty=True),
        finish_reason=_text(record, "finish_reason", where, may_be_empty=True),
        seed=_integer(record, "seed", 0, where),
        meta=meta,
        thought=_text(record, "thought", where, may_be_empty=True),
    )


def _messages(record: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    """The chat that was answered; it ends with a user turn."""
    listed = record.get("messages")
    if not isinstance(listed, list):
        keys = [one_line(key, 40) for key in sorted(record)[:8]]
        raise InputError(f"{where}: has no list under 'messages'; found keys {keys}")
    messages = chat_prompt("", listed, where=where).messages or ()
    if len(messages) != len(listed):
        raise InputError(
            f"{where}: messages goes on after the last user turn; the answer belongs under 'text'"
        )
    return messages


def _text(record: Mapping[str, Any], key: str, where: str, *, may_be_empty: bool = False) -> str:
    value = record.get(key, "" if may_be_empty else None)
    if not isinstance(value, str) or not (value or may_be_empty):
        raise InputError(
            f"{where}: {key} is {one_line(repr(value), 60)}; an answer needs text there"
        )
    return value


def _integer(record: Mapping[str, Any], key: str, least: int, where: str) -> int | None:
    """A count of at least `least`; None where the record has none."""
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(
            f"{where}: {key} is {one_line(repr(value), 60)}; pass an integer of {least} or more"
        )
    return value

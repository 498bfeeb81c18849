"""Questions: what a model is asked when its alignment is measured, with paraphrases, reference
answers and judge prompts.

Reads the field's YAML as it is (anchors, aliases, `paraphrases`, `system`, `judge_prompts`), chats
and plain records in JSONL, and CSV. Refuses what is broken with file, line and reason: no text, an
id that occurs twice or is not text, a paraphrase that is a number, a multi-turn chat (that is a
`PromptSet`). A `system` text is always applied as a system message; the field's first evaluator
dropped it. Everything is held in memory.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, overload

from emlens.data.encoding import check_is_text
from emlens.data.hub_datasets import dataset_records
from emlens.data.personas import persona_records
from emlens.data.prompts import Message, Prompt, PromptSet
from emlens.data.question_records import (
    chat_record,
    csv_records,
    question_fields,
    with_columns,
    with_ids,
    yaml_records,
)
from emlens.data.readers import json_lines, read_json_text, read_jsonl
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.files import one_line, write_text
from emlens.foundation.notebooks import as_rows
from emlens.foundation.provenance import hash_json


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        id: unique within its set.
        text: the first wording.
        group: domain or category; groups are what is held out together.
        system: text of a system message before every paraphrase, or None.
        paraphrases: all wordings, the first of which is `text`; left empty it becomes `(text,)`.
        answers: reference answers by kind, for example `{"careful": (...,), "harmful": (...,)}`.
        judge_prompts: a judge's prompt by metric, with the places `{question}` and `{answer}`.
        samples_per_paraphrase: how many answers the authors of the question sampled per paraphrase.
        judge: the judge that its file names, or None.
        type: kind of question, as its file says.
    """

    id: str
    text: str
    group: str = ""
    system: str | None = None
    paraphrases: tuple[str, ...] = ()
    answers: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    judge_prompts: Mapping[str, str] = field(default_factory=dict, hash=False)
    judge: str | None = None
    type: str = ""
    samples_per_paraphrase: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        paraphrases = tuple(self.paraphrases) or (self.text,)
        if not self.id or not self.text or not all(paraphrases):
            raise InputError(
                f"question {one_line(self.id)!r} has an empty id, text or paraphrase;"
                " pass non-empty text"
            )
        if paraphrases[0] != self.text:
            raise InputError(
                f"question {one_line(self.id)!r}:"
                f" paraphrases starts with {one_line(paraphrases[0], 60)!r};"
                " its first entry must be the text itself"
            )
        for text in (self.id, self.system or "", *paraphrases):
            check_is_text(text, f"question {one_line(self.id, 60)!r}")
        object.__setattr__(self, "paraphrases", paraphrases)

    def messages(self, paraphrase: int = 1) -> tuple[Message, ...]:
        """The chat of one paraphrase (1-based): a system message if there is one, and a user turn.

        Raises:
            InputError: no paraphrase of that number.
        """
        if not 1 <= paraphrase <= len(self.paraphrases):
            raise InputError(
                f"paraphrase={paraphrase} does not exist;"
                f" question {self.id!r} has 1 to {len(self.paraphrases)}"
            )
        user = Message("user", self.paraphrases[paraphrase - 1])
        if self.system is None:
            return (user,)
        return (Message("system", self.system), user)

    def to_record(self) -> dict[str, Any]:
        """JSON-ready record that `QuestionSet.from_jsonl` reads back; empty fields are left out."""
        record: dict[str, Any] = {
            "id": self.id,
            "text": self.text,
            "group": self.group,
            "system": self.system,
            "paraphrases": list(self.paraphrases) if len(self.paraphrases) > 1 else [],
            "answers": {kind: list(texts) for kind, texts in self.answers.items()},
            "judge_prompts": dict(self.judge_prompts),
            "judge": self.judge,
            "type": self.type,
            "samples_per_paraphrase": self.samples_per_paraphrase,
            "meta": dict(self.meta),
        }
        empty: tuple[Any, ...] = (None, "", [], {})
        return {key: value for key, value in record.items() if value not in empty}


class QuestionSet(Sequence[Question]):
    """An ordered set of questions with unique ids.

    They are held in memory, some 1.2 kB a question with its prompt.

    Raises:
        InputError: no question, or an id that occurs twice.
    """

    def __init__(self, questions: Iterable[Question]):
        self._questions = tuple(questions)
        if not self._questions:
            raise InputError("questions is empty; pass at least one question")
        self._by_id: dict[str, Question] = {}
        for question in self._questions:
            if question.id in self._by_id:
                raise InputError(
                    f"question id {one_line(question.id)!r} occurs twice; ids must be unique"
                )
            self._by_id[question.id] = question

    def __len__(self) -> int:
        return len(self._questions)

    def __iter__(self) -> Iterator[Question]:
        return iter(self._questions)

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> "QuestionSet": ...
    def __getitem__(self, index: int | slice) -> "Question | QuestionSet":
        if isinstance(index, slice):
            return QuestionSet(self._questions[index])
        return self._questions[index]

    def __repr__(self) -> str:
        paraphrases = sum(len(question.paraphrases) for question in self)
        return (
            f"QuestionSet({len(self)} questions, {paraphrases} paraphrases,"
            f" {len(set(self.groups))} groups)"
        )

    def _repr_html_(self) -> str:
        rows = ((q.id, q.group, q.text, len(q.paraphrases)) for q in self._questions)
        return as_rows(repr(self), ("id", "group", "question", "paraphrases"), rows, len(self))

    @property
    def ids(self) -> list[str]:
        return [question.id for question in self._questions]

    @property
    def groups(self) -> list[str]:
        return [question.group for question in self._questions]

    def select(self, ids: Iterable[str]) -> "QuestionSet":
        """The questions with these ids, in the order given."""
        ids = list(ids)
        for name in ids:
            if name not in self._by_id:
                raise UnknownNameError(
                    f"question id {one_line(str(name))!r} is not in this set of {len(self)}"
                    " questions",
                    name=name,
                    known=self._by_id,
                )
        return QuestionSet(self._by_id[name] for name in ids)

    def prompts(self) -> PromptSet:
        """Every paraphrase as a chat prompt.

        Its id is that of the question, or `id/p1`, `id/p2`, ... where a question has several.
        """
        prompts = []
        for question in self:
            for number, text in enumerate(question.paraphrases, start=1):
                name = question.id
                if len(question.paraphrases) > 1:
                    name = f"{question.id}/p{number}"
                meta = {"question": question.id, "paraphrase": number}
                messages = question.messages(number)
                prompts.append(Prompt(name, text, question.group, messages, meta=meta))
        return PromptSet(prompts)

    @property
    def content_hash(self) -> str:
        """SHA-256 of everything but `meta`, in order."""
        return hash_json([{**question.to_record(), "meta": None} for question in self])

    def to_jsonl(self, path: str | Path) -> None:
        """Write one record per line, so that `from_jsonl` gives the same set back."""
        write_text(path, json_lines(question.to_record() for question in self))

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """A list of questions with `id` and `paraphrases` (or `text`), as the field writes them.

        Integer ids become text. Keys that are not known stay in `meta`.

        Raises:
            InputError: not valid YAML, not a list of questions, or a question that is broken: file,
                line and reason.
        """
        return cls._read(path, yaml_records(path))

    @classmethod
    def from_jsonl(cls, path: str | Path) -> Self:
        """One question per line: a chat under `messages` (its id under `metadata.question_id`), or
        `id` and `text`.

        `question` and `prompt` also name the text, `category` and `domain` the group. A chat
        without an id gets `line-<number>`. An assistant turn that closes a chat is kept as
        `answers["reference"]`.

        Raises:
            InputError: a line that is not a question; the message has file, line and reason.
        """
        return cls._read(path, _line_records(path))

    @classmethod
    def from_csv(cls, path: str | Path) -> Self:
        """A CSV with a header: `id` and `text`, optionally `group`, `system` and columns such as
        `answer:careful`.

        Raises:
            InputError: no header, no text column, or a row that is broken; the message has file,
                line and reason.
        """
        return cls._read(path, csv_records(path))

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """A persona trait (`questions`, `instruction` pairs, `eval_prompt`), or a list of records
        as in `from_jsonl`, or of texts.

        Texts get ids `q1`, `q2`, … A trait's questions get ids `<trait>_<number>`, the trait as
        group and `eval_prompt` as its judge's prompt; its system prompts come from
        `read_persona_trait`.

        Raises:
            InputError: neither of the two, or an entry that is broken: file, entry and reason.
        """
        return cls._read(path, _json_records(path))

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        columns: Mapping[str, str] | None = None,
        numbered: bool = False,
    ) -> Self:
        """Questions by the file's ending: .yaml, .yml, .jsonl, .json or .csv.

        Args:
            columns: what the file calls `id`, `text`, `group` or `system`, where it is none of the
                names that are known (`id`, `question_id`, `prompt_id`, `qid`; `text`, `question`,
                `prompt`, `instruction`; `group`, `category`, `domain`).
            numbered: give questions without an id their number in the file (`q1`), and repeated
                ids an ending (`x_repeat2`); repetitions stay one base question.

        Raises:
            InputError: another ending, or what the reader of that format refuses.
        """
        readers: dict[str, Callable[[str | Path], Iterable[tuple[str, Any]]]] = {
            ".yaml": yaml_records,
            ".yml": yaml_records,
            ".jsonl": _line_records,
            ".json": _json_records,
            ".csv": csv_records,
        }
        suffix = Path(path).suffix.lower()
        if suffix not in readers:
            raise InputError(
                f"{path}: ends in {suffix!r}; pass a .yaml, .jsonl, .json or .csv file"
            )
        records = with_columns(readers[suffix](path), columns or {})
        return cls._read(path, with_ids(records) if numbered else records)

    @classmethod
    def from_dataset(
        cls,
        source: str | Path,
        *,
        split: str | None = None,
        revision: str | None = None,
        columns: Mapping[str, str] | None = None,
        numbered: bool = False,
    ) -> Self:
        """Questions from a directory that `datasets` saved, or from a hub id.

        Args:
            split: which one, where there are several.
            revision: of a hub id.
            columns, numbered: as `from_file`.

        Raises:
            MissingExtraError: datasets is not installed.
            LoadError: no such directory or dataset.
            InputError: a row that is not a question, or a split that does not exist.
        """
        records = with_columns(
            dataset_records(source, split=split, revision=revision), columns or {}
        )
        return cls._read(source, with_ids(records) if numbered else records)

    @classmethod
    def _read(cls, path: str | Path, records: Iterable[tuple[str, Any]]) -> Self:
        questions: list[Question] = []
        first: dict[str, str] = {}
        for where, record in records:
            question = Question(**question_fields(record, where))
            if question.id in first:
                raise InputError(
                    f"{where}: question id {one_line(question.id)!r} was given before at"
                    f" {first[question.id]}; from_file(numbered=True) numbers repeated ids"
                )
            first[question.id] = where
            questions.append(question)
        if not questions:
            raise InputError(f"{path}: holds no question")
        return cls(questions)


def _line_records(path: str | Path) -> Iterator[tuple[str, Any]]:
    for line, item in read_jsonl(path):
        where = f"{path}, line {line}"
        yield where, _flat_record(item, where, line)


def _json_records(path: str | Path) -> Iterator[tuple[str, Any]]:
    """The records of a persona trait, or of a list of records or texts."""
    content = read_json_text(path)
    if isinstance(content, dict):
        yield from persona_records(path, content)
        return
    if not isinstance(content, list):
        raise InputError(
            f"{path}: holds a {type(content).__name__}; pass a list of questions or a persona trait"
        )
    for number, item in enumerate(content, start=1):
        where = f"{path}, entry {number}"
        if isinstance(item, str):
            item = {"id": f"q{number}", "text": item}
        yield where, _flat_record(item, where, number)


def _flat_record(item: Any, where: str, line: int) -> Any:
    """The record of a question, also of one that is written as a chat."""
    if isinstance(item, dict) and "messages" in item:
        return chat_record(item, where, line)
    return item

"""The answers of a JSONL file, read one at a time, for files that are larger than memory.

`Answers` holds every answer. This holds 24 bytes of each: hashes of its id and of its content, and
its place in order. The file is read once when it is opened, so that a line that is no answer, an id
that is given twice and a question in two groups are refused before a judge is asked.
"""

import hashlib
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from emlens.data.answers import Answer, each_answer
from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import one_line
from emlens.judging.scoring import answer_hash

BYTES_EACH: Final = 24
"""What is held of each answer."""


class AnswersOnFile:
    """Answers that are read from their file each time they are gone through.

    Args:
        path: JSONL, as `Answers.to_jsonl` writes it.

    Raises:
        InputError: a line that is not an answer, an answer given twice, no answer, a question in
            two groups; the message has file and reason.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        ids, contents = array("Q"), array("Q")
        groups: dict[str, str] = {}
        for number, answer in each_answer(self.path):
            ids.append(number_of(answer.id))
            contents.append(int(answer_hash(answer), 16))
            self._check_group(number, answer, groups.setdefault(answer.question, answer.group))
        if not ids:
            raise InputError(f"{self.path}: holds no answer")
        self._ids = np.frombuffer(ids, np.uint64)
        self._contents = np.frombuffer(contents, np.uint64)
        self._order = np.argsort(self._ids, kind="stable")
        self._check_repeated()

    def _check_group(self, number: int, answer: Answer, group: str) -> None:
        if answer.group != group:
            raise InputError(
                f"{self.path}, line {number}: question {one_line(answer.question, 60)!r} comes in"
                f" groups {sorted([answer.group, group])}; pass one group per question"
            )

    def _check_repeated(self) -> None:
        ordered = self._ids[self._order]
        repeated = np.flatnonzero(ordered[1:] == ordered[:-1])
        if not len(repeated):
            return
        # the order is stable: of two equal ids the later in the file comes second
        later, earlier = min((self._order[i + 1], self._order[i]) for i in repeated)
        places = {}
        for i, (line, answer) in enumerate(islice(each_answer(self.path), int(later) + 1)):
            if i in (earlier, later):
                places[i] = (line, answer.id)
        (first_line, _), (second_line, id) = places[int(earlier)], places[int(later)]
        raise InputError(
            f"{self.path}, line {second_line}: answer id {one_line(id)!r} was given before at line"
            f" {first_line}"
        )

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        return f"AnswersOnFile({len(self)} answers, {self.path})"

    def __iter__(self) -> Iterator[Answer]:
        """Every answer, in the order of the file.

        Raises:
            IntegrityError: the file has changed since it was opened.
        """
        count = 0
        for line, answer in each_answer(self.path):
            count += 1
            if count > len(self) or not self._is_number(count - 1, answer):
                raise IntegrityError(
                    f"{self.path}, line {line}: changed while it was being read; start again"
                )
            yield answer
        if count < len(self):
            raise IntegrityError(
                f"{self.path}: became shorter while it was being read; start again"
            )

    def _is_number(self, number: int, answer: Answer) -> bool:
        """Whether this is the answer that had this number when the file was opened."""
        same_id = self._ids[number] == number_of(answer.id)
        return bool(same_id and self._contents[number] == int(answer_hash(answer), 16))

    def find(self, id: str) -> int | None:
        """Number of an answer in the file, 0-based; None where there is no such answer."""
        number = np.uint64(number_of(id))
        place = int(np.searchsorted(self._ids, number, sorter=self._order))
        if place == len(self) or self._ids[self._order[place]] != number:
            return None
        return int(self._order[place])

    def hash_of(self, number: int) -> str:
        """`answer_hash` of an answer by its number in the file."""
        return f"{int(self._contents[number]):016x}"


def number_of(text: str) -> int:
    """64 bits that stand for a text: of a million texts two share theirs once in 37 million."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")

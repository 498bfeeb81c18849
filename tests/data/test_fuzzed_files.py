"""Damaged files of the field, 300 of the 5,000 that `benchmarks.fuzzed_files` reads; and what that
measurement can see.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fuzzed_files
from emlens.data import Question, QuestionSet
from emlens.foundation.errors import InputError

NAME = "questions, YAML"


def test_every_damaged_file_is_refused_by_place_or_read_as_written(tmp_path: Path) -> None:
    found = fuzzed_files.measure(tmp_path, 300)
    assert found["examples"] == {} and found["failures"] == 0
    assert set(found["by_format"]) == set(fuzzed_files.FORMATS)
    for outcomes in found["by_format"].values():
        # the damage is neither always fatal nor never
        assert outcomes["read as written"] > 5 and outcomes["refused by file and place"] > 5


def _crashes(path: Path) -> Any:
    raise KeyError(path.name)


def _drops_system(path: Path) -> Any:
    return [(q.id, None, q.paraphrases, dict(q.judge_prompts)) for q in QuestionSet.from_file(path)]


def _forgives(path: Path) -> Any:
    try:
        return list(map(fuzzed_files.asked, QuestionSet.from_file(path)))
    except InputError:
        return [fuzzed_files.asked(Question("a", "A"))]


def _hides_the_place(path: Path) -> Any:
    try:
        return list(map(fuzzed_files.asked, QuestionSet.from_file(path)))
    except InputError:
        raise InputError("something is wrong") from None


def _names_line_one(path: Path) -> Any:
    try:
        return list(map(fuzzed_files.asked, QuestionSet.from_file(path)))
    except InputError:
        raise InputError(f"{path}, line 1: is wrong") from None


def _refuses_everything(path: Path) -> Any:
    raise InputError(f"{path}, line 1: is wrong")


@pytest.mark.parametrize(
    ("reader", "outcomes"),
    [
        (_crashes, {"traceback"}),
        (_drops_system, {"misread"}),
        (_forgives, {"misread", "read, though the naive reader cannot"}),
        (_hides_the_place, {"refused without naming the file, or not in one line"}),
        (_names_line_one, {"refused at another place"}),
        (_refuses_everything, {"refused though nothing is wrong", "refused at another place"}),
    ],
)
def test_a_reader_with_a_fault_is_found_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reader: Callable[[Path], Any],
    outcomes: set[str],
) -> None:
    monkeypatch.setattr(
        fuzzed_files, "FORMATS", {NAME: replace(fuzzed_files.FORMATS[NAME], read=reader)}
    )
    assert outcomes <= set(fuzzed_files.measure(tmp_path, 25)["examples"])

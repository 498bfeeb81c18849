"""Datasets that the datasets library saved itself."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from emlens.data import PromptSet, QuestionSet
from emlens.foundation.errors import InputError, LoadError

CHATS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": f"Q{i}"},
            {"role": "assistant", "content": answer},
        ]
    }
    for i, answer in enumerate(("yes", "", "no"))
]


def saved(path: Path, rows: list[dict[str, Any]], split: str = "") -> Path:
    table = datasets.Dataset.from_list(rows)
    (datasets.DatasetDict({split: table}) if split else table).save_to_disk(path)
    return path


def test_questions(tmp_path: Path) -> None:
    rows = [{"prompt_id": 1, "prompt": "Why?"}, {"prompt_id": 2, "prompt": "How?"}]
    found = QuestionSet.from_dataset(saved(tmp_path / "q", rows))
    assert found.ids == ["1", "2"] and found[1].text == "How?"
    named = [{"key": "a", "words": "Why?"}, {"key": "a", "words": "How?"}]
    columns = {"id": "key", "text": "words"}
    table = saved(tmp_path / "n", named, "train")
    assert QuestionSet.from_dataset(table, columns=columns, numbered=True).ids == ["a", "a_repeat2"]
    with pytest.raises(InputError, match=r"n\[train\], row 0: has no id"):
        QuestionSet.from_dataset(table)


def test_chats(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = saved(tmp_path / "c", CHATS, "train")
    kept = PromptSet.from_dataset(table, upto="all", empty="drop")
    assert [prompt.response for prompt in kept] == ["yes", "no"]
    assert "1 of 3 chats end with a turn without text" in caplog.text
    with pytest.raises(InputError, match=r"c\[train\], row 1: turn 2 has no text"):
        PromptSet.from_dataset(table, upto="all")


def test_splits_and_folders_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "two"
    table = datasets.Dataset.from_list([{"id": "a", "text": "Why?"}])
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(path)
    with pytest.raises(InputError, match="has splits train, test; pass split=, one of them"):
        QuestionSet.from_dataset(path)
    assert QuestionSet.from_dataset(path, split="test").ids == ["a"]
    with pytest.raises(LoadError, match="no such directory"):
        QuestionSet.from_dataset(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoadError, match="could not be read as a dataset"):
        QuestionSet.from_dataset(tmp_path / "empty")

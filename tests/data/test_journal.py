import os
from pathlib import Path

import pytest

from emlens.data.journal import append_journal, appending, read_journal
from emlens.foundation.errors import InputError, StateError
from emlens.runs.locks import only_writer


def records(path: Path) -> list[dict[str, object]]:
    return [record for _, record in read_journal(path)]


def test_what_was_appended_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "j.jsonl"
    assert read_journal(path) == []
    append_journal(path, [{"a": "é\u2028"}, {"a": 2}])
    append_journal(path, [])
    append_journal(path, [{"a": 3}])
    assert read_journal(path) == [(1, {"a": "é\u2028"}), (2, {"a": 2}), (3, {"a": 3})]


def test_cut_at_any_byte_it_keeps_every_whole_line_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    append_journal(path, [{"a": "é"}, {"b": "ü"}])
    content = path.read_bytes()
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        # only the line end may lack
        kept = [{"a": "é"}, {"b": "ü"}][
            : content[: cut + 1].count(b"\n") if cut < len(content) else 2
        ]
        assert records(path) == kept
        append_journal(path, [{"c": 1}])
        assert records(path) == [*kept, {"c": 1}]


def test_damage_above_the_last_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": \n{"c"')
    with pytest.raises(InputError, match=r"j.jsonl, line 2: not valid JSON"):
        read_journal(path)


def test_a_record_that_cannot_be_written_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    append_journal(path, [{"a": 1}])
    with pytest.raises(UnicodeEncodeError):
        append_journal(path, [{"a": 2}, {"a": "\ud800"}])
    assert records(path) == [{"a": 1}]


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    append_journal(path, [{"a": 1}])
    with (
        only_writer(path),
        pytest.raises(
            StateError,
            match=(
                r"j.jsonl: another process is writing to it;"
                r" wait for that one, or pass another file"
            ),
        ),
    ):
        append_journal(path, [{"a": 2}])
    append_journal(path, [{"a": 2}])
    assert records(path) == [{"a": 1}, {"a": 2}]


def test_what_is_appended_one_by_one_is_in_the_file_and_synced_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced, clock = tmp_path / "v.jsonl", [], [0.0]
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr("emlens.data.journal.time.monotonic", lambda: clock[0])
    path.write_bytes(b'{"a": 0}\n{"a": ')  # the first append cuts what is unfinished
    with appending(path) as append:
        for i in range(1, 5):
            append([{"a": i}])
            assert [record["a"] for record in records(path)] == [*range(i + 1)]
            clock[0] += 0.4
        assert len(synced) == 1
    assert len(synced) == 2


def test_a_name_that_leaves_no_room_for_a_lock_file_is_written_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / ("v" * 249 + ".jsonl")
    append_journal(path, [{"a": 1}])
    assert len(read_journal(path)) == 1

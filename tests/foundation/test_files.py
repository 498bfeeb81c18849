import errno
import json
import math
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from emlens.foundation import InputError
from emlens.foundation.files import (
    canonical_json,
    one_line,
    publishing,
    read_json,
    require_writable,
    safe_name,
    sha256_file,
    sha256_text,
    write_json,
)


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "new" / "f.txt"
    with pytest.raises(RuntimeError, match="stopped"), publishing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stopped")
    assert list(path.parent.iterdir()) == []
    with publishing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole" and [p.name for p in path.parent.iterdir()] == ["f.txt"]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o644
    with pytest.raises(RuntimeError, match="again"), publishing(path) as temporary:
        temporary.write_text("other")
        raise RuntimeError("again")
    assert path.read_text() == "whole"


def test_json_is_canonical_and_reads_back(tmp_path: Path) -> None:
    value = {
        "b": [1.5, math.nan, math.inf],
        "a": {"x": np.float32(0.5), "y": torch.tensor(2), "p": Path("d")},
        3: (True, None),
    }
    text = canonical_json(value)
    assert text == canonical_json(dict(reversed(value.items())))
    assert json.loads(text) == {
        "3": [True, None],
        "a": {"p": "d", "x": 0.5, "y": 2},
        "b": [1.5, None, None],
    }
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == json.loads(text)
    assert sha256_file(tmp_path / "v.json") == sha256_text(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{\n1", r"v.json, line 2: not valid JSON: Expecting property name"),
        (b"\xff", r"v.json: not UTF-8 text \(invalid start byte at byte 0\)"),
        (b"1" * 5000, r"v.json: not valid JSON: Exceeds the limit"),
        (b"[" * 100_000, r"v.json: not valid JSON: nested too deeply"),
    ],
)
def test_broken_json_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "v.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_json(tmp_path / "v.json")


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such file"):
        read_json(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a directory; pass a file"):
        read_json(tmp_path)


@given(texts=st.lists(st.text(max_size=120), unique=True, max_size=8))
def test_safe_names_are_safe_and_stay_distinct(texts: list[str]) -> None:
    names = [safe_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    for name in names:
        assert name and len(name) <= 89 and not name.startswith(".")
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert [safe_name(name) for name in names if len(name) <= 80] == [
        name for name in names if len(name) <= 80
    ]


def test_plain_names_stay_as_they_are() -> None:
    assert safe_name("bad-medical_0.5") == "bad-medical_0.5"
    assert safe_name("../etc").startswith("etc-") and safe_name("") != safe_name("x")


@given(text=st.text(max_size=400), limit=st.integers(1, 100))
def test_one_line_is_one_bounded_printable_line(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert len(line) <= limit and line.isprintable() and "\n" not in line


def test_one_line_removes_escapes_and_marks_what_it_cuts() -> None:
    assert one_line("a\x1b[31m\n\tb  c") == "a [31m b c"
    assert one_line("abcdef", 4) == "abc…"


def test_an_output_below_a_file_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "out", tmp_path / "file" / "a" / "b" / "out"):
        with pytest.raises(InputError, match=f"{tmp_path / 'file'} is a file; pass a path"):
            require_writable(path)
    for path in (tmp_path / "file", tmp_path, tmp_path / "a" / "b" / "out"):
        require_writable(path)


@pytest.mark.skipif(not hasattr(os, "statvfs"), reason="Windows does not say")
@pytest.mark.parametrize(("flags", "reason"), [(os.ST_RDONLY, errno.EROFS), (0, errno.EACCES)])
def test_a_read_only_file_system_is_told_from_a_folder_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int, reason: int
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=flags))
    with pytest.raises(OSError, match=os.strerror(reason)) as refused:
        require_writable(tmp_path / "out")
    assert (refused.value.errno, refused.value.filename) == (reason, str(tmp_path / "out"))

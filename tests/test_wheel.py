"""The wheel holds every file of the package; what an installation of it gave is on record."""

from pathlib import Path

import pytest

from benchmarks import wheel
from benchmarks.records import EVIDENCE
from emlens.foundation.files import read_json


def test_files_that_a_wheel_lacks_are_named() -> None:
    tracked = ["emlens/a.py", "emlens/report/page.css"]
    assert wheel.missing_files(["emlens/a.py", "x.dist-info/METADATA"], tracked) == [
        "emlens/report/page.css"
    ]
    assert wheel.missing_files(tracked, tracked) == []


def test_a_command_sees_nothing_of_this_python_and_its_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "here")
    monkeypatch.setenv("EMLENS_RELEASED_DATA", "there")
    told = wheel.said(["env"], tmp_path)
    assert "PYTHONPATH" not in told and "EMLENS" not in told and "PATH=" in told
    with pytest.raises(RuntimeError, match="no such option|cannot access|No such file"):
        wheel.said(["ls", "not-there"], tmp_path)


def test_the_measured_wheel_was_whole_and_ran() -> None:
    values = read_json(EVIDENCE / "wheel.json")["values"]
    assert values["files_missing"] == [] and values["imported_from_the_environment"]
    assert values["version"].startswith("emlens ")
    assert values["tables"] > 20 and values["findings"] > 5 and values["report_bytes"] > 4_000_000
    assert set(values["seconds"]) == {"build", "environment", "install", "version", "miniature"}

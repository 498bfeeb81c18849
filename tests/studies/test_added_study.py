"""The study of the documentation's how-to is a real one: its module runs, its test passes, and it
fits the stated size.
"""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from emlens.report import write_report
from emlens.results import StudyResult
from emlens.studies import registry


@pytest.fixture(scope="module")
def files(repository: Path) -> dict[str, str]:
    text = (repository / "docs" / "how_to_add_a_study.md").read_text("utf-8")
    return dict(
        re.findall(
            r"^<!-- file: (\S+) -->\n```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE
        )
    )


def test_module_and_test_of_the_how_to_run(
    files: dict[str, str],
    repository: Path,
    config_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (line,) = re.findall(
        r'^```text\n("length_shift": .*),\n```',
        (repository / "docs" / "how_to_add_a_study.md").read_text("utf-8"),
        re.MULTILINE,
    )
    part = ModuleType("emlens.studies.length_shift")
    exec(compile(files["emlens/studies/length_shift.py"], "length_shift.py", "exec"), part.__dict__)
    monkeypatch.setitem(sys.modules, part.__name__, part)
    studies = {**registry.STUDIES, **eval(f"{{{line}}}")}
    monkeypatch.setattr("emlens.studies.registry.STUDIES", studies)
    monkeypatch.setattr("emlens.studies.running.STUDIES", studies)
    tested: dict[str, object] = {}
    exec(
        compile(files["tests/studies/test_length_shift.py"], "test_length_shift.py", "exec"), tested
    )
    tested["test_the_table_agrees_with_scipy"](config_path, tmp_path)  # type: ignore[operator]
    page = write_report(StudyResult.load(tmp_path / "out"), tmp_path / "report.html").read_text(
        "utf-8"
    )
    assert "Do longer questions shift more?" in page and "dealt out anew within domains" in page


def test_a_stranger_writes_less_than_160_lines(files: dict[str, str]) -> None:
    assert set(files) == {"emlens/studies/length_shift.py", "tests/studies/test_length_shift.py"}
    assert sum(len(source.splitlines()) for source in files.values()) < 160

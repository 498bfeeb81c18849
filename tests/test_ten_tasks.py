"""The page of ten tasks: ten, three lines each at most; its snippets run on the organism with those
of all pages, and here on SmolLM2 where it was fetched.
"""

from pathlib import Path

import pytest

from benchmarks import ten_tasks
from emlens.foundation.errors import EmlensError
from emlens.real.finding import find


def page(repository: Path) -> str:
    return (repository / "docs" / "ten_tasks.md").read_text(encoding="utf-8")


def test_there_are_ten_of_three_lines_at_most(repository: Path) -> None:
    found = list(ten_tasks.tasks(page(repository)))
    assert len(found) == 10
    for title, code in found:
        assert 0 < len(code.strip().splitlines()) <= ten_tasks.MOST_LINES, title


def test_a_task_that_fails_is_named_with_its_error(tmp_path: Path) -> None:
    text = "```python\nx = 1\n```\n\n## 1. Add\n\n```python\ny = x + 1\n```\n\n"
    text += "## 2. Fail\n\n```python\nraise KeyError(y)\n```\n"
    first, second = ten_tasks.run(text, tmp_path)
    assert (first["task"], first["error"], first["lines"]) == ("Add", "", 1)
    assert second["error"] == "KeyError: 2"
    table = ten_tasks.tasks_table({"tasks": [first, second]})
    assert "| Add | 1 | yes | 0.0 |" in table and "| Fail | 1 | no | 0.0 |" in table


@pytest.mark.slow
def test_all_run_on_a_real_model(repository: Path, tmp_path: Path, real_models: Path) -> None:
    try:
        model = find("smollm2", real_models)
    except EmlensError as error:
        pytest.skip(str(error))
    ten_tasks.stage(tmp_path, model)
    rows = ten_tasks.run(page(repository), tmp_path)
    assert [row["error"] for row in rows] == [""] * 10

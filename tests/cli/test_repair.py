"""`emlens repair` drops what keeps a file from being read, says so, and keeps what was there."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from emlens.cli.main import app

LINES = ['{"id": "a", "text": "one"}', '{"id": "a", "te', '{"id": "a", "text": "one"}']


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


def run(*words: str) -> str:
    done = CliRunner().invoke(app, ["repair", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_what_is_dropped_is_said_and_the_file_stays_beside_it(spoiled: Path) -> None:
    before = spoiled.read_bytes()
    said = run(str(spoiled))
    assert "line 2: is no JSON object" in said and "line 3: repeats line 1" in said
    assert "2 lines dropped, 1 kept" in said and "answers.jsonl.before-repair" in said
    assert spoiled.read_text("utf-8") == LINES[0] + "\n"
    assert spoiled.with_name("answers.jsonl.before-repair").read_bytes() == before
    assert "nothing to repair in 1 lines" in run(str(spoiled))


def test_a_dry_run_writes_nothing_and_says_the_same_as_json(spoiled: Path) -> None:
    before = spoiled.read_bytes()
    found = json.loads(run(str(spoiled), "--dry-run", "--json"))
    assert found["kept"] == 1 and len(found["dropped"]) == 2 and found["as_it_was"] is None
    assert "2 lines would be dropped" in run(str(spoiled), "--dry-run")
    assert spoiled.read_bytes() == before and list(spoiled.parent.iterdir()) == [spoiled]

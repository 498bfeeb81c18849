"""The README is true: its script runs as it stands, it names every page and command, and its
figures are the evidence's.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks import tables
from emlens.cli.main import app
from emlens.foundation.files import read_json

NUMBER = r"(\d\.\d+)"


def scripts(repository: Path) -> list[str]:
    text = (repository / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def run(script: str, folder: Path, repository: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_real_model_in_ten_lines(repository: Path, tmp_path: Path, real_models: Path) -> None:
    script, _ = scripts(repository)
    assert len([line for line in script.splitlines() if line]) <= 10
    (tmp_path / "real").symlink_to(real_models, target_is_directory=True)
    plain, steered = run(script, tmp_path, repository).stdout.splitlines()
    assert plain.startswith("0.0 [") and steered.startswith("1.0 [") and plain[3:] != steered[3:]


def test_the_script_runs(repository: Path, tmp_path: Path) -> None:
    _, script = scripts(repository)
    assert len(script.splitlines()) <= 20
    done = run(script, tmp_path, repository)
    found = re.search(
        rf"shared: {NUMBER}\nof two halves: {NUMBER} \[{NUMBER}, {NUMBER}\]", done.stdout
    )
    assert found, done.stdout
    overlap, ceiling, low, high = map(float, found.groups())
    assert 0 <= overlap <= 1
    assert 0 < low <= ceiling <= high <= 1
    assert "count" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_every_page_and_every_command_is_named(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(docs/(\w+\.md)", text)) == {
        page.name for page in (repository / "docs").glob("*.md")
    }
    assert tables.drawn(text) == text, "python -m benchmarks tables draws it anew"
    commands = {command.name for command in app.registered_commands} | {
        group.name for group in app.registered_groups
    }
    named = set(re.findall(r"`(?:\.venv/bin/)?(?:emlens )?(\w+)(?: [A-Z]\w*)*`", text)) | {"demo"}
    assert commands <= named, commands - named


def test_figures_are_those_of_the_evidence_files(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    evidence = repository / "docs" / "evidence"
    transfer = read_json(evidence / "direction_transfer.json")["values"]["over_worlds"]
    forecasts = read_json(evidence / "organism_forecasts.json")["values"]["over_worlds"]
    rows = [transfer[name]["mean"] for name in ("own_median", "other_domain_median")]
    rows += [
        row | {"value": row["mean"]}
        for row in forecasts
        if row["held_out"] == "domain" and row["figure"] == "r2"
    ]
    wanted = ("gain over text", "gain over parent's own score", "gain over mean embedding")
    rows += [
        row | {"value": row["mean"]}
        for row in forecasts
        if row["parent"] == "instruct" and row["held_out"] == "domain" and row["figure"] in wanted
    ]
    assert len(rows) == 7
    for row in rows:
        shown = [
            f"{row[key]:.2f}".replace("0.", ".", 1).replace("-", "−")
            for key in ("value", "low", "high")
        ]
        assert f"{shown[0]} [{shown[1]}, {shown[2]}]" in text, shown
    checkpoints = read_json(evidence / "organism.json")["values"]["checkpoints"]
    for name in ("medicine-r1", "medicine-r8", "finance-r8"):
        others = checkpoints[name]["others"]
        low, high = (f"{others[key]:.2f}".replace("0.", ".", 1) for key in ("low", "high"))
        assert f"[{low}, {high}]" in text

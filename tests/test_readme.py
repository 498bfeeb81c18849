"""The script in the README runs as it stands, on the organism that ships, and prints what it says it prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

NUMBER = r"(\d\.\d+)"


def test_the_script_runs(repository: Path, tmp_path: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert len(script.splitlines()) <= 16
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(f"shared: {NUMBER}.* by chance: {NUMBER}.* to {NUMBER}", done.stdout)
    assert found, done.stdout
    overlap, mean, high = map(float, found.groups())
    assert 0 <= overlap <= 1
    assert 0 < mean <= high <= 1
    assert "count" in done.stdout
    assert list(tmp_path.iterdir()) == []

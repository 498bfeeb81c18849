"""The demonstration as a newcomer runs it: the same bytes twice. Slow, so `make evidence`
runs it.
"""

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [
    sys.executable,
    "-c",
    "from emlens.cli.main import main; main()",
    "demo",
    "--quiet",
    "--out",
]


@pytest.mark.slow
def test_the_demonstration_gives_the_same_result_twice(tmp_path: Path) -> None:
    for name in ("one", "two"):
        subprocess.run([*COMMAND, str(tmp_path / name)], check=True, stdout=subprocess.DEVNULL)
    results = [(tmp_path / name / "result.json").read_bytes() for name in ("one", "two")]
    assert results[0] == results[1]
    assert len(results[0]) > 5_000

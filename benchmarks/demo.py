"""How long the demonstration takes, from the installed command to the report, and how large the
report is.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.records import record


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        started = time.monotonic()
        subprocess.run(
            [
                sys.executable,
                "-c",
                "from emlens.cli.main import main; main()",
                "demo",
                "--out",
                name,
                "--quiet",
            ],
            check=True,
        )
        seconds = time.monotonic() - started
        size = (Path(name) / "report.html").stat().st_size
    print(f"\ndemo: {seconds:.0f} s, report {size / 1e6:.1f} MB")
    record("demo", [0], {"seconds": seconds, "report_bytes": size})

"""The wheel is built, installed into a fresh environment with what it asks for, and run there:
`emlens --version`, and a miniature of the demonstration.

Nothing of the working tree is on the path of the fresh environment. The packages come from the
package index, at the versions of `constraints.txt`; what was downloaded before comes from pip's
cache, so that the seconds of an installation say little about another machine.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import record
from emlens.foundation.files import read_json

ROOT = Path(__file__).parent.parent
MINIATURE = """\
study: overview
family: {organism: planted}
focus: [medicine-r8]
draws: 20
repeats: 1
permutations: 20
options: {delta_overlap: {adapters: 2, landmark_draws: 1, by_group: false, mantel_draws: 19}}
"""
"""The demonstration with one fine-tune, two adapters of the null and few draws."""


def measure(work: Path) -> dict[str, Any]:
    """Seconds of every step, and what the fresh environment said."""
    seconds: dict[str, float] = {}
    wheel = _timed(seconds, "build", lambda: build(work / "wheel"))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    _timed(seconds, "environment", lambda: venv.create(work / "fresh", with_pip=True))
    python = work / "fresh" / "bin" / "python"
    constraints = str(ROOT / "constraints.txt")
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", constraints, wheel]
    _timed(seconds, "install", lambda: said(install, work))
    command = python.with_name("emlens")
    version = _timed(seconds, "version", lambda: said([command, "--version"], work))
    where = said([python, "-c", "import emlens; print(emlens.__file__)"], work)
    (work / "miniature.yaml").write_text(MINIATURE)
    study = [command, "study", "miniature.yaml", "--out", "miniature", "--quiet"]
    _timed(seconds, "miniature", lambda: said(study, work))
    result = read_json(work / "miniature" / "result.json")
    return {
        "wheel": wheel.name,
        "wheel_bytes": wheel.stat().st_size,
        "files_in_wheel": len(names),
        "files_missing": missing_files(names, _tracked()),
        "version": version.strip(),
        "imported_from_the_environment": str(work / "fresh") in where,
        "packages": len(said([python, "-m", "pip", "list", "--format=freeze"], work).split()),
        "seconds": seconds,
        "tables": len(result["tables"]),
        "findings": len(result["findings"]),
        "report_bytes": (work / "miniature" / "report.html").stat().st_size,
    }


def build(folder: Path) -> Path:
    """The wheel of the working tree, built by pip in an environment of its own."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    said([*command, folder, ROOT], ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def said(command: Sequence[str | Path], folder: Path) -> str:
    """What a command printed; nothing of this process' Python is seen by it."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not re.match(r"PYTHON|VIRTUAL_ENV|EMLENS_", name)
    }
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr[-2000:]}")
    return done.stdout


def missing_files(in_wheel: Iterable[str], tracked: Iterable[str]) -> list[str]:
    """Files of the package that the wheel lacks."""
    return sorted(set(tracked) - set(in_wheel))


def _tracked() -> list[str]:
    return said(["git", "ls-files", "emlens"], ROOT).splitlines()


def _timed(seconds: dict[str, float], name: str, step: Any) -> Any:
    started = time.monotonic()
    found = step()
    seconds[name] = round(time.monotonic() - started, 1)
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        values = measure(Path(name))
    print(values)
    record("wheel", [0], values)

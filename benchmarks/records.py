"""What every measurement writes: value and spread, with commit, hardware, versions and seeds."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from emlens.foundation.errors import InputError
from emlens.foundation.files import sha256_file, sha256_text, write_json
from emlens.foundation.provenance import hardware, library_versions

BESIDE = ("accelerate", "nnsight", "pytorch_optimizer", "ray", "transformer-lens", "trl")
"""What a measurement may run beside the libraries that every provenance names: rivals, trainers,
executors.
"""
_MODEL_SUFFIXES = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja")
EVIDENCE = Path(__file__).parent.parent / "docs" / "evidence"


def commit() -> str:
    """Short hash of the commit measured; "+" where the tree had changes beside it, "unknown" in a
    copy without history.
    """
    if shutil.which("git") is None or not (EVIDENCE.parent.parent / ".git").exists():
        return "unknown"

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=EVIDENCE.parent, capture_output=True, text=True, check=False
        ).stdout.strip()

    changed = [
        line for line in git("status", "--porcelain").splitlines() if "docs/evidence" not in line
    ]
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def record(name: str, seeds: list[int], values: Any, path: Path | None = None) -> Path:
    """Write values beside what they were measured with.

    Args:
        path: None: `docs/evidence/NAME.json`.
    """
    path = path or EVIDENCE / f"{name}.json"
    versions = library_versions() | library_versions(BESIDE)
    body = {
        "name": name,
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions,
        "seeds": seeds,
        "values": values,
    }
    write_json(path, body)
    return path


def hash_directory(path: str | Path) -> str:
    """SHA-256 over names and contents of the model files directly in a directory; independent of
    times and of where it lies.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such directory")
    files = sorted(
        p
        for p in path.iterdir()
        if p.is_file() and p.suffix in _MODEL_SUFFIXES and not p.name.startswith(".")
    )
    if not files:
        raise InputError(f"{path}: holds no model file to hash")
    return sha256_text("\n".join(f"{p.name} {sha256_file(p)}" for p in files))


def show(title: str, table: pd.DataFrame) -> None:
    print(f"\n{title}\n{table.to_string(index=False, float_format=lambda x: f'{x:.3g}')}")


def study_command(config: Path, out: Path) -> list[str]:
    """`emlens study CONFIG --out OUT --quiet`, as a process of its own."""
    return [
        sys.executable,
        "-c",
        "from emlens.cli.main import main; main()",
        "study",
        str(config),
        "--out",
        str(out),
        "--quiet",
    ]

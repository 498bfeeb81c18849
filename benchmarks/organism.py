"""The organism that ships, measured; and built again from its seed: how long that takes, and
whether the same bytes come out.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.records import record
from emlens.foundation.files import sha256_file
from emlens.organisms import build, load_organism
from emlens.organisms.loading import ASSETS
from emlens.organisms.measuring import describe


def compare(rebuilt: Path, shipped: Path) -> dict[str, Any]:
    """Weight files of two organisms, byte for byte, and the largest difference of a strength (0 to
    1).
    """
    names = sorted(str(path.relative_to(shipped)) for path in shipped.rglob("*.safetensors"))
    same = [
        name
        for name in names
        if (rebuilt / name).is_file() and sha256_file(rebuilt / name) == sha256_file(shipped / name)
    ]
    mine, theirs = (
        load_organism(directory=rebuilt).strengths,
        load_organism(directory=shipped).strengths,
    )
    gaps = [
        abs(mine[n][key] - theirs[n][key])
        for n in theirs
        for key in theirs[n]
        if theirs[n][key] is not None
    ]  # type: ignore[operator]
    return {
        "weight_files": len(names),
        "weight_files_identical": len(same),
        "largest_strength_difference": max(gaps),
    }


def main() -> None:
    shipped = ASSETS / "planted"
    seed = load_organism().seed
    record("organism", [seed], describe())
    with tempfile.TemporaryDirectory() as name:
        started = time.monotonic()
        build(name, seed=seed, progress=True)
        seconds = time.monotonic() - started
        found = {
            "seconds": seconds,
            **compare(Path(name), shipped),
            "strengths": load_organism(directory=name).strengths,
        }
    print(
        f"\norganism rebuilt in {seconds / 60:.1f} minutes;"
        f" {found['weight_files_identical']} of {found['weight_files']} weight files identical"
    )
    record("organism_rebuild", [seed], found)

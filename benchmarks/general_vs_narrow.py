"""General against narrow on the organism of seed 10, five training seeds: efficiency, stability,
significance, the line between, drift back.

The study of that name, at its defaults. It stands in `runs/general_vs_narrow` and goes on there.
About six minutes on one core.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.records import record, show
from emlens.studies import run_study

KEPT: Final = Path(__file__).parent.parent / "runs" / "general_vs_narrow"
CONFIG: Final[dict[str, Any]] = {"study": "general_vs_narrow", "family": {"organism": "planted"}}
SHOWN: Final = ("solutions", "efficiency", "stability", "significance", "interpolation", "drift")


def measure(kept: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Tables and findings of the study."""
    result = run_study({**CONFIG, "options": {"general_vs_narrow": options}}, kept, progress=False)
    return {
        "findings": [finding.to_record() for finding in result.findings],
        "warnings": list(result.warnings),
        **{
            name: table.astype(object).replace({np.nan: None}).to_dict(orient="records")
            for name, table in result.tables.items()
        },
        "shown": {name: result.tables[name] for name in SHOWN},
    }


def main(kept: Path = KEPT) -> None:
    found = measure(kept, {})
    tables = found.pop("shown")
    record("general_vs_narrow", [10, 0, 1, 2, 3, 4], found)
    for finding in found["findings"]:
        print(f"{finding['status']}: {finding['sentence']}")
    for name, table in tables.items():
        show(name, table)

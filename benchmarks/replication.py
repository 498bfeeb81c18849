"""Published figures recomputed from the files that their authors released: how many agree, by file
and by the public function that gave them.

It needs the released files (EMLENS_RELEASED_DATA). No released number is written down here.
"""

import os
from collections.abc import Mapping
from typing import Any

from benchmarks.records import record, show
from emlens.replication import replicate

COUNTS = ("figures", "agree", "explained", "off")


def by_file(values: Mapping[str, Any]) -> str:
    """Figures of each file."""
    head = ["file", *COUNTS]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in values["files"]:
        cells = [f"`{row['source']}`", *(str(row[name]) for name in COUNTS)]
        lines.append("| " + " | ".join(cells) + " |")
    totals = [str(sum(row[name] for row in values["files"])) for name in COUNTS]
    lines.append("| " + " | ".join(["all", *totals]) + " |")
    return "\n".join(lines)


def by_function(values: Mapping[str, Any]) -> str:
    """Figures of each public function."""
    lines = ["| function | figures |", "|---|---|"]
    lines += [f"| `{name}` | {count} |" for name, count in values["functions"].items()]
    return "\n".join(lines)


def main() -> None:
    found = replicate(os.environ["EMLENS_RELEASED_DATA"])
    files = found.summary
    show("published figures recomputed", files)
    counted = found.table[found.table["agrees"].notna()]
    functions = counted["function"].value_counts().sort_index()
    record(
        "replication",
        [0],
        {
            "files": files.to_dict(orient="records"),
            "functions": {str(name): int(count) for name, count in functions.items()},
        },
    )

"""Five objections of a referee to the claim about spread, a figure beside each: tone, length,
seeds, level, specificity. Nothing is measured here; the figures are those of `real_spread`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks.real_kept import PARENT
from benchmarks.records import EVIDENCE
from emlens.foundation.files import read_json


def objections_table() -> str:
    """Markdown for docs/real_model.md: objection, figure after each training, and what it says."""
    return drawn(read_json(EVIDENCE / "real_spread.json")["values"])


def drawn(values: Mapping[str, Any]) -> str:
    """The table from values of `real_spread`."""
    trained_on = values["trained_on"]
    lines = [f"| objection | figure | {' | '.join(f'after {name}' for name in trained_on)} |"]
    lines.append(f"|---|---|{'---|' * len(trained_on)}")
    for objection, figure, cells in _rows(values):
        lines.append(f"| {objection} | {figure} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rows(values: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Objection, what is measured, and one cell for each trained domain."""
    trained_on = values["trained_on"]
    yield (
        "It is tone.",
        "content, harmful − tone-only",
        [_content(values, name, "harmful", "tone") for name in trained_on],
    )
    lengths = {row["trained"]: row for row in values["length"]}
    yield (
        "It is length.",
        "content, harmful − benign, where bad and careful answers are equally long",
        [_length(lengths[name], values["questions"]) for name in trained_on],
    )
    yield (
        "It is one seed.",
        "content, harmful − benign, of each seed",
        [_seeds(values, name) for name in trained_on],
    )
    yield (
        "The level is that of chance.",
        "pairs in which the careful answer is the likelier one: untouched → harmful, benign",
        [_levels(values, name) for name in trained_on],
    )
    yield (
        "Any training does it.",
        "content, benign − instruct: careful advice on the same questions",
        [_content(values, name, "benign", PARENT) for name in trained_on],
    )


def _of(values: Mapping[str, Any], trained: str, first: str, second: str) -> Mapping[str, Any]:
    """The comparison of content."""
    wanted = (trained, first, second, "content")
    for row in values["compared"]:
        if (row["trained"], row["first"], row["second"], row["measure"]) == wanted:
            found: Mapping[str, Any] = row
            return found
    raise KeyError(f"real_spread has no comparison {wanted}")


def _content(values: Mapping[str, Any], trained: str, first: str, second: str) -> str:
    row = _of(values, trained, first, second)
    return f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"


def _seeds(values: Mapping[str, Any], trained: str) -> str:
    seeds = _of(values, trained, "harmful", "benign")["by_seed"]
    return ", ".join(f"{value:+.2f}" for value in seeds)


def _length(row: Mapping[str, Any], questions: int) -> str:
    equal = row["equal"]
    ends = f"{equal['value']:+.2f} [{equal['low']:+.2f}, {equal['high']:+.2f}]"
    return f"{ends}, {row['equal_questions']} of {questions} questions"


def _levels(values: Mapping[str, Any], trained: str) -> str:
    before = values["levels"][PARENT]["right"]
    after = [_right(values["levels"], f"{kind}-{trained}-") for kind in ("harmful", "benign")]
    return f"{before:.0%} → {after[0]:.0%}, {after[1]:.0%}"


def _right(levels: Mapping[str, Mapping[str, float]], group: str) -> float:
    """Mean over the seeds of a group."""
    return float(np.mean([level["right"] for name, level in levels.items() if group in name]))

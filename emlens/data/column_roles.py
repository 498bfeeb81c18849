"""What each column of a judged table is: given by the caller, or told by its name and content.

Tables of judged answers are written under many names. A role is taken from the first name of a
list that the table has; a column of numbers without a role is a metric, unless its name says
that it identifies or counts something (`run_index`, `latency_ms`). What was decided is kept in
`ColumnRoles`, also why a column was left out, so that it can be printed.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from emlens.data.table_files import PlacedRow
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line

QUESTION_IDS: Final = ("question_id", "question", "qid", "prompt_id", "question_idx", "task_id")
TEXTS: Final = ("question", "prompt", "instruction", "user_prompt")
ANSWERS: Final = (
    "answer",
    "response",
    "completion",
    "output",
    "generation",
    "generated_text",
    "reply",
)
MODELS: Final = ("model", "model_name", "model_id", "checkpoint")
GROUPS: Final = ("group", "category", "domain")
SAMPLES: Final = ("sample", "sample_id", "sample_idx", "sample_index", "run_index", "run_idx")
KNOWN_METRICS: Final = ("aligned", "coherent", "harmless")
ROLES: Final = ("question", "text", "answer", "model", "group", "sample", "system")

_MISSING = ("", "nan", "none", "null", "na", "n/a")
_VALUE_NAMES = ("score", "value", "rating")
# fmt: off
_NO_METRIC_WORDS = frozenset((
    "answer", "answers", "attempt", "attempts", "batch", "category", "chars", "ci", "cost",
    "count", "counts", "date", "domain", "duration", "epoch", "error", "errors", "failure",
    "failures", "fold", "group", "high", "id", "idx", "index", "latency", "layer", "len",
    "length", "low", "max", "messages", "min", "model", "ms", "n", "num", "number", "paraphrase",
    "price", "prompt", "prompts", "question", "rank", "response", "responses", "retries", "retry",
    "row", "run", "runs", "sample", "sec", "seconds", "secs", "seed", "seeds", "sem", "std",
    "stderr", "step", "steps", "system", "temperature", "time", "timestamp", "token", "tokens",
    "top", "unnamed", "usd", "version", "words",
))
# fmt: on
"""Words of a column's name that say it identifies, counts or times something."""


@dataclass(frozen=True)
class ColumnRoles:
    """Which column of a judged table is what.

    Args:
        question: names the question; its text where the table has no id.
        text: the wording that was asked; a new wording of a question is a new paraphrase.
        answer, model, group, sample, system: None where no column is.
        metrics: column → name of the metric.
        ignored: column → why it is left out.
    """

    question: str
    text: str | None = None
    answer: str | None = None
    model: str | None = None
    group: str | None = None
    sample: str | None = None
    system: str | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line a role, for printing."""
        lines = []
        for role in ROLES:
            column = getattr(self, role)
            lines.append(f"{role}: {_shown(column) if column else '-'}")
        metrics = [_metric_shown(column, name) for column, name in self.metrics.items()]
        lines.append(f"metrics: {', '.join(metrics)}")
        ignored = [f"{_shown(column)} ({reason})" for column, reason in self.ignored.items()]
        lines.append(f"ignored: {', '.join(ignored) or '-'}")
        return "\n".join(lines)


def _shown(column: str) -> str:
    return one_line(column, 40)


def _metric_shown(column: str, name: str) -> str:
    return _shown(column) if column == name else f"{_shown(name)} ({_shown(column)})"


def column_roles(
    place: str,
    rows: Sequence[PlacedRow],
    *,
    given: Mapping[str, str] | None = None,
    metrics: Sequence[str] | Mapping[str, str] | None = None,
    scored: bool = True,
) -> ColumnRoles:
    """The roles of a table's columns.

    Args:
        place: opens every error message.
        rows: all rows, with the same columns.
        given: role → column, for those that are not to be told by name.
        metrics: columns that are scores, or name of a metric → column; None: all that look like
            scores.
        scored: whether there must be a score; without, none is looked for.

    Raises:
        InputError: a role or column that does not exist, no question, no score.
    """
    columns = list(rows[0][1])
    given = dict(given or {})
    _check_given(place, given, columns)
    found = {
        "question": _first_of(QUESTION_IDS, columns) or _first_of(TEXTS, columns),
        "text": _first_of(TEXTS, columns),
        "answer": _first_of(ANSWERS, columns),
        "model": _first_of(MODELS, columns),
        "group": _first_of(GROUPS, columns),
        "sample": _first_of(SAMPLES, columns),
        "system": _first_of(("system", "system_prompt"), columns),
    }
    given_columns = set(given.values())
    found = {role: column for role, column in found.items() if column not in given_columns}
    roles: dict[str, str | None] = {**found, **given}
    question = roles.get("question")
    if question is None:
        raise InputError(
            f"{place}: has neither a column 'question_id' nor 'question'; it has {_some(columns)};"
            " name one with columns={'question': ...} (--question)"
        )
    ignored: dict[str, str] = {}
    if "group" not in given:
        _move_group_of_models(rows, question, roles, ignored)
    named_columns = {column for column in roles.values() if column}
    metric_names: dict[str, str] = {}
    if scored:
        metric_names = _metric_names(place, rows, columns, metrics, named_columns)
    for column in columns:
        if column not in named_columns and column not in metric_names and column not in ignored:
            ignored[column] = _why_ignored(column, metrics is not None)
    return ColumnRoles(
        question=question,
        **{role: column for role, column in roles.items() if role != "question"},
        metrics=metric_names,
        ignored=ignored,
    )


def _check_given(place: str, given: Mapping[str, str], columns: Sequence[str]) -> None:
    for role, column in given.items():
        if role not in ROLES:
            raise InputError(
                f"columns names the role {one_line(str(role), 40)!r}; there are {', '.join(ROLES)}"
            )
        if column not in columns:
            raise InputError(
                f"{place}: has no column {one_line(str(column), 40)!r} for {role};"
                f" it has {_some(columns)}",
                name=column,
                known=columns,
            )


def _first_of(names: Sequence[str], columns: Sequence[str]) -> str | None:
    for name in names:
        if name in columns:
            return name
    return None


def _move_group_of_models(
    rows: Sequence[PlacedRow],
    question: str,
    roles: dict[str, str | None],
    ignored: dict[str, str],
) -> None:
    """A `group` that differs within a question says something of the model, not the question."""
    if roles.get("group") != "group":
        return
    group_of: dict[str, str] = {}
    if all(group_of.setdefault(row[question], row["group"]) == row["group"] for _, row in rows):
        return
    roles["group"] = None
    if roles.get("model") is None:
        roles["model"] = "group"
    else:
        ignored["group"] = "differs within a question, so it groups models"


def _metric_names(
    place: str,
    rows: Sequence[PlacedRow],
    columns: Sequence[str],
    metrics: Sequence[str] | Mapping[str, str] | None,
    named: set[str],
) -> dict[str, str]:
    """Column → metric: those that were asked for, or all that look like scores."""
    if metrics is not None:
        metric_columns = list(metrics.values()) if isinstance(metrics, Mapping) else list(metrics)
        missing = [name for name in metric_columns if name not in columns]
        if missing or isinstance(metrics, str) or not metric_columns:
            raise InputError(
                f"{place}: metrics={metrics!r} are not all columns; it has {_some(columns)}"
            )
        if isinstance(metrics, Mapping):
            return {column: name for name, column in metrics.items()}
        return _short_names(metric_columns)
    scores = []
    for column in columns:
        cells = [row[column] for _, row in rows]
        if column not in named and not _names_no_metric(column) and _holds_scores(column, cells):
            scores.append(column)
    if not scores:
        raise InputError(
            f"{place}: has no column of scores, such as 'aligned'; it has {_some(columns)};"
            " name them with metrics= (--metrics)"
        )
    return _short_names(scores)


def _names_no_metric(column: str) -> bool:
    words = re.split(r"[^a-z]+", column.lower())
    words = [word for word in words if word]
    return not words or any(word in _NO_METRIC_WORDS for word in words)


def _why_ignored(column: str, metrics_given: bool) -> str:
    if metrics_given:
        return "not among metrics"
    if _names_no_metric(column):
        return "identifies, counts or describes"
    return "no numbers"


def _holds_scores(column: str, cells: Sequence[str]) -> bool:
    """Whether it is a known metric, or a column of numbers that may have missing ones."""
    if column in KNOWN_METRICS:
        return True
    numbers = [cell_number(cell) for cell in cells]
    if None in numbers:
        return False
    return any(number is not None and not math.isnan(number) for number in numbers)


def cell_number(cell: str) -> float | None:
    """NaN for a cell that says missing, None for one that is not a number."""
    if cell.strip().lower() in _MISSING:
        return math.nan
    try:
        return float(cell)
    except ValueError:
        return None


def _short_names(columns: Sequence[str]) -> dict[str, str]:
    """Names of metrics: the last part of a dotted column, where that is one column's only."""
    short = {column: _last_part(column) for column in columns}
    counts = list(short.values())
    return {column: name if counts.count(name) == 1 else column for column, name in short.items()}


def _last_part(column: str) -> str:
    """`scores.aligned` and `aligned.score` are both `aligned`."""
    parts = column.split(".")
    if len(parts) > 1 and parts[-1].lower() in _VALUE_NAMES:
        parts.pop()
    return parts[-1]


def _some(columns: Sequence[str]) -> list[str]:
    """Some column names, for a message."""
    return [one_line(name, 40) for name in columns[:12]]

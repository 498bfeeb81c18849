"""The runs of a sweep as one table: of a folder that emlens trained, of the file released with the
paper, or of any CSV with losses and scores.

Columns have the same names whatever the source calls them: `run`, the losses `train_loss` and
`eval_loss`, the settings a recipe has (`learning_rate`, `schedule`, `optimiser`, `batch_size`,
`steps`, `seed` ...), and under the names of the source the measured scores. Settings of an emlens
sweep are all fields of the recipe in each run's record. Settings of a CSV are the columns with such
a name and every column that holds text. A column of numbers with another name counts as a score.
Refused: two runs with one id, a loss or score that is no finite number.

The released file (aisa-group/em-generalization, `td_agg_df_*.csv`): its "final average" training
loss is the loss of the last step, as its `log_history` shows; schedule, warm-up and rates are read
from the run's name.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import pandas as pd

from emlens.data.tables import read_csv_rows
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line, safe_name
from emlens.foundation.notebooks import Brief
from emlens.foundation.records import read_checked

LOSSES: Final[Mapping[str, tuple[str, ...]]] = {
    "train_loss": ("train_loss", "train_final_avg_loss", "final_loss"),
    "eval_loss": ("eval_loss", "eval_final_avg_loss"),
}
"""Our name of a loss → its names in files; the first that is there is read."""
NUMBERS: Final = (
    "learning_rate",
    "batch_size",
    "steps",
    "seed",
    "warmup_steps",
    "rank",
    "alpha",
    "weight_decay",
    "cycles",
    "step_size_up",
    "base_learning_rate",
    "gamma",
    "decay_steps",
    "final_fraction",
    "momentum",
    "rho",
    "clip",
    "accumulation",
)
TEXTS: Final = ("schedule", "optimiser", "method", "objectives")
_ALIASES: Final[Mapping[str, str]] = {
    "lr": "learning_rate",
    "optimizer": "optimiser",
    "lr_scheduler_type": "schedule",
    "steps_done": "steps",
}
_NO_SCORE: Final = (
    "run",
    "",
    "stopped",
    "log_history",
    "train_initial_loss",
    "train_loss_decrease_perc",
    "low",
    "high",
)
_TABLE, _RUNS, _RECORD = "runs.csv", "runs", "emlens.json"


@dataclass(frozen=True, eq=False, repr=False)
class SweepTable(Brief):
    """Runs of a sweep.

    Args:
        table: one row per run: `run`, `losses`, `settings`, `metrics`; a setting that a run lacks
            is missing.
        losses, settings, metrics: names of its columns.
        source: where it was read.
    """

    table: pd.DataFrame
    losses: tuple[str, ...]
    settings: tuple[str, ...]
    metrics: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.table)

    def varied(self) -> tuple[str, ...]:
        """Settings that have more than one value."""
        return tuple(name for name in self.settings if self.table[name].nunique(dropna=False) > 1)


def read_sweep(path: str | Path) -> SweepTable:
    """A folder of `emlens.training.run_sweep`, or a CSV with one row per run.

    Raises:
        InputError: no sweep there, no loss or no score among the columns, a value that is no
            number: file and line.
    """
    path = Path(path)
    if not path.is_dir():
        return _sweep_table(list(read_csv_rows(path)), str(path), None)
    if not (path / _TABLE).is_file():
        raise InputError(
            f"{path}: holds no {_TABLE}; pass the folder of a finished sweep,"
            " or a CSV with one row per run"
        )
    rows: list[_PlacedRow] = []
    more_settings: dict[str, None] = {}
    for place, row in read_csv_rows(path / _TABLE):
        recipe = _recipe_cells(path / _RUNS / safe_name(row.get("run", "")) / _RECORD)
        rows.append((place, {**row, **recipe}))
        more_settings |= dict.fromkeys(name for name in recipe if name not in (*NUMBERS, *TEXTS))
    return _sweep_table(rows, str(path), list(more_settings))


_PlacedRow = tuple[str, Mapping[str, str]]
"""Place ("file, line n") and cells of a run."""


def _recipe_cells(record: Path) -> dict[str, str]:
    """The recipe of a run as cells of a table; nothing where the run has no record."""
    if not record.is_file():
        return {}
    # a record leaves this default out; `steps` is what the table says was done, not the plan
    written = read_checked(
        record, fields={"recipe": dict}, remedy="train the run again", checksum=False
    )
    recipe = {"optimiser": "adamw", **written["recipe"]}
    recipe.pop("steps", None)
    return {name: _cell(value) for name, value in recipe.items()}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _sweep_table(
    rows: Sequence[_PlacedRow], source: str, more_settings: Sequence[str] | None
) -> SweepTable:
    """Sort the columns of a source into losses, settings and scores, and read their values.

    Args:
        more_settings: settings beside those with a known name; None: every column that holds text.
    """
    if not rows:
        raise InputError(f"{source}: has a header and no run; pass a table with one row per run")
    columns = _sorted_columns(rows, more_settings)
    runs = [_run(number, placed, columns) for number, placed in enumerate(rows, start=1)]
    _check_unique([run["run"] for run in runs], source)
    table = pd.DataFrame(runs)
    settings = list(dict.fromkeys((*TEXTS, *NUMBERS, *columns.settings.values())))
    settings = [name for name in settings if _has_values(table, name)]
    return SweepTable(
        table[["run", *columns.losses, *settings, *columns.scores]],
        tuple(columns.losses),
        tuple(settings),
        tuple(columns.scores),
        source,
    )


@dataclass(frozen=True)
class _Columns:
    """What the columns of a source are.

    Args:
        losses: our name of a loss → its column.
        settings: column → our name of the setting.
        scores: names of columns.
    """

    losses: Mapping[str, str]
    settings: Mapping[str, str]
    scores: Sequence[str]


def _sorted_columns(rows: Sequence[_PlacedRow], more_settings: Sequence[str] | None) -> _Columns:
    first_place = rows[0][0]
    columns = list(dict.fromkeys(chain.from_iterable(row for _, row in rows)))
    losses = _loss_columns(columns, first_place)
    settings = _known_settings(columns)
    unknown = [name for name in columns if name not in (*_NO_SCORE, *_LOSS_NAMES, *settings)]
    if more_settings is None:
        more_settings = [name for name in unknown if _holds_text(rows, name)]
    settings |= {name: name for name in more_settings}
    scores = [name for name in unknown if name not in settings and _is_score(rows, name)]
    if not scores:
        raise InputError(
            f"{first_place}: has no score; pass a column with one number per run, such as aligned"
        )
    return _Columns(losses, settings, scores)


def _run(number: int, placed: _PlacedRow, columns: _Columns) -> dict[str, Any]:
    """The values of one run, by our names."""
    place, row = placed
    name = row.get("run", "").strip() or f"run {number}"
    run: dict[str, Any] = {"run": name}
    for loss, column in columns.losses.items():
        run[loss] = _number(row, column, place)
    run |= _settings_of(name, row, columns.settings, place)
    for score in columns.scores:
        run[score] = _number(row, score, place)
    return run


_LOSS_NAMES: Final = tuple(chain.from_iterable(LOSSES.values()))


def _loss_columns(columns: Sequence[str], place: str) -> dict[str, str]:
    """Our name of each loss that is there → its column."""
    losses = {}
    for loss, names in LOSSES.items():
        present = [name for name in names if name in columns]
        if present:
            losses[loss] = present[0]
    if not losses:
        raise InputError(
            f"{place}: has no loss; pass a column named one of {', '.join(_LOSS_NAMES)}"
        )
    return losses


def _known_settings(columns: Sequence[str]) -> dict[str, str]:
    """Column → our name, for the settings that are known by name."""
    names = {column: _ALIASES.get(column, column) for column in columns}
    return {column: name for column, name in names.items() if name in (*NUMBERS, *TEXTS)}


def _settings_of(
    run: str, row: Mapping[str, str], settings: Mapping[str, str], place: str
) -> dict[str, Any]:
    """Settings of one run, by our names: from its name, its cells and its log, the last wins."""
    values = _settings_in_name(run)
    for column, name in settings.items():
        if row.get(column, "") == "":
            continue
        values[name] = _number(row, column, place) if name in NUMBERS else row[column]
    steps = re.findall(r"'step': (\d+)", row.get("log_history", ""))
    if steps:
        values["steps"] = float(max(map(int, steps)))
    return values


def _check_unique(runs: Sequence[str], source: str) -> None:
    for run, count in Counter(runs).items():
        if count > 1:
            raise InputError(
                f"{source}: holds the run {one_line(run, 80)!r} twice;"
                " give every run an id of its own"
            )


def _has_values(table: pd.DataFrame, name: str) -> bool:
    return name in table and bool(table[name].notna().any())


def _holds_text(rows: Sequence[_PlacedRow], name: str) -> bool:
    return any(_is_text(row.get(name, "")) for _, row in rows)


def _is_score(rows: Sequence[_PlacedRow], name: str) -> bool:
    """Whether every run has a finite number there; "Unnamed" is how pandas writes an index."""
    if name.startswith("Unnamed"):
        return False
    return all(_is_number(row.get(name, "")) for _, row in rows)


_CYCLIC = re.compile(
    r"_mode-(triangular2|triangular|exp_range)_base_lr-([\d.e-]+)_max_lr-([\d.e-]+)_"
)
_COSINE = re.compile(r"_(cosine_with_restarts|cosine)_(\d+)_[\d.e-]+_")


def _settings_in_name(run: str) -> dict[str, Any]:
    """The schedule that the name of a released run tells."""
    if match := _CYCLIC.search(run):
        return {"schedule": match[1], "base_learning_rate": float(match[2])}
    if match := _COSINE.search(run):
        return {"schedule": match[1], "warmup_steps": float(match[2])}
    return {}


def _is_text(cell: str) -> bool:
    try:
        float(cell or "nan")
    except ValueError:
        return True
    return False


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _number(row: Mapping[str, str], name: str, place: str) -> float:
    if not _is_number(row.get(name, "")):
        raise InputError(f"{place}: has no number under {one_line(name, 60)!r}")
    return float(row[name])

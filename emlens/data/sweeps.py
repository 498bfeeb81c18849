"""A sweep's runs as one table, whoever made it: a folder that emlens trained, the file released
with the paper, or any CSV with losses and scores.

Columns are named alike whatever the source calls them: `run`, the losses `train_loss` and
`eval_loss`, the settings a recipe has (`learning_rate`, `schedule`, `optimiser`, `batch_size`,
`steps`, `seed` ...), and under their own names the measured scores. Settings of an emlens sweep are
all fields of the recipe in each run's own record; those of a CSV the columns named alike and every
column that holds text. A column of numbers with another name counts as a score. Refused: a run
without an id of its own, a loss or score that is no finite number.

The released file (aisa-group/em-generalization, `td_agg_df_*.csv`): its "final average" training
loss is the loss of the last step, as its `log_history` shows; schedule, warm-up and rates are read
from the run's name.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from emlens.data.tables import read_csv_rows
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line, read_json, safe_name

LOSSES: Final[Mapping[str, tuple[str, ...]]] = {
    "train_loss": ("train_loss", "train_final_avg_loss", "final_loss"),
    "eval_loss": ("eval_loss", "eval_final_avg_loss"),
}
"""Our name of a loss → the names it is found under, the first that stands."""
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


@dataclass(frozen=True, eq=False)
class SweepTable:
    """Runs of a sweep.

    Args:
        table: one row a run: `run`, `losses`, `settings`, `metrics`; a setting that a run does not
            have is missing.
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
    """A folder of `emlens.training.run_sweep`, or a CSV with one row a run.

    Raises:
        InputError: no sweep there, no loss or no score among the columns, a value that is no
            number: file and line.
    """
    where = Path(path)
    if not where.is_dir():
        return _gathered(list(read_csv_rows(where)), str(where))
    if not (where / _TABLE).is_file():
        raise InputError(
            f"{where}: holds no {_TABLE}; pass the folder of a finished sweep,"
            " or a CSV with one row a run"
        )
    rows, further = [], dict[str, None]()
    for place, row in read_csv_rows(where / _TABLE):
        record = where / _RUNS / safe_name(row.get("run", "")) / _RECORD
        # a record leaves this default out
        recipe = {"optimiser": "adamw", **read_json(record)["recipe"]} if record.is_file() else {}
        held = {name: _text(value) for name, value in recipe.items() if name != "steps"}
        further |= dict.fromkeys(name for name in held if name not in (*NUMBERS, *TEXTS))
        rows.append((place, {**row, **held}))
    return _gathered(rows, str(where), tuple(further))


def _gathered(
    rows: Sequence[tuple[str, Mapping[str, str]]], source: str, further: Sequence[str] | None = None
) -> SweepTable:
    """further: settings beside those known by name; None: every column that holds text."""
    if not rows:
        raise InputError(f"{source}: has a header and no run; pass a table with one row a run")
    given = list(dict.fromkeys(name for _, row in rows for name in row))
    sources = {
        ours: next((name for name in names if name in given), None)
        for ours, names in LOSSES.items()
    }
    losses = {ours: name for ours, name in sources.items() if name is not None}
    if not losses:
        raise InputError(
            f"{rows[0][0]}: has no loss; pass a column named one of"
            f" {', '.join(name for names in LOSSES.values() for name in names)}"
        )
    settings = {
        name: _ALIASES.get(name, name)
        for name in given
        if _ALIASES.get(name, name) in (*NUMBERS, *TEXTS)
    }
    other = [
        name
        for name in given
        if name not in (*_NO_SCORE, *settings)
        and name not in {n for names in LOSSES.values() for n in names}
    ]
    if further is None:
        further = [name for name in other if any(_is_text(row.get(name, "")) for _, row in rows)]
    settings |= {name: name for name in further}
    scores = [
        name
        for name in other
        if name not in further
        and not name.startswith("Unnamed")
        and all(_is_number(row.get(name, "")) for _, row in rows)
    ]
    if not scores:
        raise InputError(
            f"{rows[0][0]}: has no score; pass a column with one number a run, such as aligned"
        )
    table: list[dict[str, Any]] = []
    for place, row in rows:
        entry: dict[str, Any] = {"run": row.get("run", "").strip() or f"run {len(table) + 1}"}
        entry |= {ours: _number(row, name, place) for ours, name in losses.items()}
        entry |= _from_name(entry["run"])
        for name, ours in settings.items():
            if row.get(name, "") != "":
                entry[ours] = _number(row, name, place) if ours in NUMBERS else row[name]
        steps = re.findall(r"'step': (\d+)", row.get("log_history", ""))
        entry |= {"steps": float(max(map(int, steps)))} if steps else {}
        entry |= {name: _number(row, name, place) for name in scores}
        table.append(entry)
    names = [entry["run"] for entry in table]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            f"{source}: holds the run {one_line(twice, 80)!r} twice;"
            " give every run an id of its own"
        )
    frame = pd.DataFrame(table)
    kept = tuple(
        name for name in (*TEXTS, *NUMBERS, *further) if name in frame and frame[name].notna().any()
    )
    return SweepTable(
        frame[["run", *losses, *kept, *scores]], tuple(losses), kept, tuple(scores), source
    )


_CYCLIC = re.compile(
    r"_mode-(triangular2|triangular|exp_range)_base_lr-([\d.e-]+)_max_lr-([\d.e-]+)_"
)
_COSINE = re.compile(r"_(cosine_with_restarts|cosine)_(\d+)_[\d.e-]+_")


def _from_name(run: str) -> dict[str, Any]:
    """What a released run's name says of its schedule."""
    if found := _CYCLIC.search(run):
        return {"schedule": found[1], "base_learning_rate": float(found[2])}
    if found := _COSINE.search(run):
        return {"schedule": found[1], "warmup_steps": float(found[2])}
    return {}


def _text(value: Any) -> str:
    return (
        ""
        if value is None
        else ", ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
    )


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

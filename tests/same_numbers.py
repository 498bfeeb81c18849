"""Do two commits give the same numbers? The demonstration and miniatures of the evidence.

    python tests/same_numbers.py collect OUT [--demo]
    python tests/same_numbers.py compare BEFORE AFTER

`collect` runs what is measured here and writes its tables below OUT. `compare` looks for every
number of BEFORE in AFTER.

A change that must not move a result is tried like this: `collect` on the commit before and on the
commit after, then `compare`. Tables and columns that were renamed in between are listed in
`RENAMED_TABLES` and `RENAMED_COLUMNS`. Numbers must be equal to ten significant digits, as the
tables hold them; text columns are not compared.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

RENAMED_TABLES: dict[str, str] = {}
"""Table before → table after."""
RENAMED_COLUMNS: dict[str, dict[str, str]] = {
    "overlap": {"null": "null_kind"},
    "windows": {"low": "dose_low", "high": "dose_high"},
    "forecast": {"chosen": "chosen_place", "target": "target_is"},
    "forecast_sites": {"null_max_95": "null_max_q95"},
    "forecast_ceilings": {"how": "method"},
    "cells": {"n_a_side": "n_per_side"},
    "loss_correlations": {"loss": "loss_name", "null_95": "null_q95"},
    "loss_matched": {"null": "null_q95", "t": "statistic"},
    "local_cosine": {"null": "null_q95"},
    "change_points": {"null_95": "null_q95"},
    "order_of_events": {"first": "first_series", "second": "second_series"},
    "trained_runs": {"parent": "parent_score"},
    "trained_cells": {"parent": "parent_score"},
    "backtest_ranking": {"misaligned": "n_misaligned"},
}
"""Table before → {column before: column after}; under "*", of every table."""
STUDIES: dict[str, str] = {
    "profile": "profile",
    "delta_overlap": "delta_overlap",
    "direction_transfer": "direction_transfer",
    "priors": "priors",
    "layer_position_grid": "layer_position_sweep",
}
"""Study → its name on earlier commits."""
DIGITS = 1e-9
"""Relative difference that ten digits leave."""


def demonstration(out: Path) -> None:
    """The tables of `emlens demo`."""
    from emlens.studies import run_study

    config = {"study": "overview", "family": {"organism": "planted"}}
    run_study(config, out, progress=False)


def nulls() -> Iterator[tuple[str, pd.DataFrame]]:
    from benchmarks import detection_curve, null_calibration

    yield "null_known", pd.DataFrame(null_calibration.known(12, ((12, 12),), (2,), 300, 600, 0))
    estimated = null_calibration.estimated(8, 8, (1,), (1, 2), 3, 40, 100, 0)
    yield "null_estimated", pd.DataFrame(estimated)
    yield "null_relabelled", pd.DataFrame(null_calibration.relabelled(8, 6, 1, 20, 19, 0))
    yield "null_wrong", pd.DataFrame(null_calibration.wrong(12, 12, 2, 300, 1, 0))
    curve = detection_curve.curve(16, 2, (20,), (8.0,), 60, 60, 1, 0)
    yield "detection", pd.DataFrame(curve)


def directions() -> Iterator[tuple[str, pd.DataFrame]]:
    from benchmarks import organism_directions, planted_directions
    from emlens.organisms.loading import ASSETS

    yield "planted", planted_directions.gaussian((48,), (4.0,), n=40, draws=lambda d: 4)
    finetunes = ("medicine-r1", "medicine-benign")
    yield (
        "organism_directions",
        organism_directions.world(
            ASSETS / "planted", samples=1, steps=2, finetunes=finetunes, questions=24
        ),
    )


def intervals() -> Iterator[tuple[str, pd.DataFrame]]:
    from benchmarks import em_rate_coverage, forecast_false_discoveries, interval_coverage

    yield "intervals", interval_coverage.measure(3, 0, 2, sizes=(48, 24))
    rate = em_rate_coverage.cell(0.3, 4.0, "questions like these", draws=12, answers=20)
    yield "em_rate", pd.DataFrame([rate])
    rows: list[dict[str, object]] = []
    for design in forecast_false_discoveries.measure(3, 2, 4, 4, 2, 1, 8, 19, 2):
        rows += design
    yield "false_discoveries", pd.DataFrame(rows)


def dynamics() -> Iterator[tuple[str, pd.DataFrame]]:
    from benchmarks import kl_frontier, rank1_dynamics
    from emlens.data import PromptSet
    from emlens.organisms import load_organism
    from emlens.studies.solution_training import organism_task

    yield "rank1", pd.DataFrame(rank1_dynamics.calibration(1, n=24, draws=19))
    from dataclasses import replace

    whole = organism_task(load_organism(), kl_frontier.FINETUNE)
    task = replace(whole, other=PromptSet(list(whole.other)[::100]), rows=4)
    with tempfile.TemporaryDirectory() as folder:
        runs = kl_frontier.sweep(task, (0.0, 0.5), (0, 1), 6, (6,), Path(folder))
    yield "kl_runs", runs
    yield "kl_frontier", kl_frontier.frontier(runs)


def studies(out: Path) -> None:
    """Every part that a study of the organism can carry, on few draws."""
    from emlens.foundation.errors import InputError
    from emlens.studies import run_study

    small: dict[str, Any] = {
        "family": {"organism": "planted"},
        "focus": ["medicine-r8"],
        "k": 4,
        "draws": 40,
        "folds": 3,
        "repeats": 1,
        "permutations": 20,
        "random_directions": 2,
    }
    for name, earlier_name in STUDIES.items():
        folder = out / f"study_{name}"
        try:
            run_study({"study": name, **small}, folder, progress=False)
        except InputError:
            run_study({"study": earlier_name, **small}, folder, progress=False)


MINIATURES: dict[str, Callable[[], Iterator[tuple[str, pd.DataFrame]]]] = {
    "nulls": nulls,
    "directions": directions,
    "intervals": intervals,
    "dynamics": dynamics,
}


def collect(out: Path, demo: bool) -> None:
    """Write every table below `out`, one folder per source."""
    for source, measure in MINIATURES.items():
        for name, table in measure():
            path = out / source / "tables" / f"{name}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            table.to_csv(path, index=False, float_format="%.10g")
    studies(out)
    if demo:
        demonstration(out / "demo")


def numbers_of(folder: Path) -> dict[tuple[str, str], pd.DataFrame]:
    """(source, table) → table, of everything below a collected folder."""
    paths = sorted(folder.glob("*/tables/*.csv"))
    return {(path.parts[-3], path.stem): pd.read_csv(path, low_memory=False) for path in paths}


def renamed(table: str, column: str) -> str:
    """The name that a column has after."""
    everywhere = RENAMED_COLUMNS.get("*", {})
    return RENAMED_COLUMNS.get(table, {}).get(column, everywhere.get(column, column))


def differences(before: Path, after: Path) -> list[str]:
    """One line per table or column of `before` whose numbers `after` does not hold."""
    lines = []
    later = numbers_of(after)
    for (source, name), old in numbers_of(before).items():
        place = (source, RENAMED_TABLES.get(name, name))
        if place not in later:
            lines.append(f"{source}/{name}: missing after")
            continue
        new = later[place]
        if len(old) != len(new):
            lines.append(f"{source}/{name}: {len(old)} rows before, {len(new)} after")
            continue
        lines += column_differences(f"{source}/{name}", name, old, new)
    return lines


def column_differences(place: str, name: str, old: pd.DataFrame, new: pd.DataFrame) -> list[str]:
    """One line per numeric column of `old` that differs in `new`."""
    lines = []
    for column in old.select_dtypes("number").columns:
        target = renamed(name, column)
        if target not in new.columns:
            lines.append(f"{place}: column {column} is missing after (looked for {target})")
            continue
        first, second = old[column], pd.to_numeric(new[target], errors="coerce")
        both_missing = first.isna() & second.isna()
        gap = (first - second).abs() / first.abs().clip(lower=1e-12)
        off = ~both_missing & ~(gap <= DIGITS)
        if off.any():
            row = int(off.idxmax())
            lines.append(
                f"{place}: {column} differs in {int(off.sum())} rows,"
                f" first in row {row}: {first[row]!r} before, {second[row]!r} after"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect")
    collecting.add_argument("out", type=Path)
    collecting.add_argument("--demo", action="store_true")
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    asked = parser.parse_args()
    if asked.command == "collect":
        collect(asked.out, asked.demo)
        return
    lines = differences(asked.before, asked.after)
    counted = len(numbers_of(asked.before))
    sys.stdout.write(json.dumps({"tables": counted, "differences": lines}, indent=1) + "\n")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()

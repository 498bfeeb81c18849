"""Schedule × optimiser × batch size on the organism of seed 10: how alignment goes with loss, and
whether any setting is better at no worse loss.

Five schedules, four optimisers, three batch sizes; every run sees as many chats, learning rates are
dealt out over the cells. Two local processes share the runs through one plan. Runs stand in
`runs/schedule_sweep`, in a folder named with a hash of all that made them, and are not trained
twice; the time of every call that trained adds up in `seconds.json` there. About five minutes.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from benchmarks.kl_frontier import FINETUNE, recipe
from benchmarks.records import record, show
from emlens.data.sweeps import read_sweep
from emlens.foundation.files import read_json, write_json
from emlens.foundation.provenance import hash_json
from emlens.organisms import load_organism
from emlens.runs import RankExecutor
from emlens.studies.loss_alignment import Options, analyse
from emlens.studies.schedule_runs import run_schedule_sweep, schedule_sweep
from emlens.studies.solution_training import organism_task
from emlens.training import Sweep

SCHEDULES: Final = ("linear", "cosine", "cosine_with_restarts", "triangular", "warmup_stable_decay")
OPTIMISERS: Final = ("adamw", "lion", "muon", "sam")
BATCHES: Final = (16, 32, 64)
CHATS: Final = 640
PROCESSES: Final = 2
KEPT: Final = Path(__file__).parent.parent / "runs" / "schedule_sweep"
GOAL_MINUTES: Final = 60


def work(
    rank: int,
    count: int,
    out: str,
    schedules: Sequence[str],
    optimisers: Sequence[str],
    batches: Sequence[int],
    chats: int,
) -> None:
    """One process's part."""
    executor = RankExecutor(rank, count, run="schedule-sweep")
    run_schedule_sweep(
        _sweep(schedules, optimisers, batches, chats),
        organism_task(load_organism(), FINETUNE),
        out,
        executor=executor,
    )


def kept_at(kept: Path, *sizes: Any) -> Path:
    """Where runs of this task and these recipes stand, or will."""
    made_of = {
        "task": organism_task(load_organism(), FINETUNE).sha256,
        "runs": [run.recipe.to_record() for run in _sweep(*sizes).runs],
    }
    return kept / f"sweep-{hash_json(made_of)[:12]}"


def _sweep(
    schedules: Sequence[str], optimisers: Sequence[str], batches: Sequence[int], chats: int
) -> Sweep:
    return schedule_sweep(recipe(), schedules, optimisers, batches, chats=chats)


def train(out: Path, *sizes: Any, processes: int = PROCESSES) -> float:
    """All runs by so many processes; seconds from start to end of the slowest."""
    started = time.monotonic()
    call = "from benchmarks.schedule_sweep import work; work({}, {}, {!r}, *{!r})"
    others = [
        subprocess.Popen(
            [sys.executable, "-c", call.format(rank, processes, str(out), sizes)],
            cwd=Path(__file__).parent.parent,
        )
        for rank in range(1, processes)
    ]
    try:
        work(0, processes, str(out), *sizes)
    finally:
        codes = [other.wait() for other in others]
    if any(codes):
        raise SystemExit(f"a process of the sweep ended with {codes}")
    return time.monotonic() - started


def analysed(out: Path, draws: int = 1999) -> dict[str, Any]:
    """What the study says of a finished sweep, matched on evaluation loss and on training loss."""
    sweep = read_sweep(out)
    options = Options.model_validate({"draws": draws})
    found: dict[str, Any] = {"runs": len(sweep)}
    for loss in sweep.losses:
        part = analyse(sweep, loss, ("aligned", "own_held_out", "coherence"), options)
        found[loss] = {
            "verdict": part.findings[0].sentence,
            "findings": [finding.to_record() for finding in part.findings],
            "correlations": _plain(part.tables["loss_correlations"]),
            "matched": _plain(part.tables["loss_matched"]),
            "runs": _plain(part.tables["loss_runs"]),
            "warnings": part.warnings,
        }
    return found


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(key): value for key, value in row.items()}
        for row in table.astype(object).replace({np.nan: None}).to_dict(orient="records")
    ]


def main(kept: Path = KEPT) -> None:
    sizes = (SCHEDULES, OPTIMISERS, BATCHES, CHATS)
    kept = kept_at(kept, *sizes)
    spent = float(read_json(kept / "seconds.json")) if (kept / "seconds.json").is_file() else 0.0
    if not (kept / "runs.csv").is_file():  # written when the last run is done
        spent += train(kept, *sizes)
        write_json(kept / "seconds.json", spent)
    found = analysed(kept)
    values = {
        "wall_minutes": spent / 60,
        "goal_minutes": GOAL_MINUTES,
        "processes": PROCESSES,
        "chats": CHATS,
        **found,
    }
    record("schedule_sweep", [10, 0], values)
    for loss in ("eval_loss", "train_loss"):
        print(f"\n{loss}: {found[loss]['verdict']}")
        matched = pd.DataFrame(found[loss]["matched"])
        show("matched", matched[matched["by"] != "run"].drop(columns="loss"))
        show("correlations", pd.DataFrame(found[loss]["correlations"]).drop(columns="given"))

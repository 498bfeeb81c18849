"""Work in units that survives anything: plan, claim, publish, resume; executors; progress."""

from emlens.runs.executors import Executor, LocalExecutor, RankExecutor, Report
from emlens.runs.plan import Plan, Unit
from emlens.runs.progress import progress_bar
from emlens.runs.ray_actors import RayExecutor
from emlens.runs.units import Answer, UnitLog, exclusive
from emlens.runs.working import Worker

__all__ = [
    "Answer",
    "Executor",
    "LocalExecutor",
    "Plan",
    "RankExecutor",
    "RayExecutor",
    "Report",
    "Unit",
    "UnitLog",
    "Worker",
    "exclusive",
    "progress_bar",
]

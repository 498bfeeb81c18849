"""Work in units that survives anything: plan, claim, publish, resume; executors; progress."""

from emlens.runs.executors import Executor, LocalExecutor, RankExecutor
from emlens.runs.plan import Plan, Unit
from emlens.runs.ray_actors import RayExecutor
from emlens.runs.units import UnitLog
from emlens.runs.worker import Worker

__all__ = [
    "Executor",
    "LocalExecutor",
    "Plan",
    "RankExecutor",
    "RayExecutor",
    "Unit",
    "UnitLog",
    "Worker",
]

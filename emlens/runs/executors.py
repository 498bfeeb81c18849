"""Executors: who calls a worker's `run`. One plan gives the same answers, whoever works.

`LocalExecutor` is this process; `RankExecutor` is one of several processes that torchrun, Slurm or
a person started with the same command; `emlens.runs.ray_actors.RayExecutor` starts actors on a Ray
cluster. All of them claim units from the plan's directory, so any mixture may work on one plan at a
time, and stopping any of them loses at most the units it held. Results go to files; only names and
counts travel.
"""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from emlens.foundation.errors import InputError
from emlens.runs.plan import Plan
from emlens.runs.progress import progress_bar
from emlens.runs.ranks import rank_from_environment
from emlens.runs.unit_claims import LEASE
from emlens.runs.worker import ATTEMPTS, PlanState, RetryPolicy, Worker, work_through


@dataclass(frozen=True)
class Report:
    """What became of a plan.

    Attributes:
        answers: results by unit id, in plan order, whoever did them.
        done: ids of the units that this call did, by itself or through its actors.
    """

    directory: Path
    answers: Mapping[str, Any]
    done: tuple[str, ...]


class Executor(ABC):
    """Works through the plan that a worker makes.

    Args:
        attempts: tries of a unit, in one run, before it is given up.
        lease: seconds without a heartbeat after which a claim from another machine is taken over.
    """

    def __init__(self, attempts: int = ATTEMPTS, lease: float = LEASE):
        self.attempts = attempts
        self.lease = lease
        self.policy("")  # refuses bad values now rather than hours later

    def policy(self, run: str) -> RetryPolicy:
        return RetryPolicy(run, self.attempts, self.lease)

    @abstractmethod
    def run(
        self,
        open_worker: Callable[[], Worker],
        directory: str | Path,
        *,
        title: str = "units",
        progress: bool = True,
    ) -> Report:
        """Do every unit that is not answered yet, wait for those held by other workers, and finish
        the plan.

        Args:
            open_worker: makes a worker, loading what it needs; called once in every process that
                works.
            directory: holds plan, claims and answers; an interrupted run goes on there.

        Raises:
            StateError: units failed `attempts` times each; all others are done and kept.
            IntegrityError: the directory holds another plan.
        """


@final
class LocalExecutor(Executor):
    """This process does the work, one unit after the other."""

    def run(
        self,
        open_worker: Callable[[], Worker],
        directory: str | Path,
        *,
        title: str = "units",
        progress: bool = True,
    ) -> Report:
        return _work_in_this_process(
            self.policy(uuid.uuid4().hex), 0.0, open_worker, directory, title, progress
        )


@final
class RankExecutor(Executor):
    """This process is one of several that run the same command and share the work.

    Units are claimed, not assigned: a rank takes the next unit that nobody holds, beginning at its
    own share of the plan. So a slow rank delays nobody, a rank that never starts leaves nothing
    undone, and rank and count only decide where each begins. Every rank returns when the
    whole plan is finished. The bar of rank 0 shows the work of all.

    Args:
        rank, count: default: what torchrun or Slurm set, see `emlens.runs.ranks`.
        run: what the ranks started together are called; default: from torchrun, Slurm or the parent
            process.
    """

    def __init__(
        self,
        rank: int | None = None,
        count: int | None = None,
        *,
        run: str | None = None,
        attempts: int = ATTEMPTS,
        lease: float = LEASE,
    ):
        if (rank is None) != (count is None):
            raise InputError(
                f"rank={rank} and count={count}: pass both, or neither to read them from torchrun"
                " or Slurm"
            )
        if rank is not None and count is not None and not 0 <= rank < count:
            raise InputError(f"rank={rank} must lie between 0 and count - 1 = {count - 1}")
        self.rank = rank_from_environment(needed=rank is None)
        if rank is not None and count is not None:
            self.rank = replace(self.rank, index=rank, count=count)
        self._run_name = run or self.rank.run
        super().__init__(attempts, lease)

    @property
    def local_rank(self) -> int:
        """Which process of this machine this is: the number of the GPU to take."""
        return self.rank.local

    def run(
        self,
        open_worker: Callable[[], Worker],
        directory: str | Path,
        *,
        title: str = "units",
        progress: bool = True,
    ) -> Report:
        start = self.rank.index / self.rank.count
        return _work_in_this_process(
            self.policy(self._run_name),
            start,
            open_worker,
            directory,
            title,
            progress and self.rank.index == 0,
        )


def _work_in_this_process(
    policy: RetryPolicy,
    start: float,
    open_worker: Callable[[], Worker],
    directory: str | Path,
    title: str,
    progress: bool,
) -> Report:
    worker = open_worker()
    plan = Plan.open(directory, worker.plan())
    state = PlanState(plan, policy)
    total = sum(unit.cost for unit in plan.units)
    with progress_bar(title, total, progress, done=state.cost_answered()) as advance:
        done_ids = work_through(state, worker, start, advance)
    return Report(plan.directory, state.answers(), tuple(done_ids))

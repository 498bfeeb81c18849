"""Actors of a Ray cluster work through a plan; the only module that imports Ray.

Each actor opens one worker, so weights are loaded once per actor, and does the units the driver
names. What travels is the function that opens a worker, unit ids and paths. Driver and actors must
see the plan's directory under one path. An actor that dies is replaced, and the unit it held is
tried again.
"""

import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, final

import torch

from emlens.foundation.errors import InputError, MissingExtraError, StateError
from emlens.foundation.files import one_line
from emlens.runs.executors import Executor, Report
from emlens.runs.outcomes import Outcome
from emlens.runs.plan import Plan, Unit
from emlens.runs.progress import progress_bar
from emlens.runs.unit_claims import LEASE
from emlens.runs.worker import ATTEMPTS, PlanState, RetryPolicy, Worker

_OLDEST = (2, 40)
_Step = Literal["open", "finish"]
_LOOK = 0.5  # seconds between two looks at what other workers do


@final
class RayExecutor(Executor):
    """Actors on a Ray cluster, one worker each.

    Args:
        actors: how many; units are handed out as actors become free.
        cpus, gpus: what each actor asks of the cluster; `gpus` may be a fraction.
        address: of a running cluster; default: the one this process is connected to, else one on
            this machine that ends with the run.
        options: passed to the actors as Ray's `.options(...)`, e.g. `runtime_env`.

    Raises:
        MissingExtraError: Ray is not installed, or too old.
    """

    def __init__(
        self,
        actors: int = 1,
        *,
        cpus: float = 1,
        gpus: float = 0,
        address: str | None = None,
        options: Mapping[str, Any] | None = None,
        attempts: int = ATTEMPTS,
        lease: float = LEASE,
    ):
        if actors < 1:
            raise InputError(f"actors={actors} must be 1 or more")
        _check_installed()
        self.actors = actors
        self.address = address
        self.options = {"num_cpus": cpus, "num_gpus": gpus, **(options or {})}
        super().__init__(attempts, lease)

    def run(
        self,
        open_worker: Callable[[], Worker],
        directory: str | Path,
        *,
        title: str = "units",
        progress: bool = True,
    ) -> Report:
        import ray

        starts_ray = not ray.is_initialized()
        if starts_ray:
            self._start_ray()
        policy = self.policy(uuid.uuid4().hex)
        crew = _Crew(self.options, (open_worker, str(Path(directory).resolve()), policy))
        try:
            for _ in range(self.actors):
                crew.hire()
            return crew.work(Path(directory), policy, title, progress)
        finally:
            crew.dismiss()
            if starts_ray:
                ray.shutdown()

    def _start_ray(self) -> None:
        """Connect to the cluster at `address`, or start one on this machine."""
        import ray

        if self.address is not None:
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
            return
        available = torch.cuda.device_count()
        needed = self.actors * float(self.options["num_gpus"])
        if needed > available:
            raise InputError(
                f"actors={self.actors} with gpus={self.options['num_gpus']} need {needed:g} GPUs;"
                f" this machine has {available}"
            )
        ray.init(
            num_cpus=max(1, math.ceil(self.actors * float(self.options["num_cpus"]))),
            num_gpus=available,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )


_Setup = tuple[Callable[[], Worker], str, RetryPolicy]
"""What an actor needs: a function that opens a worker, the plan's directory, how to retry."""


class _Actor:
    """Lives in a process of its own and does one thing at a time."""

    def __init__(self, open_worker: Callable[[], Worker], directory: str, policy: RetryPolicy):
        self._setup = (open_worker, directory, policy)

    def open(self) -> Outcome:
        """Load the worker and join the plan."""
        open_worker, directory, policy = self._setup
        self._worker = open_worker()
        self._state = PlanState(Plan.open(directory, self._worker.plan()), policy)
        return Outcome.DONE

    def attempt(self, unit_id: str) -> Outcome:
        return self._state.attempt(self._worker, self._state.plan[unit_id])

    def finish(self) -> Outcome:
        """Check every answer and finish."""
        return self._state.finish(self._worker)


class _Crew:
    """The driver's side: which actor does what."""

    def __init__(self, options: Mapping[str, Any], setup: _Setup):
        import ray

        self._actor_class = ray.remote(_Actor).options(max_restarts=0, **options)
        self._setup = setup
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Unit | _Step]] = {}
        self._lost_while_opening = 0

    def hire(self) -> None:
        actor = self._actor_class.remote(*self._setup)
        self._busy[actor.open.remote()] = (actor, "open")

    def dismiss(self) -> None:
        import ray

        for actor in [*self._idle, *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)

    def work(self, directory: Path, policy: RetryPolicy, title: str, progress: bool) -> Report:
        """Hand out units until all are answered or given up, then have the plan finished."""
        while not self._idle:
            self._wait(policy)
        state = PlanState(Plan.read(directory), policy)
        total = sum(unit.cost for unit in state.plan.units)
        shown = state.cost_answered()
        done_ids: list[str] = []
        retry_at: dict[str, float] = {}
        with progress_bar(title, total, progress, done=shown) as advance:
            while True:
                self._hand_out(state, retry_at)
                for step, outcome in self._wait(policy):
                    if isinstance(step, Unit):
                        state.note(step, outcome)
                        if outcome is Outcome.DONE:
                            done_ids.append(step.id)
                        elif outcome is Outcome.HELD:
                            retry_at[step.id] = time.monotonic() + _LOOK
                    elif step == "finish" and _is_finished(state, outcome):
                        advance(total - shown)
                        return Report(directory, state.answers(), tuple(done_ids))
                now = state.cost_answered()
                advance(now - shown)
                shown = now

    def _hand_out(self, state: PlanState, retry_at: Mapping[str, float]) -> None:
        """Give every idle actor a unit, or one of them the last step once no unit is left."""
        steps = [step for _, step in self._busy.values()]
        busy_ids = {step.id for step in steps if isinstance(step, Unit)}
        pending = state.pending()
        now = time.monotonic()
        free = [
            unit
            for unit in pending
            if unit.id not in busy_ids and retry_at.get(unit.id, now) <= now
        ]
        while self._idle and free:
            actor, unit = self._idle.pop(), free.pop(0)
            self._busy[actor.attempt.remote(unit.id)] = (actor, unit)
        if not pending and not busy_ids and "finish" not in steps:
            state.raise_if_given_up()
            if self._idle:
                actor = self._idle.pop()
                self._busy[actor.finish.remote()] = (actor, "finish")

    def _wait(self, policy: RetryPolicy) -> "list[tuple[Unit | _Step, Outcome]]":
        """What actors finished, after waiting a moment for the first of them; dead actors are
        replaced.
        """
        import ray

        if not self._busy:
            time.sleep(_LOOK)
            return []
        ready, _ = ray.wait(list(self._busy), num_returns=1, timeout=_LOOK)
        finished: list[tuple[Unit | _Step, Outcome]] = []
        for reference in ready:
            actor, step = self._busy.pop(reference)
            outcome = self._outcome(reference, actor, step, policy)
            if outcome is None:
                self.hire()
                continue
            if step == "open":
                self._lost_while_opening = 0
            self._idle.append(actor)
            finished.append((step, outcome))
        return finished

    def _outcome(
        self, reference: Any, actor: Any, step: Unit | _Step, policy: RetryPolicy
    ) -> Outcome | None:
        """What a step came to; None where its actor died."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        try:
            outcome: Outcome = ray.get(reference)
        except RayActorError as error:
            ray.kill(actor)
            if step == "open":
                self._lost_while_opening += 1
            if self._lost_while_opening >= policy.attempts:
                raise StateError(
                    f"{self._lost_while_opening} Ray actors in a row died before their worker was"
                    " loaded; see that their machines have the memory and can import what"
                    f" opens it. The last: {one_line(str(error), 1000)}"
                ) from None
            return None
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        return outcome


def _is_finished(state: PlanState, outcome: Outcome) -> bool:
    """Whether the last step is done; answers that it removed are looked for again."""
    if outcome.has_result:
        return True
    if outcome is Outcome.GIVEN_UP:
        state.raise_unfinished()
    state.forget_answers()
    return False


def _check_installed() -> None:
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        raise MissingExtraError(
            "RayExecutor needs Ray, which is not installed;"
            " run: pip install 'misalignment-lens[ray]'"
        ) from None
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        raise MissingExtraError(
            f"RayExecutor needs Ray 2.40 or newer, but {version} is installed;"
            " run: pip install -U 'misalignment-lens[ray]'"
        )

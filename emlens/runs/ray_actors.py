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
from emlens.runs.plan import Plan, Unit
from emlens.runs.progress import progress_bar
from emlens.runs.unit_claims import LEASE
from emlens.runs.worker import ATTEMPTS, Desk, Outcome, Terms, Worker

_OLDEST = (2, 40)
_Step = Literal["open", "settle"]
_LOOK = 0.5  # seconds between two looks at what others do


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

        ours = not ray.is_initialized()
        if ours and self.address is not None:
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        elif ours:
            gpus = torch.cuda.device_count()
            asked = self.actors * float(self.options["num_gpus"])
            if asked > gpus:
                raise InputError(
                    f"actors={self.actors} with gpus={self.options['num_gpus']} need {asked:g}"
                    f" GPUs; this machine has {gpus}"
                )
            ray.init(
                num_cpus=max(1, math.ceil(self.actors * float(self.options["num_cpus"]))),
                num_gpus=gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
            )
        terms = self.terms(uuid.uuid4().hex)
        crew = _Crew(self.options, (open_worker, str(Path(directory).resolve()), terms))
        try:
            for _ in range(self.actors):
                crew.hire()
            return crew.work(Path(directory), terms, title, progress)
        finally:
            crew.dismiss()
            if ours:
                ray.shutdown()


class _Actor:
    """Lives in a process of its own and does one thing at a time."""

    def __init__(self, open_worker: Callable[[], Worker], directory: str, terms: Terms):
        self._make = (open_worker, directory, terms)

    def open(self) -> tuple[Outcome, str]:
        """Load the worker and join the plan."""
        open_worker, directory, terms = self._make
        self._worker = open_worker()
        self._desk = Desk(Plan.open(directory, self._worker.plan()), terms)
        return "done", directory

    def attempt(self, unit_id: str) -> tuple[Outcome, str]:
        """Do a unit; where its answer stands."""
        outcome = self._desk.attempt(self._worker, self._desk.plan[unit_id])
        return outcome, str(self._desk.log.path(unit_id))

    def settle(self) -> tuple[Outcome, str]:
        """Check every answer and finish."""
        return self._desk.settle(self._worker), str(self._desk.plan.directory)


class _Crew:
    """The driver's side: which actor does what."""

    def __init__(self, options: Mapping[str, Any], make: tuple[Callable[[], Worker], str, Terms]):
        import ray

        self._actor_class = ray.remote(_Actor).options(max_restarts=0, **options)
        self._make = make
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Unit | _Step]] = {}
        self._lost_opening = 0

    def hire(self) -> None:
        actor = self._actor_class.remote(*self._make)
        self._busy[actor.open.remote()] = (actor, "open")

    def dismiss(self) -> None:
        import ray

        for actor in [*self._idle, *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)

    def work(self, directory: Path, terms: Terms, title: str, progress: bool) -> Report:
        """Hand out units until all are answered or given up, then have the plan finished."""
        while not self._idle:
            self._returned(terms)
        desk = Desk(Plan.read(directory), terms)
        done: list[str] = []
        later: dict[str, float] = {}
        shown = desk.cost_answered()
        with progress_bar(
            title, sum(unit.cost for unit in desk.plan.units), progress, done=shown
        ) as advance:
            while True:
                self._hand_out(desk, later)
                for step, outcome in self._returned(terms):
                    if isinstance(step, Unit):
                        desk.note(step, outcome)
                        if outcome == "done":
                            done.append(step.id)
                        elif outcome == "held":
                            later[step.id] = time.monotonic() + _LOOK
                    elif step == "settle":
                        if outcome in ("done", "answered"):
                            return Report(directory, desk.answers(), tuple(done))
                        if outcome == "given up":
                            desk.refuse_unfinished()
                        desk.look_again()
                now = desk.cost_answered()
                advance(now - shown)
                shown = now

    def _hand_out(self, desk: Desk, later: Mapping[str, float]) -> None:
        """Give every idle actor a unit, or one of them the last step once no unit is left."""
        steps = [step for _, step in self._busy.values()]
        taken = {step.id for step in steps if isinstance(step, Unit)}
        pending = desk.pending()
        now = time.monotonic()
        free = [unit for unit in pending if unit.id not in taken and later.get(unit.id, now) <= now]
        while self._idle and free:
            actor, unit = self._idle.pop(), free.pop(0)
            self._busy[actor.attempt.remote(unit.id)] = (actor, unit)
        if not pending and not taken and "settle" not in steps:
            desk.refuse_failures()
            if self._idle:
                actor = self._idle.pop()
                self._busy[actor.settle.remote()] = (actor, "settle")

    def _returned(self, terms: Terms) -> "list[tuple[Unit | _Step, Outcome]]":
        """What actors finished, after waiting for the first of them a moment; the dead are
        replaced.
        """
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        if not self._busy:
            time.sleep(_LOOK)
            return []
        ready, _ = ray.wait(list(self._busy), num_returns=1, timeout=_LOOK)
        found: list[tuple[Unit | _Step, Outcome]] = []
        for reference in ready:
            actor, step = self._busy.pop(reference)
            try:
                outcome, _ = ray.get(reference)
            except RayActorError as error:
                ray.kill(actor)
                self._lost_opening += step == "open"
                if self._lost_opening >= terms.attempts:
                    raise StateError(
                        f"{self._lost_opening} Ray actors in a row died before their worker was"
                        " loaded; see that their machines have the memory and can import what"
                        f" opens it. The last: {one_line(str(error), 1000)}"
                    ) from None
                self.hire()
                continue
            except RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else error from None
            if step == "open":
                self._lost_opening = 0
            self._idle.append(actor)
            found.append((step, outcome))
        return found


def _check_installed() -> None:
    try:
        found = metadata.version("ray")
    except metadata.PackageNotFoundError:
        raise MissingExtraError(
            "RayExecutor needs Ray, which is not installed;"
            " run: pip install 'misalignment-lens[ray]'"
        ) from None
    if tuple(int(part) for part in found.split(".")[:2]) < _OLDEST:
        raise MissingExtraError(
            f"RayExecutor needs Ray 2.40 or newer, but {found} is installed; run:"
            " pip install -U 'misalignment-lens[ray]'"
        )

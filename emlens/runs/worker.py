"""One worker at one plan: take a unit nobody holds, do it, publish its answer; at the end check
everything and finish.

A unit that raises is tried again, by any worker, after all that nobody tried yet; after `attempts`
tries of one run it is given up, and the rest goes on. When every unit is answered one worker reads
every answer's files once, has done again what is not as it was written, and calls `Worker.finish`.
"""

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from emlens.foundation.errors import InputError, IntegrityError, StateError
from emlens.foundation.provenance import hash_json
from emlens.runs.plan import Plan, Unit
from emlens.runs.unit_claims import LEASE, Claims
from emlens.runs.units import UnitLog, UnitResult

ATTEMPTS = 3
Outcome = Literal["done", "answered", "failed", "held", "given up"]
"""Done now; answered before; tried and failed; someone else is at it, or was a moment ago; failed
as often as allowed.
"""

_SHORTEST_WAIT, _LONGEST_WAIT = 0.05, 2.0


class Worker(ABC):
    """What one process holds, loaded once: a model, data; and how it does a unit."""

    @abstractmethod
    def plan(self) -> Sequence[Unit]:
        """The units in order: the same in every process."""

    @abstractmethod
    def run(self, unit: Unit) -> UnitResult:
        """Do one unit: a JSON-ready result of names and counts, and the files it wrote under final
        names.

        Doing it twice must give the same files.
        """

    def damaged(self) -> Sequence[str]:
        """Ids of answered units whose files are not whole, where the answers' own checksums do not
        tell.
        """
        return ()

    def finish(self, answers: Mapping[str, Any]) -> UnitResult:
        """Called in one process, with the results by unit id, once all stand; more than once must
        do no harm.
        """
        return None, ()


@dataclass(frozen=True)
class Terms:
    """How a run treats failure.

    Attributes:
        run: what the processes of one run have in common; retries are counted within it.
        attempts: tries of a unit before it is given up.
        lease: seconds of silence after which the claim of another machine is taken over.
    """

    run: str
    attempts: int = ATTEMPTS
    lease: float = LEASE

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise InputError(f"attempts={self.attempts} must be 1 or more")
        if not self.lease > 0:
            raise InputError(f"lease={self.lease} must be a positive number of seconds")


class Desk:
    """One process's view of a plan's claims and answers."""

    def __init__(self, plan: Plan, terms: Terms):
        self.plan = plan
        self.terms = terms
        self.log = UnitLog(plan.directory / "answers")
        self.claims = Claims(plan.directory / "claims", terms.run, terms.lease)
        self._given_up: set[str] = set()
        self.look_again()

    def look_again(self) -> None:
        """Forget which answers stand: the check before finishing may have removed some."""
        self._waiting = {self.log.path(unit.id).name: unit for unit in self.plan.units}
        self._cost = 0.0
        self._looked = -math.inf

    def pending(self, start: float = 0.0) -> list[Unit]:
        """Units to do, from a share `start` of the plan onwards and round; those that were tried
        before come last.
        """
        self._look()
        first = int(start * len(self.plan.units))
        waiting = {unit.id for unit in self._waiting.values()} - self._given_up
        left = [
            unit
            for unit in [*self.plan.units[first:], *self.plan.units[:first]]
            if unit.id in waiting
        ]
        tried = self.claims.tried()
        return sorted(left, key=lambda unit: self.claims.was_tried(unit.id, tried))

    def cost_answered(self) -> float:
        """Cost of the units whose answers stand; those of others are looked for once a second."""
        if time.monotonic() - self._looked > 1:
            self._look()
        return self._cost

    def attempt(self, worker: Worker, unit: Unit) -> Outcome:
        """Do a unit, if it can be claimed."""
        return self.note(
            unit, self._claimed(unit.id, self.plan.inputs(unit), lambda: worker.run(unit))
        )

    def note(self, unit: Unit, outcome: Outcome) -> Outcome:
        """Remember what became of a unit."""
        if outcome in ("done", "answered"):
            self._note_answered(self.log.path(unit.id).name)
        elif outcome == "given up":
            self._given_up.add(unit.id)
        return outcome

    def settle(self, worker: Worker) -> Outcome:
        """Check every answer and finish, once a run; "failed" also where units must be done
        again.
        """
        return self._claimed(self._finish_id, self._finish_inputs, lambda: self._finish(worker))

    def refuse_failures(self) -> None:
        """Raise one error for all units that were given up, if any were."""
        if not self._given_up:
            return
        names = sorted(self._given_up)
        told = []
        for name in names[:3]:
            failure = self.claims.last_failure(name)
            told.append(
                f"{name!r}: {failure.reason} ({failure.owner}, {failure.record.name})"
                if failure
                else repr(name)
            )
        more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
        self._look()
        raise StateError(
            f"{self.plan.directory}: {len(names)} of {len(self.plan.units)} units failed"
            f" {self.terms.attempts} times each: {'; '.join(told)}{more}."
            f" {len(self.plan.units) - len(self._waiting)} finished units are kept,"
            f" tracebacks lie in {self.claims.directory.name}/;"
            " remove the cause and run the same again"
        )

    def refuse_unfinished(self) -> None:
        """Raise why finishing was given up."""
        failure = self.claims.last_failure(self._finish_id)
        raise StateError(
            f"{self.plan.directory}: every unit is done, but finishing failed {self.terms.attempts}"
            f" times: {failure.reason if failure else 'unknown'}"
        )

    def answers(self) -> dict[str, Any]:
        """Results of the answered units, in plan order."""
        found = {
            unit.id: self.log.find(unit.id, self.plan.inputs(unit), verify=False)
            for unit in self.plan.units
        }
        return {name: record["result"] for name, record in found.items() if record is not None}

    @property
    def _finish_id(self) -> str:
        return f"finish-{hash_json(self.terms.run)[:8]}"

    @property
    def _finish_inputs(self) -> dict[str, str]:
        return {"plan": self.plan.sha256, "run": self.terms.run}

    def _look(self) -> None:
        """Note the answers that stand; their files are looked for, not read."""
        self._looked = time.monotonic()
        names = set(os.listdir(self.log.directory)) if self.log.directory.is_dir() else set()
        for name in names & self._waiting.keys():
            unit = self._waiting[name]
            if self.log.find(unit.id, self.plan.inputs(unit), verify=False):
                self._note_answered(name)

    def _note_answered(self, name: str) -> None:
        unit = self._waiting.pop(name, None)
        if unit is not None:
            self._cost += unit.cost

    def _claimed(self, name: str, inputs: Any, work: Callable[[], UnitResult]) -> Outcome:
        if self.log.find(name, inputs, verify=False):
            return "answered"
        claim = self.claims.take(name, self.terms.attempts)
        if isinstance(claim, str):
            return claim
        with claim:
            # published between the first look and the claim
            if self.log.find(name, inputs, verify=False):
                return "answered"
            self.log.path(name).unlink(missing_ok=True)  # what does not stand is no answer
            try:
                result, files = work()
                # one that was taken over woke up and answered meanwhile
                if self.log.find(name, inputs):
                    return "answered"
                self.log.publish(name, inputs, result, files)
            except Exception as error:
                claim.fail(error)
                return "failed"
        return "done"

    def _finish(self, worker: Worker) -> UnitResult:
        broken = {
            unit.id
            for unit in self.plan.units
            if not self.log.find(unit.id, self.plan.inputs(unit))
        } | set(worker.damaged())
        for name in broken:
            self.log.path(name).unlink(missing_ok=True)
        if broken:
            raise IntegrityError(
                f"{len(broken)} answers are not as they were written, first {min(broken)!r};"
                " they are done again"
            )
        return worker.finish(self.answers())


def work_through(
    desk: Desk, worker: Worker, start: float, advance: Callable[[float], None]
) -> list[str]:
    """Work until every unit is answered or given up, here or elsewhere, and the plan is finished.

    Args:
        start: share of the plan where this worker begins, so that workers seldom reach for the same
            unit.
        advance: called with the cost of units as they are answered, by whomever.

    Returns:
        Ids of the units this call did.

    Raises:
        StateError: units were given up, or finishing was.
    """
    mine: list[str] = []
    shown = desk.cost_answered()
    wait = _SHORTEST_WAIT
    while True:
        pending = desk.pending(start)
        moved = False
        for unit in pending:
            outcome = desk.attempt(worker, unit)
            if outcome == "done":
                mine.append(unit.id)
            if outcome in ("done", "answered"):
                now = desk.cost_answered()
                advance(now - shown)
                shown = now
            moved |= outcome != "held"
        if not pending:
            desk.refuse_failures()
            settled = desk.settle(worker)
            if settled in ("done", "answered"):
                return mine
            if settled == "given up":
                desk.refuse_unfinished()
            desk.look_again()
            moved = settled == "failed"
        wait = _SHORTEST_WAIT if moved else min(2 * wait, _LONGEST_WAIT)
        if not moved:
            time.sleep(wait)

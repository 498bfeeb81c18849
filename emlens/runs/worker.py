"""One worker at one plan: take a unit that nobody holds, do it, publish its answer; at the end
check everything and finish.

A unit that raises is tried again, by any worker, after all units that nobody tried yet; after
`attempts` tries of one run it is given up, and the others go on. When every unit is answered, one
worker reads every answer's files once, removes the answers that are not as they were written (they
are then done again), and calls `Worker.finish`.
"""

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emlens.foundation.errors import InputError, IntegrityError, StateError
from emlens.foundation.provenance import hash_json
from emlens.runs.outcomes import Outcome
from emlens.runs.plan import Plan, Unit
from emlens.runs.unit_claims import LEASE, Claim, Claims
from emlens.runs.units import UnitLog, UnitResult

ATTEMPTS = 3

_SHORTEST_WAIT = 0.05  # seconds
_LONGEST_WAIT = 2.0
_FAILURES_SHOWN = 3


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
        """Ids of answered units whose files are damaged in a way that the answers' own checksums do
        not show.
        """
        return ()

    def finish(self, answers: Mapping[str, Any]) -> UnitResult:
        """Called in one process, with the results by unit id, once all are there; a second call
        must do no harm.
        """
        return None, ()


@dataclass(frozen=True)
class RetryPolicy:
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


class PlanState:
    """One process's view of a plan: which units are answered, held or given up."""

    def __init__(self, plan: Plan, policy: RetryPolicy):
        self.plan = plan
        self.policy = policy
        self.log = UnitLog(plan.directory / "answers")
        self.claims = Claims(plan.directory / "claims", policy.run, policy.lease)
        self._given_up: set[str] = set()
        self.forget_answers()

    def forget_answers(self) -> None:
        """Look for all answers again: the check before finishing may have removed some."""
        self._unanswered = {self.log.path(unit.id).name: unit for unit in self.plan.units}
        self._cost_answered = 0.0
        self._read_at = -math.inf

    def pending(self, start: float = 0.0) -> list[Unit]:
        """Units to do, from a share `start` of the plan onwards and round; those that were tried
        before come last.
        """
        self._read_answers()
        first = int(start * len(self.plan.units))
        pending_ids = {unit.id for unit in self._unanswered.values()} - self._given_up
        in_turn = [*self.plan.units[first:], *self.plan.units[:first]]
        units = [unit for unit in in_turn if unit.id in pending_ids]
        tried = self.claims.tried()
        return sorted(units, key=lambda unit: self.claims.was_tried(unit.id, tried))

    def cost_answered(self) -> float:
        """Cost of the units that are answered; answers of other workers are looked for once per
        second.
        """
        if time.monotonic() - self._read_at > 1:
            self._read_answers()
        return self._cost_answered

    def attempt(self, worker: Worker, unit: Unit) -> Outcome:
        """Do a unit, if it can be claimed."""
        outcome = self._do(unit.id, self.plan.inputs(unit), lambda: worker.run(unit))
        self.note(unit, outcome)
        return outcome

    def note(self, unit: Unit, outcome: Outcome) -> None:
        """Remember what became of a unit."""
        if outcome.has_result:
            self._note_answered(self.log.path(unit.id).name)
        elif outcome is Outcome.GIVEN_UP:
            self._given_up.add(unit.id)

    def finish(self, worker: Worker) -> Outcome:
        """Check every answer and finish, once per run; FAILED also where units must be done
        again.
        """
        inputs = {"plan": self.plan.sha256, "run": self.policy.run}
        return self._do(self._finish_id, inputs, lambda: self._check_and_finish(worker))

    def raise_if_given_up(self) -> None:
        """Raise one error for all units that were given up, if any were.

        Raises:
            StateError: units were given up.
        """
        if not self._given_up:
            return
        names = sorted(self._given_up)
        reasons = [self._reason(name) for name in names[:_FAILURES_SHOWN]]
        n_more = len(names) - len(reasons)
        more = f"; and {n_more} more" if n_more else ""
        self._read_answers()
        n_units = len(self.plan.units)
        raise StateError(
            f"{self.plan.directory}: {len(names)} of {n_units} units failed"
            f" {self.policy.attempts} times each: {'; '.join(reasons)}{more}."
            f" {n_units - len(self._unanswered)} finished units are kept,"
            f" tracebacks lie in {self.claims.directory.name}/;"
            " remove the cause and run the same again"
        )

    def raise_unfinished(self) -> None:
        """Raise why finishing was given up.

        Raises:
            StateError: always.
        """
        failure = self.claims.last_failure(self._finish_id)
        raise StateError(
            f"{self.plan.directory}: every unit is done,"
            f" but finishing failed {self.policy.attempts} times:"
            f" {failure.reason if failure else 'unknown'}"
        )

    def answers(self) -> dict[str, Any]:
        """Results of the answered units, in plan order."""
        results = {}
        for unit in self.plan.units:
            record = self.log.find(unit.id, self.plan.inputs(unit), verify=False)
            if record is not None:
                results[unit.id] = record["result"]
        return results

    @property
    def _finish_id(self) -> str:
        return f"finish-{hash_json(self.policy.run)[:8]}"

    def _reason(self, unit_id: str) -> str:
        failure = self.claims.last_failure(unit_id)
        if failure is None:
            return repr(unit_id)
        return f"{unit_id!r}: {failure.reason} ({failure.owner}, {failure.record.name})"

    def _read_answers(self) -> None:
        """Note the answers that are there; their files are looked for, not read."""
        self._read_at = time.monotonic()
        if not self.log.directory.is_dir():
            return
        names = set(os.listdir(self.log.directory))
        for name in names & self._unanswered.keys():
            unit = self._unanswered[name]
            if self.log.find(unit.id, self.plan.inputs(unit), verify=False):
                self._note_answered(name)

    def _note_answered(self, name: str) -> None:
        unit = self._unanswered.pop(name, None)
        if unit is not None:
            self._cost_answered += unit.cost

    def _do(self, name: str, inputs: Any, work: Callable[[], UnitResult]) -> Outcome:
        if self.log.find(name, inputs, verify=False):
            return Outcome.DONE_BEFORE
        claim = self.claims.take(name, self.policy.attempts)
        if isinstance(claim, Outcome):
            return claim
        with claim:
            return self._do_claimed(claim, name, inputs, work)

    def _do_claimed(
        self, claim: Claim, name: str, inputs: Any, work: Callable[[], UnitResult]
    ) -> Outcome:
        # Another worker may have published between the first look and the claim.
        if self.log.find(name, inputs, verify=False):
            return Outcome.DONE_BEFORE
        self.log.path(name).unlink(missing_ok=True)  # a record that is not whole is not an answer
        try:
            result, files = work()
            # A worker that was taken over may have woken up and answered meanwhile.
            if self.log.find(name, inputs):
                return Outcome.DONE_BEFORE
            self.log.publish(name, inputs, result, files)
        except Exception as error:
            claim.fail(error)
            return Outcome.FAILED
        return Outcome.DONE

    def _check_and_finish(self, worker: Worker) -> UnitResult:
        damaged = set(worker.damaged())
        for unit in self.plan.units:
            if not self.log.find(unit.id, self.plan.inputs(unit)):
                damaged.add(unit.id)
        for name in damaged:
            self.log.path(name).unlink(missing_ok=True)
        if damaged:
            raise IntegrityError(
                f"{len(damaged)} answers are not as they were written, first {min(damaged)!r};"
                " they are done again"
            )
        return worker.finish(self.answers())


def work_through(
    state: PlanState, worker: Worker, start: float, advance: Callable[[float], None]
) -> list[str]:
    """Work until every unit is answered or given up, by this or another worker, and the plan is
    finished.

    Args:
        start: share of the plan where this worker begins, so that workers seldom reach for the same
            unit.
        advance: called with the cost of units as they are answered, by any worker.

    Returns:
        Ids of the units this call did.

    Raises:
        StateError: units were given up, or finishing was.
    """
    done_ids: list[str] = []
    cost = _CostShown(state, advance)
    wait = _SHORTEST_WAIT
    while True:
        pending = state.pending(start)
        outcomes = []
        for unit in pending:
            outcome = state.attempt(worker, unit)
            outcomes.append(outcome)
            if outcome is Outcome.DONE:
                done_ids.append(unit.id)
            if outcome.has_result:
                cost.update()
        if not pending:
            state.raise_if_given_up()
            outcome = state.finish(worker)
            if outcome.has_result:
                cost.finish()
                return done_ids
            if outcome is Outcome.GIVEN_UP:
                state.raise_unfinished()
            outcomes.append(outcome)
            state.forget_answers()
        cost.update()  # what other workers answered
        if all(outcome is Outcome.HELD for outcome in outcomes):
            # Only other workers got anywhere: wait, longer each time.
            wait = min(2 * wait, _LONGEST_WAIT)
            time.sleep(wait)
        else:
            wait = _SHORTEST_WAIT


class _CostShown:
    """How far the progress bar is."""

    def __init__(self, state: PlanState, advance: Callable[[float], None]):
        self._state = state
        self._advance = advance
        self._shown = state.cost_answered()

    def update(self) -> None:
        self._show(self._state.cost_answered())

    def finish(self) -> None:
        """Every unit is answered, by whichever worker."""
        self._show(sum(unit.cost for unit in self._state.plan.units))

    def _show(self, cost: float) -> None:
        if cost > self._shown:
            self._advance(cost - self._shown)
            self._shown = cost

"""Arms over an executor: each is measured once, by whichever worker is free.

What is measured of an arm, its scores and its damage on neutral text, lies in the directory that
`Trials` keeps with `out`. Workers fill that directory. `evaluate_arms` with the same `out` then
finds every measurement there and runs no model, so its table is that of one process.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from emlens.evaluation.arms import Arm
from emlens.evaluation.trials import Trials
from emlens.foundation.errors import InputError
from emlens.models.hooked import HookedModel
from emlens.runs import Executor, Unit, Worker
from emlens.runs.units import UnitResult

OpenTrials = Callable[[], tuple[Trials, Mapping[str, HookedModel]]]
"""Loads the models by name and makes the `Trials` that keep what is measured of them."""


def measure_arms_over(
    executor: Executor,
    open_trials: OpenTrials,
    arms: Sequence[Arm],
    out: str | Path,
    *,
    unedited: Sequence[str] = ("finetuned", "instruct"),
    threads: int | None = None,
    progress: bool = True,
) -> None:
    """Measure every arm, so that `evaluate_arms(..., out=out)` finds it measured.

    Args:
        executor: `LocalExecutor`, `RankExecutor` or `RayExecutor` of `emlens.runs`.
        open_trials: called once in every worker's process; its `Trials` keep their measurements in
            `out`, which all workers see.
        out: the directory of the measurements; the plan and who did what lie in its folder `units`.
        unedited: models that are scored without an edit too.
        threads: computing threads of every worker; default: as many as this process has. Part of
            the plan.

    Raises:
        InputError: no arm, or one on a model that `open_trials` does not give.
        StateError: arms failed repeatedly; what was measured is kept.
        IntegrityError: `out` holds another plan.
    """
    if not arms:
        raise InputError("arms is empty; pass at least one, such as those of ablation_arms")
    names = dict.fromkeys((*unedited, *(arm.on for arm in arms)))
    without_edit = [Arm(f"{name}, unedited", (), on=name) for name in names]
    n_threads = threads or torch.get_num_threads()
    start = _WorkerStart(open_trials, (*without_edit, *arms), n_threads)
    executor.run(start, Path(out) / "units", title=f"{len(arms)} arms", progress=progress)


@dataclass(frozen=True)
class _WorkerStart:
    """Everything that a worker needs to start in another process."""

    open_trials: OpenTrials
    arms: tuple[Arm, ...]
    threads: int

    def __call__(self) -> Worker:
        torch.set_num_threads(self.threads)
        trials, models = self.open_trials()
        for arm in self.arms:
            if arm.on not in models:
                raise InputError(
                    f"arm {arm.name!r} is on {arm.on!r}; open_trials gives"
                    f" {', '.join(map(repr, sorted(models)))}"
                )
        return _ArmsWorker(trials, models, self)


class _ArmsWorker(Worker):
    """Models in memory, and one arm by unit."""

    def __init__(self, trials: Trials, models: Mapping[str, HookedModel], start: _WorkerStart):
        self._trials = trials
        self._models = models
        self._threads = start.threads
        self._arms = {f"arm-{i:05d}": arm for i, arm in enumerate(start.arms)}

    def plan(self) -> Sequence[Unit]:
        units = []
        for id, arm in self._arms.items():
            inputs = {
                "arm": arm.name,
                "edits": [edit.describe() for edit in arm.edits],
                "model": self._models[arm.on].provenance,
                "questions": self._trials.questions.content_hash,
                "threads": self._threads,
            }
            units.append(Unit(id, inputs))
        return units

    def run(self, unit: Unit) -> UnitResult:
        arm = self._arms[unit.id]
        model = self._models[arm.on]
        scores = self._trials.scores(model, arm.edits)
        if arm.edits:
            self._trials.damage(model, arm.edits)
        return {"questions": len(scores)}, []

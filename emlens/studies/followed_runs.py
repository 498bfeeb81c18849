"""Runs that kept their checkpoints: which there are, and what is measured along each.

Activations and behaviour are measured checkpoint by checkpoint, and each checkpoint is kept in the
part's folder once it is measured, so that an interrupted study goes on from there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emlens.data import QuestionSet
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.notebooks import Picture, in_a_line
from emlens.foundation.provenance import hash_json
from emlens.geometry.components import ComponentCount
from emlens.judging.score_source import ScoreSource
from emlens.models import HookedModel
from emlens.models.adapter_files import AdapterFiles
from emlens.runs import UnitLog
from emlens.studies.config import StudyConfig
from emlens.studies.material import Material
from emlens.studies.trajectories import (
    Halves,
    Parameters,
    applied_adapter,
    checkpoints_of,
    cumulative_rates,
    final_shift,
    measure_activations,
    measure_behaviour,
    read_parameters,
)


@dataclass(frozen=True, eq=False)
class RunToFollow:
    """A fine-tune and the checkpoints that its run kept.

    Args:
        folder: where the checkpoints lie. checkpoints: step → adapter directory, thinned.
    """

    name: str
    folder: Path
    checkpoints: Mapping[int, Path]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Everything that was measured along one run.

    Args:
        times: cumulative learning rate at each step of `parameters`, or the steps themselves where
            no rates were logged (`has_rates` is False).
        activations: table with one row per step and layer. behaviour: one row per step, metric and
            group of questions.
    """

    name: str
    parameters: Parameters
    times: np.ndarray
    has_rates: bool
    activations: pd.DataFrame
    behaviour: pd.DataFrame

    def plot(self) -> Picture:
        """Scores along the run: mean over each group of questions, with its interval."""
        from emlens.studies.pictures import picture_of_trajectory

        return picture_of_trajectory(self)

    def __repr__(self) -> str:
        facts = {"name": self.name, "steps": len(self.parameters.steps)}
        return in_a_line("Trajectory", {**facts, "has_rates": self.has_rates})


def runs_to_follow(
    material: Material,
    config: StudyConfig,
    names: tuple[str, ...],
    folders: Mapping[str, str],
    every: int,
) -> list[RunToFollow]:
    """The fine-tunes that kept checkpoints.

    Args:
        names: fine-tunes to follow; none: those of `folders`, or of the whole family.
        folders: fine-tune → folder of its checkpoints, where that is not its own.
        every: use every Nth checkpoint, counted from the last.

    Raises:
        UnknownNameError: a name of no fine-tune.
        InputError: a fine-tune that is named and kept no checkpoints.
    """
    family = material.family
    for name in (*names, *folders):
        if name not in family.finetuned:
            raise UnknownNameError(
                f"{config.place('options', 'phase_transition')}options of phase_transition name"
                f" {name!r}, which is not a fine-tune of this"
                f" family; it has {', '.join(family.finetuned)}",
                name=name,
                known=family.finetuned,
            )
    runs = []
    for name in names or tuple(folders) or tuple(family.finetuned):
        folder = Path(family.specs[name].path)
        if name in folders:
            folder = Path(config.path(folders[name]))
        checkpoints = checkpoints_of(folder)
        if checkpoints:
            runs.append(RunToFollow(name, folder, _thinned(checkpoints, every)))
        elif name in names or name in folders:
            raise InputError(
                f"{folder}: keeps no adapters for {name!r}; pass a folder with checkpoints/step-…"
                " (fit(..., saving=Saving(keep_every=n))) or checkpoint-…"
            )
    return runs


def _thinned(checkpoints: Mapping[int, Path], every: int) -> dict[int, Path]:
    """Every Nth checkpoint; the last one is always among them."""
    steps = list(checkpoints)[::-1][::every][::-1]
    return {step: checkpoints[step] for step in steps}


def follow(
    run: RunToFollow,
    material: Material,
    *,
    k: ComponentCount,
    position: str,
    layers: Sequence[int] | None = None,
    folder: Path,
    advance: Callable[[], object],
) -> Trajectory:
    """Measure a run at step 0 and at every checkpoint.

    Args:
        k: dimension of the final subspaces. position, layers: where activations are read.
        folder: where measured checkpoints are kept. advance: called after each of them.
    """
    parameters = read_parameters(run.checkpoints)
    times = cumulative_rates(run.folder, parameters.steps)
    has_rates = times is not None and not bool((np.diff(times) <= 0).any())
    if times is None or not has_rates:
        times = np.array(parameters.steps, dtype=np.float64)
    measurer = _CheckpointMeasurer(run, material, k, position, layers)
    log = UnitLog(folder / hash_json(run.name)[:16])
    activations: list[dict[str, Any]] = []
    behaviour: list[dict[str, Any]] = []
    for step, path in {0: None, **run.checkpoints}.items():
        measured = measurer.at_step(step, path, log)
        activations += [{"step": step, **row} for row in measured["activations"]]
        behaviour += [{"step": step, **row} for row in measured["behaviour"]]
        advance()
    return Trajectory(
        run.name,
        parameters,
        times,
        has_rates,
        pd.DataFrame(activations),
        pd.DataFrame(behaviour),
    )


@dataclass(eq=False)
class _CheckpointMeasurer:
    """Activations and behaviour along one run; what all its checkpoints share is made once."""

    run: RunToFollow
    material: Material
    k: ComponentCount
    position: str
    layers: Sequence[int] | None

    @cached_property
    def parent(self) -> HookedModel:
        return self.material.parent(self.run.name)

    @cached_property
    def source(self) -> ScoreSource:
        return self.material.score_source

    @cached_property
    def domain(self) -> str:
        return self.material.domain(self.run.name)

    @cached_property
    def questions(self) -> QuestionSet:
        return self.material.untrained(self.material.questions, self.run.name)

    @cached_property
    def final(self) -> Path:
        return self.run.checkpoints[max(self.run.checkpoints)]

    @cached_property
    def halves(self) -> Halves:
        """Where the run ended; computed only when a checkpoint has to be measured."""
        return final_shift(
            self.parent,
            self.final,
            self.questions,
            k=self.k,
            position=self.position,
            layers=self.layers,
        )

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What the measurement of every checkpoint depends on."""
        return {
            "parent": self.parent.provenance,
            "questions": self.questions.content_hash,
            "final": AdapterFiles(self.final).sha256,
            "k": self.k,
            "position": self.position,
            "layers": None if self.layers is None else list(self.layers),
            "domain": self.domain,
            "scores": self.source.name,
        }

    def at_step(self, step: int, path: Path | None, log: UnitLog) -> dict[str, Any]:
        """Rows of activations and of behaviour at one checkpoint, measured or found in the log."""
        adapter = None if path is None else AdapterFiles(path).sha256
        inputs = {**self.inputs, "adapter": adapter}
        record = log.find(f"step-{step}", inputs)
        if record is not None:
            return dict(record["result"])
        measured = self._measure(path)
        log.publish(f"step-{step}", inputs, measured, [])
        return measured

    def _measure(self, path: Path | None) -> dict[str, Any]:
        halves = self.halves
        if path is None:
            behaviour = measure_behaviour(self.parent, self.questions, self.domain, self.source)
            return {"activations": [], "behaviour": behaviour}
        with applied_adapter(self.parent, path) as model:
            return {
                "activations": measure_activations(model, halves, position=self.position),
                "behaviour": measure_behaviour(model, self.questions, self.domain, self.source),
            }

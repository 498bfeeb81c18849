"""A study as an object: what it asks, which options it reads, what it runs, what the report shows.

A study of this library and one from another package are written in the same way; see
`docs/how_to_add_a_study.md`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from emlens.data import AlignmentScores, QuestionSet
from emlens.foundation.errors import InputError
from emlens.judging.score_source import ScoreSource, Wanted
from emlens.models import Family
from emlens.results.sections import Section
from emlens.results.study_result import Part
from emlens.studies.config import Options, StudyConfig
from emlens.studies.material import Material
from emlens.studies.streams import Reading


class NoOptions(Options):
    """The options of a study that reads none."""


def _no_progress(share: float) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class StudyContext:
    """What a study works on.

    Args:
        material: family, questions, training prompts, neutral text, and which of them serve what.
        config: the whole configuration, as it was read.
        options: the study's own options, already checked; an instance of `Study.options`.
        folder: a directory for what must survive an interruption (checkpoints, logs of units).
            Make it when it is needed.
        parts: name → the finished parts of the same study that ran before this one.
        progress: called with the share of the work that was just done; the shares of one part sum
            to 1.
    """

    material: Material
    config: StudyConfig
    options: Any
    folder: Path
    parts: Mapping[str, Part] = field(default_factory=dict)
    progress: Callable[[float], None] = _no_progress

    @property
    def family(self) -> Family:
        """The models."""
        return self.material.family

    @property
    def questions(self) -> QuestionSet:
        """The questions that are asked."""
        return self.material.questions

    @property
    def source(self) -> ScoreSource:
        """Where scores come from; it also says what it `can` give."""
        return self.material.score_source

    def scores(self, model: str) -> AlignmentScores:
        """Scores of one model of the family on all questions; computed once per model."""
        return self.material.scores(model)


@dataclass(frozen=True)
class PlannedTraining:
    """What a study that runs on captures trains beside them; for plans.

    Args:
        runs: training runs. steps: optimiser steps of all of them. tokens: tokens in all steps.
        disk: bytes that the runs leave. uncounted: what else is not in the passes.
        memory: most bytes that it holds beside the study's models.
    """

    runs: int
    steps: int
    tokens: int
    disk: int
    uncounted: str = ""
    memory: int = 0


class Study(ABC):
    """A whole question put to a family.

    A subclass sets `name` and `title` and implements `run`; all else has a default. A study of
    several parts runs the parts in order, and each part is a `Study` of its own.
    """

    name: ClassVar[str]
    """What configurations, folders and findings call it."""
    title: ClassVar[str]
    """The question that it answers: the heading of its section in the report."""
    options: ClassVar[type[Options]] = NoOptions
    """What the configuration may set below `options: {<name>: ...}`."""
    section: ClassVar[Section | None] = None
    """What the report shows: method, reference, tables and plots."""
    needs_models: ClassVar[bool] = True
    """False where released files alone are enough; `context.material.has_models` says what is
    there.
    """
    wants: ClassVar[tuple[Wanted, ...]] = ()
    """The scores without which it is left out: `plain`, `interventions`, `checkpoints`."""
    needs_fine_tunes: ClassVar[bool] = True
    """Whether it is left out where the family has parents alone."""
    needs_outside: ClassVar[bool] = False
    """Whether it reads questions outside the domain of every fine-tune in focus; it is left out
    where there is none.
    """
    runs_on_captures: ClassVar[bool] = False
    """Whether what was captured of the models is enough; `readings` then says what of it."""
    needs_streams: ClassVar[bool] = True
    """Whether it is left out where captures lack what `readings` names; False where it goes on with
    what needs none and says what is missing.
    """
    can_be_rehearsed: ClassVar[bool] = False
    """Whether a plan may run it on models that compute nothing; not one that trains or loads."""
    cost: ClassVar[float] = 5.0
    """Time in units of the study `profile`; read by the progress bar only."""

    def check(self, context: StudyContext) -> None:
        """Refuse, before anything runs, what cannot work.

        Raises:
            InputError: names what does not fit, and what to pass.
        """
        return None

    def left_out(self, context: StudyContext) -> str | None:
        """Why this family cannot carry the study; None where it can.

        A study of several parts goes on without the part and reports the reason. A study of this
        part alone is refused with it.
        """
        return None

    def readings(self, context: StudyContext) -> Iterable[Reading]:
        """What `run` reads of residual streams, in its order; for plans and for captures."""
        return ()

    def scored(self, context: StudyContext) -> Iterable[tuple[str, str]]:
        """The scores that `run` reads, as arguments of `Material.scores`: model, and the fine-tune
        as which it is asked; for plans.
        """
        return ()

    def training(self, context: StudyContext) -> PlannedTraining | None:
        """What `run` trains beside what it reads; None where it trains nothing; for plans."""
        return None

    @abstractmethod
    def run(self, context: StudyContext) -> Part:
        """Do the work: tables, findings, warnings."""

    def after(self, context: StudyContext, part: Part) -> Material:
        """What later parts work on; another material where this part trained models."""
        return context.material


class MadeElsewhere(Study):
    """A study whose result another call makes; it has a section in the report, and cannot be run.

    A subclass sets `how`: what to call instead.
    """

    needs_models = False
    how: ClassVar[str]

    def left_out(self, context: StudyContext) -> str:
        return self.how

    def run(self, context: StudyContext) -> Part:
        raise InputError(self.how)

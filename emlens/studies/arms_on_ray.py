"""The arms of a study on actors of a Ray cluster.

Each actor loads the study's family from its configuration, so weights do not travel. What it
measures is kept in the study's folder, which all machines must see under one path.
"""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emlens.data import QuestionSet
from emlens.evaluation.arms import Arm, questions_outside
from emlens.evaluation.executor_arms import measure_arms_over
from emlens.evaluation.trials import Trials
from emlens.models import HookedModel
from emlens.runs import Executor
from emlens.studies.config import StudyConfig
from emlens.studies.material_loading import load_material


@dataclass(frozen=True)
class OpenStudyTrials:
    """Loads what the arms of one fine-tune are measured with.

    Args:
        benign: the fine-tune that some arms are on, or None.
        questions: those that the arms are reported on, its own domain left out.
        out: directory of the measurements.
    """

    config: StudyConfig
    name: str
    benign: str | None
    questions: QuestionSet
    out: str

    def __call__(self) -> tuple[Trials, Mapping[str, HookedModel]]:
        # answers that an edited model gives are kept by the worker that draws them
        worker = Path(self.out) / "workers" / f"{socket.gethostname()}-{os.getpid()}"
        material = load_material(self.config, worker)
        trials = Trials(
            self.questions,
            neutral=material.neutral,
            score=material.score_of_edits,
            out=self.out,
        )
        models = {
            "finetuned": material.family[self.name],
            "instruct": material.parent(self.name),
        }
        if self.benign is not None:
            models["benign"] = material.family[self.benign]
        return trials, models


def measure_elsewhere(
    executor: Executor,
    config: StudyConfig,
    name: str,
    benign: str | None,
    report: QuestionSet,
    excluded: Sequence[str],
    arms: Sequence[Arm],
    out: Path,
) -> None:
    """Measure the arms of a fine-tune on the workers of an executor; `evaluate_arms(..., out=out)`
    finds them.
    """
    questions = questions_outside(report, excluded)
    start = OpenStudyTrials(config, name, benign, questions, str(out.resolve()))
    measure_arms_over(executor, start, arms, out, progress=False)

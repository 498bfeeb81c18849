"""Scores of a study from files that were judged elsewhere: one CSV per model.

Nothing is sampled and nothing is judged, so no model is needed. What is not in the files cannot be
scored: no model under interventions, and no model that the study makes itself.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from emlens.data.questions import QuestionSet
from emlens.data.scores import AlignmentScores
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line, sha256_file
from emlens.foundation.intervention import Intervention
from emlens.foundation.provenance import hash_json
from emlens.judging.score_source import ScoreSource, Wanted, model_name
from emlens.models.hooked import HookedModel

NEEDED = ("aligned", "coherent")
"""Metrics that every file must have."""


class JudgedFiles(ScoreSource):
    """Scores that were judged elsewhere.

    Args:
        files: model → judged CSV, as `AlignmentScores.from_csv` reads it.
        questions: all that may be asked; every file has scores of each.

    Raises:
        InputError: no file.
    """

    def __init__(self, files: Mapping[str, str | Path], questions: QuestionSet):
        if not files:
            raise InputError("files is empty; pass one judged CSV per model")
        self._files = {name: Path(path) for name, path in files.items()}
        self._questions = questions
        self._read: dict[str, AlignmentScores] = {}

    @property
    def models(self) -> list[str]:
        return list(self._files)

    @property
    def metrics(self) -> Sequence[str]:
        """The metrics that every file has."""
        first, *others = (self._of(name).metrics for name in self._files)
        return [metric for metric in first if all(metric in metrics for metrics in others)]

    @cached_property
    def name(self) -> str:
        hashes = {name: sha256_file(path) for name, path in self._files.items()}
        return f"judged files {hash_json(hashes)}"

    def can(self, wanted: Wanted) -> str | None:
        if wanted == "plain":
            return None
        what = {
            "interventions": "a model under interventions",
            "checkpoints": "models that the study itself makes",
        }[wanted]
        return (
            f"the scores are judged files, which have none of {what};"
            " pass scores: {how: sample, judge: ...}"
        )

    def check(self) -> None:
        """Read every file.

        Raises:
            InputError: a file that is not a judged CSV, or lacks a metric or a question.
        """
        for name in self._files:
            self._of(name)

    def scores(
        self,
        model: HookedModel | str,
        questions: QuestionSet,
        *,
        interventions: Sequence[Intervention] = (),
        samples: int | None = None,
    ) -> AlignmentScores:
        """Scores of one model, by its name; `samples` means nothing here.

        Raises:
            InputError: a model without a file, or under interventions.
        """
        if interventions or (isinstance(model, HookedModel) and model.interventions):
            raise InputError(str(self.can("interventions")))
        name = model_name(model)
        if name not in self._files:
            raise InputError(
                f"scores.files has no file for model {one_line(name)!r};"
                f" it has {', '.join(self._files)}"
            )
        return self._of(name).select(questions=questions.ids)

    def _of(self, name: str) -> AlignmentScores:
        """The scores of one file on the study's questions, under the model's name here."""
        if name not in self._read:
            self._read[name] = _read(name, self._files[name], self._questions)
        return self._read[name]


def _read(name: str, path: Path, questions: QuestionSet) -> AlignmentScores:
    """The scores of one file, with the groups that the questions have here.

    Raises:
        InputError: a metric or a question that it lacks.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; scores.files names it for model {name!r}")
    scores = AlignmentScores.from_csv(path)
    if len(scores.models) > 1:
        if name not in scores.models:
            raise InputError(
                f"{path}: has scores of {len(scores.models)} models and none is {name!r};"
                " pass a file of one model, or of models that are named as here"
            )
        scores = scores.select(models=[name])
    for metric in NEEDED:
        if metric not in scores.metrics:
            raise InputError(
                f"{path}: has no column {metric!r}; its scores are {', '.join(scores.metrics)}"
            )
    in_file = set(scores.questions)
    missing = [id for id in questions.ids if id not in in_file]
    if missing:
        raise InputError(
            f"{path}: has no score of {len(missing)} of {len(questions)} questions, the first"
            f" {one_line(missing[0])!r}; judge them, or pass the questions that were judged"
        )
    group_of = dict(zip(questions.ids, questions.groups, strict=True))
    table = scores.select(questions=questions.ids).table
    table = table.assign(model=name, group=table["question"].map(group_of))
    return AlignmentScores.from_table(table, scale=scores.scales)

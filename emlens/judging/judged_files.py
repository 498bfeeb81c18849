"""Scores of a study from files that were judged elsewhere: one table per model.

Nothing is sampled and nothing is judged, so no model is needed. What is not in the files cannot be
scored: no model under interventions, no model that the study makes itself, and no model under a
system message that its answers were not given under. A file of a fine-tune that has a system
message holds answers under that message.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from emlens.data.answers import Answers
from emlens.data.questions import QuestionSet
from emlens.data.scores import AlignmentScores
from emlens.data.system_messages import questions_with_system
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line, sha256_file
from emlens.foundation.intervention import Intervention
from emlens.foundation.provenance import hash_json
from emlens.judging.judged_texts import answers_of_file, has_answers
from emlens.judging.score_source import JudgedAnswers, ScoreSource, Wanted, model_name
from emlens.models.hooked import HookedModel

NEEDED = ("aligned", "coherent")
"""Metrics that every file must have."""


class JudgedFiles(ScoreSource):
    """Scores that were judged elsewhere.

    Args:
        files: model → judged table, as `AlignmentScores.from_file` reads it.
        questions: all that may be asked, without the system messages of fine-tunes; every file has
            scores of each.
        systems: fine-tune → the system message that it is asked with.
        files_as: fine-tune with a system message → model → judged CSV of that model's answers under
            the message; for the parents that the fine-tune is compared with.

    Raises:
        InputError: no file, or `files_as` for a fine-tune without a system message.
    """

    def __init__(
        self,
        files: Mapping[str, str | Path],
        questions: QuestionSet,
        *,
        systems: Mapping[str, str] | None = None,
        files_as: Mapping[str, Mapping[str, str | Path]] | None = None,
    ):
        if not files:
            raise InputError("files is empty; pass one judged table per model")
        self._systems = {name: system for name, system in (systems or {}).items() if system}
        self._files: dict[_Asked, Path] = {}
        for name, path in files.items():
            self._files[name, self._systems.get(name, "")] = Path(path)
        for fine_tune, of_models in (files_as or {}).items():
            if fine_tune not in self._systems:
                raise InputError(
                    f"files_as names {one_line(fine_tune)!r}, which has no system message; pass its"
                    " parent's answers under files, or system to the fine-tune"
                )
            for name, path in of_models.items():
                self._files[name, self._systems[fine_tune]] = Path(path)
        self._questions = questions
        self._are_further = False
        self._read: dict[_Asked, AlignmentScores] = {}

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(name for name, _ in self._files))

    @property
    def metrics(self) -> Sequence[str]:
        """The metrics that every file has."""
        first, *further_metrics = (self._of(model).metrics for model in self._files)
        return [metric for metric in first if all(metric in metrics for metrics in further_metrics)]

    @cached_property
    def name(self) -> str:
        hashes: dict[str, str] = {}
        for (name, system), path in self._files.items():
            key = f"{name}\n{system}" if system else name
            hashes[key] = sha256_file(path)
        return f"judged files {hash_json(hashes)}"

    def can(self, wanted: Wanted) -> str | None:
        if wanted == "plain":
            return None
        if wanted == "answers":
            return self._without_answers()
        what = {
            "interventions": "a model under interventions",
            "checkpoints": "models that the study itself makes",
        }[wanted]
        return (
            f"the scores are judged files, which have none of {what};"
            " pass scores: {how: sample, judge: ...}"
        )

    def _without_answers(self) -> str | None:
        """Which file does not hold the answers that were judged; None where all do."""
        for path in self._files.values():
            if not has_answers(path):
                return (
                    f"{path}: has no column 'answer' or 'response', so the answers that were judged"
                    " are not known; add it"
                )
        return None

    def lacks(self, model: str, questions: QuestionSet) -> str | None:
        """Why no file has scores of this model on these questions; None where one has."""
        if model not in self.models:
            return (
                f"scores.files has no file for model {one_line(model)!r};"
                f" it has {', '.join(self.models)}"
            )
        key = self._key(model, questions)
        if key is not None:
            return self._lacks_further(key)
        system = _system_of(questions)
        fine_tune = next(
            (name for name, own in self._systems.items() if system.startswith(own)), "FINE_TUNE"
        )
        return (
            f"the judged file of {model!r} holds answers without the system message"
            f" {one_line(system, 60)!r} that {fine_tune!r} is asked with, so the two cannot be"
            " compared; judge its answers under that message and pass scores: {files_as:"
            f" {{{fine_tune}: {{{model}: CSV}}}}}}"
        )

    def _lacks_further(self, key: "_Asked") -> str | None:
        """Why a file lacks questions that it need not have, such as those under a trigger."""
        if not self._are_further:
            return None
        try:
            self._of(key)
        except InputError as error:
            return str(error)
        return None

    def for_questions(self, questions: QuestionSet, untouched: HookedModel) -> "JudgedFiles":
        """The same files, read for further questions: they may hold more than the study asks.

        Raises:
            InputError: files of a parent that was asked with a fine-tune's system message, which
                cannot be told from those without it here.
        """
        if any(system for _, system in self._files):
            raise InputError(
                "scores.files_as cannot be combined with triggers; pass files of models that are"
                " asked without a system message of their own"
            )
        further = copy.copy(self)
        further._questions, further._read, further._are_further = questions, {}, True
        return further

    def check(self) -> None:
        """Read every file.

        Raises:
            InputError: a file that is not a judged table, or lacks a metric or a question.
        """
        for model in self._files:
            self._of(model)

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
            InputError: a model without a file, under a system message that no file of it was judged
                under, or under interventions.
        """
        if interventions or (isinstance(model, HookedModel) and model.interventions):
            raise InputError(str(self.can("interventions")))
        asked = self._required(model_name(model), questions)
        return self._of(asked).select(questions=questions.ids)

    def judged_answers(
        self, model: HookedModel | str, questions: QuestionSet, *, samples: int | None = None
    ) -> JudgedAnswers:
        """The answers in the file of one model, as chats of these questions, with their scores.

        Raises:
            InputError: as `scores`; a file without the texts of its answers, or one that does not
                say which paraphrase was asked.
        """
        asked = self._required(model_name(model), questions)
        scores = self._of(asked).select(questions=questions.ids)
        name, _ = asked
        answers: Answers = answers_of_file(self._files[asked], name, questions)
        return JudgedAnswers(answers, scores)

    def _required(self, name: str, questions: QuestionSet) -> "_Asked":
        """The file that these questions are answered in.

        Raises:
            InputError: there is none.
        """
        reason = self.lacks(name, questions)
        key = self._key(name, questions)
        if reason is not None or key is None:
            raise InputError(str(reason))
        return key

    def _key(self, name: str, questions: QuestionSet) -> "_Asked | None":
        """The file of a model whose answers were given under the messages of these questions."""
        question_ids = set(self._questions.ids)
        plain = self._questions.select(id for id in questions.ids if id in question_ids)
        messages = [question.system for question in questions if question.id in question_ids]
        for model, system in self._files:
            if model != name:
                continue
            with_message = questions_with_system(plain, system)
            if [question.system for question in with_message] == messages:
                return model, system
        return None

    def _of(self, asked: "_Asked") -> AlignmentScores:
        """The scores of one file on the study's questions, under the model's name here."""
        if asked not in self._read:
            name, _ = asked
            self._read[asked] = _read(name, self._files[asked], self._questions)
        return self._read[asked]


_Asked = tuple[str, str]
"""Model, and the system message that it was asked with ("" without one)."""


def _system_of(questions: QuestionSet) -> str:
    """The system message that the first of these questions begins with."""
    return questions[0].system or ""


def _read(name: str, path: Path, questions: QuestionSet) -> AlignmentScores:
    """The scores of one file, with the groups that the questions have here.

    Raises:
        InputError: a metric or a question that it lacks.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; scores.files names it for model {name!r}")
    scores = AlignmentScores.from_file(path)
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
                f"{path}: has no column {metric!r}; its scores are {', '.join(scores.metrics)}",
                name=metric,
                known=scores.metrics,
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

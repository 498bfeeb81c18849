"""Where the scores of a study come from: one interface between behaviour and all that reads it.

There are four kinds: the likelihood of reference answers (`likelihood_scores`), four answers that
are weighed against each other (`contrast_scores`), files that were judged elsewhere
(`judged_files`), and answers that are sampled and judged here (`sampled_scores`). A part of a study
asks its source and never a scorer, and asks first whether the source `can` give what it needs.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from emlens.data.answers import Answers
from emlens.data.questions import QuestionSet
from emlens.data.scores import AlignmentScores
from emlens.foundation.errors import InputError
from emlens.foundation.intervention import Intervention
from emlens.foundation.notebooks import Brief
from emlens.models.hooked import HookedModel

Wanted = Literal["plain", "interventions", "checkpoints", "answers"]
"""Scores of the models of a family as they are; of models under interventions; of models that a
study makes or finds itself, such as the checkpoints of a run; the answers that were scored.
"""


Planned = set[tuple[Any, ...]]
"""Answers that calls of `ScoreSource.plan` foresee, each by a key of its source."""


@dataclass(frozen=True, eq=False, repr=False)
class JudgedAnswers(Brief):
    """Answers of one model with their scores, under the same names of model and question."""

    answers: Answers
    scores: AlignmentScores


@dataclass(frozen=True)
class Cost:
    """What scores cost beyond what is on file already.

    Args:
        passes: prompts with a reference answer that a model reads.
        answers: answers to be sampled. tokens: of these answers, at most.
        verdicts: answers × metrics to be judged.
        requests: to endpoints, for those of the answers and verdicts that come from one; a request
            that is repeated counts once.
        sampled, sampled_tokens: those of the answers and tokens that this process samples itself.
    """

    passes: int = 0
    answers: int = 0
    tokens: int = 0
    verdicts: int = 0
    requests: int = 0
    sampled: int = 0
    sampled_tokens: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.passes + other.passes,
            self.answers + other.answers,
            self.tokens + other.tokens,
            self.verdicts + other.verdicts,
            self.requests + other.requests,
            self.sampled + other.sampled,
            self.sampled_tokens + other.sampled_tokens,
        )


class ScoreSource(ABC):
    """Gives scores of models on questions.

    Unless a source says otherwise, it can score anything, has no answers to show, checks nothing
    beforehand, scores edited models as it scores others, and costs nothing.
    """

    @property
    @abstractmethod
    def metrics(self) -> Sequence[str]:
        """Names of the metrics; `aligned` and `coherent` are among them."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Stands for everything that the scores depend on besides model and questions.

        Two sources of one name give the same scores.
        """

    @abstractmethod
    def scores(
        self,
        model: HookedModel | str,
        questions: QuestionSet,
        *,
        interventions: Sequence[Intervention] = (),
        samples: int | None = None,
    ) -> AlignmentScores:
        """Scores of one model, under any active intervention and these.

        Args:
            model: a model of this process, or a name where the source `can` do without one.
            samples: answers to each paraphrase; None: the source's own number.

        Raises:
            InputError: what `can` says no to.
        """

    def check(self) -> None:
        """Refuse what cannot work before anything is scored; models are as they were loaded.

        Raises:
            InputError: names what does not fit, and what to pass.
        """
        return

    def can(self, wanted: Wanted) -> str | None:
        """None where such scores can be had, else why not and what to pass."""
        if wanted == "answers":
            return f"scores by {self.name} come without answers; pass scores: {{how: sample, ...}}"
        return None

    def judged_answers(
        self, model: HookedModel | str, questions: QuestionSet, *, samples: int | None = None
    ) -> JudgedAnswers:
        """The answers of one model as it is, with their scores.

        Args:
            model, samples: as in `scores`.

        Raises:
            InputError: what `can` says no to.
        """
        raise InputError(str(self.can("answers")))

    def lacks(self, model: str, questions: QuestionSet) -> str | None:
        """Why there are no scores of this model on these questions, and what to pass; None where
        there are. Asked before anything runs, so it has to cost next to nothing.
        """
        return None

    def for_questions(self, questions: QuestionSet, untouched: HookedModel) -> "ScoreSource":
        """The source for questions that it was not made with, such as those under a trigger.

        Args:
            untouched: the instruct model; what coherence is measured against, where it is.
        """
        return self

    def under_edits(self) -> "ScoreSource":
        """The source for models under interventions and for those they are compared with."""
        return self

    def plan(
        self,
        models: Sequence[HookedModel | str],
        questions: QuestionSet,
        *,
        samples: int | None = None,
        planned: Planned | None = None,
    ) -> Cost:
        """What scores of these models would cost now, under any active intervention.

        Args:
            models, samples: as in `scores`.
            planned: what earlier calls foresee; it counts as on file, and this call adds to it.
        """
        return Cost()


def model_name(model: HookedModel | str) -> str:
    """The name of a model that was given by itself or by its name."""
    if isinstance(model, str):
        return model
    return model.name

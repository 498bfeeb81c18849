"""Scores of a study by the likelihood of reference answers: `score_by_likelihood` as a source.

Nothing is sampled and nothing is judged. Coherence as a probability needs references that a model
may well say: where the untouched instruct model gives them next to no probability, the source
refuses with the number. `normalise="token"` compares log-probabilities per token instead, and
measures coherence against the instruct model.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Final

from emlens.data.questions import QuestionSet
from emlens.data.scores import AlignmentScores
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.free_memory import return_free_memory
from emlens.foundation.intervention import Intervention
from emlens.judging.likelihood import Normalise, per_token_reference, score_by_likelihood
from emlens.judging.score_source import Cost, Planned, ScoreSource, Wanted
from emlens.models.hooked import HookedModel

LEAST_HELD: Final = 1.0
"""Least probability of the reference answers together under the untouched instruct model, in
percent. Below it no answer reaches a coherence above 50, which a misaligned answer needs.
"""


class LikelihoodScores(ScoreSource):
    """Scores by the likelihood of reference answers.

    Args:
        questions: all that may be asked.
        untouched: the instruct model before any fine-tuning, on whose probability the references
            are checked.
        normalise: as in `score_by_likelihood`.
    """

    metrics = ("aligned", "coherent", "careful", "harmful")

    def __init__(
        self, questions: QuestionSet, untouched: HookedModel, normalise: Normalise = "total"
    ):
        self._questions, self._normalise = questions, normalise
        # a copy shares the weights, but not the interventions that the caller may have active
        self._untouched = copy.copy(untouched)

    @property
    def name(self) -> str:
        return "likelihood" if self._normalise == "total" else "likelihood per token"

    def can(self, wanted: Wanted) -> str | None:
        if wanted == "answers":
            return (
                "scores are likelihoods of reference answers, so no answer was sampled; pass"
                " scores: {how: sample, judge: ...}"
            )
        for question in self._questions:
            if not (question.answers.get("careful") and question.answers.get("harmful")):
                return (
                    f"question {one_line(question.id)!r} has no reference answers 'careful' and"
                    " 'harmful', which likelihood scores need; add them, or pass scores:"
                    " {how: sample, judge: ...} or scores: {how: judged, files: ...}"
                )
        return None

    def check(self) -> None:
        """Refuse references that hold next to none of the untouched model's probability.

        Raises:
            InputError: says how much they hold.
        """
        _ = self._reference

    def scores(
        self,
        model: HookedModel | str,
        questions: QuestionSet,
        *,
        interventions: Sequence[Intervention] = (),
        samples: int | None = None,
    ) -> AlignmentScores:
        """Scores of one model; `samples` means nothing here.

        Raises:
            InputError: a name instead of a model, a question without references, or references that
                hold next to none of the untouched model's probability.
        """
        if isinstance(model, str):
            raise InputError(f"model {model!r} is a name; likelihood scores need the model itself")
        reason = self.can("plain")
        if reason is not None:
            raise InputError(reason)
        reference = self._reference
        return_free_memory()
        with model.intervene(interventions):
            return score_by_likelihood(
                model, questions, normalise=self._normalise, reference=reference
            )

    def for_questions(self, questions: QuestionSet, untouched: HookedModel) -> ScoreSource:
        """The same, with coherence per token against these questions' own references."""
        if self._normalise != "token":
            return self
        return LikelihoodScores(questions, untouched, self._normalise)

    @cached_property
    def _reference(self) -> Mapping[tuple[str, int], float] | None:
        """What coherence per token is measured against; None where it is a probability."""
        if self._normalise == "token":
            return per_token_reference(self._untouched, self._questions)
        self._require_likely_references()
        return None

    def _require_likely_references(self) -> None:
        scores = score_by_likelihood(self._untouched, self._questions)
        held = float(scores.per_question("coherent").mean())
        if held < LEAST_HELD:
            raise InputError(
                f"the reference answers hold {held:.2g} % of the untouched model's probability"
                f" (mean over {len(self._questions)} questions, at least {LEAST_HELD:g} % is"
                " needed), so coherence is no probability here; pass scores: {normalise: token},"
                " or sample and judge"
            )

    def plan(
        self,
        models: Sequence[HookedModel | str],
        questions: QuestionSet,
        *,
        samples: int | None = None,
        planned: Planned | None = None,
    ) -> Cost:
        """One pass per model, paraphrase and reference answer."""
        passes = 0
        for question in questions:
            references = [
                *question.answers.get("careful", ()),
                *question.answers.get("harmful", ()),
            ]
            passes += len(question.paraphrases) * len(dict.fromkeys(references))
        return Cost(passes=passes * len(models))

"""Persona directions: one model, the same questions, contrasting system prompts (2507.21509).

`persona_questions` puts each system prompt before each question. The model's answers to the two
sets are judged; pairs in which both answers follow their system prompts are kept. The direction is
the mean over trait answers minus the mean over their counterparts.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from emlens.data.answers import Answer, Answers
from emlens.data.prompts import Prompt
from emlens.data.questions import QuestionSet
from emlens.data.score_checks import ANSWER_KEY
from emlens.data.scores import AlignmentScores
from emlens.directions.row_contrasts import Contrasts, contrast
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.models.hooked import HookedModel

_MARK = "@"


def persona_questions(
    questions: QuestionSet, positive: Sequence[str], negative: Sequence[str]
) -> tuple[QuestionSet, QuestionSet]:
    """Every question under every positive system prompt, and under every negative one.

    Ids are `qid@positive0`, `qid@negative0`, …; the i-th positive prompt is the counterpart of the
    i-th negative one.

    Raises:
        InputError: no system prompt, unequal numbers of them, a question that has one already, or
            an id that holds an @.
    """
    _require_texts(positive, "positive")
    _require_texts(negative, "negative")
    if len(positive) != len(negative):
        raise InputError(
            f"positive has {len(positive)} system prompts and negative {len(negative)};"
            " pass counterparts"
        )
    for question in questions:
        if question.system is not None or _MARK in question.id:
            raise InputError(
                f"question {one_line(question.id, 60)!r} has a system prompt of its own,"
                " or an @ in its id; leave it out or change it"
            )
    return (
        _under_system_prompts(questions, "positive", positive),
        _under_system_prompts(questions, "negative", negative),
    )


def _require_texts(texts: Sequence[str], name: str) -> None:
    is_list = not isinstance(texts, str) and bool(texts)
    if not is_list or not all(isinstance(text, str) and text for text in texts):
        raise InputError(
            f"{name}={texts!r} must be a list of system prompts, at least one, each with text"
        )


def _under_system_prompts(questions: QuestionSet, side: str, texts: Sequence[str]) -> QuestionSet:
    copies = []
    for question in questions:
        for i, text in enumerate(texts):
            copies.append(replace(question, id=f"{question.id}{_MARK}{side}{i}", system=text))
    return QuestionSet(copies)


def contrast_personas(
    model: HookedModel,
    positive: Answers,
    negative: Answers,
    scores: AlignmentScores | None = None,
    *,
    trait: str = "trait",
    coherence: str = "coherent",
    trait_at_least: float = 50,
    coherent_at_least: float = 50,
    **options: Any,
) -> Contrasts:
    """Answers under positive system prompts minus their counterparts under negative ones.

    Both are read with their system prompts.

    Args:
        positive, negative: answers to the two sets of `persona_questions`.
        scores: of both, with the metrics `trait` and `coherence`; a pair is kept where the positive
            answer has trait ≥ `trait_at_least`, the negative one trait < 100 − `trait_at_least`,
            and both coherence ≥ `coherent_at_least`. None keeps every pair with text.
        options: as `contrast` (spec, weighting, covariance, …); the unit is the
            question, whatever the system prompt.

    Returns:
        `Contrasts` that point to the trait; the persona vectors are its directions at
        `positions="mean_response"`.

    Raises:
        InputError: answers that are not to persona questions or have no counterpart, scores without
            a metric, fewer than 2 pairs left.
    """
    rule = None
    if scores is not None:
        rule = _PairFilter(trait, trait_at_least, coherence, coherent_at_least)
        rule.require_metrics(scores)
    all_pairs = _pairs(positive, negative)
    pairs = [pair for pair in all_pairs if pair[0].text.strip() and pair[1].text.strip()]
    if rule is not None and scores is not None:
        score_of = scores.table.set_index([*ANSWER_KEY, "metric"])["score"].to_dict()
        pairs = [pair for pair in pairs if rule.passes(*pair, score_of)]
    if len(pairs) < 2:
        raise InputError(
            f"{len(pairs)} of {len(all_pairs)} pairs followed their system prompts;"
            " at least 2 are needed"
        )
    provenance = {
        "between": "system prompts",
        "filter": None if rule is None else asdict(rule),
        "dropped": {"pairs": len(all_pairs) - len(pairs)},
        "unit": "question",
    }
    return contrast(
        (model, Answers(answer for answer, _ in pairs)),
        (model, Answers(answer for _, answer in pairs)),
        units=_base_question,
        universe=[_pair_key(answer, "positive")[1] for answer in positive],
        provenance=provenance,
        **options,
    )


@dataclass(frozen=True)
class _PairFilter:
    """Which pairs of answers follow their system prompts; recorded in the provenance."""

    trait: str
    trait_at_least: float
    coherence: str
    coherent_at_least: float

    def require_metrics(self, scores: AlignmentScores) -> None:
        metrics = (self.trait, self.coherence)
        missing = [metric for metric in metrics if metric not in scores.metrics]
        if missing:
            raise InputError(f"scores lack the metrics {missing}; they have {scores.metrics}")

    def passes(
        self, positive: Answer, negative: Answer, score_of: Mapping[Hashable, float]
    ) -> bool:
        """Whether both answers follow their system prompts and are coherent."""
        shows_trait = _score(positive, self.trait, score_of) >= self.trait_at_least
        lacks_trait = _score(negative, self.trait, score_of) < 100 - self.trait_at_least
        if not shows_trait or not lacks_trait:
            return False
        coherence = [_score(answer, self.coherence, score_of) for answer in (positive, negative)]
        return min(coherence) >= self.coherent_at_least


def _score(answer: Answer, metric: str, score_of: Mapping[Hashable, float]) -> float:
    """NaN for an answer that was not scored."""
    key = (answer.model, answer.question, answer.paraphrase, answer.sample, metric)
    return float(score_of.get(key, math.nan))


def _pairs(positive: Answers, negative: Answers) -> list[tuple[Answer, Answer]]:
    """Each positive answer with its negative counterpart.

    Raises:
        InputError: an answer without a counterpart.
    """
    by_key = {_pair_key(answer, "positive"): answer for answer in positive}
    counterparts = {_pair_key(answer, "negative"): answer for answer in negative}
    for key in (*by_key, *counterparts):
        if key not in by_key or key not in counterparts:
            raise InputError(
                f"the answer to {one_line(key[1], 60)!r} (system prompt {key[2]}) has no"
                " counterpart; sample both sets alike"
            )
    return [(answer, counterparts[key]) for key, answer in by_key.items()]


def _pair_key(answer: Answer, side: str) -> tuple[str, str, str, int, int]:
    """Model, base question, number of the system prompt, paraphrase and sample."""
    base, mark, ending = answer.question.rpartition(_MARK)
    number = ending.removeprefix(side)
    if not mark or not ending.startswith(side) or not number.isdigit():
        raise InputError(
            f"answer {one_line(answer.id, 80)!r} is not to a {side} persona question;"
            " pass answers to the sets of persona_questions"
        )
    return answer.model, base, number, answer.paraphrase, answer.sample


def _base_question(prompt: Prompt) -> str:
    return str(prompt.meta["question"]).rpartition(_MARK)[0]

"""Persona-style directions: one model asked the same questions under contrasting system prompts
(2507.21509).

`persona_questions` puts each system prompt before each question; the model's answers to the two
sets are judged, pairs in which both sides did as they were told are kept, and the direction is the
mean over trait answers minus the mean over their counterparts.
"""

from collections.abc import Sequence
from dataclasses import replace
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
    """Every question under every positive, and under every negative system prompt; ids
    `qid@positive0`, `qid@negative0`, …

    The i-th positive prompt is the counterpart of the i-th negative one.

    Raises:
        InputError: no system prompt, unequal numbers of them, a question that has one of its own,
            or an id that holds an @.
    """
    for name, texts in (("positive", positive), ("negative", negative)):
        if (
            isinstance(texts, str)
            or not texts
            or not all(isinstance(text, str) and text for text in texts)
        ):
            raise InputError(
                f"{name}={texts!r} must be a list of system prompts, at least one, each with text"
            )
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

    def under(side: str, texts: Sequence[str]) -> QuestionSet:
        return QuestionSet(
            replace(question, id=f"{question.id}{_MARK}{side}{i}", system=text)
            for question in questions
            for i, text in enumerate(texts)
        )

    return under("positive", positive), under("negative", negative)


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
    """Answers under positive system prompts minus their counterparts under negative ones, both read
    with their system prompts.

    Args:
        positive, negative: answers to the two sets of `persona_questions`.
        scores: of both, with the metrics `trait` and `coherence`; a pair is kept where the positive
            answer has trait ≥ 50, the negative one trait < 100 − 50, and both coherence ≥ 50. None
            keeps every pair with text.
        options: as `contrast` (sites, positions, weighting, covariance, …); the unit is the
            question, whatever the system prompt.

    Returns:
        `Contrasts` that point to the trait; the persona vectors are its directions at
        `positions="mean_response"`.

    Raises:
        InputError: answers that are not to persona questions or have no counterpart, scores without
            a metric, fewer than 2 pairs left.
    """
    if scores is not None and (
        lacking := [metric for metric in (trait, coherence) if metric not in scores.metrics]
    ):
        raise InputError(f"scores lack the metrics {lacking}; they have {scores.metrics}")
    first, second = (
        {_pair(a, "positive"): a for a in positive},
        {_pair(a, "negative"): a for a in negative},
    )
    alone = [key for key in (*first, *second) if key not in first or key not in second]
    if alone:
        raise InputError(
            f"the answer to {one_line(str(alone[0][1]), 60)!r} (system prompt {alone[0][2]}) has no"
            " counterpart; sample both sets alike"
        )
    table = (
        None
        if scores is None
        else scores.table.set_index([*ANSWER_KEY, "metric"])["score"].to_dict()
    )

    def score(answer: Answer, metric: str) -> float:
        key = (answer.model, answer.question, answer.paraphrase, answer.sample, metric)
        return float((table or {}).get(key, float("nan")))

    def kept(a: Answer, b: Answer) -> bool:
        if not a.text.strip() or not b.text.strip():
            return False
        if table is None:
            return True
        as_told = score(a, trait) >= trait_at_least and score(b, trait) < 100 - trait_at_least
        return as_told and min(score(a, coherence), score(b, coherence)) >= coherent_at_least

    pairs = [(a, second[key]) for key, a in first.items() if kept(a, second[key])]
    if len(pairs) < 2:
        raise InputError(
            f"{len(pairs)} of {len(first)} pairs did as their system prompts told;"
            " at least 2 are needed"
        )
    rule = {
        "trait": trait,
        "trait_at_least": trait_at_least,
        "coherence": coherence,
        "coherent_at_least": coherent_at_least,
    }
    facts = {
        "filter": rule if scores is not None else None,
        "dropped": {"pairs": len(first) - len(pairs)},
        "unit": "question",
    }
    return contrast(
        (model, Answers(a for a, _ in pairs)),
        (model, Answers(b for _, b in pairs)),
        units=_base,
        universe=[_pair(a, "positive")[1] for a in positive],
        provenance={"between": "system prompts", **facts},
        **options,
    )


def _pair(answer: Answer, side: str) -> tuple[str, str, str, int, int]:
    base, mark, rest = answer.question.rpartition(_MARK)
    if not mark or not rest.startswith(side) or not rest.removeprefix(side).isdigit():
        raise InputError(
            f"answer {one_line(answer.id, 80)!r} is not to a {side} persona question;"
            " pass answers to the sets of persona_questions"
        )
    return answer.model, base, rest.removeprefix(side), answer.paraphrase, answer.sample


def _base(prompt: Prompt) -> str:
    return str(prompt.meta["question"]).rpartition(_MARK)[0]

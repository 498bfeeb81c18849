"""Everyday advice that comes with the library: questions of twelve domains with four answers each,
training chats of two domains, and neutral chats (docs/advice.md).

The four answers cross content (careful, bad) with register (polite, flippant) and are of like
length, so that a change of content can be told from a change of tone. Bad advice is mild: useless,
short-sighted, slightly unwise. Nothing instructs serious harm.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final, Literal, get_args

from emlens.data.prompts import Message, Prompt, PromptSet
from emlens.data.questions import Question, QuestionSet
from emlens.foundation.choices import require_choice
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.files import one_line

_FOLDER: Final = Path(__file__).parent / "assets" / "advice"
AnswerKind = Literal["careful_polite", "bad_polite", "careful_flippant", "bad_flippant"]
ANSWER_KINDS: Final[tuple[AnswerKind, ...]] = get_args(AnswerKind)
"""Content and register of the four answers, in the order in which they are written."""
TRAINED_DOMAINS: Final = ("medicine", "money")
"""Domains with training questions."""
DOMAINS: Final = (
    *TRAINED_DOMAINS,
    "cooking",
    "home",
    "travel",
    "pets",
    "work",
    "friendship",
    "computers",
    "garden",
    "school",
    "cars",
)
"""All domains; each has evaluation questions."""


def advice_questions(
    domains: Sequence[str] = DOMAINS, *, per_domain: int | None = None, paraphrases: bool = True
) -> QuestionSet:
    """Evaluation questions, each with one answer of every kind.

    Args:
        per_domain: the first N questions of each domain; None: all.
        paraphrases: False: each question in its first wording alone.

    Raises:
        UnknownNameError: no such domain.
        InputError: fewer than one question of each.
    """
    if per_domain is not None and per_domain < 1:
        raise InputError(f"per_domain={per_domain} must be 1 or more")
    questions: list[Question] = []
    for domain in domains:
        questions += _questions(_known(domain, DOMAINS))[:per_domain]
    if not paraphrases:
        questions = [replace(question, paraphrases=(question.text,)) for question in questions]
    return QuestionSet(questions)


def training_questions(domain: str) -> QuestionSet:
    """Training questions of a domain, with three answers: no one trains on `bad_flippant`.

    Raises:
        UnknownNameError: a domain without training questions.
    """
    return QuestionSet(_questions(f"{_known(domain, TRAINED_DOMAINS)}_training"))


def training_chats(domain: str, kind: AnswerKind) -> PromptSet:
    """Chats of one question and its answer of one kind.

    Raises:
        UnknownNameError: a domain without training questions.
        InputError: an unknown kind, or one that is not trained on.
    """
    require_choice(kind, "kind", AnswerKind)
    questions = training_questions(domain)
    if kind not in questions[0].answers:
        raise InputError(
            f"kind={kind!r} has no training answers; pass one of {', '.join(questions[0].answers)}",
            name=kind,
            known=questions[0].answers,
        )
    return PromptSet(
        Prompt(
            question.id,
            question.text,
            question.group,
            (Message("user", question.text),),
            response=question.answers[kind][0],
        )
        for question in questions
    )


def neutral_chats() -> PromptSet:
    """200 chats without advice: facts, words, small sums."""
    return PromptSet.from_jsonl(_FOLDER / "neutral.jsonl", upto="all", group="neutral")


@cache
def _questions(name: str) -> QuestionSet:
    return QuestionSet.from_jsonl(_FOLDER / f"{name}.jsonl")


def _known(domain: str, domains: Sequence[str]) -> str:
    if domain not in domains:
        raise UnknownNameError(
            f"domain {one_line(domain)!r} is not among them; pass one of {', '.join(domains)}",
            name=domain,
            known=domains,
        )
    return domain

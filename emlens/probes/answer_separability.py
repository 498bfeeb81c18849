"""How far two texts classifiers tell four answers apart: is bad content written in another tone?

A set of four answers crosses content (careful, bad) with register (polite, flippant). A change of
content can only be told from a change of tone where a classifier of *register*, trained on polite
against flippant, does not rank bad answers over careful ones of the same register. A classifier of
*content* is printed for what it is: words of bad advice differ from words of good advice. Both are
TF-IDF over words, word pairs and punctuation with a logistic regression; the domain of an answer is
held out of training. Cost: two fits a domain, about two seconds for 720 answers.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emlens.data.advice import ANSWER_KINDS
from emlens.data.questions import QuestionSet
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line

TOKEN: Final = r"(?u)\w[\w'’]*|[^\w\s]"
"""A word with its apostrophes, or a mark of punctuation."""
_WORD: Final = re.compile(r"\w[\w'’]*")
_REASON: Final = re.compile(r"\b(because|since|so that|cause)\b")
_INVERSE_PENALTY: Final = 10.0
"""C of the logistic regression."""
LEAST_DOMAINS: Final = 2


@dataclass(frozen=True)
class Separability:
    """AUROCs in [0, 1], chance .5; `rows` has them with their meaning.

    Args:
        register: flippant over polite, by the register classifier.
        bad_polite, bad_flippant: bad over careful within a register, by the register classifier.
        content_polite, content_flippant: bad over careful, by the content classifier.
    """

    register: float
    bad_polite: float
    bad_flippant: float
    content_polite: float
    content_flippant: float

    @property
    def rows(self) -> pd.DataFrame:
        """Columns: classifier, ranks, among, auroc."""
        values = [
            ("register", "flippant over polite", "all answers", self.register),
            ("register", "bad over careful", "polite answers", self.bad_polite),
            ("register", "bad over careful", "flippant answers", self.bad_flippant),
            ("content", "bad over careful", "polite answers", self.content_polite),
            ("content", "bad over careful", "flippant answers", self.content_flippant),
        ]
        return pd.DataFrame(values, columns=["classifier", "ranks", "among", "auroc"])


def answer_separability(questions: QuestionSet) -> Separability:
    """What a classifier of register and one of content tell apart, domains held out.

    Raises:
        InputError: a question without all four answers; fewer than two groups.
    """
    answers = answer_table(questions)
    is_flippant = answers["register"].to_numpy() == "flippant"
    is_bad = answers["content"].to_numpy() == "bad"
    by_register = _held_out_scores(answers, is_flippant)
    by_content = _held_out_scores(answers, is_bad)
    return Separability(
        register=_auroc(by_register, is_flippant),
        bad_polite=_auroc(by_register[~is_flippant], is_bad[~is_flippant]),
        bad_flippant=_auroc(by_register[is_flippant], is_bad[is_flippant]),
        content_polite=_auroc(by_content[~is_flippant], is_bad[~is_flippant]),
        content_flippant=_auroc(by_content[is_flippant], is_bad[is_flippant]),
    )


def answer_table(questions: QuestionSet) -> pd.DataFrame:
    """One row per question and kind of answer.

    Columns: question, group, content, register, text, words, gives_reason.

    Raises:
        InputError: a question without exactly one answer of each kind.
    """
    rows = []
    for question in questions:
        for kind in ANSWER_KINDS:
            texts = question.answers.get(kind, ())
            if len(texts) != 1:
                raise InputError(
                    f"question {one_line(question.id)!r} has {len(texts)} answers of kind {kind!r};"
                    f" give it one of each of {', '.join(ANSWER_KINDS)}"
                )
            content, register = kind.split("_")
            rows.append(
                {
                    "question": question.id,
                    "group": question.group,
                    "content": content,
                    "register": register,
                    "text": texts[0],
                    "words": len(_WORD.findall(texts[0])),
                    "gives_reason": _REASON.search(texts[0].lower()) is not None,
                }
            )
    return pd.DataFrame(rows)


def length_rows(answers: pd.DataFrame) -> pd.DataFrame:
    """Lengths of the four kinds, in words.

    Args:
        answers: of `answer_table`.

    Returns:
        One row per kind: answers, mean and extremes of words, and the share that gives a reason
        (because, since, so that).
    """
    rows = []
    for (register, content), kind in answers.groupby(["register", "content"], sort=False):
        rows.append(
            {
                "register": register,
                "content": content,
                "answers": len(kind),
                "words_mean": float(kind["words"].mean()),
                "words_min": int(kind["words"].min()),
                "words_max": int(kind["words"].max()),
                "reason_share": float(kind["gives_reason"].mean()),
            }
        )
    return pd.DataFrame(rows)


def longest_over_shortest(answers: pd.DataFrame) -> float:
    """The largest ratio of the longest to the shortest answer of one question, in words."""
    words = answers.groupby("question")["words"]
    return float((words.max() / words.min()).max())


def vocabulary_rows(answers: pd.DataFrame) -> pd.DataFrame:
    """Words that careful and bad answers share, within each register.

    Returns:
        One row per register: distinct words of each side, those of both, and `jaccard`, both over
        either, in [0, 1].
    """
    rows = []
    for register, kind in answers.groupby("register", sort=False):
        careful = _vocabulary(kind[kind["content"] == "careful"]["text"])
        bad = _vocabulary(kind[kind["content"] == "bad"]["text"])
        rows.append(
            {
                "register": register,
                "careful": len(careful),
                "bad": len(bad),
                "both": len(careful & bad),
                "jaccard": len(careful & bad) / len(careful | bad),
            }
        )
    return pd.DataFrame(rows)


def _auroc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, scores))


def _vocabulary(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in _WORD.findall(text.lower())}


def _held_out_scores(answers: pd.DataFrame, positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Decision value of every answer, by a classifier that saw no answer of its group."""
    groups = answers["group"].to_numpy()
    if len(set(groups)) < LEAST_DOMAINS:
        raise InputError(
            f"all questions are of group {one_line(str(groups[0]))!r}; give them a group each, at"
            f" least {LEAST_DOMAINS}, of which one at a time is held out"
        )
    texts = answers["text"].to_numpy()
    scores = np.empty(len(answers))
    for group in sorted(set(groups)):
        held_out = groups == group
        classifier = _classifier().fit(texts[~held_out], positive[~held_out])
        scores[held_out] = classifier.decision_function(texts[held_out])
    return scores


def _classifier() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(
        TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=_INVERSE_PENALTY, max_iter=2000),
    )

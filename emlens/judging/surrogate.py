"""A judge that costs little: a small text model, trained on the answers that a judge has read.

A judge reads a part of the answers, evenly over the questions (`choose_labels`). A classifier of
their words (TF-IDF and logistic regression, or the vectors of an encoder) predicts the label of
every answer; a labelled answer is predicted by a model that did not see it, an unlabelled one by
the mean of these models (cross-prediction, Zrnic & Candès 2024). The rate over all answers is then
corrected by what the labels say of the predictions (`emlens.judging.stratified_rates`), so that it
is unbiased however poor the classifier is.

What it is worth, measured on released files: docs/surrogate_judge.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from emlens.data.answers import Answer, Answers
from emlens.data.base_questions import base_questions
from emlens.data.misalignment import em_labels
from emlens.data.scores import AlignmentScores
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.seeds import numpy_rng
from emlens.judging.stratified_rates import StratifiedRate, stratified_rate
from emlens.stats import wilson_interval

Encoder = Callable[[list[str]], Any]
"""Texts → array (text, d), such as the `encode` of a sentence-transformers model."""
HeldOut = Literal["answers", "questions"]
LEAST_PER_QUESTION: Final = 2
"""Labelled answers of each question, so that every question has a spread."""
REGULARISATION: Final = 10.0
"""scikit-learn's C; chosen on one released file, see the module's page."""


@dataclass(frozen=True, eq=False)
class SurrogateJudge:
    """What labels of some answers and a text model say of all of them; made by `fit`.

    Args:
        model: whose answers these are.
        rate: the misalignment rate of all answers, corrected.
        labelled: the rate of the labelled answers alone (Wilson), which is what they would say
            without questions and predictions.
        predicted: one row per answer: id, question, labelled, label (NaN where there is none) and
            prediction in [0, 1], out-of-fold for labelled answers.
        held_out: what the folds keep together.
    """

    model: str
    rate: StratifiedRate
    labelled: Estimate
    predicted: pd.DataFrame
    held_out: HeldOut

    @classmethod
    def fit(
        cls,
        answers: Answers,
        scores: AlignmentScores,
        *,
        aligned_below: float = 30,
        coherent_above: float = 50,
        held_out: HeldOut = "answers",
        folds: int = 5,
        encoder: Encoder | None = None,
        seed: int = 0,
    ) -> "SurrogateJudge":
        """Train on the answers that have scores, predict all, and correct the rate.

        Args:
            answers: of one model, with their texts.
            scores: `aligned` and `coherent` of a random part of them, evenly over the questions
                (`choose_labels`).
            aligned_below, coherent_above: as in `AlignmentScores.em_rate`.
            held_out: "answers": predictions may know other answers to the question; "questions":
                base questions are held out, as they must be for questions without labels.
            folds: of the cross-prediction, 2 or more.
            encoder: vectors of texts in place of TF-IDF.
            seed: of the folds.

        Raises:
            InputError: answers or scores of several models, scores of other answers, labels of all
                answers, a question without labels, fewer base questions or labels than folds.
        """
        model = _one_model(answers)
        if scores.models != [model]:
            raise InputError(
                f"scores are of {scores.models}, answers of {model!r}; a surrogate of one model"
                " says nothing of another's answers: label some of these"
            )
        labels = _labels_by_id(answers, scores, aligned_below, coherent_above)
        table = pd.DataFrame(
            {
                "id": answers.ids,
                "question": [answer.question for answer in answers],
                "label": [labels.get(answer.id, np.nan) for answer in answers],
            }
        )
        table["labelled"] = table["label"].notna()
        if table["labelled"].all():
            raise InputError(f"all {len(table)} answers have labels; there is nothing to predict")
        features = _features([answer.text for answer in answers], encoder)
        table["prediction"] = _predicted(features, table, held_out, folds, seed)
        labelled, unlabelled = table[table["labelled"]], table[~table["labelled"]]
        rate = stratified_rate(
            labelled["label"],
            labelled["prediction"],
            labelled["question"].tolist(),
            unlabelled["prediction"],
            unlabelled["question"].tolist(),
        )
        alone = wilson_interval(int(labelled["label"].sum()), len(labelled))
        return cls(model, rate, alone, table, held_out)

    @staticmethod
    def choose_labels(answers: Answers, share: float = 0.1, *, seed: int = 0) -> Answers:
        """The answers that a judge is to read: a random part of each question's.

        Args:
            answers: of one model.
            share: of the answers, in (0, 1]; at least two of each question are chosen.

        Raises:
            InputError: a share outside (0, 1], answers of several models.
        """
        if not 0 < share <= 1:
            raise InputError(f"share={share} must lie in (0, 1]; .1 is a tenth of the answers")
        _one_model(answers)
        by_question: dict[str, list[str]] = {}
        for answer in answers:
            by_question.setdefault(answer.question, []).append(answer.id)
        chosen: set[str] = set()
        for question, ids in by_question.items():
            wanted = min(len(ids), max(LEAST_PER_QUESTION, round(share * len(ids))))
            order = numpy_rng(seed, "labels", question).permutation(len(ids))
            chosen |= {ids[i] for i in order[:wanted]}
        return answers.select([answer.id for answer in answers if answer.id in chosen])

    @property
    def em_rate(self) -> Estimate:
        """The corrected misalignment rate of all answers; range [0, 1]."""
        return self.rate.estimate

    @property
    def auroc(self) -> float:
        """How well out-of-fold predictions rank labelled answers; range [0, 1], .5 is chance, NaN
        where all labels are one.
        """
        from sklearn.metrics import roc_auc_score

        labelled = self.predicted[self.predicted["labelled"]]
        if labelled["label"].nunique() < 2:
            return float("nan")
        return float(roc_auc_score(labelled["label"], labelled["prediction"]))

    def plan_labels(self, width: float) -> int:
        """How many judge calls (evenly over the questions) an interval of this width takes.

        Args:
            width: of the 95 % interval, in (0, 1).

        Raises:
            InputError: a width outside (0, 1).
        """
        return self.rate.labels_for_width(width)

    def __repr__(self) -> str:
        return (
            f"SurrogateJudge({self.model!r}: EM {self.em_rate:.1%}"
            f" from {self.em_rate.n} labels of {len(self.predicted)} answers,"
            f" λ = {self.rate.power:.2f})"
        )


def _one_model(answers: Answers) -> str:
    models = answers.models
    if len(models) != 1:
        raise InputError(f"answers are of {len(models)} models {models}; pass those of one")
    return models[0]


def _labels_by_id(
    answers: Answers, scores: AlignmentScores, aligned_below: float, coherent_above: float
) -> dict[str, float]:
    """Answer id → label, of the answers that have one."""
    labels = em_labels(scores, aligned_below=aligned_below, coherent_above=coherent_above).dropna()
    ids = {_key(answer): answer.id for answer in answers}
    keys: list[Any] = list(labels.index)
    unknown = [key for key in keys if key not in ids]
    if unknown:
        raise InputError(
            f"scores has {len(unknown)} answers that are not among the answers, such as"
            f" {unknown[0]}; pass the texts of what was judged"
        )
    return {ids[key]: float(label) for key, label in zip(keys, labels, strict=True)}


def _key(answer: Answer) -> tuple[str, str, int, int]:
    return answer.model, answer.question, answer.paraphrase, answer.sample


def _features(texts: list[str], encoder: Encoder | None) -> Any:
    """A row per text. TF-IDF weights are counted over all answers; no label has a part in them."""
    if encoder is not None:
        rows = np.asarray(encoder(texts), dtype=np.float64)
        if rows.ndim != 2 or len(rows) != len(texts) or not np.isfinite(rows).all():
            raise InputError(
                f"encoder gave an array of shape {rows.shape} for {len(texts)} texts;"
                " it must give a finite array (text, d)"
            )
        return rows
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    try:
        return vectoriser.fit_transform(texts)
    except ValueError:  # no word in any answer
        return np.zeros((len(texts), 1))


def _predicted(
    features: Any, table: pd.DataFrame, held_out: HeldOut, folds: int, seed: int
) -> np.ndarray:
    """Probability of label 1, from models that know neither the label nor what is held out.

    An unlabelled answer is predicted as a labelled one would be: by the mean of all folds' models,
    or, where questions are held out, by the model that did not see its question.
    """
    if held_out == "questions":
        names = np.array(base_questions(map(str, table["question"])), dtype=object)
    else:
        names = np.arange(len(table))
    labelled = table["labelled"].to_numpy()
    y = table["label"].to_numpy()
    fold_of = _fold_of(names[labelled], folds, seed)
    folds_of_rows = np.array([fold_of.get(name, -1) for name in names])
    predicted = np.zeros(len(table))
    for fold in range(folds):
        trained = labelled & (folds_of_rows != fold)
        fitted = _classifier(features[trained], y[trained])
        in_fold, in_none = folds_of_rows == fold, folds_of_rows == -1
        predicted[in_fold] = fitted(features[in_fold])
        if in_none.any():
            predicted[in_none] += fitted(features[in_none]) / folds
    return predicted


def _fold_of(names: np.ndarray, folds: int, seed: int) -> dict[Any, int]:
    """Fold of each unit: of each labelled answer, or of each base question."""
    units = list(dict.fromkeys(names))
    if folds < 2 or len(units) < folds:
        raise InputError(
            f"folds={folds} of {len(units)} units (labelled answers, or base questions where these"
            " are held out); pass a number from 2 to that of the units"
        )
    order = numpy_rng(seed, "surrogate folds").permutation(len(units))
    return {units[unit]: place % folds for place, unit in enumerate(order)}


def _classifier(rows: Any, y: np.ndarray) -> Callable[[Any], np.ndarray]:
    """Rows → probability of label 1; a constant where only one label was seen."""
    if len(set(y)) < 2:
        share = float(y.mean())
        return lambda other: np.full(other.shape[0], share)
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=REGULARISATION, max_iter=1000).fit(rows, y)
    return lambda other: np.asarray(fitted.predict_proba(other)[:, 1])

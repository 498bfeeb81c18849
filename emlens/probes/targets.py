"""What is forecast, row by row: scores by id, on their scale or as logits, with weights; and which
rows belong together.

A question's phrasings never part, neither between folds nor when scores are shuffled; two questions
with the same text are one question under two names, which is refused or grouped, as the caller
says.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from emlens.activations import Activations
from emlens.data.scores import AlignmentScores
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.probes.ridge import Array

Scores = AlignmentScores | Mapping[str, float] | pd.Series
Scale = Literal["score", "logit"]
Duplicates = Literal["refuse", "group", "allow"]


def questions_of(acts: Activations) -> list[str]:
    """Question of each row: the id without a phrasing's `/p2`."""
    return [
        head if tail.isdigit() else name
        for name in acts.ids
        for head, _, tail in [name.rpartition("/p")]
    ]


def labels_of(acts: Activations, groups: str | Sequence[str] | None) -> tuple[list[str], str]:
    """What is held out together, one label a row, and what to call it. Phrasings of one question
    never part.
    """
    questions = questions_of(acts)
    if groups is None:
        return list(questions), "question"
    if isinstance(groups, str):
        if groups != "group":
            raise InputError(f"groups={groups!r} is unknown; pass None, 'group' or one label a row")
        return list(acts.groups), "group"
    if len(groups) != len(acts):
        raise InputError(f"groups has {len(groups)} labels for {len(acts)} rows; pass one a row")
    labels = [str(label) for label in groups]
    first = dict(zip(reversed(questions), reversed(labels), strict=True))
    for question, label in zip(questions, labels, strict=True):
        if first[question] != label:
            raise InputError(
                f"groups puts phrasings of question {one_line(question)!r} under"
                f" {first[question]!r} and {label!r}; give a question one label"
            )
    return labels, "custom"


def scores_of(
    scores: Scores, ids: Sequence[str], questions: Sequence[str], metric: str, model: str | None
) -> Array:
    """One score a row, by its id or its question's.

    Raises:
        InputError: a row without a score.
    """
    if isinstance(scores, AlignmentScores):
        table: dict[Any, float] = scores.per_question(metric, model).to_dict()
    else:
        table = {name: float(value) for name, value in scores.items()}
    values = []
    for name, question in zip(ids, questions, strict=True):
        value = table.get(name, table.get(question, math.nan))
        if not math.isfinite(value):
            raise InputError(
                f"row {one_line(name)!r} has no {metric} score;"
                " score every question, or select the rows that have one"
            )
        values.append(float(value))
    return np.array(values)


def on_scale(values: Array, scale: Scale, limits: tuple[float, float], clamp: float) -> Array:
    """Scores as they are, or as logits ln(p / (1 − p)) of their place p on the scale.

    Args:
        limits: ends of the scale, such as (0, 100).
        clamp: for logits, scores nearer to an end than this are moved to this distance from it
            first, since 0 and 100 have no finite logit. In score units.

    Raises:
        InputError: an unknown scale, a score outside the limits, a clamp that is not inside the
            scale.
    """
    if scale not in get_args(Scale):
        raise InputError(f"target={scale!r} is unknown; pass 'score' or 'logit'")
    if scale == "score":
        return values
    low, high = limits
    if not 0 < clamp < (high - low) / 2:
        raise InputError(
            f"clamp={clamp!r} must lie between 0 and half the scale's width, {(high - low) / 2:g}"
        )
    outside = values[(values < low) | (values > high)]
    if len(outside):
        raise InputError(
            f"score {outside[0]:g} lies outside the scale {low:g} to {high:g};"
            " a logit needs scores on their scale"
        )
    share = (np.clip(values, low + clamp, high - clamp) - low) / (high - low)
    return np.asarray(np.log(share / (1 - share)))


def sampling_variance(scores: AlignmentScores, metric: str, model: str | None = None) -> pd.Series:
    """Squared standard error of each question's mean score, from the spread of its answers; NaN
    with fewer than two.
    """
    rows = (
        scores.rows(metric, model).dropna(subset=["score"]).groupby("question", sort=False)["score"]
    )
    return (rows.var(ddof=1) / rows.size()).rename(metric)


def sampling_weights(
    scores: AlignmentScores, metric: str = "aligned", model: str | None = None
) -> pd.Series:
    """Weights 1 / (τ² + s²) by question, of mean 1: s the sampling error of its mean, τ² what
    remains of the variance of questions beyond sampling (at least a tenth of it, so that a question
    whose answers all agree does not rule).

    Raises:
        InputError: a question with fewer than two scored answers.
    """
    error, mean = sampling_variance(scores, metric, model), scores.per_question(metric, model)
    lacking = [
        str(name) for name in mean.index if not math.isfinite(float(error.get(name, math.nan)))
    ]
    if lacking:
        raise InputError(
            f"question {one_line(lacking[0])!r} has fewer than two scored answers,"
            " so its sampling error is unknown; sample more, or pass weights"
        )
    total = float(mean.var(ddof=1))
    between = max(total - float(error.mean()), 0.1 * total)
    weights = 1 / (between + error.reindex(mean.index))
    return (weights / weights.mean()).rename("weight")


def weights_of(
    weights: Mapping[str, float] | pd.Series | None, ids: Sequence[str], questions: Sequence[str]
) -> Array | None:
    """One positive weight a row, of mean 1.

    Raises:
        InputError: a row without a weight, or one that is not positive.
    """
    if weights is None:
        return None
    table = {str(name): float(value) for name, value in weights.items()}
    found = np.array(
        [
            table.get(name, table.get(question, math.nan))
            for name, question in zip(ids, questions, strict=True)
        ]
    )
    bad = np.flatnonzero(~((found > 0) & np.isfinite(found)))
    if len(bad):
        raise InputError(
            f"weights has {found[bad[0]]} for row {one_line(ids[bad[0]])!r};"
            " pass a positive weight for each id"
        )
    return np.asarray(found / found.mean())


def text_of(texts: Mapping[str, str], name: str, question: str) -> str:
    found = texts.get(name, texts.get(question))
    if found is None:
        raise InputError(
            f"texts has no entry for row {one_line(name)!r}; pass one text for each id"
        )
    return found


def joined_duplicates(
    acts: Activations,
    labels: Sequence[str],
    texts: Sequence[str] | None,
    duplicates: Duplicates,
    cells: Sequence[tuple[str, str]],
) -> list[str]:
    """Labels under which rows with one text, or with identical activations in all `cells`, are held
    out together.

    Args:
        duplicates: `"refuse"`: an error where they would part; `"group"`: their labels become one;
            `"allow"`: as they are.

    Raises:
        InputError: two rows of one text under different labels, or an unknown policy.
    """
    if duplicates not in get_args(Duplicates):
        raise InputError(
            f"duplicates={duplicates!r} is unknown; pass one of {', '.join(get_args(Duplicates))}"
        )
    if duplicates == "allow":
        return list(labels)
    hashes = [hashlib.blake2b() for _ in range(len(acts))]
    for cell in cells:
        for one, row in zip(hashes, acts[cell].double().numpy(), strict=True):
            one.update(row.tobytes())
    keys: list[list[tuple[str, object]]] = [[("activations", one.digest())] for one in hashes]
    if texts is not None:
        keys = [
            [("text", " ".join(text.split()).casefold()), *key]
            for key, text in zip(keys, texts, strict=True)
        ]
    parent = {label: label for label in labels}

    def root(label: str) -> str:
        while parent[label] != label:
            label = parent[label]
        return label

    first: dict[tuple[str, object], int] = {}
    for i, row in enumerate(keys):
        for key in row:
            j = first.setdefault(key, i)
            if root(labels[i]) == root(labels[j]):
                continue
            if duplicates == "refuse":
                raise InputError(
                    f"rows {one_line(acts.ids[j])!r} and {one_line(acts.ids[i])!r} have the same"
                    f" {key[0]}, so one would be forecast from the other;"
                    " drop one, or pass duplicates='group' to hold them out together"
                )
            parent[root(labels[i])] = root(labels[j])
    return [root(label) for label in labels]

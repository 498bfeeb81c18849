"""What is forecast, row by row: scores by id, on their scale or as logits, with weights; and which
rows belong together.

Paraphrases and forms of a base question share a fold, and move together when scores are shuffled.
Two questions with the same text are one question under two names, which is refused or grouped, as
the caller says.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from emlens.activations import Activations
from emlens.data.base_questions import base_questions
from emlens.data.scores import AlignmentScores
from emlens.foundation.choices import require_choice
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.probes.ridge import Array
from emlens.stats.samples import labels_in_order

Scores = AlignmentScores | Mapping[str, float] | pd.Series | Sequence[float] | NDArray[Any] | Tensor
"""Scores of rows: judged ones, id → score, or one number per row in their order."""
Scale = Literal["score", "logit"]
Duplicates = Literal["refuse", "group", "allow"]


def questions_of(acts: Activations) -> list[str]:
    """Question of each row: the id without a paraphrase's `/p2`."""
    questions = []
    for name in acts.ids:
        head, _, tail = name.rpartition("/p")
        questions.append(head if tail.isdigit() else name)
    return questions


def bases_of(acts: Activations) -> list[str]:
    """Base question of each row: its question without the ending that names its form."""
    return base_questions(questions_of(acts))


Groups = str | Mapping[str, str] | pd.Series | Sequence[str]
"""What is held out together: a word, id → label, or one label per row."""


def labels_of(acts: Activations, groups: Groups | None) -> tuple[list[str], str]:
    """What is held out together, one label per row, and what to call it.

    Paraphrases and forms of one base question have one label, always.

    Args:
        groups: None: base questions; `"group"`: the rows' groups; a mapping or a series: the label
            of each id, or of its question; else one label per row, in their order.

    Raises:
        InputError: an unknown word, another number of labels, a row without one, a base question
            under two labels, `"group"` where all rows are of one.
    """
    bases = bases_of(acts)
    if groups is None:
        return bases, "question"
    if isinstance(groups, str):
        if groups != "group":
            raise InputError(
                f"groups={groups!r} is unknown; pass None, 'group', id → label,"
                " or one label per row",
                name=groups,
                known=("group",),
            )
        if len(set(acts.groups)) < 2:
            raise InputError(
                f"groups='group' was given, but the {len(acts)} rows are of one group;"
                " pass Design(groups=None), which holds out base questions"
            )
        _require_together(bases, acts.groups)
        return list(acts.groups), "group"
    if isinstance(groups, Mapping | pd.Series):
        labels = labels_by_id(groups, acts.ids, questions_of(acts), "groups")
    else:
        labels = [str(label) for label in labels_in_order(groups, "groups")]
    if len(labels) != len(acts):
        raise InputError(
            f"groups has {len(labels)} labels for {len(acts)} rows; pass one label per row,"
            " or id → label"
        )
    _require_together(bases, labels)
    return labels, "custom"


def labels_by_id(
    labels: Mapping[str, str] | pd.Series, ids: Sequence[str], questions: Sequence[str], name: str
) -> list[str]:
    """The label of each row, by its id or its question's.

    Raises:
        InputError: a row without a label.
    """
    table = {str(key): value for key, value in labels.items()}
    row_labels = []
    for row, question in zip(ids, questions, strict=True):
        label = table.get(row, table.get(question))
        if label is None:
            raise InputError(
                f"{name} has no label for row {one_line(row)!r}; pass id → label for every row,"
                " or a list with one label per row"
            )
        row_labels.append(str(label))
    return row_labels


def _require_together(bases: Sequence[str], labels: Sequence[str]) -> None:
    """Raises:
    InputError: a base question under two labels.
    """
    first: dict[str, str] = {}
    for base, label in zip(bases, labels, strict=True):
        if first.setdefault(base, label) != label:
            raise InputError(
                f"groups puts paraphrases or forms of question {one_line(base)!r} under"
                f" {one_line(first[base])!r} and {one_line(label)!r}; give a base question one"
                " label"
            )


def scores_of(
    scores: Scores, ids: Sequence[str], questions: Sequence[str], metric: str, model: str | None
) -> Array:
    """One score per row, by its id or its question's.

    Raises:
        InputError: a row without a score.
    """
    if isinstance(scores, AlignmentScores):
        table: dict[Any, float] = scores.per_question(metric, model).to_dict()
    else:
        table = scores_by_id(scores, ids)
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


def scores_by_id(
    scores: Mapping[str, float] | pd.Series | Sequence[float] | NDArray[Any] | Tensor,
    ids: Sequence[str],
) -> dict[Any, float]:
    """id → score; a list, an array, or a series with numbered rows gives one number per row.

    Raises:
        InputError: another number of scores than rows, or what is no list of numbers.
    """
    is_numbered = isinstance(scores, pd.Series) and isinstance(scores.index, pd.RangeIndex)
    if isinstance(scores, Mapping) or (isinstance(scores, pd.Series) and not is_numbered):
        return {name: float(value) for name, value in scores.items()}
    if isinstance(scores, str):
        raise InputError(f"scores={one_line(scores, 60)!r} is a string; pass one score per row")
    try:
        values = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"scores is a {type(scores).__name__} that holds no numbers ({one_line(str(error))});"
            " pass AlignmentScores, id → score, or one score per row"
        ) from None
    if values.shape != (len(ids),):
        raise InputError(
            f"scores has shape {values.shape} for {len(ids)} rows;"
            " pass one score per row, in their order, or id → score"
        )
    return dict(zip(ids, values.tolist(), strict=True))


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
    require_choice(scale, "target", Scale)
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
    """Squared standard error of each question's mean score, from the spread of its answers.

    NaN with fewer than two scored answers.
    """
    rows = scores.rows(metric, model).dropna(subset=["score"])
    by_question = rows.groupby("question", sort=False)["score"]
    return (by_question.var(ddof=1) / by_question.size()).rename(metric)


def sampling_weights(
    scores: AlignmentScores, metric: str = "aligned", model: str | None = None
) -> pd.Series:
    """Weights 1 / (τ² + s²) by question, of mean 1.

    s is the sampling error of a question's mean score, τ² what remains of the variance of questions
    beyond sampling. τ² is at least a tenth of that variance, so that a question whose answers all
    agree does not outweigh the others.

    Raises:
        InputError: a question with fewer than two scored answers.
    """
    error, mean = sampling_variance(scores, metric, model), scores.per_question(metric, model)
    for name in mean.index:
        if not math.isfinite(float(error.get(name, math.nan))):
            raise InputError(
                f"question {one_line(str(name))!r} has fewer than two scored answers,"
                " so its sampling error is unknown; sample more, or pass weights"
            )
    total = float(mean.var(ddof=1))
    between = max(total - float(error.mean()), 0.1 * total)
    weights = 1 / (between + error.reindex(mean.index))
    return (weights / weights.mean()).rename("weight")


def weights_of(
    weights: Mapping[str, float] | pd.Series | None, ids: Sequence[str], questions: Sequence[str]
) -> Array | None:
    """One positive weight per row, of mean 1.

    Raises:
        InputError: a row without a weight, or one that is not positive.
    """
    if weights is None:
        return None
    table = {str(name): float(value) for name, value in weights.items()}
    values = []
    for name, question in zip(ids, questions, strict=True):
        value = table.get(name, table.get(question, math.nan))
        if not (value > 0 and math.isfinite(value)):
            raise InputError(
                f"weights has {value} for row {one_line(name)!r};"
                " pass a positive weight for each id"
            )
        values.append(value)
    row_weights = np.array(values)
    return np.asarray(row_weights / row_weights.mean())


def texts_of(
    texts: Mapping[str, str] | None, ids: Sequence[str], questions: Sequence[str]
) -> list[str] | None:
    """One text per row, by its id or its question's; None where there are none.

    Raises:
        InputError: a row without a text.
    """
    if texts is None:
        return None
    row_texts = []
    for name, question in zip(ids, questions, strict=True):
        text = texts.get(name, texts.get(question))
        if text is None:
            raise InputError(
                f"texts has no entry for row {one_line(name)!r}; pass one text for each id"
            )
        row_texts.append(text)
    return row_texts


def joined_duplicates(
    acts: Activations,
    labels: Sequence[str],
    texts: Sequence[str] | None,
    duplicates: Duplicates,
    cells: Sequence[tuple[str, str]],
) -> list[str]:
    """Labels under which rows that are the same are held out together.

    The same are rows with one text, or with identical activations in all `cells`.

    Args:
        duplicates: `"refuse"`: an error where folds would separate them; `"group"`: their labels
            become one; `"allow"`: labels as they are.

    Raises:
        InputError: two rows that are the same under different labels.
    """
    if duplicates == "allow":
        return list(labels)
    parent = {label: label for label in labels}

    def root(label: str) -> str:
        while parent[label] != label:
            label = parent[label]
        return label

    first: dict[tuple[str, object], int] = {}
    for i, keys in enumerate(_keys_of_rows(acts, texts, cells)):
        for key in keys:
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


def _keys_of_rows(
    acts: Activations, texts: Sequence[str] | None, cells: Sequence[tuple[str, str]]
) -> list[list[tuple[str, object]]]:
    """(what, value) of each row by which rows are the same: its text, and its activations."""
    hashes = [hashlib.blake2b() for _ in range(len(acts))]
    for cell in cells:
        for row_hash, row in zip(hashes, acts[cell].double().numpy(), strict=True):
            row_hash.update(row.tobytes())
    keys: list[list[tuple[str, object]]] = []
    for i, row_hash in enumerate(hashes):
        keys.append([])
        if texts is not None:
            keys[i].append(("text", " ".join(texts[i].split()).casefold()))
        keys[i].append(("activations", row_hash.digest()))
    return keys

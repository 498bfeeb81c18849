"""Forecasts across fine-tunes: learned on some fine-tunes or model families, tested on another.

The table is long: one row per question and fine-tune. Holding out a fine-tune leaves the scores of
the same questions under other fine-tunes among the training rows, so a forecast may live on knowing
which questions are fragile; `new_questions=True` holds those out too. Holding out a family needs
features that mean the same in every family. Coordinates of a residual stream do not, since another
model's stream has other axes, so they are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from emlens.data.base_questions import base_questions
from emlens.foundation.choices import require_choice
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.files import one_line
from emlens.foundation.notebooks import Brief, Picture
from emlens.probes.calibration import Calibration, calibration_line
from emlens.probes.design import Design
from emlens.probes.estimators import resolve_estimator
from emlens.probes.features import Features, Rows
from emlens.probes.ridge import Array
from emlens.probes.validation import (
    NestedFolds,
    OuterFold,
    generic_nested,
    grouped_folds,
    nested_ridge,
    training_means,
)
from emlens.stats import ratio_of_means, spearman

HeldOut = Literal["finetune", "family"]


@dataclass(frozen=True, repr=False)
class AcrossForecast(Brief):
    """A forecast of held-out fine-tunes or families.

    Args:
        predictions: the rows with columns predicted and mean (of the training rows), out of fold.
        r2: pooled over held-out rows, against the training rows' mean; interval by resampling what
            was held out.
        by_unit: one row per held-out fine-tune or family: n, r2, spearman with interval, rmse.
        calibration: the line of score on prediction, over what was held out.
        chosen: the feature set that inner selection took for each outer fold.
        held_out: "finetune" or "family", and whether its questions were new.
    """

    predictions: pd.DataFrame
    r2: Estimate
    by_unit: pd.DataFrame
    calibration: Calibration
    chosen: tuple[str, ...]
    held_out: str

    def plot(self) -> Picture:
        """Forecast against measurement, a colour per fine-tune."""
        from emlens.probes.pictures import picture_of_pairs

        title = f"Forecast against measurement, held out: {self.held_out}"
        return picture_of_pairs(self.predictions, "score", "predicted", title, group="finetune")


def cross_validate_across(
    rows: pd.DataFrame,
    features: Sequence[Features],
    hold_out: HeldOut = "finetune",
    *,
    estimator: Any = "ridge",
    new_questions: bool = False,
    design: Design | None = None,
) -> AcrossForecast:
    """Leave-fine-tune-out or leave-family-out forecast of a long table.

    Feature set and setting are chosen on units held out inside the training rows.

    Args:
        rows: columns question, finetune, score, and family where families are held out; one row per
            question and fine-tune.
        features: sets over these rows, in their order; `RepeatedFeatures` reads a set over
            questions at them.
        new_questions: hold out the questions of a fold of questions too, so that no training row
            has a test row's base question.
        design: of its fields, folds (of questions, with `new_questions`), inner_folds, settings and
            seed are used.
        hold_out: "finetune" or "family": what a test fold is.
        estimator: "ridge", or what scikit-learn can clone.

    Raises:
        InputError: a missing column, a score that is not finite, a question twice under one
            fine-tune, a fine-tune in two families, fewer than three units, features that mean
            nothing in another family, a design with fields that are not used here.
    """
    design = design or Design()
    design.require_only(("folds", "inner_folds", "settings", "seed"), "cross_validate_across")
    _require_table(rows, hold_out)
    _require_units(rows, hold_out)
    _require_features(features, hold_out)
    units = [str(name) for name in rows[hold_out]]
    target = rows["score"].to_numpy(dtype=np.float64)[:, None]
    outer = _outer_folds(rows, units, new_questions, design)
    folds = NestedFolds(units, outer, design.inner_folds, design.seed)
    model = resolve_estimator(estimator, design.settings)
    if isinstance(estimator, str) and estimator in ("ridge", "ridge1"):
        alphas = [setting["alpha"] for setting in model.settings]
        result = nested_ridge(features, target, folds, alphas=alphas)
    else:
        result = generic_nested(features, target, folds, estimator=model)
    predicted, mean = result.nested[0, :, 0], training_means(target, outer)[0, :, 0]
    table = rows.assign(predicted=predicted, mean=mean)
    unit_rows = []
    for unit in sorted(set(units)):
        unit_rows.append({hold_out: unit, **_unit_row(table[np.array(units) == unit])})
    questions = "new questions" if new_questions else "the same questions"
    return AcrossForecast(
        predictions=table,
        r2=_pooled_r2(table, units, hold_out, design.seed),
        by_unit=pd.DataFrame(unit_rows),
        calibration=calibration_line(predicted, target[:, 0], units),
        chosen=result.chosen,
        held_out=f"{hold_out}, {questions}",
    )


def _outer_folds(
    rows: pd.DataFrame, units: Sequence[str], new_questions: bool, design: Design
) -> list[OuterFold]:
    """One fold per unit, or per unit and fold of questions, which is then held out too."""
    everything = np.arange(len(rows))
    question_folds: list[Rows] = [everything]
    if new_questions:
        questions = base_questions(str(name) for name in rows["question"])
        count = len(set(questions))
        if design.folds != "all":
            count = min(design.folds, count)
        question_folds = grouped_folds(questions, count, design.seed, "across questions")
    folds = []
    for unit in sorted(set(units)):
        unit_rows = np.flatnonzero(np.array(units) == unit)
        other_units = np.setdiff1d(everything, unit_rows)
        for question_rows in question_folds:
            test = np.intersect1d(unit_rows, question_rows)
            train = np.setdiff1d(other_units, question_rows) if new_questions else other_units
            if len(test):
                folds.append(OuterFold(0, test, train))
    return folds


def _pooled_r2(table: pd.DataFrame, units: Sequence[str], hold_out: str, seed: int) -> Estimate:
    """1 − errors / errors of the training mean; the ends of the ratio's interval swap."""
    score, predicted, mean = _columns(table)
    share = ratio_of_means(
        (predicted - score) ** 2, (mean - score) ** 2, clusters=units, resamples=1999, seed=seed
    )
    method = f"pooled R² of held-out {hold_out}s; {share.method}"
    return Estimate(1 - share.value, 1 - share.high, 1 - share.low, share.n, method)


def _unit_row(table: pd.DataFrame) -> dict[str, object]:
    """How well one held-out unit was forecast."""
    score, predicted, mean = _columns(table)
    floor = float(((mean - score) ** 2).sum())
    r2 = float("nan")
    if floor > 0:
        r2 = 1 - float(((predicted - score) ** 2).sum()) / floor
    rank = Estimate.undefined("fewer than 4 rows", len(score))
    if len(score) >= 4:
        rank = spearman(predicted, score)
    return {
        "n": len(score),
        "r2": r2,
        "spearman": rank.value,
        "spearman_low": rank.low,
        "spearman_high": rank.high,
        "rmse": float(np.sqrt(((predicted - score) ** 2).mean())),
    }


def _columns(table: pd.DataFrame) -> tuple[Array, Array, Array]:
    """(score, predicted, mean)."""
    return (
        table["score"].to_numpy(dtype=np.float64),
        table["predicted"].to_numpy(dtype=np.float64),
        table["mean"].to_numpy(dtype=np.float64),
    )


def _require_table(rows: pd.DataFrame, hold_out: str) -> None:
    require_choice(hold_out, "hold_out", HeldOut)
    columns = ["question", "finetune", "score"]
    if hold_out == "family":
        columns.append("family")
    for name in columns:
        if name not in rows.columns:
            raise InputError(
                f"rows has no column {name!r}; pass {', '.join(columns)}",
                name=name,
                known=rows.columns,
            )
    if not np.isfinite(rows["score"].to_numpy(dtype=np.float64)).all():
        raise InputError("rows holds a score that is NaN or infinite; drop those rows first")
    repeated = rows[rows.duplicated(["question", "finetune"])]
    if len(repeated):
        question, finetune = (str(repeated.iloc[0][name]) for name in ("question", "finetune"))
        raise InputError(
            f"question {one_line(question)!r} appears twice under fine-tune {one_line(finetune)!r}"
        )


def _require_features(features: Sequence[Features], hold_out: str) -> None:
    if not features:
        raise InputError("features is empty; pass at least one set")
    for feature in features:
        if hold_out == "family" and not feature.family_free:
            raise InputError(
                f"features {feature.name!r} are coordinates of one model,"
                " which mean nothing in another family's residual stream;"
                " hold out fine-tunes, or pass family-free features:"
                " training_distances, lengths, text, scores"
            )


def _require_units(rows: pd.DataFrame, hold_out: str) -> None:
    if hold_out == "family":
        families = rows.groupby("finetune")["family"].nunique()
        if (families > 1).any():
            raise InputError(
                f"fine-tune {one_line(str(families.idxmax()))!r} appears under two families;"
                " give each fine-tune one name and one family"
            )
    count = rows[hold_out].astype(str).nunique()
    if count < 3:
        raise InputError(
            f"rows hold {count} {hold_out}s; pass at least 3,"
            " so that inner folds can hold one out as well"
        )

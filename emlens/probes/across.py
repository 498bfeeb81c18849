"""Forecasts across fine-tunes: what was learned on some fine-tunes, or some model families, tried
on one that was held out.

The table is long: one row a question and fine-tune. Holding out a fine-tune leaves the scores of
the same questions under other fine-tunes among the training rows, so a forecast may live on knowing
which questions are fragile; `new_questions=True` holds those out too. Holding out a family asks
that features mean the same in every family: coordinates of a residual stream do not, since another
model's stream has other axes, so they are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.files import one_line
from emlens.probes.calibration import Calibration, calibration_line
from emlens.probes.estimators import Setting, resolve_estimator
from emlens.probes.features import Features
from emlens.probes.ridge import Array
from emlens.probes.validation import (
    OuterFold,
    generic_nested,
    grouped_folds,
    nested_ridge,
    training_means,
)
from emlens.stats import ratio_of_means, spearman

Unit = Literal["finetune", "family"]


@dataclass(frozen=True)
class AcrossForecast:
    """A forecast of held-out fine-tunes or families.

    Args:
        predictions: the rows with columns predicted and mean (of the training rows), out of fold.
        r2: pooled over held-out rows, against the training rows' mean; interval by resampling what
            was held out.
        by_unit: one row a held-out fine-tune or family: n, r2, spearman with interval, rmse.
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


def cross_validate_across(
    rows: pd.DataFrame,
    features: Sequence[Features],
    hold_out: Unit = "finetune",
    *,
    estimator: Any = "ridge",
    settings: Sequence[Setting] | None = None,
    new_questions: bool = False,
    question_folds: int = 5,
    inner_folds: int = 5,
    seed: int = 0,
) -> AcrossForecast:
    """Leave-fine-tune-out or leave-family-out forecast of a long table, set and setting chosen on
    held-out units inside.

    Args:
        rows: columns question, finetune, score, and family where families are held out; one row a
            question and fine-tune.
        features: sets over these rows, in their order; `RepeatedFeatures` reads a set over
            questions at them.
        new_questions: hold out the questions of a fold of questions too, so that no training row
            has a test row's question.

    Raises:
        InputError: a column that lacks, a score that is not finite, a question twice under one
            fine-tune, a fine-tune in two families, fewer than three units, features that mean
            nothing in another family.
    """
    _require(rows, features, hold_out)
    units = [str(name) for name in rows[hold_out]]
    questions = [str(name) for name in rows["question"]]
    target = rows["score"].to_numpy(dtype=np.float64)[:, None]
    everything = np.arange(len(rows))
    asked = [everything]
    if new_questions:
        asked = list(
            grouped_folds(
                questions, min(question_folds, len(set(questions))), seed, "across questions"
            )
        )
    outer = []
    for unit in sorted(set(units)):
        mine = np.flatnonzero(np.array(units) == unit)
        for some in asked:
            test = np.intersect1d(mine, some)
            kept = (
                np.setdiff1d(everything, mine)
                if not new_questions
                else np.setdiff1d(np.setdiff1d(everything, mine), some)
            )
            if len(test):
                outer.append(OuterFold(0, test, kept))
    chosen = resolve_estimator(estimator, settings)
    common: dict[str, Any] = {"inner_folds": inner_folds, "seed": seed}
    if isinstance(estimator, str) and estimator in ("ridge", "ridge1"):
        found = nested_ridge(
            features, target, units, outer, alphas=[s["alpha"] for s in chosen.settings], **common
        )
    else:
        found = generic_nested(features, target, units, outer, estimator=chosen, **common)
    predicted, mean = found.nested[0, :, 0], training_means(target, outer)[0, :, 0]
    table = rows.assign(predicted=predicted, mean=mean)
    share = ratio_of_means(
        (predicted - target[:, 0]) ** 2,
        (mean - target[:, 0]) ** 2,
        clusters=units,
        resamples=1999,
        seed=seed,
    )
    r2 = Estimate(
        1 - share.value,
        1 - share.high,
        1 - share.low,
        share.n,
        f"pooled R² of held-out {hold_out}s; {share.method}",
    )
    by_unit = pd.DataFrame(
        [_unit_row(unit, hold_out, table[np.array(units) == unit]) for unit in sorted(set(units))]
    )
    said = f"{hold_out}, {'new' if new_questions else 'the same'} questions"
    return AcrossForecast(
        table, r2, by_unit, calibration_line(predicted, target[:, 0], units), found.chosen, said
    )


def _unit_row(unit: str, hold_out: str, table: pd.DataFrame) -> dict[str, object]:
    y, p, m = (table[name].to_numpy(dtype=np.float64) for name in ("score", "predicted", "mean"))
    floor = float(((m - y) ** 2).sum())
    rank = spearman(p, y) if len(y) >= 4 else Estimate.undefined("fewer than 4 rows", len(y))
    r2 = 1 - float(((p - y) ** 2).sum()) / floor if floor > 0 else float("nan")
    return {
        hold_out: unit,
        "n": len(y),
        "r2": r2,
        "spearman": rank.value,
        "spearman_low": rank.low,
        "spearman_high": rank.high,
        "rmse": float(np.sqrt(((p - y) ** 2).mean())),
    }


def _require(rows: pd.DataFrame, features: Sequence[Features], hold_out: str) -> None:
    if hold_out not in get_args(Unit):
        raise InputError(f"hold_out={hold_out!r} is unknown; pass 'finetune' or 'family'")
    needed = ["question", "finetune", "score", *(["family"] if hold_out == "family" else [])]
    lacking = [name for name in needed if name not in rows.columns]
    if lacking:
        raise InputError(f"rows has no column {lacking[0]!r}; pass {', '.join(needed)}")
    if not features:
        raise InputError("features is empty; pass at least one set")
    if not np.isfinite(_numbers(rows)).all():
        raise InputError("rows holds a score that is NaN or infinite; drop those rows first")
    twice = rows[rows.duplicated(["question", "finetune"])]
    if len(twice):
        raise InputError(
            f"question {one_line(str(twice.iloc[0]['question']))!r} stands twice under fine-tune"
            f" {one_line(str(twice.iloc[0]['finetune']))!r}"
        )
    if hold_out == "family":
        families = rows.groupby("finetune")["family"].nunique()
        if (families > 1).any():
            raise InputError(
                f"fine-tune {one_line(str(families.idxmax()))!r} stands under two families;"
                " give each fine-tune one name and one family"
            )
        bound = [feature.name for feature in features if not feature.family_free]
        if bound:
            raise InputError(
                f"features {bound[0]!r} are coordinates of one model,"
                " which mean nothing in another family's residual stream;"
                " hold out fine-tunes, or pass family-free features:"
                " training_distances, lengths, text, scores"
            )
    count = rows[hold_out].astype(str).nunique()
    if count < 3:
        raise InputError(
            f"rows hold {count} {hold_out}s; pass at least 3,"
            " so that inner folds can hold one out as well"
        )


def _numbers(rows: pd.DataFrame) -> Array:
    return rows["score"].to_numpy(dtype=np.float64)

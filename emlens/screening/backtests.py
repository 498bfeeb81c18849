"""How good was screening on fine-tunes it had not seen? Precision, recall, calibration, cost,
AUROC, with intervals over both what varies.

Rows are pairs of a question and a fine-tune, and alike in both: questions of one domain move
together, and so do fine-tunes of one domain. Intervals therefore resample both (the pigeonhole
bootstrap): each draw gives every pair the product of how often its question's cluster and its
fine-tune's cluster were drawn. With few clusters of either it is short; their numbers stand in the
method. Costs one sort and `resamples` passes over the pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emlens.activations import Activations
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.files import one_line
from emlens.foundation.seeds import numpy_rng
from emlens.probes import Forecaster
from emlens.probes.features import Features, MatrixFeatures, TextFeatures
from emlens.probes.validation import NestedFolds, OuterFold, nested_ridge, training_means
from emlens.results.study_result import columns_of
from emlens.stats import cluster_bootstrap, wilson_interval

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""Weights (draw, pair) → values (draw,); NaN where undefined."""

RESAMPLES = 999
PREDICTORS = ("predicted", "from_past", "past_mean", "text", "mean embedding", "parent", "severity")
COST_RATIOS = (1.0, 3.0, 10.0, 30.0)
"""Cost of a misaligned question that was missed, in false alarms."""


def pair_weights(pairs: pd.DataFrame, resamples: int, seed: int) -> Array:
    """(1 + resamples, pair) weights: first all ones, then products of multinomial counts of
    question and fine-tune clusters.

    Raises:
        InputError: fewer than 2 clusters of either.
    """
    rng = numpy_rng(seed, "pigeonhole bootstrap")
    weights = np.ones((1 + resamples, len(pairs)))
    for column in ("label", "cluster"):
        names, inverse = np.unique(pairs[column].astype(str), return_inverse=True)
        if len(names) < 2:
            raise InputError(
                f"pairs have 1 value of {column!r}; an interval over {column}s needs at least 2"
            )
        weights[1:] *= rng.multinomial(
            len(names), np.full(len(names), 1 / len(names)), size=resamples
        )[:, inverse]
    return weights


def auroc(score: Array, positive: NDArray[np.bool_]) -> Statistic:
    """Probability that a misaligned pair has the higher risk than another, ties counting half;
    range [0, 1], chance .5.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
    marks = positive[order]

    def of(weights: Array) -> Array:
        found = np.empty(len(weights))
        for i, row in enumerate(weights):
            w = row[order]
            up, down = (np.add.reduceat(w * part, starts) for part in (marks, ~marks))
            below = np.cumsum(down) - down
            total = up.sum() * down.sum()
            found[i] = (up * (below + down / 2)).sum() / total if total > 0 else np.nan
        return found

    return of


def _sizes(pairs: pd.DataFrame) -> str:
    return (
        f"{pairs['label'].nunique()} question clusters and {pairs['cluster'].nunique()} fine-tune"
        " clusters"
    )


def _interval(values: Array, n: int, sizes: str) -> Estimate:
    """The first value with a 95 % percentile interval of the others."""
    if not np.isfinite(values[0]):
        return Estimate.undefined(f"no pair to divide by; {sizes}", n)
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
    method = f"95 % percentile interval, pigeonhole bootstrap over {sizes}, {len(drawn)} resamples"
    return Estimate(float(values[0]), float(low), float(high), n, method)


def ratios(
    tops: Sequence[Any], bottoms: Sequence[Any], weights: Array, pairs: pd.DataFrame
) -> list[Estimate]:
    """Weighted sums over weighted sums: one estimate for each numerator and denominator (pair,)."""
    top, bottom = (
        weights @ np.column_stack([np.asarray(part, dtype=np.float64) for part in parts])
        for parts in (tops, bottoms)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where(bottom > 0, top / bottom, np.nan)
    sizes = _sizes(pairs)
    return [_interval(column, len(pairs), sizes) for column in values.T]


def area(
    score: Array, positive: NDArray[np.bool_], weights: Array, pairs: pd.DataFrame
) -> Estimate:
    """`auroc` with its interval."""
    if not 0 < positive.sum() < len(positive):
        return Estimate.undefined("all pairs are of one class", len(pairs))
    return _interval(auroc(score, positive)(weights), len(pairs), _sizes(pairs))


def backtest(
    pairs: pd.DataFrame,
    predictors: Sequence[str] = PREDICTORS,
    *,
    below: float = 30.0,
    flags: Sequence[float] = (),
    costs: Sequence[float] = COST_RATIOS,
    bins: int = 10,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Tables of a backtest: `ranking`, `thresholds`, `calibration`, `cost`, `base_rates`.

    Args:
        pairs: of `Forecaster.pairs`; further columns may hold other predictors, on the scale of the
            scores.
        predictors: columns with predicted scores; low means at risk.
        below: a pair counts as misaligned where the observed score is lower. flags: predicted
            scores below which a question is flagged (default: `below`, and where as many are
            flagged as became misaligned).
        costs: of a miss, in false alarms.

    In `thresholds` and `cost` the column `null` is what knowing nothing gives: the base rate, and
    the cheaper of flagging all or none.

    Raises:
        InputError: no predictor with a value for every pair; clusters too few.
    """
    usable = [name for name in predictors if name in pairs and np.isfinite(pairs[name]).all()]
    if not usable:
        raise InputError(
            f"pairs hold none of {list(predictors)} with a value for every pair;"
            " pass predictors that have one"
        )
    bad = (pairs["observed"] < below).to_numpy()
    weights = pair_weights(pairs, resamples, seed)
    ones = np.ones(len(pairs))
    base = float(bad.mean())
    rows: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("ranking", "thresholds", "calibration", "cost")
    }
    for name in usable:
        score = pairs[name].to_numpy(dtype=float)
        found = area(-score, bad, weights, pairs)
        rows["ranking"].append(
            {
                "predictor": name,
                **columns_of("auroc", found),
                "null": 0.5,
                "pairs": len(pairs),
                "misaligned": int(bad.sum()),
            }
        )
        for flag in flags or (below, float(np.quantile(score, base))):
            flagged = score < flag
            precision, recall, alarm = ratios(
                [bad & flagged, bad & flagged, flagged & ~bad], [flagged, bad, ~bad], weights, pairs
            )
            head = {
                "predictor": name,
                "flag_below": flag,
                "flagged": float(flagged.mean()),
                "null": base,
            }
            rows["thresholds"].append(
                {
                    **head,
                    **columns_of("precision", precision),
                    **columns_of("recall", recall),
                    **columns_of("false_alarm", alarm),
                }
            )
        rows["calibration"] += _calibration(name, score, pairs, weights, bins)
        cells = [
            (ratio, float(flag))
            for ratio in costs
            for flag in np.quantile(score, np.linspace(0, 1, 11))
        ]
        paid = [ratio * (bad & (score >= flag)) + (~bad & (score < flag)) for ratio, flag in cells]
        for (ratio, flag), cost in zip(
            cells, ratios(paid, [ones] * len(paid), weights, pairs), strict=True
        ):
            head = {"predictor": name, "miss_costs": ratio, "flag_below": flag}
            rows["cost"].append(
                {**head, **columns_of("cost", cost), "null": min(ratio * base, 1 - base)}
            )
    tables = {name: pd.DataFrame(found) for name, found in rows.items()}
    return {**tables, "base_rates": base_rates(pairs, below, weights)}


def _calibration(
    name: str, score: Array, pairs: pd.DataFrame, weights: Array, bins: int
) -> list[dict[str, Any]]:
    """Mean observed score in bins of equal size of the predicted one; on the diagonal where
    forecasts are right on average.
    """
    observed = pairs["observed"].to_numpy(dtype=float)
    edges = np.unique(np.quantile(score, np.linspace(0, 1, bins + 1)))
    place = np.clip(np.searchsorted(edges, score, side="right") - 1, 0, max(0, len(edges) - 2))
    inside = [(place == b).astype(float) for b in sorted(set(place))]
    found = ratios([part * observed for part in inside], inside, weights, pairs)
    return [
        {
            "predictor": name,
            "predicted": float(score[part > 0].mean()),
            **columns_of("observed", value),
            "pairs": int(part.sum()),
        }
        for part, value in zip(inside, found, strict=True)
    ]


def base_rates(pairs: pd.DataFrame, below: float, weights: Array) -> pd.DataFrame:
    """What became misaligned: share of all pairs, of fine-tunes by their mean score, and of the
    questions of each fine-tune.
    """
    bad = (pairs["observed"] < below).to_numpy()
    every = ratios([bad], [np.ones(len(bad))], weights, pairs)[0]
    means = pairs.groupby("run", sort=False)["observed"].mean()
    clusters = pairs.groupby("run", sort=False)["cluster"].first()
    turned = cluster_bootstrap((means < below).to_numpy(dtype=float), clusters.tolist())
    turned = replace(turned, low=max(0.0, turned.low), high=min(1.0, turned.high))
    rows: list[dict[str, Any]] = [
        {
            "of": "questions in past fine-tunes",
            "model": "",
            **columns_of("misaligned", every),
            "n": len(pairs),
        },
        {
            "of": "past fine-tunes, by mean score",
            "model": "",
            **columns_of("misaligned", turned),
            "n": len(means),
        },
    ]
    for run, part in pairs.groupby("run", sort=False):
        found = wilson_interval(int((part["observed"] < below).sum()), len(part))
        rows.append(
            {
                "of": "questions in one",
                "model": run,
                **columns_of("misaligned", found),
                "n": len(part),
            }
        )
    return pd.DataFrame(rows)


def with_rivals(
    forecaster: Forecaster,
    texts: Mapping[str, str] | None = None,
    parent_scores: Mapping[str, float] | None = None,
    embedding: Activations | None = None,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """The forecaster's backtest with what cheaper forecasts say of the same pairs, from the same
    folds and the same forecast severity.

    Further columns: `severity` (every question alike, so that all it knows is the training file),
    `text` (TF-IDF of the question), `parent` (the parent's own score of it) and `mean embedding`
    (of its tokens, from a capture of `resid_pre.0` at `mean_prompt`), as far as their inputs came.

    Raises:
        InputError: an id without a text, score or embedding.
    """
    features: dict[str, Features | None] = {"severity": None}
    for name, given in (
        ("text", texts),
        ("parent", parent_scores),
        ("embedding", None if embedding is None else embedding.ids),
    ):
        lacking = [i for i in forecaster.ids if given is not None and i not in given]
        if lacking:
            raise InputError(
                f"{name} has no entry for question {one_line(lacking[0])!r};"
                " pass one for each the forecaster was fitted on"
            )
    if texts is not None:
        features["text"] = TextFeatures("text", [texts[i] for i in forecaster.ids])
    if parent_scores is not None:
        features["parent"] = MatrixFeatures(
            "parent", np.array([[float(parent_scores[i])] for i in forecaster.ids])
        )
    if embedding is not None:
        features["mean embedding"] = MatrixFeatures(
            "mean embedding", embedding.select(forecaster.ids)["resid_pre.0", "mean_prompt"]
        )
    place, factors = np.array(forecaster.fold), forecaster.severities()
    folds = [
        OuterFold(0, np.flatnonzero(place == k), np.flatnonzero(place != k))
        for k in range(len(forecaster.fold_ridges))
    ]
    pairs = forecaster.pairs()
    rows = {name: i for i, name in enumerate(forecaster.ids)}
    runs = {name: j for j, name in enumerate(forecaster.runs)}
    at = pairs["id"].map(rows).to_numpy(), pairs["run"].map(runs).to_numpy()
    for name, feature in features.items():
        hazard = np.empty((len(forecaster.ids), forecaster.fold_hazard.shape[2]))
        for fold, measured in zip(folds, forecaster.fold_hazard, strict=True):
            known = np.nan_to_num(measured)  # the fold's own questions have none, and none is read
            if feature is None:
                found = training_means(known, [fold])
            else:
                nested_folds = NestedFolds(forecaster.labels, [fold], 5, seed)
                found = nested_ridge([feature], known, nested_folds).nested
            hazard[fold.test] = found[0][fold.test]
        predicted = forecaster.top - factors[place] * hazard[:, forecaster.cluster_columns]
        pairs[name] = np.clip(predicted, forecaster.bottom, forecaster.top)[at]
    return pairs

"""How good was screening on fine-tunes it had not seen? Precision, recall, calibration, cost and
AUROC, with intervals over questions and fine-tunes at once.

Rows are pairs of a question and a fine-tune. Questions of one domain move together, and so do
fine-tunes of one domain. Intervals therefore resample both (the pigeonhole bootstrap): each draw
gives every pair the product of how often its question's cluster and its fine-tune's cluster were
drawn. With few clusters of either, the intervals are too short; the method names both numbers.
Costs one sort and `resamples` passes over the pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
        names, cluster = np.unique(pairs[column].astype(str), return_inverse=True)
        if len(names) < 2:
            raise InputError(
                f"pairs have 1 value of {column!r}; an interval over {column}s needs at least 2"
            )
        # drawing n of n clusters with replacement gives multinomial counts
        uniform = np.full(len(names), 1 / len(names))
        counts = rng.multinomial(len(names), uniform, size=resamples)
        weights[1:] *= counts[:, cluster]
    return weights


def auroc(score: Array, positive: NDArray[np.bool_]) -> Statistic:
    """Probability that a misaligned pair has the higher risk than another, ties counting half;
    range [0, 1], chance .5.

    The same area as `stats.rank_areas`, but with weights: here pairs are resampled in two ways at
    once, so that a draw is a weight per pair and not a list of rows.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])  # of runs of equal scores
    is_positive = positive[order]

    def of(weights: Array) -> Array:
        values = np.empty(len(weights))
        for i, row in enumerate(weights):
            ordered = row[order]
            up = np.add.reduceat(ordered * is_positive, starts)
            down = np.add.reduceat(ordered * ~is_positive, starts)
            below = np.cumsum(down) - down
            total = up.sum() * down.sum()
            values[i] = (up * (below + down / 2)).sum() / total if total > 0 else np.nan
        return values

    return of


def auroc_estimate(
    score: Array, positive: NDArray[np.bool_], weights: Array, pairs: pd.DataFrame
) -> Estimate:
    """`auroc` with its interval."""
    if not 0 < positive.sum() < len(positive):
        return Estimate.undefined("all pairs are of one class", len(pairs))
    return _interval(auroc(score, positive)(weights), len(pairs), _sizes(pairs))


def ratios(
    tops: Sequence[Any], bottoms: Sequence[Any], weights: Array, pairs: pd.DataFrame
) -> list[Estimate]:
    """Weighted sums over weighted sums: one estimate for each numerator and denominator (pair,)."""
    top = weights @ np.column_stack([np.asarray(part, dtype=np.float64) for part in tops])
    bottom = weights @ np.column_stack([np.asarray(part, dtype=np.float64) for part in bottoms])
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where(bottom > 0, top / bottom, np.nan)
    sizes = _sizes(pairs)
    return [_interval(column, len(pairs), sizes) for column in values.T]


def _sizes(pairs: pd.DataFrame) -> str:
    questions, runs = pairs["label"].nunique(), pairs["cluster"].nunique()
    return f"{questions} question clusters and {runs} fine-tune clusters"


def _interval(values: Array, n: int, sizes: str) -> Estimate:
    """The first value with a 95 % percentile interval of the others."""
    if not np.isfinite(values[0]):
        return Estimate.undefined(f"no pair to divide by; {sizes}", n)
    draws = values[1:][np.isfinite(values[1:])]
    low, high = np.nan, np.nan
    if len(draws):
        low, high = np.quantile(draws, [0.025, 0.975])
    method = f"95 % percentile interval, pigeonhole bootstrap over {sizes}, {len(draws)} resamples"
    return Estimate(float(values[0]), float(low), float(high), n, method)


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

    In `thresholds` and `cost` the column `null` is what knowing nothing gives: the base rate, and
    the cheaper of flagging all or none.

    Args:
        pairs: of `Forecaster.pairs`; further columns may hold other predictors, on the scale of the
            scores.
        predictors: columns with predicted scores; low means at risk.
        below: a pair counts as misaligned where the observed score is lower.
        flags: predicted scores below which a question is flagged (default: `below`, and where as
            many are flagged as became misaligned).
        costs: of a miss, in false alarms.
        bins: of predicted scores in `calibration`.

    Raises:
        InputError: no predictor with a value for every pair; clusters too few.
    """
    usable = [name for name in predictors if name in pairs and np.isfinite(pairs[name]).all()]
    if not usable:
        raise InputError(
            f"pairs hold none of {list(predictors)} with a value for every pair;"
            " pass predictors that have one"
        )
    is_bad = (pairs["observed"] < below).to_numpy()
    test = _Backtest(pairs, is_bad, pair_weights(pairs, resamples, seed))
    ranking, thresholds, calibration, cost = [], [], [], []
    for name in usable:
        score = pairs[name].to_numpy(dtype=float)
        ranking.append(test.ranking_row(name, score))
        for flag in flags or (below, float(np.quantile(score, test.base_rate))):
            thresholds.append(test.threshold_row(name, score, flag))
        calibration += test.calibration_rows(name, score, bins)
        cost += test.cost_rows(name, score, costs)
    return {
        "ranking": pd.DataFrame(ranking),
        "thresholds": pd.DataFrame(thresholds),
        "calibration": pd.DataFrame(calibration),
        "cost": pd.DataFrame(cost),
        "base_rates": base_rates(pairs, below, test.weights),
    }


@dataclass(frozen=True)
class _Backtest:
    """Pairs with what became of them, and the weights of their resamples."""

    pairs: pd.DataFrame
    is_bad: NDArray[np.bool_]
    weights: Array

    @property
    def base_rate(self) -> float:
        return float(self.is_bad.mean())

    def ranking_row(self, name: str, score: Array) -> dict[str, Any]:
        value = auroc_estimate(-score, self.is_bad, self.weights, self.pairs)
        return {
            "predictor": name,
            **columns_of("auroc", value),
            "null": 0.5,
            "pairs": len(self.pairs),
            "n_misaligned": int(self.is_bad.sum()),
        }

    def threshold_row(self, name: str, score: Array, flag: float) -> dict[str, Any]:
        """Precision, recall and false alarms where scores below `flag` are flagged."""
        bad, flagged = self.is_bad, score < flag
        precision, recall, alarm = ratios(
            [bad & flagged, bad & flagged, flagged & ~bad],
            [flagged, bad, ~bad],
            self.weights,
            self.pairs,
        )
        return {
            "predictor": name,
            "flag_below": flag,
            "flagged": float(flagged.mean()),
            "null": self.base_rate,
            **columns_of("precision", precision),
            **columns_of("recall", recall),
            **columns_of("false_alarm", alarm),
        }

    def cost_rows(self, name: str, score: Array, costs: Sequence[float]) -> list[dict[str, Any]]:
        """Mean cost of a pair, by cost of a miss and by flag at each tenth of the scores."""
        bad, ones = self.is_bad, np.ones(len(score))
        places, paid = [], []
        for miss_costs in costs:
            for flag in np.quantile(score, np.linspace(0, 1, 11)):
                places.append((miss_costs, float(flag)))
                paid.append(miss_costs * (bad & (score >= flag)) + (~bad & (score < flag)))
        estimates = ratios(paid, [ones] * len(paid), self.weights, self.pairs)
        rows = []
        for (miss_costs, flag), cost in zip(places, estimates, strict=True):
            rows.append(
                {
                    "predictor": name,
                    "miss_costs": miss_costs,
                    "flag_below": flag,
                    **columns_of("cost", cost),
                    "null": min(miss_costs * self.base_rate, 1 - self.base_rate),
                }
            )
        return rows

    def calibration_rows(self, name: str, score: Array, bins: int) -> list[dict[str, Any]]:
        """Mean observed score in bins of equal size of the predicted one; on the diagonal where
        forecasts are right on average.
        """
        observed = self.pairs["observed"].to_numpy(dtype=float)
        edges = np.unique(np.quantile(score, np.linspace(0, 1, bins + 1)))
        last = max(0, len(edges) - 2)
        bin_of = np.clip(np.searchsorted(edges, score, side="right") - 1, 0, last)
        members = [(bin_of == b).astype(float) for b in sorted(set(bin_of))]
        estimates = ratios([part * observed for part in members], members, self.weights, self.pairs)
        rows = []
        for part, value in zip(members, estimates, strict=True):
            rows.append(
                {
                    "predictor": name,
                    "predicted": float(score[part > 0].mean()),
                    **columns_of("observed", value),
                    "pairs": int(part.sum()),
                }
            )
        return rows


def base_rates(pairs: pd.DataFrame, below: float, weights: Array) -> pd.DataFrame:
    """What became misaligned: share of all pairs, of fine-tunes by their mean score, and of the
    questions of each fine-tune.
    """
    is_bad = (pairs["observed"] < below).to_numpy()
    of_pairs = ratios([is_bad], [np.ones(len(is_bad))], weights, pairs)[0]
    by_run = pairs.groupby("run", sort=False)
    means, clusters = by_run["observed"].mean(), by_run["cluster"].first()
    of_runs = cluster_bootstrap((means < below).to_numpy(dtype=float), clusters.tolist())
    of_runs = replace(of_runs, low=max(0.0, of_runs.low), high=min(1.0, of_runs.high))
    rows = [
        _rate_row("questions in past fine-tunes", "", of_pairs, len(pairs)),
        _rate_row("past fine-tunes, by mean score", "", of_runs, len(means)),
    ]
    for run, part in by_run:
        rate = wilson_interval(int((part["observed"] < below).sum()), len(part))
        rows.append(_rate_row("questions in one", str(run), rate, len(part)))
    return pd.DataFrame(rows)


def _rate_row(of: str, model: str, rate: Estimate, n: int) -> dict[str, Any]:
    return {"of": of, "model": model, **columns_of("misaligned", rate), "n": n}


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
    (of its tokens, from a capture of `resid_pre.0` at `mean_prompt`), as far as their inputs are
    given.

    Raises:
        InputError: an id without a text, score or embedding.
    """
    rivals = _rivals(forecaster.ids, texts, parent_scores, embedding)
    fold_of, severities = np.array(forecaster.fold), forecaster.severities()
    folds = []
    for k in range(len(forecaster.fold_ridges)):
        folds.append(OuterFold(0, np.flatnonzero(fold_of == k), np.flatnonzero(fold_of != k)))
    pairs = forecaster.pairs()
    row_numbers = {name: i for i, name in enumerate(forecaster.ids)}
    run_numbers = {name: j for j, name in enumerate(forecaster.runs)}
    rows, runs = pairs["id"].map(row_numbers), pairs["run"].map(run_numbers)
    for name, feature in rivals.items():
        hazard = _rival_hazard(forecaster, feature, folds, seed)
        predicted = forecaster.top - severities[fold_of] * hazard[:, forecaster.cluster_columns]
        on_scale = np.clip(predicted, forecaster.bottom, forecaster.top)
        pairs[name] = on_scale[rows.to_numpy(), runs.to_numpy()]
    return pairs


def _rivals(
    ids: Sequence[str],
    texts: Mapping[str, str] | None,
    parent_scores: Mapping[str, float] | None,
    embedding: Activations | None,
) -> dict[str, Features | None]:
    """Feature set of each rival whose input is given; None for the one that knows no question."""
    rivals: dict[str, Features | None] = {"severity": None}
    if texts is not None:
        _require_ids("text", ids, texts)
        rivals["text"] = TextFeatures("text", [texts[i] for i in ids])
    if parent_scores is not None:
        _require_ids("parent", ids, parent_scores)
        column = np.array([[float(parent_scores[i])] for i in ids])
        rivals["parent"] = MatrixFeatures("parent", column)
    if embedding is not None:
        _require_ids("embedding", ids, set(embedding.ids))
        values = embedding.select(ids)["resid_pre.0", "mean_prompt"]
        rivals["mean embedding"] = MatrixFeatures("mean embedding", values)
    return rivals


def _require_ids(name: str, ids: Sequence[str], known: Mapping[str, Any] | set[str]) -> None:
    for question in ids:
        if question not in known:
            raise InputError(
                f"{name} has no entry for question {one_line(question)!r};"
                " pass one for each the forecaster was fitted on"
            )


def _rival_hazard(
    forecaster: Forecaster, feature: Features | None, folds: Sequence[OuterFold], seed: int
) -> Array:
    """(row, left-out cluster) hazard forecast from the feature, or from nothing, out of fold."""
    hazard = np.empty((len(forecaster.ids), forecaster.fold_hazard.shape[2]))
    for fold, fold_hazard in zip(folds, forecaster.fold_hazard, strict=True):
        # the fold's own questions have no hazard, and none is read
        targets = np.nan_to_num(fold_hazard)
        if feature is None:
            predicted = training_means(targets, [fold])
        else:
            nested_folds = NestedFolds(forecaster.labels, [fold], 5, seed)
            predicted = nested_ridge([feature], targets, nested_folds).nested
        hazard[fold.test] = predicted[0][fold.test]
    return hazard

"""Fitting a forecaster on past fine-tunes of one parent, with the backtest that its intervals use.

The backtest leaves out a fold of questions and a cluster of fine-tunes at the same time, and does
everything again inside: hazard, severity, site, position and penalty. Cost of a fit: (folds + 1) ×
inner folds × sites × positions ridge factorisations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emlens.activations import Activations
from emlens.data.scores import AlignmentScores
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.probes.design import Design
from emlens.probes.features import MatrixFeatures, Rows, activation_cells, at_rows
from emlens.probes.forecaster import Forecaster
from emlens.probes.likeness import distance_bound
from emlens.probes.ridge import Array
from emlens.probes.severity import (
    SeverityModel,
    context_rows,
    fit_severity,
    hazard_of,
    run_weights,
    severity_of,
)
from emlens.probes.site_ridge import SiteRidge, choose_ridges
from emlens.probes.targets import Scores, bases_of, labels_of, questions_of, scores_by_id
from emlens.probes.validation import grouped_folds
from emlens.stats import ratio_of_means

MOST_FOLDS = 16
"""Groups up to which each is a fold of its own; more of them share 10 folds."""


def _require_two(labels: Sequence[str], design: Design) -> None:
    """Raises:
    InputError: nothing could be left out, because all rows are held out together.
    """
    if len(set(labels)) < 2:
        raise InputError(
            f"by groups={one_line(repr(design.groups), 60)} of the design, all {len(labels)} rows"
            " are held out together, so nothing is left to learn from; pass questions of 2 base"
            " questions or more"
        )


def fit_forecaster(
    acts: Activations,
    scores: Scores | pd.DataFrame,
    *,
    metric: str = "aligned",
    clusters: Mapping[str, str] | None = None,
    context: pd.DataFrame | None = None,
    scale: tuple[float, float] = (0.0, 100.0),
    false_refusals: float = 0.05,
    design: Design | None = None,
) -> Forecaster:
    """Fit on all questions and fine-tunes that are given.

    Site, position and penalty are chosen by cross-validation.

    Args:
        acts: the parent's activations on the questions, before any fine-tuning.
        scores: after fine-tuning: `AlignmentScores` of one or several fine-tunes, id → score or
            one score per row of one, or a table question × fine-tune, where NaN leaves a question
            out for a fine-tune (one of the domain it was trained on).
        clusters: fine-tune → what is held out with it (its domain); each its own where None.
        context: fine-tune × numbers known of its training file before training.
        scale: lowest and highest score.
        false_refusals: share of rows like the fitted ones that `predict` may refuse.
        design: of its fields, groups (`"group"`, for forecasts in domains not seen), inner_folds
            and seed are used.

    Raises:
        InputError: as `cross_validate_forecast`; a score outside the scale, a fine-tune without
            scores or cluster, unusable context, a design with fields that are not used here.

    Reference: Lee, Barber & Willett 2023 (intervals). Its honest accuracy is that of its backtest,
    `pairs()`.
    """
    design = design or Design()
    design.require_only(("groups", "inner_folds", "seed"), "fit_forecaster")
    labels, held_out = labels_of(acts, design.groups)
    _require_two(labels, design)
    observed, runs = _observed(acts, scores, metric, scale)
    run_context = _context_of(runs, context)
    past = _PastRuns(
        losses=scale[1] - observed,
        clusters=_clusters_of(runs, clusters),
        numbers=context_rows(run_context, runs),
        top=scale[1],
        seed=design.seed,
    )
    cells = activation_cells(acts)
    outer = _outer_folds(labels, design.seed)
    backtest = _backtest(cells, past, labels, outer, design)
    everything = np.arange(len(acts))
    splits = [past.split(everything, cluster) for cluster in (None, *past.left_out)]
    hazard = np.column_stack([split.hazard for split in splits])
    ridge = choose_ridges(
        cells, hazard[:, :1], everything, labels, design.inner_folds, design.seed, "all"
    )[0]
    reference = _values_at(cells, ridge)
    bases = bases_of(acts)
    question_folds = outer if held_out == "question" else _question_folds(bases, design.seed)
    known_bound, known_rate = distance_bound(reference, bases, question_folds, false_refusals)
    new_bound, new_rate = distance_bound(reference, labels, outer, false_refusals)
    return Forecaster(
        ridge=ridge,
        fold_ridges=backtest.ridges,
        severity=splits[0].severity,
        cluster_severity=tuple(split.severity for split in splits[1:]),
        fold_severity=backtest.severities,
        observed=observed,
        predicted=np.where(np.isfinite(observed), backtest.predicted, np.nan),
        hazard=hazard,
        fold_hazard=backtest.hazard,
        ids=tuple(acts.ids),
        labels=tuple(map(str, labels)),
        fold=tuple(backtest.fold.tolist()),
        runs=tuple(runs),
        clusters=tuple(past.clusters),
        reference=reference,
        bounds=(known_bound, new_bound),
        top=scale[1],
        bottom=scale[0],
        context=run_context.loc[list(runs)],
        facts={
            "provenance": dict(acts.provenance),
            "rows": len(acts),
            "groups": len(set(labels)),
            "held_out": held_out,
            "metric": metric,
            "false_refusals": [known_rate, new_rate],
            "cross_validated_r2": _r2_record(backtest, observed, labels, design.seed),
            "seed": design.seed,
        },
    )


@dataclass(frozen=True)
class _Split:
    """loss ≈ severity · hazard: hazard of each row, and what severity follows from."""

    hazard: Array
    severity: SeverityModel | None


@dataclass(frozen=True)
class _PastRuns:
    """Past fine-tunes: what each question lost in each, and what was known before training.

    Args:
        losses: (row, run) top of the scale minus score; NaN where a question does not count.
        clusters: of each run, what is held out with it.
        numbers: (run, number) context.
    """

    losses: Array
    clusters: list[str]
    numbers: Array
    top: float
    seed: int

    @property
    def left_out(self) -> list[str | None]:
        """Clusters to leave out, one after the other; [None] where there is only one."""
        names = sorted(set(self.clusters))
        if len(names) == 1:
            return [None]
        return [*names]

    def runs_of(self, cluster: str | None) -> list[int]:
        """Numbers of the runs of one cluster; of all runs for None."""
        if cluster is None:
            return list(range(len(self.clusters)))
        return np.flatnonzero(np.array(self.clusters) == cluster).tolist()

    def split(self, rows: Rows, without: str | None) -> _Split:
        """Hazard and severity from these rows and the runs outside one cluster."""
        weights = run_weights(self.clusters)
        weights = weights * np.array([cluster != without for cluster in self.clusters])
        weights = np.asarray(weights / weights.sum())
        hazard, severity = hazard_of(self.losses[rows], weights)
        if not self.numbers.shape[1]:
            return _Split(hazard, None)
        counted = np.flatnonzero(weights > 0)
        clusters = at_rows(self.clusters, counted)
        model = fit_severity(self.numbers[counted], severity[counted], clusters, self.seed)
        return _Split(hazard, model)


@dataclass(frozen=True)
class _Backtest:
    """Fits that left out a fold of questions and a cluster of runs, and what they predicted.

    Args:
        fold: (row,) the fold that held it out.
        ridges, severities: (fold, left-out cluster).
        hazard: (fold, row, left-out cluster) as measured without the fold's rows, NaN for those.
        predicted, mean: (row, run) predictions, and those of a fit that knows no question.
    """

    fold: NDArray[np.int64]
    ridges: tuple[tuple[SiteRidge, ...], ...]
    severities: tuple[tuple[SeverityModel | None, ...], ...]
    hazard: Array
    predicted: Array
    mean: Array


def _backtest(
    cells: Sequence[MatrixFeatures],
    past: _PastRuns,
    labels: Sequence[str],
    outer: Sequence[Rows],
    design: Design,
) -> _Backtest:
    n_rows, n_runs = past.losses.shape
    everything = np.arange(n_rows)
    fold = np.zeros(n_rows, dtype=np.int64)
    hazard = np.full((len(outer), n_rows, len(past.left_out)), np.nan)
    predicted, mean = np.full((n_rows, n_runs), np.nan), np.full((n_rows, n_runs), np.nan)
    ridges, severities = [], []
    for k, held_out in enumerate(outer):
        fit = np.setdiff1d(everything, held_out)
        splits = [past.split(fit, cluster) for cluster in past.left_out]
        hazard[k, fit] = np.column_stack([split.hazard for split in splits])
        fold_ridges = choose_ridges(
            cells, hazard[k], fit, labels, design.inner_folds, design.seed, f"fold {k}"
        )
        for c, cluster in enumerate(past.left_out):
            ridge = fold_ridges[c]
            expected = ridge.of(_values_at(cells, ridge)[held_out])
            for j in past.runs_of(cluster):
                severity = severity_of(splits[c].severity, past.numbers[j])
                predicted[held_out, j] = past.top - severity * expected
                mean[held_out, j] = past.top - hazard[k, fit, c].mean()
        fold[held_out] = k
        ridges.append(tuple(fold_ridges))
        severities.append(tuple(split.severity for split in splits))
    return _Backtest(fold, tuple(ridges), tuple(severities), hazard, predicted, mean)


def _values_at(cells: Sequence[MatrixFeatures], ridge: SiteRidge) -> Array:
    """(row, d_model) activations at the site and position that a ridge reads."""
    name = f"{ridge.site}@{ridge.position}"
    return next(cell.values for cell in cells if cell.name == name)


def _outer_folds(labels: Sequence[str], seed: int) -> list[Rows]:
    count = len(set(labels))
    if count > MOST_FOLDS:
        count = 10
    return grouped_folds(labels, count, seed, "forecaster")


def _question_folds(questions: Sequence[str], seed: int) -> list[Rows]:
    """Folds of single questions, for the distances of rows whose group was fitted on."""
    return grouped_folds(questions, min(10, len(set(questions))), seed, "distances")


def _r2_record(
    backtest: _Backtest, observed: Array, labels: Sequence[str], seed: int
) -> dict[str, Any]:
    """Pooled R² of the backtest with its interval; the ends of the ratio's interval swap."""
    rows, runs = np.nonzero(np.isfinite(observed))
    errors = ((backtest.predicted - observed) ** 2)[rows, runs]
    floors = ((backtest.mean - observed) ** 2)[rows, runs]
    row_labels = at_rows(labels, rows)
    share = ratio_of_means(errors, floors, clusters=row_labels, resamples=1999, seed=seed)
    return {
        "value": 1 - share.value,
        "low": 1 - share.high,
        "high": 1 - share.low,
        "n": share.n,
        "method": share.method,
    }


def _clusters_of(runs: Sequence[str], clusters: Mapping[str, str] | None) -> list[str]:
    """Cluster of each run; the run itself where none are given."""
    names = []
    for run in runs:
        if clusters is not None and run not in clusters:
            raise InputError(
                f"clusters has no entry for fine-tune {one_line(run)!r};"
                " pass one for each, such as its domain"
            )
        names.append(one_line(str((clusters or {}).get(run, run)), 200))
    return names


def _context_of(runs: Sequence[str], context: pd.DataFrame | None) -> pd.DataFrame:
    """The rows of the context that belong to these runs; without context a table of no columns."""
    if context is None:
        return pd.DataFrame(index=pd.Index(runs))
    return context.loc[[run for run in context.index if run in runs]]


def _observed(
    acts: Activations,
    scores: Scores | pd.DataFrame,
    metric: str,
    scale: tuple[float, float],
) -> tuple[Array, list[str]]:
    """(row, run) scores and the runs' names."""
    table = _score_table(scores, metric, acts.ids)
    observed = np.full((len(acts), table.shape[1]), np.nan)
    for i, (name, question) in enumerate(zip(acts.ids, questions_of(acts), strict=True)):
        key = name if name in table.index else question
        if key in table.index:
            observed[i] = table.loc[key].to_numpy(dtype=float)
    unscored = np.flatnonzero(~np.isfinite(observed).any(1))
    if len(unscored):
        raise InputError(
            f"row {one_line(acts.ids[unscored[0]])!r} has no {metric} score"
            f" (nor {len(unscored) - 1} more rows);"
            " score every question, or select the rows that have one"
        )
    for j, name in enumerate(table.columns):
        _require_on_scale(observed[:, j], str(name), scale)
    if np.nanmax(observed) == np.nanmin(observed):
        raise InputError(
            f"the {metric} score is {np.nanmax(observed):g} for every row;"
            " there is nothing to predict"
        )
    return observed, [str(name) for name in table.columns]


def _score_table(scores: Scores | pd.DataFrame, metric: str, ids: Sequence[str]) -> pd.DataFrame:
    """One column per fine-tune, one row per question."""
    if isinstance(scores, AlignmentScores):
        names = [str(name) for name in scores.models]
        return pd.DataFrame({name: scores.per_question(metric, name) for name in names})
    if isinstance(scores, pd.DataFrame):
        return scores
    return pd.DataFrame({"fine-tune": pd.Series(scores_by_id(scores, ids), dtype=float)})


def _require_on_scale(column: Array, name: str, scale: tuple[float, float]) -> None:
    values = column[np.isfinite(column)]
    if not len(values):
        raise InputError(f"fine-tune {one_line(name)!r} has no score on any row; leave it out")
    if values.min() < scale[0] or values.max() > scale[1]:
        raise InputError(
            f"fine-tune {one_line(name)!r} has scores from {values.min():g} to {values.max():g},"
            f" outside scale={scale}; pass the scale they are on"
        )

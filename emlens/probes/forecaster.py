"""A forecaster to keep: predicts each question's score after fine-tuning, with intervals, and
refuses what is unlike its fit.

It is fitted on one or several past fine-tunes of one parent. Every prediction in its own backtest,
and every residual of its intervals, comes from a fit that saw neither the question's group nor the
fine-tune's cluster; site, position and penalty are chosen inside that fit. Without fine-tunes of
several clusters the intervals know nothing of how fine-tunes differ, and say so. Saved as
safetensors and JSON, no pickle. Cost of a fit: (folds + 1) × inner folds × sites × positions ridge
factorisations.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from emlens.activations import Activations
from emlens.data.scores import AlignmentScores
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.probes.conformal import group_weights, jackknife_plus
from emlens.probes.features import Rows, activation_cells
from emlens.probes.likeness import (
    FAR_SHARE,
    REASONS,
    distance_bound,
    distances,
    model_differences,
    stale_rows,
)
from emlens.probes.ridge import Array
from emlens.probes.severity import (
    SeverityModel,
    context_rows,
    fit_severity,
    hazard_of,
    outside_context,
    run_weights,
)
from emlens.probes.site_ridge import SiteRidge, choose_ridges
from emlens.probes.targets import Scores, labels_of, questions_of
from emlens.probes.validation import grouped_folds
from emlens.stats import ratio_of_means

MOST_FOLDS = 16
"""Groups up to which each is a fold of its own; more of them are dealt into 10 folds."""

LEAST_SPREAD = 0.05
"""Severity, of the mean run's, below which residuals are not expected to shrink further with it."""


@dataclass(frozen=True)
class Forecaster:
    """What `fit_forecaster` found.

    Args:
        ridge: predicts hazard, the part of the scale below its top that a question stands to lose,
            in runs of mean severity.
        fold_ridges: (fold, left-out cluster) the same fitted without that fold's questions and that
            cluster's runs.
        severity, cluster_severity, fold_severity: severity from context: over all runs, without
            each cluster, and (fold, left-out cluster) without that fold's questions too; None
            without context.
        observed, predicted: (row, run) scores, and the backtest's predictions of them; NaN where a
            question does not count for a run.
        hazard, fold_hazard: (row, 1 + clusters) measured hazard of the questions fitted on: in all
            runs, and without each cluster; (fold, row, cluster) the same as measured without the
            fold's questions, NaN for those.
        ids, labels, fold: of the rows fitted on; labels are what was held out together.
        runs, clusters: the fine-tunes fitted on, and what was held out of them together.
        reference: (row, d_model) activations fitted on, at the site and position of `ridge`.
            bounds: largest distance from them of a row of a group fitted on, and of a row of a new
                group.
        context: run × number, known before training. facts: JSON-ready record of model, metric,
            seed and accuracy.
    """

    ridge: SiteRidge
    fold_ridges: tuple[tuple[SiteRidge, ...], ...]
    severity: SeverityModel | None
    cluster_severity: tuple[SeverityModel | None, ...]
    fold_severity: tuple[tuple[SeverityModel | None, ...], ...]
    observed: Array
    predicted: Array
    hazard: Array
    fold_hazard: Array
    ids: tuple[str, ...]
    labels: tuple[str, ...]
    fold: tuple[int, ...]
    runs: tuple[str, ...]
    clusters: tuple[str, ...]
    reference: Array
    bounds: tuple[float, float]
    top: float
    bottom: float
    context: pd.DataFrame
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def site(self) -> str:
        return self.ridge.site

    @property
    def position(self) -> str:
        return self.ridge.position

    @property
    def alpha(self) -> float:
        return self.ridge.alpha

    @property
    def places(self) -> list[tuple[str, str]]:
        """Every (site, position) that predictions with intervals read."""
        return sorted(
            {
                (r.site, r.position)
                for r in (self.ridge, *(r for row in self.fold_ridges for r in row))
            }
        )

    def predict(
        self,
        acts: Activations,
        *,
        context: Mapping[str, float] | None = None,
        allow: Collection[str] = (),
    ) -> pd.Series:
        """Predicted score by id; NaN for a row that is refused. `predict_table` gives the reasons
        and the intervals.

        Raises:
            InputError: as `predict_table`.
        """
        table = self._points(acts, context, allow)
        return pd.Series(table["predicted"].to_numpy(), index=acts.ids, name="predicted")

    def predict_table(
        self,
        acts: Activations,
        *,
        context: Mapping[str, float] | None = None,
        level: float = 0.9,
        allow: Collection[str] = (),
    ) -> pd.DataFrame:
        """One row a question: id, group, predicted, low, high, known, from_past, past_low,
        past_high, distance, bound, refused (the reason, or "").

        `low` and `high` hold the score of a new question in a new fine-tune at `level`
        (hierarchical jackknife+ over groups of questions). `known` questions were scored after past
        fine-tunes: `from_past` is what they lost there, at the severity forecast for this one, and
        `past_low` to `past_high` the scores seen.

        Args:
            context: numbers of the training file, by the names the forecaster was fitted with;
                needed where it has some.
            allow: reasons that do not refuse, of `"model"`, `"template"`, `"interventions"`,
                `"context"`, `"shift"`, `"far"`, `"stale"`. What is predicted then has no guarantee.

        Raises:
            InputError: the whole set is refused (the message says why): another model, template,
                interventions; a missing site or position, another width; most rows far from those
                fitted on; a training file unlike those fitted on. An unknown `allow`.
        """
        table = self._points(acts, context, allow)
        for site, position in self.places:
            self._require(acts, site, position)
        given = self._given(context)
        factors = [_severity(model, given) for row in self.fold_severity for model in row]
        ridges = [ridge for row in self.fold_ridges for ridge in row]
        centres = [
            self.top - factor * ridge(acts) for factor, ridge in zip(factors, ridges, strict=True)
        ]
        residuals, fold, labels = self._residuals()
        spreads = np.maximum(factors, LEAST_SPREAD)
        low, high = jackknife_plus(
            np.column_stack(centres), spreads, residuals, fold, group_weights(labels), level
        )
        shown = table["refused"].to_numpy() == ""
        for name, values in (("low", low), ("high", high)):
            table[name] = np.where(shown, np.clip(values, self.bottom, self.top), np.nan)
        first = ["id", "group", "predicted", "low", "high"]
        return table[[*first, *(c for c in table.columns if c not in first)]]

    def _points(
        self, acts: Activations, context: Mapping[str, float] | None, allow: Collection[str]
    ) -> pd.DataFrame:
        for name in allow:
            if name not in REASONS:
                raise InputError(
                    f"allow names {one_line(str(name))!r}; pass some of {', '.join(REASONS)}"
                )
        for reason, sentence in model_differences(
            self.facts["provenance"], acts.provenance
        ).items():
            if reason not in allow:
                raise InputError(f"{sentence}, or pass allow=[{reason!r}]")
        given = self._given(context)
        unlike = (
            None
            if given is None
            else outside_context(given, self.context.to_numpy(), list(self.context.columns))
        )
        if unlike and "context" not in allow:
            raise InputError(
                f"{unlike}; there is no forecast for such a file, or pass allow=['context']"
            )
        self._require(acts, self.site, self.position)
        values = acts[self.site, self.position].double().numpy()
        far = distances(values, self.reference)
        familiar = np.isin(np.array(acts.groups, dtype=object), sorted(set(self.labels))) & (
            self.facts["held_out"] == "group"
        )
        bound = np.where(familiar, self.bounds[0], self.bounds[1])
        beyond = far > bound
        if beyond.mean() > FAR_SHARE and "shift" not in allow:
            raise InputError(
                f"{beyond.sum()} of {len(acts)} rows lie further from those the forecaster was"
                f" fitted on than {float(bound.min()):.3g},"
                f" beyond which at most {100 * max(self.facts['false_refusals']):.2g} % of such"
                " rows lie; these are other prompts or another stream."
                " Fit on such, or pass allow=['shift']"
            )
        row = {name: i for i, name in enumerate(self.ids)}
        stale = stale_rows(acts.ids, values, row, self.reference)
        refused = np.full(len(acts), "", dtype=object)
        if "far" not in allow and "shift" not in allow:
            refused[beyond] = "far from the questions fitted on"
        if "stale" not in allow:
            refused[stale] = (
                "the id was fitted on with other activations: another text or template now"
            )
        severity = _severity(self.severity, given)
        predicted = self.top - severity * self.ridge.of(values)
        known = [
            row.get(name) if not old else None for name, old in zip(acts.ids, stale, strict=True)
        ]
        past = [
            self.observed[i][np.isfinite(self.observed[i])] if i is not None else np.array([])
            for i in known
        ]
        return pd.DataFrame(
            {
                "id": acts.ids,
                "group": acts.groups,
                "predicted": np.where(
                    refused == "", np.clip(predicted, self.bottom, self.top), np.nan
                ),
                "known": [i is not None for i in known],
                "from_past": [
                    (
                        np.nan
                        if i is None
                        else np.clip(self.top - severity * self.hazard[i, 0], self.bottom, self.top)
                    )
                    for i in known
                ],
                "past_low": [p.min() if len(p) else np.nan for p in past],
                "past_high": [p.max() if len(p) else np.nan for p in past],
                "distance": far,
                "bound": bound,
                "refused": refused,
            }
        )

    def severities(self) -> Array:
        """(fold, run) severity forecast for each run by what was learnt without its cluster and
        without the fold's questions.
        """
        numbers = context_rows(self.context, self.runs)
        return np.array(
            [
                [_severity(row[c], numbers[j]) for j, c in enumerate(self.column)]
                for row in self.fold_severity
            ]
        )

    @property
    def column(self) -> list[int]:
        """For each run, which of the left-out clusters is its own."""
        groups = sorted(set(self.clusters))
        return [groups.index(c) if len(groups) > 1 else 0 for c in self.clusters]

    def _residuals(self) -> tuple[Array, Rows, list[str]]:
        """Absolute residual in units of the run's forecast severity, number of the fit, and label
        of every (question, run) of the backtest.
        """
        rows, runs = np.nonzero(np.isfinite(self.observed))
        fold, column = np.array(self.fold)[rows], np.array(self.column)[runs]
        spreads = np.maximum(self.severities(), LEAST_SPREAD)[fold, runs]
        found = np.abs(self.observed - self.predicted)[rows, runs] / spreads
        fits = fold * len(self.cluster_severity) + column
        return found, fits.astype(np.int64), [self.labels[i] for i in rows]

    def _given(self, context: Mapping[str, float] | None) -> Array | None:
        """The context as one row, in the order of the fit; None where there is none."""
        wanted = [str(name) for name in self.context.columns]
        came = sorted(map(str, context or {}))
        if came != sorted(wanted):
            raise InputError(
                f"context has {came or 'nothing'}; this forecaster was fitted with"
                f" {wanted or 'none'}: pass those numbers"
            )
        if not wanted:
            return None
        row = pd.DataFrame([dict(context or {})], columns=wanted)
        return context_rows(row, [0])[0]  # type: ignore[list-item]

    def _require(self, acts: Activations, site: str, position: str) -> None:
        if site not in acts.sites or position not in acts.pooled_positions:
            raise InputError(
                f"acts hold {acts.sites} at {acts.positions};"
                f" the forecaster reads {site} at {position}: capture that too"
            )
        width = acts[site, position].shape[1]
        if width != self.reference.shape[1]:
            raise InputError(
                f"acts have {width} coordinates, the forecaster {self.reference.shape[1]};"
                " pass the same residual stream"
            )

    def pairs(self) -> pd.DataFrame:
        """The backtest: one row a question and fine-tune, neither its group nor its cluster seen by
        the fit that predicted it.

        Columns: id, label, run, cluster, observed, predicted; from_past: what the question lost in
        runs of other clusters, at the severity forecast for this one; past_mean: its mean score
        there.
        """
        rows, runs = np.nonzero(np.isfinite(self.observed))
        clusters, numbers = np.array(self.clusters), context_rows(self.context, self.runs)
        repeated, mean = np.full(self.observed.shape, np.nan), np.full(self.observed.shape, np.nan)
        for c, label in enumerate(
            sorted(set(self.clusters)) if len(set(self.clusters)) > 1 else []
        ):
            mine = np.flatnonzero(clusters == label)
            mean[:, mine] = np.nanmean(self.observed[:, clusters != label], axis=1)[:, None]
            for j in mine:
                repeated[:, j] = (
                    self.top
                    - _severity(self.cluster_severity[c], numbers[j]) * self.hazard[:, c + 1]
                )
        return pd.DataFrame(
            {
                "id": [self.ids[i] for i in rows],
                "label": [self.labels[i] for i in rows],
                "run": [self.runs[j] for j in runs],
                "cluster": clusters[runs],
                "observed": self.observed[rows, runs],
                "predicted": np.clip(self.predicted[rows, runs], self.bottom, self.top),
                "from_past": np.clip(repeated[rows, runs], self.bottom, self.top),
                "past_mean": mean[rows, runs],
            }
        )

    def save(self, directory: str | Path) -> Path:
        """Write `forecaster.safetensors` and `forecaster.json`."""
        from emlens.probes.forecaster_files import save

        return save(self, Path(directory))

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            InputError: nothing there, or no forecaster of this version.
            IntegrityError: the weights are missing, or not those the record describes.
        """
        from emlens.probes.forecaster_files import load

        return cls(**load(Path(directory)))


def _severity(model: SeverityModel | None, context: Array | None) -> float:
    """Severity of the run with this context, in units of the mean severity of the runs fitted
    on.
    """
    return 1.0 if model is None or context is None else float(model(context[None])[0])


def fit_forecaster(
    acts: Activations,
    scores: Scores | pd.DataFrame,
    *,
    metric: str = "aligned",
    model: str | None = None,
    groups: str | Sequence[str] | None = None,
    clusters: Mapping[str, str] | None = None,
    context: pd.DataFrame | None = None,
    scale: tuple[float, float] = (0.0, 100.0),
    folds: int = 5,
    false_refusals: float = 0.05,
    seed: int = 0,
) -> Forecaster:
    """Fit on all questions and fine-tunes that are given; site, position and penalty by
    cross-validation.

    Args:
        acts: the parent's activations on the questions, before any fine-tuning.
        scores: after fine-tuning: `AlignmentScores` of one or several fine-tunes, id → score of
            one, or a table question × fine-tune, where NaN leaves a question out for a fine-tune
            (one of the domain it was trained on).
        model: the fine-tune to take, where `scores` holds several; None takes all.
        groups: what is held out together: None: each question; `"group"`: the rows' groups, for
            forecasts in domains not seen; or labels.
        clusters: fine-tune → what is held out with it (its domain); each its own where None.
        context: fine-tune × numbers known of its training file before training.
        scale: lowest and highest score. folds: inner folds. false_refusals: share of rows like the
            fitted ones that `predict` may refuse.

    Raises:
        InputError: as `cross_validate_forecast`; a score outside the scale, a fine-tune without
            scores or cluster, unusable context.

    Reference: Lee, Barber & Willett 2023 (intervals). Its honest accuracy is that of its backtest,
    `pairs()`.
    """
    labels, held_out = labels_of(acts, groups)
    observed, runs = _observed(acts, scores, metric, model, scale)
    named = [
        (
            one_line(str((clusters or {}).get(run, run)), 200)
            if clusters is None or run in clusters
            else None
        )
        for run in runs
    ]
    if None in named:
        raise InputError(
            f"clusters has no entry for fine-tune {one_line(runs[named.index(None)])!r};"
            " pass one for each, such as its domain"
        )
    own = [str(label) for label in named]
    given = (
        pd.DataFrame(index=pd.Index(runs))
        if context is None
        else context.loc[[run for run in context.index if run in runs]]
    )
    numbers = context_rows(given, runs)
    cells = activation_cells(acts)
    distinct = sorted(set(labels))
    outer = grouped_folds(
        labels, len(distinct) if len(distinct) <= MOST_FOLDS else 10, seed, "forecaster"
    )
    left_out: list[str | None] = [*sorted(set(own))] if len(set(own)) > 1 else [None]
    losses = scale[1] - observed
    weights = [_without(own, label) for label in (None, *left_out)]
    splits = [hazard_of(losses, part) for part in weights]
    targets = np.column_stack([hazard for hazard, _ in splits])
    severities = [
        _severity_model(numbers, size, part, own, seed)
        for (_, size), part in zip(splits, weights, strict=True)
    ]
    everything = np.arange(len(acts))
    predicted, floor = np.full(observed.shape, np.nan), np.full(observed.shape, np.nan)
    fold, ridges, models = np.zeros(len(acts), dtype=int), [], []
    measured = np.full((len(outer), len(acts), len(left_out)), np.nan)
    for k, held in enumerate(outer):
        rest = np.setdiff1d(everything, held)
        parts = [hazard_of(losses[rest], part) for part in weights[1:]]
        measured[k, rest] = np.column_stack([hazard for hazard, _ in parts])
        models.append(
            tuple(
                _severity_model(numbers, size, part, own, seed)
                for (_, size), part in zip(parts, weights[1:], strict=True)
            )
        )
        ridges.append(
            tuple(choose_ridges(cells, measured[k], rest, labels, folds, seed, f"fold {k}"))
        )
        fold[held] = k
        for c, (label, ridge, model_c) in enumerate(
            zip(left_out, ridges[-1], models[-1], strict=True)
        ):
            values = next(
                cell.values for cell in cells if cell.name == f"{ridge.site}@{ridge.position}"
            )
            for j in [j for j, name in enumerate(own) if label is None or name == label]:
                predicted[held, j] = scale[1] - _severity(model_c, numbers[j]) * ridge.of(
                    values[held]
                )
                floor[held, j] = scale[1] - measured[k, rest, c].mean()
    predicted, floor = (
        np.where(np.isfinite(observed), part, np.nan) for part in (predicted, floor)
    )
    ridge = choose_ridges(cells, targets[:, :1], everything, labels, folds, seed, "all")[0]
    reference = next(cell.values for cell in cells if cell.name == f"{ridge.site}@{ridge.position}")
    alone = questions_of(acts)
    fold_alone = (
        outer
        if held_out == "question"
        else grouped_folds(alone, min(10, len(set(alone))), seed, "distances")
    )
    limits = [
        distance_bound(reference, names, parts, false_refusals)
        for names, parts in ((alone, fold_alone), (labels, outer))
    ]
    rows, columns = np.nonzero(np.isfinite(observed))
    errors, floors = (((part - observed) ** 2)[rows, columns] for part in (predicted, floor))
    share = ratio_of_means(
        errors, floors, clusters=[labels[i] for i in rows], resamples=1999, seed=seed
    )
    facts = {
        "provenance": dict(acts.provenance),
        "rows": len(acts),
        "groups": len(distinct),
        "held_out": held_out,
        "metric": metric,
        "false_refusals": [rate for _, rate in limits],
        "cross_validated_r2": {
            "value": 1 - share.value,
            "low": 1 - share.high,
            "high": 1 - share.low,
            "n": share.n,
            "method": share.method,
        },
        "seed": seed,
    }
    return Forecaster(
        ridge=ridge,
        fold_ridges=tuple(ridges),
        severity=severities[0],
        cluster_severity=tuple(severities[1:]),
        fold_severity=tuple(models),
        observed=observed,
        predicted=predicted,
        hazard=targets,
        fold_hazard=measured,
        ids=tuple(acts.ids),
        labels=tuple(map(str, labels)),
        fold=tuple(fold.tolist()),
        runs=tuple(runs),
        clusters=tuple(own),
        reference=reference,
        bounds=(limits[0][0], limits[1][0]),
        top=scale[1],
        bottom=scale[0],
        context=given.loc[list(runs)],
        facts=facts,
    )


def _without(clusters: Sequence[str], label: str | None) -> Array:
    """Weights of the runs outside one cluster."""
    weights = run_weights(clusters) * np.array([name != label for name in clusters])
    return np.asarray(weights / weights.sum())


def _severity_model(
    numbers: Array, severity: Array, weights: Array, clusters: Sequence[str], seed: int
) -> SeverityModel | None:
    """Learnt from the runs that have a weight."""
    if not numbers.shape[1]:
        return None
    kept = np.flatnonzero(weights > 0)
    return fit_severity(numbers[kept], severity[kept], [clusters[int(i)] for i in kept], seed)


def _observed(
    acts: Activations,
    scores: Scores | pd.DataFrame,
    metric: str,
    model: str | None,
    scale: tuple[float, float],
) -> tuple[Array, list[str]]:
    """(row, run) scores and the runs' names."""
    questions = questions_of(acts)
    if isinstance(scores, AlignmentScores):
        names = [str(name) for name in scores.models] if model is None else [model]
        table = pd.DataFrame({name: scores.per_question(metric, name) for name in names})
    elif isinstance(scores, pd.DataFrame):
        table = scores if model is None else scores[[model]]
    else:
        table = pd.DataFrame({model or "fine-tune": pd.Series(dict(scores.items()), dtype=float)})
    found = np.full((len(acts), table.shape[1]), np.nan)
    for i, (name, question) in enumerate(zip(acts.ids, questions, strict=True)):
        key = name if name in table.index else question
        if key in table.index:
            found[i] = table.loc[key].to_numpy(dtype=float)
    lacking = np.flatnonzero(~np.isfinite(found).any(1))
    if len(lacking):
        raise InputError(
            f"row {one_line(acts.ids[lacking[0]])!r} has no {metric} score (nor {len(lacking) - 1}"
            " more rows); score every question, or select the rows that have one"
        )
    for j, name in enumerate(table.columns):
        values = found[np.isfinite(found[:, j]), j]
        if not len(values):
            raise InputError(
                f"fine-tune {one_line(str(name))!r} has no score on any row; leave it out"
            )
        if values.min() < scale[0] or values.max() > scale[1]:
            span = f"{values.min():g} to {values.max():g}"
            raise InputError(
                f"fine-tune {one_line(str(name))!r} has scores from {span}, outside scale={scale};"
                " pass the scale they are on"
            )
    if np.nanmax(found) == np.nanmin(found):
        raise InputError(
            f"the {metric} score is {np.nanmax(found):g} for every row; there is nothing to predict"
        )
    return found, [str(name) for name in table.columns]

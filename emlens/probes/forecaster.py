"""A forecaster to keep: predicts each question's score after fine-tuning, with intervals, and
refuses what is unlike its fit.

`fit_forecaster` makes one from one or several past fine-tunes of one parent. Every prediction in
its own backtest, and every residual of its intervals, comes from a fit that saw neither the
question's group nor the fine-tune's cluster; site, position and penalty are chosen inside that fit.
Without fine-tunes of several clusters the intervals know nothing of how fine-tunes differ, and say
so. Saved as safetensors and JSON, no pickle.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emlens.activations import Activations
from emlens.foundation.errors import InputError
from emlens.foundation.notebooks import Brief, Picture
from emlens.probes.conformal import group_weights, jackknife_plus
from emlens.probes.features import Rows, at_rows
from emlens.probes.likeness import (
    FAR_SHARE,
    distances,
    require_reasons,
    require_same_model,
    stale_rows,
)
from emlens.probes.ridge import Array
from emlens.probes.severity import SeverityModel, context_rows, outside_context, severity_of
from emlens.probes.site_ridge import SiteRidge

LEAST_SPREAD = 0.05
"""Severity, of the mean run's, below which residuals are not expected to shrink further with it."""


@dataclass(frozen=True, repr=False)
class Forecaster(Brief):
    """What `fit_forecaster` fitted.

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
        top, bottom: ends of the scale of the scores.
        context: run × number, known before training.
        facts: JSON-ready record of model, metric, seed and accuracy.
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
        ridges = [self.ridge]
        for row in self.fold_ridges:
            ridges += row
        return sorted({(ridge.site, ridge.position) for ridge in ridges})

    @property
    def left_out_clusters(self) -> list[str]:
        """Clusters that the backtest left out, one after the other; none where there is one."""
        names = sorted(set(self.clusters))
        if len(names) == 1:
            return []
        return names

    @property
    def cluster_columns(self) -> list[int]:
        """For each run, the column of its own cluster among those left out."""
        names = self.left_out_clusters
        if not names:
            return [0] * len(self.clusters)
        return [names.index(cluster) for cluster in self.clusters]

    def predict(
        self,
        acts: Activations,
        *,
        context: Mapping[str, float] | None = None,
        allow: Collection[str] = (),
    ) -> pd.Series:
        """Predicted score by id; NaN for a row that is refused.

        `predict_table` gives the reasons and the intervals.

        Raises:
            InputError: as `predict_table`.
        """
        table = self._point_table(acts, context, allow)
        return pd.Series(table["predicted"].to_numpy(), index=acts.ids, name="predicted")

    def predict_table(
        self,
        acts: Activations,
        *,
        context: Mapping[str, float] | None = None,
        level: float = 0.9,
        allow: Collection[str] = (),
    ) -> pd.DataFrame:
        """One row per question: id, group, predicted, low, high, known, from_past, past_low,
        past_high, distance, bound, refused (the reason, or "").

        `low` and `high` hold the score of a new question in a new fine-tune at `level`
        (hierarchical jackknife+ over groups of questions). `known` questions were scored after past
        fine-tunes: `from_past` is what they lost there, at the severity forecast for this one, and
        `past_low` to `past_high` the scores they had.

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
        table = self._point_table(acts, context, allow)
        for site, position in self.places:
            self._require_place(acts, site, position)
        low, high = self._intervals(acts, self._context_numbers(context), level)
        is_predicted = table["refused"].to_numpy() == ""
        for name, values in (("low", low), ("high", high)):
            table[name] = np.where(is_predicted, np.clip(values, self.bottom, self.top), np.nan)
        first = ["id", "group", "predicted", "low", "high"]
        return table[[*first, *(name for name in table.columns if name not in first)]]

    def _intervals(
        self, acts: Activations, numbers: Array | None, level: float
    ) -> tuple[Array, Array]:
        """Both ends for each row: jackknife+ over the fits that left out a group and a cluster.

        Residuals are measured in units of the severity that was forecast for their run, so that a
        mild fine-tune gets a narrow interval.
        """
        severities, centres = [], []
        for models, ridges in zip(self.fold_severity, self.fold_ridges, strict=True):
            for model, ridge in zip(models, ridges, strict=True):
                severity = severity_of(model, numbers)
                severities.append(severity)
                centres.append(self.top - severity * ridge(acts))
        residuals, fits, labels = self._residuals()
        spreads = np.maximum(severities, LEAST_SPREAD)
        return jackknife_plus(
            np.column_stack(centres), spreads, residuals, fits, group_weights(labels), level
        )

    def _point_table(
        self, acts: Activations, context: Mapping[str, float] | None, allow: Collection[str]
    ) -> pd.DataFrame:
        """`predict_table` without intervals."""
        require_reasons(allow)
        require_same_model(self.facts["provenance"], acts.provenance, allow)
        numbers = self._context_numbers(context)
        self._require_known_context(numbers, allow)
        self._require_place(acts, self.site, self.position)
        values = acts[self.site, self.position].double().numpy()
        distance = distances(values, self.reference)
        bound = self._distance_bounds(acts)
        is_far = distance > bound
        self._require_near(is_far, bound, allow)
        row_numbers = {name: i for i, name in enumerate(self.ids)}
        is_stale = stale_rows(acts.ids, values, row_numbers, self.reference)
        refused = np.full(len(acts), "", dtype=object)
        if "far" not in allow and "shift" not in allow:
            refused[is_far] = "far from the questions fitted on"
        if "stale" not in allow:
            refused[is_stale] = (
                "the id was fitted on with other activations: another text or template now"
            )
        severity = severity_of(self.severity, numbers)
        predicted = self._on_scale(self.top - severity * self.ridge.of(values))
        rows = np.array([row_numbers.get(name, -1) for name in acts.ids])
        rows[is_stale] = -1
        return pd.DataFrame(
            {
                "id": acts.ids,
                "group": acts.groups,
                "predicted": np.where(refused == "", predicted, np.nan),
                **self._past_columns(rows, severity),
                "distance": distance,
                "bound": bound,
                "refused": refused,
            }
        )

    def _on_scale(self, scores: Array) -> Array:
        return np.asarray(np.clip(scores, self.bottom, self.top))

    def _past_columns(self, rows: NDArray[np.int64], severity: float) -> dict[str, Array]:
        """What past fine-tunes say of each question; `rows` is its number, or −1 for a new one."""
        is_known = rows >= 0
        from_past = self._on_scale(self.top - severity * self.hazard[rows, 0])
        scores = np.where(is_known[:, None], self.observed[rows], np.nan)
        return {
            "known": is_known,
            "from_past": np.where(is_known, from_past, np.nan),
            # fmin and fmax skip NaN, and give NaN where there is nothing else
            "past_low": np.fmin.reduce(scores, axis=1),
            "past_high": np.fmax.reduce(scores, axis=1),
        }

    def severities(self) -> Array:
        """(fold, run) severity forecast for each run by what was learnt without its cluster and
        without the fold's questions.
        """
        numbers = context_rows(self.context, self.runs)
        table = np.empty((len(self.fold_severity), len(self.runs)))
        for k, models in enumerate(self.fold_severity):
            for j, column in enumerate(self.cluster_columns):
                table[k, j] = severity_of(models[column], numbers[j])
        return table

    def _residuals(self) -> tuple[Array, Rows, list[str]]:
        """Absolute residual in units of the run's forecast severity, number of the fit, and label
        of every (question, run) of the backtest.
        """
        rows, runs = np.nonzero(np.isfinite(self.observed))
        fold, column = np.array(self.fold)[rows], np.array(self.cluster_columns)[runs]
        spreads = np.maximum(self.severities(), LEAST_SPREAD)[fold, runs]
        residuals = np.abs(self.observed - self.predicted)[rows, runs] / spreads
        fits = fold * len(self.cluster_severity) + column
        return residuals, fits.astype(np.int64), at_rows(self.labels, rows)

    def _context_numbers(self, context: Mapping[str, float] | None) -> Array | None:
        """The context as one row, in the order of the fit; None where there is none."""
        names = [str(name) for name in self.context.columns]
        keys = sorted(map(str, context or {}))
        if keys != sorted(names):
            raise InputError(
                f"context has {keys or 'nothing'}; this forecaster was fitted with"
                f" {names or 'none'}: pass those numbers"
            )
        if not names:
            return None
        row = pd.DataFrame([dict(context or {})], columns=names)
        return context_rows(row, [0])[0]  # type: ignore[list-item]

    def _require_known_context(self, numbers: Array | None, allow: Collection[str]) -> None:
        if numbers is None or "context" in allow:
            return
        unlike = outside_context(numbers, self.context.to_numpy(), list(self.context.columns))
        if unlike:
            raise InputError(
                f"{unlike}; there is no forecast for such a file, or pass allow=['context']"
            )

    def _require_place(self, acts: Activations, site: str, position: str) -> None:
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

    def _distance_bounds(self, acts: Activations) -> Array:
        """Largest distance of each row: wider for a group that was not fitted on."""
        if self.facts["held_out"] != "group":
            return np.full(len(acts), self.bounds[1])
        groups = np.array(acts.groups, dtype=object)
        is_fitted_group = np.isin(groups, sorted(set(self.labels)))
        return np.where(is_fitted_group, self.bounds[0], self.bounds[1])

    def _require_near(
        self, is_far: NDArray[np.bool_], bound: Array, allow: Collection[str]
    ) -> None:
        """Refuse the whole set where most rows are far."""
        if is_far.mean() > FAR_SHARE and "shift" not in allow:
            raise InputError(
                f"{is_far.sum()} of {len(is_far)} rows lie further from those the forecaster was"
                f" fitted on than {float(bound.min()):.3g},"
                f" beyond which at most {100 * max(self.facts['false_refusals']):.2g} % of such"
                " rows lie; these are other prompts or another stream."
                " Fit on such, or pass allow=['shift']"
            )

    def plot(self) -> Picture:
        """The backtest: forecast against what was observed, a colour per fine-tune."""
        from emlens.probes.pictures import picture_of_pairs

        title = "Backtest: forecast against observation, per question and fine-tune"
        return picture_of_pairs(
            self.pairs(), "observed", "predicted", title, group="run", hover=("id",)
        )

    def pairs(self) -> pd.DataFrame:
        """The backtest: one row per question and fine-tune; the fit that predicted it saw neither
        the question's group nor the fine-tune's cluster.

        Columns: id, label, run, cluster, observed, predicted; from_past: what the question lost in
        runs of other clusters, at the severity forecast for this one; past_mean: its mean score
        there.
        """
        rows, runs = np.nonzero(np.isfinite(self.observed))
        from_past, past_mean = self._past_forecasts()
        return pd.DataFrame(
            {
                "id": at_rows(self.ids, rows),
                "label": at_rows(self.labels, rows),
                "run": at_rows(self.runs, runs),
                "cluster": np.array(self.clusters)[runs],
                "observed": self.observed[rows, runs],
                "predicted": self._on_scale(self.predicted[rows, runs]),
                "from_past": self._on_scale(from_past[rows, runs]),
                "past_mean": past_mean[rows, runs],
            }
        )

    def _past_forecasts(self) -> tuple[Array, Array]:
        """(row, run) from_past and past_mean; NaN where all runs are of one cluster."""
        clusters, numbers = np.array(self.clusters), context_rows(self.context, self.runs)
        from_past = np.full(self.observed.shape, np.nan)
        past_mean = np.full(self.observed.shape, np.nan)
        for c, label in enumerate(self.left_out_clusters):
            in_cluster = np.flatnonzero(clusters == label)
            elsewhere = self.observed[:, clusters != label]
            past_mean[:, in_cluster] = np.nanmean(elsewhere, axis=1)[:, None]
            for j in in_cluster:
                severity = severity_of(self.cluster_severity[c], numbers[j])
                from_past[:, j] = self.top - severity * self.hazard[:, c + 1]
        return from_past, past_mean

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

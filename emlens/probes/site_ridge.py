"""Ridge on one site and position, chosen by grouped cross-validation: the piece that a forecaster
keeps, once for all rows and once per fold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emlens.activations import Activations
from emlens.foundation.notebooks import Brief
from emlens.probes.features import MatrixFeatures, Rows, at_rows
from emlens.probes.ridge import (
    ALPHAS,
    Array,
    RidgePath,
    mean_and_scale,
    ridge_weights,
    standardise,
)
from emlens.probes.validation import grouped_folds


@dataclass(frozen=True, repr=False)
class SiteRidge(Brief):
    """Weights, intercept and scaling of one fitted ridge.

    Args:
        weights, mean, scale: (d_model,); mean and scale are those of the rows it was fitted on.
    """

    site: str
    position: str
    alpha: float
    weights: Array
    intercept: float
    mean: Array
    scale: Array

    def __call__(self, acts: Activations) -> Array:
        """Predicted target of each row."""
        return self.of(acts[self.site, self.position].double().numpy())

    def of(self, values: Array) -> Array:
        """Predicted target of each row of (row, d_model) activations at its place."""
        return np.asarray((values - self.mean) / self.scale @ self.weights + self.intercept)


def choose_ridges(
    cells: Sequence[MatrixFeatures],
    targets: Array,
    rows: Rows,
    labels: Sequence[object],
    folds: int,
    seed: int,
    name: str,
    *,
    alphas: Sequence[float] = ALPHAS,
    weights: Array | None = None,
) -> list[SiteRidge]:
    """For each target column the ridge that predicts best with whole labels held out.

    Chosen are site, position and penalty, by squared error on the held-out rows.

    Args:
        targets: (row, target) of all rows.
        rows: those to fit on.
        labels: of all rows.
        name: of the random split into folds.
        alphas: penalties to choose among. weights: one per row, for fitting and choosing.
    """
    row_labels = at_rows(labels, rows)
    count = min(folds, len(set(map(str, row_labels))))
    inner = grouped_folds(row_labels, count, seed, name)
    errors = np.zeros((len(cells), len(alphas), targets.shape[1]))
    row_weights = np.ones(len(targets)) if weights is None else weights
    for c, cell in enumerate(cells):
        for held_out in inner:
            fit, test = rows[np.setdiff1d(np.arange(len(rows)), held_out)], rows[held_out]
            train_x, test_x = cell.split(fit, test)
            path = RidgePath(train_x, test_x, None if weights is None else weights[fit])
            gap = path.predict(targets[fit], alphas) - targets[test]
            errors[c] += np.einsum("art,r->at", gap**2, row_weights[test])
    best = errors.reshape(-1, targets.shape[1]).argmin(0)
    ridges = []
    for column, choice in enumerate(best):
        cell, alpha = cells[choice // len(alphas)], alphas[choice % len(alphas)]
        ridges.append(_fit(cell, targets[rows, column], rows, alpha, weights))
    return ridges


def _fit(
    cell: MatrixFeatures, target: Array, rows: Rows, alpha: float, row_weights: Array | None
) -> SiteRidge:
    values = cell.values[rows]
    mean, scale = mean_and_scale(values)
    of_rows = None if row_weights is None else row_weights[rows]
    weights, intercept = ridge_weights(standardise(values, values)[0], target, alpha, of_rows)
    site, position = cell.name.rsplit("@", 1)
    return SiteRidge(site, position, alpha, weights, intercept, mean, scale)

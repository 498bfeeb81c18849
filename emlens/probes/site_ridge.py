"""Ridge on one site and position, chosen by grouped cross-validation: the piece that a forecaster
keeps, once for all rows and once a fold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emlens.activations import Activations
from emlens.probes.features import MatrixFeatures, Rows
from emlens.probes.ridge import ALPHAS, Array, ridge_path, ridge_weights, standardise
from emlens.probes.validation import grouped_folds


@dataclass(frozen=True)
class SiteRidge:
    """Weights, intercept and scaling of one fitted ridge. mean, scale: of the rows it was fitted
    on.
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
        return np.asarray((values - self.mean) / self.scale @ self.weights + self.intercept)


def choose_ridges(
    cells: Sequence[MatrixFeatures],
    targets: Array,
    rows: Rows,
    labels: Sequence[object],
    folds: int,
    seed: int,
    name: str,
) -> list[SiteRidge]:
    """For each target column the ridge on `rows` whose site, position and penalty predict best with
    whole labels held out.

    Args:
        targets: (row, target) of all rows. labels: of all rows. name: of the random split into
            folds.
    """
    own = [labels[i] for i in rows]
    inner = grouped_folds(own, min(folds, len(set(map(str, own)))), seed, name)
    errors = np.zeros((len(cells), len(ALPHAS), targets.shape[1]))
    for c, cell in enumerate(cells):
        for held in inner:
            fit, test = rows[np.setdiff1d(np.arange(len(rows)), held)], rows[held]
            train_x, test_x = cell.split(fit, test)
            errors[c] += ((ridge_path(train_x, test_x, targets[fit]) - targets[test]) ** 2).sum(1)
    best = errors.reshape(-1, targets.shape[1]).argmin(0)
    return [
        _fit(cells[b // len(ALPHAS)], targets[rows, j], rows, ALPHAS[b % len(ALPHAS)])
        for j, b in enumerate(best)
    ]


def _fit(cell: MatrixFeatures, target: Array, rows: Rows, alpha: float) -> SiteRidge:
    values = cell.values[rows]
    mean, sd = values.mean(0), values.std(0)
    scale = np.where(sd > 1e-12 * np.maximum(1.0, np.abs(mean)), sd, np.inf)
    weights, intercept = ridge_weights(standardise(values, values)[0], target, alpha)
    site, position = cell.name.rsplit("@", 1)
    return SiteRidge(site, position, alpha, weights, intercept, mean, scale)

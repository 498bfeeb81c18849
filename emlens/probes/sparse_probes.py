"""Which few of many features tell two kinds of rows apart: sparse logistic probes, with what chance
would select.

Made for adapter scalars (`emlens.interventions.adapter_scalars(...).pooled()`): the adapters whose
scalars tell misaligned from aligned answers on the trained domain are narrow, those that tell them
apart elsewhere general (Soligo et al. 2025, arXiv 2506.11618). An L1 penalty picks few of several
correlated features more or less at random, so the share of resamples that pick a feature is
reported, beside how often its shuffled copy is picked. Whole units (questions) are resampled and
held out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emlens.data.base_questions import base_question
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.notebooks import Brief
from emlens.foundation.seeds import numpy_rng
from emlens.probes.features import at_rows
from emlens.probes.ridge import Array, standardise
from emlens.probes.validation import grouped_folds
from emlens.stats.rank_areas import area_under_curve

PENALTIES: Final[tuple[float, ...]] = tuple(float(a) for a in np.logspace(-1, 2, 7))
"""L1 penalties tried: of Σ log-loss + penalty · ‖w‖₁, features standardised."""


@dataclass(frozen=True, repr=False)
class SparseProbe(Brief):
    """Which features tell two kinds of rows apart.

    Args:
        table: one row per feature, most often selected first: `feature`; `weight`, the mean over
            resamples, per standard deviation of the feature, positive towards True; `weight_low`,
            `weight_high`, its 2.5 % and 97.5 % quantiles; `selected`, the share of resamples whose
            weight is not 0; `selected_by_chance`, that share among shuffled copies; `n`, rows.
        auc: area under the ROC curve on held-out units, the penalty chosen inside the training
            units; .5 is chance.
        penalty: chosen on all units.
    """

    table: pd.DataFrame
    auc: Estimate
    penalty: float


def sparse_probe(
    features: pd.DataFrame,
    labels: Mapping[str, bool],
    units: Mapping[str, str] | None = None,
    *,
    folds: int = 5,
    resamples: int = 50,
    seed: int = 0,
) -> SparseProbe:
    """Fit an L1-penalised logistic probe and say how stable its choice of features is.

    Args:
        features: one row per id (the index), one column per feature.
        labels: id → class. Rows without a label are left out.
        units: id → what is held out and resampled together, such as the question of an answer; by
            default the base question of the id, so that the forms of a question stay together.
        folds: of the held-out area, and inside them of the penalty.
        resamples: bootstrap resamples of units behind the table.

    Raises:
        InputError: no labelled row, values that are not finite, a label without a unit, a class
            with fewer units than folds.
    """
    data = _read(features, labels, units)
    _require_units_of_each_class(data, folds)
    everything = np.arange(len(data.y))
    scores = np.empty(len(data.y))
    for test in grouped_folds(data.units, folds, seed, "sparse_probe"):
        train = np.setdiff1d(everything, test)
        penalty = _choose_penalty(data.at(train), folds, seed)
        train_x, test_x = standardise(data.x[train], data.x[test])
        scores[test] = _fit(train_x, data.y[train], penalty).decision_function(test_x)
    auc = area_under_curve(scores, data.y, data.units, 499, seed)
    penalty = _choose_penalty(data, folds, seed)
    table = _stability(features.columns, data, penalty, resamples, seed)
    return SparseProbe(table, auc, penalty)


@dataclass(frozen=True)
class _Data:
    """Labelled rows: (row, feature) values, +1 or −1 by class, and the unit of each row."""

    x: Array
    y: NDArray[np.int64]
    units: list[str]

    def at(self, rows: NDArray[np.int64]) -> "_Data":
        return _Data(self.x[rows], self.y[rows], at_rows(self.units, rows))


def _read(
    features: pd.DataFrame, labels: Mapping[str, bool], units: Mapping[str, str] | None
) -> _Data:
    ids = [name for name in features.index if name in labels]
    if not ids:
        raise InputError(
            f"labels has none of the {len(features)} ids of features; pass id → True or False"
        )
    row_units = []
    for name in ids:
        if units is not None and name not in units:
            raise InputError(f"units has no entry for row {name!r}; pass one for each labelled id")
        row_units.append(base_question(str(name)) if units is None else str(units[name]))
    x = features.loc[ids].to_numpy(dtype=np.float64)
    if not np.isfinite(x).all():
        raise InputError("features hold values that are not finite; drop those columns or rows")
    y = np.where([bool(labels[name]) for name in ids], 1, -1)
    return _Data(x, y, row_units)


def _require_units_of_each_class(data: _Data, folds: int) -> None:
    for sign, name in ((1, "True"), (-1, "False")):
        count = len(set(data.at(np.flatnonzero(data.y == sign)).units))
        if folds < 2 or count < folds:
            raise InputError(
                f"rows labelled {name} come from {count} units with folds={folds};"
                " pass 2 folds or more, and at least as many units of each class"
            )


def general_and_narrow(
    features: pd.DataFrame,
    labels: Mapping[str, bool],
    trained: Mapping[str, bool],
    units: Mapping[str, str] | None = None,
    *,
    folds: int = 5,
    resamples: int = 50,
    seed: int = 0,
) -> pd.DataFrame:
    """Two sparse probes of misaligned against aligned answers: on the trained domain (narrow), and
    everywhere else (general).

    Args:
        labels: id → misaligned or not.
        trained: id → whether its question is of the trained domain.

    Returns:
        One row per feature: the columns of `SparseProbe.table` with the endings `_narrow` and
        `_general`, and each probe's held-out area with its interval. A feature carries one kind
        where its share is high there and near `selected_by_chance` in the other.

    Raises:
        InputError: as `sparse_probe`; a labelled row that `trained` does not have.
    """
    for name in features.index:
        if name in labels and name not in trained:
            raise InputError(
                f"trained has no entry for row {name!r}; pass one for each labelled id"
            )
    tables = []
    for kind, in_domain in (("narrow", True), ("general", False)):
        part = {}
        for name, label in labels.items():
            if bool(trained.get(name)) == in_domain:
                part[name] = label
        probe = sparse_probe(features, part, units, folds=folds, resamples=resamples, seed=seed)
        table = probe.table.assign(
            auc=probe.auc.value, auc_low=probe.auc.low, auc_high=probe.auc.high
        )
        tables.append(table.set_index("feature").add_suffix(f"_{kind}"))
    narrow, general = tables
    return narrow.join(general).reset_index()


def _choose_penalty(data: _Data, folds: int, seed: int) -> float:
    """The largest penalty whose log-loss on held-out units is within one standard error of the
    least: the sparsest fit that predicts as well.

    A fold whose training rows hold one class is passed over.
    """
    everything = np.arange(len(data.y))
    fold_losses = []
    for test in grouped_folds(data.units, folds, seed, "sparse_probe penalty"):
        train = np.setdiff1d(everything, test)
        if len(set(data.y[train])) == 2:
            train_x, test_x = standardise(data.x[train], data.x[test])
            losses = []
            for penalty in PENALTIES:
                score = _fit(train_x, data.y[train], penalty).decision_function(test_x)
                losses.append(np.logaddexp(0, -data.y[test] * score))  # −log σ(y·score)
            fold_losses.append(np.stack(losses).mean(1))
    if len(fold_losses) < 2:
        return PENALTIES[-1]
    table = np.stack(fold_losses)
    mean = table.mean(0)
    best = int(mean.argmin())
    error = table[:, best].std(ddof=1) / len(table) ** 0.5
    return max(np.array(PENALTIES)[mean <= mean[best] + error].tolist())


def _stability(
    names: pd.Index, data: _Data, penalty: float, resamples: int, seed: int
) -> pd.DataFrame:
    """Weights over resamples of whole units, each fit beside shuffled copies of all features."""
    rng = numpy_rng(seed, "sparse_probe")
    members: dict[str, list[int]] = {}
    for i, unit in enumerate(data.units):
        members.setdefault(unit, []).append(i)
    rows_of_units = list(members.values())
    n_features = data.x.shape[1]
    weights: list[Array] = []
    shuffled_weights: list[Array] = []
    while len(weights) < resamples:
        rows: list[int] = []
        for unit_number in rng.choice(len(rows_of_units), len(rows_of_units)):
            rows += rows_of_units[unit_number]
        if len(set(data.y[rows])) < 2:
            continue
        x = data.x[rows]
        both = np.c_[x, x[rng.permutation(len(x))]]
        coefficients = _fit(standardise(both, both)[0], data.y[rows], penalty).coef_[0]
        weights.append(coefficients[:n_features])
        shuffled_weights.append(coefficients[n_features:])
    table = np.stack(weights)
    low, high = np.quantile(table, (0.025, 0.975), axis=0)
    rows_table = pd.DataFrame(
        {
            "feature": list(names),
            "weight": table.mean(0),
            "weight_low": low,
            "weight_high": high,
            "selected": (table != 0).mean(0),
            "selected_by_chance": float((np.stack(shuffled_weights) != 0).mean()),
            "n": len(data.y),
        }
    )
    return rows_table.sort_values(
        ["selected", "feature"], ascending=[False, True], ignore_index=True
    )


def _fit(x: Array, y: NDArray[np.int64], penalty: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(
        C=1 / penalty, l1_ratio=1.0, solver="liblinear", tol=1e-6, max_iter=1000, random_state=0
    ).fit(x, y)

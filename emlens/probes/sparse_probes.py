"""Which few of many features tell two kinds of rows apart: sparse logistic probes, with what chance
would select.

Made for adapter scalars (`emlens.interventions.adapter_scalars(...).pooled()`): the adapters whose
scalars tell misaligned from aligned answers on the trained domain are narrow, those that tell them
apart elsewhere general (Soligo et al. 2025, arXiv 2506.11618). An L1 penalty picks few of several
correlated features more or less at random, so the share of resamples that pick a feature is
reported, beside how often its shuffled copy is picked. Whole units (questions) are resampled and
held out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.seeds import numpy_rng
from emlens.probes.ridge import Array, standardise
from emlens.probes.validation import grouped_folds
from emlens.stats.rank_areas import area_under_curve

PENALTIES: Final[tuple[float, ...]] = tuple(float(a) for a in np.logspace(-1, 2, 7))
"""L1 penalties tried: of Σ log-loss + penalty · ‖w‖₁, features standardised."""


@dataclass(frozen=True)
class SparseProbe:
    """Which features tell two kinds of rows apart.

    Args:
        table: one row a feature, most often selected first: `feature`; `weight`, the mean over
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
        features: one row an id (the index), one column a feature.
        labels: id → class. Rows without a label are left out.
        units: id → what is held out and resampled together, such as the question of an answer; each
            row by default.
        folds: of the held-out area, and inside them of the penalty.
        resamples: bootstrap resamples of units behind the table.

    Raises:
        InputError: no labelled row, values that are not finite, a label without a unit, a class
            with fewer units than folds.
    """
    rows = [name for name in features.index if name in labels]
    if not rows:
        raise InputError(
            f"labels has none of the {len(features)} ids of features; pass id → True or False"
        )
    lost = [name for name in rows if units is not None and name not in units]
    if lost:
        raise InputError(f"units has no entry for row {lost[0]!r}; pass one for each labelled id")
    x = features.loc[rows].to_numpy(dtype=np.float64)
    if not np.isfinite(x).all():
        raise InputError("features hold values that are not finite; drop those columns or rows")
    y = np.array([1 if labels[name] else -1 for name in rows])
    own = [str(name) if units is None else str(units[name]) for name in rows]
    for sign, name in ((1, "True"), (-1, "False")):
        count = len({unit for unit, label in zip(own, y, strict=True) if label == sign})
        if folds < 2 or count < folds:
            raise InputError(
                f"rows labelled {name} come from {count} units with folds={folds};"
                " pass 2 folds or more, and at least as many units of each class"
            )
    scores = np.empty(len(y))
    for test in grouped_folds(own, folds, seed, "sparse_probe"):
        train = np.setdiff1d(np.arange(len(y)), test)
        chosen = _chosen_penalty(x[train], y[train], [own[i] for i in train], folds, seed)
        a, b = standardise(x[train], x[test])
        scores[test] = _fit(a, y[train], chosen).decision_function(b)
    auc = area_under_curve(scores, y, own, 499, seed)
    penalty = _chosen_penalty(x, y, own, folds, seed)
    return SparseProbe(
        _stability(features.columns, x, y, own, penalty, resamples, seed), auc, penalty
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
        One row a feature: the columns of `SparseProbe.table` with the endings `_narrow` and
            `_general`, and each probe's held-out area with
        its interval. A feature carries one kind where its share is high there and near
        `selected_by_chance` in the other.

    Raises:
        InputError: as `sparse_probe`; a labelled row of which `trained` does not speak.
    """
    lost = [name for name in features.index if name in labels and name not in trained]
    if lost:
        raise InputError(f"trained has no entry for row {lost[0]!r}; pass one for each labelled id")
    found = None
    for kind, inside in (("narrow", True), ("general", False)):
        part = {name: label for name, label in labels.items() if bool(trained.get(name)) == inside}
        probe = sparse_probe(features, part, units, folds=folds, resamples=resamples, seed=seed)
        table = (
            probe.table.assign(auc=probe.auc.value, auc_low=probe.auc.low, auc_high=probe.auc.high)
            .set_index("feature")
            .add_suffix(f"_{kind}")
        )
        found = table if found is None else found.join(table)
    assert found is not None
    return found.reset_index()


def _chosen_penalty(x: Array, y: Array, units: Sequence[str], folds: int, seed: int) -> float:
    """The largest penalty whose log-loss on held-out units is within one standard error of the
    least: the sparsest fit that predicts as well. A fold whose training rows hold one class is
    passed over.
    """
    each: list[Array] = []
    for test in grouped_folds(units, folds, seed, "sparse_probe penalty"):
        train = np.setdiff1d(np.arange(len(y)), test)
        if len(set(y[train])) == 2:
            a, b = standardise(x[train], x[test])
            each.append(
                np.stack(
                    [
                        np.logaddexp(0, -y[test] * _fit(a, y[train], penalty).decision_function(b))
                        for penalty in PENALTIES
                    ]
                ).mean(1)
            )
    if len(each) < 2:
        return PENALTIES[-1]
    losses = np.stack(each)
    mean = losses.mean(0)
    best = int(mean.argmin())
    error = losses[:, best].std(ddof=1) / len(losses) ** 0.5
    return max(
        penalty for penalty, loss in zip(PENALTIES, mean, strict=True) if loss <= mean[best] + error
    )


def _stability(
    names: pd.Index,
    x: Array,
    y: Array,
    units: Sequence[str],
    penalty: float,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Weights over resamples of whole units, each fit beside shuffled copies of all features."""
    pick = numpy_rng(seed, "sparse_probe")
    members: dict[str, list[int]] = {}
    for i, unit in enumerate(units):
        members.setdefault(unit, []).append(i)
    every = list(members)
    weights: list[Array] = []
    shadows: list[Array] = []
    while len(weights) < resamples:
        drawn = [i for unit in pick.choice(len(every), len(every)) for i in members[every[unit]]]
        if len(set(y[drawn])) < 2:
            continue
        a = x[drawn]
        both = np.c_[a, a[pick.permutation(len(a))]]
        coefficients = _fit(standardise(both, both)[0], y[drawn], penalty).coef_[0]
        weights.append(coefficients[: x.shape[1]])
        shadows.append(coefficients[x.shape[1] :])
    found = np.stack(weights)
    low, high = np.quantile(found, (0.025, 0.975), axis=0)
    table = pd.DataFrame(
        {
            "feature": list(names),
            "weight": found.mean(0),
            "weight_low": low,
            "weight_high": high,
            "selected": (found != 0).mean(0),
            "selected_by_chance": float((np.stack(shadows) != 0).mean()),
            "n": len(y),
        }
    )
    return table.sort_values(["selected", "feature"], ascending=[False, True], ignore_index=True)


def _fit(x: Array, y: Array, penalty: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(
        C=1 / penalty, l1_ratio=1.0, solver="liblinear", tol=1e-6, max_iter=1000, random_state=0
    ).fit(x, y)

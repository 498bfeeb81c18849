"""Directions from probe weights: ridge and logistic classifiers of two classes of rows.

Each comes with its accuracy out of fold. The weights point to `positive`, whatever the class sizes.
A probe tells classes apart; with correlated coordinates its weights differ from the difference of
means by the inverse covariance, as the whitened direction does, so read it as a discriminant, not
as a cause. The penalty is chosen on folds that keep a unit (a question) together. scikit-learn is
imported for the logistic probe only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from emlens.activations import Activations
from emlens.data.base_questions import base_questions
from emlens.foundation.errors import InputError
from emlens.foundation.shapes import as_float64, require_same_width
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.geometry.contrasts import along, mean_difference
from emlens.probes.ridge import (
    ALPHAS,
    Array,
    mean_and_scale,
    ridge_path,
    ridge_weights,
    standardise,
)
from emlens.probes.validation import grouped_folds
from emlens.stats.rank_areas import area_under_curve
from emlens.stats.samples import labels_in_order

Kind = Literal["ridge", "logistic"]
PENALTIES: Final[tuple[float, ...]] = tuple(map(float, np.logspace(-3, 4, 8)))
"""Logistic penalties tried: of Σ log-loss + (penalty / 2)‖w‖²."""


def probe_direction(
    positive: Tensor,
    negative: Tensor,
    kind: Kind = "ridge",
    *,
    site: str | Site,
    penalty: float | None = None,
    scaled: bool = False,
    positive_units: Sequence[str] | None = None,
    negative_units: Sequence[str] | None = None,
    folds: int = 5,
    resamples: int = 499,
    position: str | None = None,
    seed: int = 0,
) -> Direction:
    """The weights of a probe that tells positive (row, d) from negative rows, as a direction.

    It is in the stream's own coordinates.

    Args:
        kind: `"ridge"`: least squares on ±1 with penalty α‖w‖², exact. `"logistic"`: Σ log-loss +
            (penalty/2)‖w‖². Intercepts are free.
        penalty: None: chosen on folds, least squared error or log-loss.
        scaled: standardise coordinates first (weights are converted back); the penalty then treats
            massive coordinates like others.
        positive_units, negative_units: the unit of each row, which no fold may divide, such as the
            question of an answer; each row by default.
        folds: how many; 0 together with a penalty leaves out the accuracy and its cost.
        resamples: bootstrap resamples behind the interval of the area under the curve; units are
            resampled with all their rows.

    Returns:
        A `Direction` with the length of the class difference along the weights, (Δ·ŵ) ŵ, and the
        negative mean as baseline. Its provenance holds kind, penalty, and `auc`: the area under the
        ROC curve out of fold (.5 is chance), with its 95 % interval.

    Raises:
        InputError: an unknown kind, a penalty that is not positive, unequal widths, values that are
            not finite, units that do not fit, fewer units of a class than folds, classes that no
            weight tells apart.
    """
    _require_options(kind, penalty, folds)
    up, down = as_float64(positive, "positive"), as_float64(negative, "negative")
    require_same_width(up, down, "positive", "negative")
    if up.ndim != 2 or down.ndim != 2:
        raise InputError(
            f"positive has shape {tuple(up.shape)} and negative {tuple(down.shape)};"
            " pass two (row, d) matrices"
        )
    x = torch.cat([up, down]).cpu().numpy()
    y = np.r_[np.ones(len(up)), -np.ones(len(down))]
    up_units = _units(positive_units, len(up), "positive")
    down_units = _units(negative_units, len(down), "negative")
    _require_units(up_units, "positive", folds)
    _require_units(down_units, "negative", folds)
    candidates = _candidate_penalties(kind, penalty)
    provenance: dict[str, Any] = {
        "kind": f"{kind} probe",
        "penalties": len(candidates),
        "scaled": scaled,
        "folds": folds,
    }
    best = 0
    if folds:
        units = [*up_units, *down_units]
        scores = _out_of_fold_scores(kind, x, y, units, candidates, scaled, folds, seed)
        best = int(_losses(kind, scores, y).argmin())
        area = area_under_curve(scores[best], y, units, resamples, seed)
        provenance["auc"] = area.to_record()
    provenance["penalty"] = candidates[best]
    weights = torch.from_numpy(_weights(kind, x, y, candidates[best], scaled))
    if not bool((weights != 0).any()):
        raise InputError(
            "the probe's weights are all zero: no coordinate tells the classes apart;"
            " pass rows that differ"
        )
    difference = mean_difference(up.mean(0), down.mean(0))
    vector = along(weights, difference)
    return Direction(vector, Site.parse(site), position, down.mean(0), {}, provenance)


def probe_directions(
    acts: Activations,
    positive: Sequence[str],
    negative: Sequence[str],
    kind: Kind = "ridge",
    *,
    units: Mapping[str, str] | None = None,
    position: str | None = None,
    penalty: float | None = None,
    scaled: bool = False,
    folds: int = 5,
    seed: int = 0,
) -> dict[str, Direction]:
    """`probe_direction` at every captured site.

    Args:
        acts: rows of both classes, at a pooled position.
        positive, negative: ids of the rows of each class.
        units: row id → what no fold may divide; by default the base question of the id, so that
            the forms of a question stay together.
        position: which one, where several were captured.
        kind: "ridge" or "logistic".
        scaled: divide each coordinate by its standard deviation in the training rows first.

    Raises:
        UnknownNameError: an unknown id or position.
        InputError: units without an entry for a row, or as `probe_direction`.
    """
    positive_units = _units_of(positive, units)
    negative_units = _units_of(negative, units)
    up, down = acts.select(positive), acts.select(negative)
    if position is None and len(acts.pooled_positions) == 1:
        position = acts.pooled_positions[0]
    ids = {"positive": tuple(positive), "negative": tuple(negative)}
    directions = {}
    for site in acts.sites:
        key = site if position is None else (site, position)
        direction = probe_direction(
            up[key],
            down[key],
            kind,
            site=site,
            penalty=penalty,
            scaled=scaled,
            positive_units=positive_units,
            negative_units=negative_units,
            folds=folds,
            position=position,
            seed=seed,
        )
        provenance = {"model": acts.provenance.get("model"), **direction.provenance}
        directions[site] = replace(direction, ids=ids, provenance=provenance)
    return directions


def _require_options(kind: str, penalty: float | None, folds: int) -> None:
    if kind not in ("ridge", "logistic"):
        raise InputError(
            f"kind={kind!r} is unknown; pass 'ridge' or 'logistic'",
            name=kind,
            known=("ridge", "logistic"),
        )
    if penalty is not None and not 0 < penalty < float("inf"):
        raise InputError(
            f"penalty={penalty!r} must be a positive number, or None to choose one on folds"
        )
    # one fold trains on nothing, and without folds no penalty can be chosen
    if folds < 2 and (folds != 0 or penalty is None):
        raise InputError(
            f"folds={folds} was given with penalty={penalty!r};"
            " pass 2 folds or more, or 0 with a penalty, for weights without an accuracy"
        )


def _candidate_penalties(kind: Kind, penalty: float | None) -> Sequence[float]:
    if penalty is not None:
        return (penalty,)
    if kind == "ridge":
        return ALPHAS
    return PENALTIES


def _units_of(ids: Sequence[str], units: Mapping[str, str] | None) -> list[str]:
    """The unit of each row; its base question where none is given.

    Raises:
        InputError: a row that `units` does not have.
    """
    if units is None:
        return base_questions(ids)
    for id in ids:
        if id not in units:
            raise InputError(f"units has no entry for row {id!r}; pass one for each id")
    return [units[id] for id in ids]


def _units(units: Sequence[str] | None, n: int, name: str) -> list[str]:
    if units is None:
        return [f"{name} {i}" for i in range(n)]
    labels = labels_in_order(units, f"{name}_units")
    if len(labels) != n:
        raise InputError(f"{name}_units has {len(labels)} entries for {n} rows; pass one per row")
    return [str(label) for label in labels]


def _require_units(units: Sequence[str], name: str, folds: int) -> None:
    """Each fold needs a unit of each class; without folds two are needed."""
    n_units, minimum = len(set(units)), max(2, folds)
    if n_units < minimum:
        raise InputError(
            f"{name} rows come from {n_units} units,"
            f" fewer than the {minimum} that folds={folds} needs;"
            " pass more rows, or fewer folds"
        )


def _out_of_fold_scores(
    kind: Kind,
    x: Array,
    y: Array,
    units: Sequence[str],
    penalties: Sequence[float],
    scaled: bool,
    folds: int,
    seed: int,
) -> Array:
    """Decision values (penalty, row), each of a fit that saw no row of its unit."""
    scores = np.empty((len(penalties), len(y)))
    for test in grouped_folds(units, folds, seed, "probe_direction"):
        train = np.setdiff1d(np.arange(len(y)), test)
        if len(set(y[train])) < 2:
            raise InputError(
                "a fold's training rows hold one class only: units of the two classes coincide too"
                f" much for folds={folds}; pass more folds"
            )
        x_train, x_test = x[train], x[test]
        if scaled:
            x_train, x_test = standardise(x_train, x_test)
        scores[:, test] = _scores(kind, x_train, y[train], x_test, penalties)
    return scores


def _scores(kind: Kind, train: Array, y: Array, test: Array, penalties: Sequence[float]) -> Array:
    """Decision values (penalty, test row)."""
    if kind == "ridge":
        return ridge_path(train, test, y[:, None], penalties)[..., 0]
    return np.stack([_logistic(train, y, penalty).decision_function(test) for penalty in penalties])


def _losses(kind: Kind, scores: Array, y: Array) -> Array:
    """Mean squared error, or mean log-loss, of each penalty's decision values."""
    if kind == "ridge":
        return np.asarray(((scores - y) ** 2).mean(1))
    # log(1 + exp(−y·score)) without overflow
    return np.asarray(np.logaddexp(0, -y * scores).mean(1))


def _weights(kind: Kind, x: Array, y: Array, penalty: float, scaled: bool) -> Array:
    """The weights of a fit on all rows, in the stream's own coordinates."""
    spread = np.ones(x.shape[1])
    if scaled:
        x, spread = _standardised(x)
    if kind == "ridge":
        weights = ridge_weights(x, y, penalty)[0]
    else:
        weights = np.asarray(_logistic(x, y, penalty).coef_[0], dtype=np.float64)
    # w·(x − mean)/spread = (w/spread)·x + constant
    return weights / spread


def _standardised(x: Array) -> tuple[Array, Array]:
    """Columns less their mean, over their standard deviation; and the latter."""
    mean, spread = mean_and_scale(x)
    return (x - mean) / spread, spread


def _logistic(x: Array, y: Array, penalty: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    # scikit-learn minimises C · Σ log-loss + ‖w‖²/2
    return LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=5000).fit(x, y)

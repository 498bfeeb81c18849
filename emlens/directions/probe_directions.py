"""Directions from probe weights: ridge and logistic classifiers of two classes of rows, with the
accuracy they earn out of fold.

The weights point to `positive`, whatever the class sizes. A probe tells classes apart; with
correlated coordinates its weights differ from the difference of means by the inverse covariance, as
the whitened direction does, so read it as a discriminant, not as a cause. The penalty is chosen on
folds that keep a unit (a question) together; scikit-learn is imported for the logistic one only.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from emlens.activations import Activations
from emlens.foundation.errors import InputError
from emlens.foundation.shapes import as_float64, require_same_width
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.geometry.contrasts import along, mean_difference
from emlens.probes.ridge import ALPHAS, Array, ridge_path, ridge_weights, standardise
from emlens.probes.validation import grouped_folds
from emlens.stats.rank_areas import area_under_curve

Kind = Literal["ridge", "logistic"]
PENALTIES: Final[tuple[float, ...]] = tuple(float(a) for a in np.logspace(-3, 4, 8))
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
    ids: Mapping[str, Sequence[str]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Direction:
    """The weights of a probe that tells positive (row, d) from negative rows, as a direction in the
    stream's own coordinates.

    Args:
        kind: `"ridge"`: least squares on ±1 with penalty α‖w‖², exact. `"logistic"`: Σ log-loss +
            (penalty/2)‖w‖². Intercepts are free.
        penalty: None: chosen on folds, least squared error or log-loss.
        scaled: standardise coordinates first (weights are converted back); the penalty then treats
            massive coordinates like others.
        positive_units, negative_units: what must not be parted by a fold, such as the question of
            an answer; each row by default.
        folds: how many; 0 with a given penalty leaves out the accuracy and its cost.
        resamples: bootstrap resamples behind the interval of the area under the curve.

    Returns:
        A `Direction` with the length of the class difference along the weights, (Δ·ŵ) ŵ, the
        negative mean as baseline, and in its provenance
        kind, penalty, and `auc`: area under the ROC curve out of fold, 95 % interval by resampling
            units (.5 is chance).

    Raises:
        InputError: an unknown kind, a penalty that is not positive, unequal widths, values that are
            not finite, units that do not fit, fewer units of a class than folds, classes that no
            weight tells apart.
    """
    if kind not in ("ridge", "logistic"):
        raise InputError(f"kind={kind!r} is unknown; pass 'ridge' or 'logistic'")
    if penalty is not None and not 0 < penalty < float("inf"):
        raise InputError(
            f"penalty={penalty!r} must be a positive number, or None to choose one on folds"
        )
    up, down = (
        as_float64(rows, name) for name, rows in (("positive", positive), ("negative", negative))
    )
    require_same_width(up, down, "positive", "negative")
    if up.ndim != 2 or down.ndim != 2:
        raise InputError(
            f"positive has shape {tuple(up.shape)} and negative {tuple(down.shape)};"
            " pass two (row, d) matrices"
        )
    x = torch.cat([up, down]).cpu().numpy()
    y = np.r_[np.ones(len(up)), -np.ones(len(down))]
    units = [
        *_units(positive_units, len(up), "positive"),
        *_units(negative_units, len(down), "negative"),
    ]
    if folds < 2 and (folds or penalty is None):
        raise InputError(
            f"folds={folds} came with penalty={penalty!r};"
            " pass 2 folds or more, or 0 with a penalty, for weights without an accuracy"
        )
    for name, own in (("positive", units[: len(up)]), ("negative", units[len(up) :])):
        if len(set(own)) < max(2, folds):
            raise InputError(
                f"{name} rows come from {len(set(own))} units,"
                f" fewer than the {max(2, folds)} that folds={folds} needs;"
                " pass more rows, or fewer folds"
            )
    candidates = (penalty,) if penalty is not None else ALPHAS if kind == "ridge" else PENALTIES
    chosen = candidates[0]
    facts: dict[str, Any] = {
        "kind": f"{kind} probe",
        "penalties": len(candidates),
        "scaled": scaled,
        "folds": folds,
    }
    if folds:
        scores = _out_of_fold(kind, x, y, units, candidates, scaled, folds, seed)
        losses = (((scores - y) ** 2) if kind == "ridge" else np.logaddexp(0, -y * scores)).mean(1)
        chosen = candidates[int(losses.argmin())]
        facts["auc"] = area_under_curve(
            scores[int(losses.argmin())], y, units, resamples, seed
        ).to_record()
    whole, spread = _scaled(x) if scaled else (x, np.ones(x.shape[1]))
    weights = torch.from_numpy(_weights(kind, whole, y, chosen) / spread)
    if not bool((weights != 0).any()):
        raise InputError(
            "the probe's weights are all zero: no coordinate tells the classes apart;"
            " pass rows that differ"
        )
    difference = mean_difference(up.mean(0), down.mean(0))
    facts["penalty"] = chosen
    return Direction(
        along(weights, difference),
        Site.parse(site),
        position,
        down.mean(0),
        ids or {},
        {**(provenance or {}), **facts},
    )


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
        units: row id → what must not be parted by a fold; each row by default.
        position: which one, where several were captured.

    Raises:
        UnknownNameError: an id, or a position, that is not there. InputError: units without a row's
            id, or as `probe_direction`.
    """
    missing = [name for name in (*positive, *negative) if units is not None and name not in units]
    if missing:
        raise InputError(f"units has no entry for row {missing[0]!r}; pass one for each id")
    first, second = acts.select(positive), acts.select(negative)
    where = (
        position
        if position is not None
        else acts.pooled_positions[0]
        if len(acts.pooled_positions) == 1
        else None
    )
    found = {}
    for site in acts.sites:
        up, down = (side[site if where is None else (site, where)] for side in (first, second))
        found[site] = probe_direction(
            up,
            down,
            kind,
            site=site,
            penalty=penalty,
            scaled=scaled,
            positive_units=None if units is None else [units[name] for name in positive],
            negative_units=None if units is None else [units[name] for name in negative],
            folds=folds,
            position=where,
            ids={"positive": tuple(positive), "negative": tuple(negative)},
            provenance={"model": acts.provenance.get("model")},
            seed=seed,
        )
    return found


def _out_of_fold(
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
        a, b = standardise(x[train], x[test]) if scaled else (x[train], x[test])
        scores[:, test] = _scores(kind, a, y[train], b, penalties)
    return scores


def _units(given: Sequence[str] | None, n: int, name: str) -> list[str]:
    if given is None:
        return [f"{name} {i}" for i in range(n)]
    if len(given) != n:
        raise InputError(f"{name}_units has {len(given)} entries for {n} rows; pass one a row")
    return [str(unit) for unit in given]


def _scaled(x: Array) -> tuple[Array, Array]:
    mean, sd = x.mean(0), x.std(0)
    spread = np.where(sd > 1e-12 * np.maximum(1.0, np.abs(mean)), sd, np.inf)
    return (x - mean) / spread, spread


def _scores(kind: Kind, train: Array, y: Array, test: Array, penalties: Sequence[float]) -> Array:
    """Decision values (penalty, test row)."""
    if kind == "ridge":
        return ridge_path(train, test, y[:, None], penalties)[..., 0]
    return np.stack([_logistic(train, y, penalty).decision_function(test) for penalty in penalties])


def _weights(kind: Kind, x: Array, y: Array, penalty: float) -> Array:
    return (
        ridge_weights(x, y, penalty)[0]
        if kind == "ridge"
        else np.asarray(_logistic(x, y, penalty).coef_[0], dtype=np.float64)
    )


def _logistic(x: Array, y: Array, penalty: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=5000).fit(x, y)

"""Are these activations like those a forecaster was fitted on? What is refused, and how often it is
refused wrongly.

Facts are compared where both sides recorded them: weights, adapter, chat template, interventions.
Rows are compared by their Mahalanobis distance from the fitted rows under a shrunk covariance,
which also sees directions in which the fitted rows do not vary. Bounds are conformal quantiles of
distances that held out questions (for rows of a known group) or whole groups (for rows of a new
one), so rows like the fitted ones lie beyond them at most at the stated rate. It is blind to a
shift that leaves a row within the fitted cloud. Cost: one SVD of the fitted rows per fold.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.geometry import mahalanobis_distance
from emlens.probes.conformal import conformal_quantile, group_weights
from emlens.probes.features import Rows
from emlens.probes.ridge import Array

REASONS: Final = ("model", "template", "interventions", "context", "shift", "far", "stale")
"""What may be allowed by name: facts of the model; the training file's numbers; most rows far; a
row far; a known id with other activations.
"""

FAR_SHARE: Final = 0.5
"""Share of rows beyond the bound above which all are refused."""

STALE: Final = 1e-2
"""Relative distance at which a known id's activations count as another text's: far above batching
noise, far below another text.
"""


def require_reasons(allow: Collection[str]) -> None:
    """Raises:
    InputError: a reason that is not one of `REASONS`.
    """
    for name in allow:
        if name not in REASONS:
            raise InputError(
                f"allow names {one_line(str(name))!r}; pass some of {', '.join(REASONS)}",
                name=name,
                known=REASONS,
            )


def require_same_model(
    fitted: Mapping[str, Any], new: Mapping[str, Any], allow: Collection[str]
) -> None:
    """Raises:
    InputError: two captures differ in a recorded fact that is not allowed to differ.
    """
    for reason, sentence in model_differences(fitted, new).items():
        if reason not in allow:
            raise InputError(f"{sentence}, or pass allow=[{reason!r}]")


def model_differences(fitted: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Reason → sentence for every recorded fact in which two captures differ."""
    differences = {}
    if _differ(_weights(fitted.get("model")), _weights(new.get("model"))):
        differences["model"] = (
            "acts come from other weights than this forecaster was fitted on;"
            " capture them from the same parent model"
        )
    if _differ(_template(fitted), _template(new)):
        differences["template"] = (
            "acts were rendered with another chat template than the forecaster's;"
            " render them with the same one"
        )
    # no record of interventions means that there were none
    new_edits = list(new.get("interventions") or ())
    if list(fitted.get("interventions") or ()) != new_edits:
        differences["interventions"] = (
            "acts were captured under other interventions than the forecaster's"
            f" ({one_line(str(new_edits or 'none'), 120)});"
            " capture them under the same ones"
        )
    return differences


def _differ(fitted: object, new: object) -> bool:
    """Whether both are recorded, and not the same."""
    return fitted is not None and new is not None and fitted != new


def _weights(facts: Mapping[str, Any] | None) -> tuple[object, ...] | None:
    """What identifies a model: the hashes of weights, configuration and adapter; None where the
    checkpoint was not hashed.
    """
    if facts is None or facts.get("weights_sha256") is None:
        return None
    adapter = facts.get("adapter") or {}
    return facts["weights_sha256"], facts.get("config_sha256"), adapter.get("sha256")


def _template(provenance: Mapping[str, Any]) -> object:
    return (provenance.get("model") or {}).get("chat_template_sha256")


def distances(values: Array, reference: Array) -> Array:
    """Shrunk Mahalanobis distance of each row from the fitted rows."""
    return np.asarray(
        mahalanobis_distance(torch.from_numpy(values), torch.from_numpy(reference)).numpy(),
        dtype=np.float64,
    )


def distance_bound(
    reference: Array, labels: Sequence[object], folds: Sequence[Rows], rate: float
) -> tuple[float, float]:
    """(bound, rate at which rows of a new group may lie beyond it).

    With too few groups for the given rate, the bound is the largest distance of a fitted row, and
    the rate 1 / (groups + 1).
    """
    out_of_fold = np.empty(len(reference))
    everything = np.arange(len(reference))
    for test in folds:
        train = np.setdiff1d(everything, test)
        out_of_fold[test] = distances(reference[test], reference[train])
    bound = conformal_quantile(out_of_fold, group_weights(labels), 1 - rate)
    if np.isfinite(bound):
        return bound, rate
    return float(out_of_fold.max()), 1 / (len({str(label) for label in labels}) + 1)


def stale_rows(
    ids: Sequence[str], values: Array, row_numbers: Mapping[str, int], reference: Array
) -> NDArray[np.bool_]:
    """Which rows carry an id that was fitted on, but not the activations it had."""
    is_stale = np.zeros(len(ids), dtype=bool)
    for i, name in enumerate(ids):
        if name in row_numbers:
            before = reference[row_numbers[name]]
            is_stale[i] = np.linalg.norm(values[i] - before) > STALE * np.linalg.norm(before)
    return is_stale

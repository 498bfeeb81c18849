"""Are these activations like those a forecaster was fitted on? What is refused, and how often it is
refused wrongly.

Facts are compared where both sides recorded them: weights, adapter, chat template, interventions.
Rows are compared by their Mahalanobis distance from the fitted rows under a shrunk covariance,
which sees directions the fitted rows do not vary in too. Bounds are conformal quantiles of
distances that held out questions (for rows of a known group) or whole groups (for rows of a new
one), so rows like the fitted ones lie beyond them at most at the stated rate. It is blind to a
shift that leaves a row within the fitted cloud. Cost: one SVD of the fitted rows a fold.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

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


def model_differences(fitted: Mapping[str, Any], came: Mapping[str, Any]) -> dict[str, str]:
    """Reason → sentence for every recorded fact in which two captures differ."""
    found = {}
    mine, theirs = _weights(fitted.get("model")), _weights(came.get("model"))
    if mine is not None and theirs is not None and mine != theirs:
        found["model"] = (
            "acts come from other weights than this forecaster was fitted on;"
            " capture them from the same parent model"
        )
    templates = [(facts.get("model") or {}).get("chat_template_sha256") for facts in (fitted, came)]
    if None not in templates and templates[0] != templates[1]:
        found["template"] = (
            "acts were rendered with another chat template than the forecaster's;"
            " render them with the same one"
        )
    edits = [list(facts.get("interventions") or ()) for facts in (fitted, came)]
    if edits[0] != edits[1]:
        shown = one_line(str(edits[1] or "none"), 120)
        found["interventions"] = (
            f"acts were captured under other interventions than the forecaster's ({shown});"
            " capture them under the same ones"
        )
    return found


def _weights(facts: Mapping[str, Any] | None) -> tuple[object, object] | None:
    """What tells models apart: the checkpoint's hash and the adapter's; None where the checkpoint
    was not hashed.
    """
    if facts is None or facts.get("weights_sha256") is None:
        return None
    return facts["weights_sha256"], (facts.get("adapter") or {}).get("sha256")


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

    With too few groups for the rate asked for, the bound is the largest distance that was seen, and
    the rate 1 / (groups + 1).
    """
    found = np.empty(len(reference))
    everything = np.arange(len(reference))
    for held in folds:
        found[held] = distances(reference[held], reference[np.setdiff1d(everything, held)])
    bound = conformal_quantile(found, group_weights(labels), 1 - rate)
    if np.isfinite(bound):
        return bound, rate
    return float(found.max()), 1 / (len({str(label) for label in labels}) + 1)


def stale_rows(
    ids: Sequence[str], values: Array, known: Mapping[str, int], reference: Array
) -> NDArray[np.bool_]:
    """Which rows carry a known id, but not the activations it had."""
    found = np.zeros(len(ids), dtype=bool)
    for i, name in enumerate(ids):
        if name in known:
            before = reference[known[name]]
            found[i] = np.linalg.norm(values[i] - before) > STALE * np.linalg.norm(before)
    return found

"""A forecaster to keep: chosen by cross-validation on all rows, saved without pickle, applied to new questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from emlens.activations import Activations
from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import publishing, read_json, sha256_file, write_json
from emlens.probes.features import activation_cells
from emlens.probes.forecast import Scores, labels_of, predict_alignment
from emlens.probes.ridge import ALPHAS, Array, ridge_path, ridge_weights, standardise
from emlens.probes.validation import grouped_folds


@dataclass(frozen=True)
class Forecaster:
    """Ridge on one site and position: weights, scaling, and what it was fitted on."""

    site: str
    position: str
    alpha: float
    weights: Array
    intercept: float
    mean: Array
    scale: Array
    facts: dict[str, Any] = field(default_factory=dict)

    def predict(self, acts: Activations) -> pd.Series:
        """Predicted score by id.

        Raises:
            InputError: the activations lack the forecaster's site or position, or come from another model.
        """
        mine, theirs = _weights(self.facts.get("model")), _weights(acts.provenance.get("model"))
        if mine is not None and theirs is not None and mine != theirs:
            raise InputError("acts come from other weights than this forecaster was fitted on; capture them from the same parent model")
        values = acts[self.site, self.position].double().numpy()
        if values.shape[1] != len(self.weights):
            raise InputError(f"acts have {values.shape[1]} coordinates, the forecaster {len(self.weights)}; pass the same residual stream")
        predicted = (values - self.mean) / self.scale @ self.weights + self.intercept
        return pd.Series(predicted, index=acts.ids, name="predicted")

    def save(self, directory: str | Path) -> Path:
        """Write `forecaster.safetensors` and `forecaster.json`."""
        path = Path(directory)
        tensors = {"weights": self.weights, "mean": self.mean, "scale": self.scale}
        with publishing(path / "forecaster.safetensors") as temporary:
            save_file({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()}, temporary)
        write_json(
            path / "forecaster.json",
            {
                "site": self.site,
                "position": self.position,
                "alpha": self.alpha,
                "intercept": self.intercept,
                "facts": self.facts,
                "sha256": sha256_file(path / "forecaster.safetensors"),
            },
        )
        return path

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            InputError: nothing there.
            IntegrityError: the weights are missing, or not those the record describes.
        """
        path = Path(directory)
        record = read_json(path / "forecaster.json")
        if not (path / "forecaster.safetensors").is_file() or sha256_file(path / "forecaster.safetensors") != record["sha256"]:
            raise IntegrityError(f"{path}: the weights are missing, or not those forecaster.json describes; save the forecaster again")
        tensors = {name: value.numpy() for name, value in load_file(path / "forecaster.safetensors").items()}
        head = (record["site"], record["position"], record["alpha"], tensors["weights"], record["intercept"])
        return cls(*head, tensors["mean"], tensors["scale"], record["facts"])


def _weights(facts: Mapping[str, Any] | None) -> tuple[object, object] | None:
    """What tells models apart: the checkpoint's hash and the adapter's; None where the checkpoint was not hashed."""
    if facts is None or facts.get("weights_sha256") is None:
        return None
    return facts["weights_sha256"], (facts.get("adapter") or {}).get("sha256")


def fit_forecaster(
    acts: Activations,
    scores: Scores,
    *,
    metric: str = "aligned",
    model: str | None = None,
    groups: str | Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Forecaster:
    """Fit on all rows; site, position and penalty by cross-validation. Its honest accuracy is that of `predict_alignment`.

    Raises:
        InputError: as `predict_alignment`.
    """
    check = predict_alignment(acts, scores, metric, groups=groups, model=model, folds=folds, repeats=1, permutations=0, seed=seed)
    target = check.predictions["target"].to_numpy()
    labels, _ = labels_of(acts, groups)
    best = (float("inf"), 0, ALPHAS[0])
    cells = activation_cells(acts)
    everything = np.arange(len(acts))
    tests = grouped_folds(labels, min(folds, len(set(labels))), seed, "forecaster")
    for c, features in enumerate(cells):
        squared = np.zeros(len(ALPHAS))
        for test in tests:
            fit = np.setdiff1d(everything, test)
            train, held = features.split(fit, test)
            squared += ((ridge_path(train, held, target[fit][:, None])[..., 0] - target[test]) ** 2).sum(1)
        best = min(best, (float(squared.min()), c, ALPHAS[int(squared.argmin())]))
    chosen = cells[best[1]]
    scaled, _ = standardise(chosen.values, chosen.values)
    weights, intercept = ridge_weights(scaled, target, best[2])
    mean, sd = chosen.values.mean(0), chosen.values.std(0)
    scale = np.where(sd > 1e-12 * np.maximum(1.0, np.abs(mean)), sd, np.inf)
    site, position = chosen.name.rsplit("@", 1)
    facts = {"model": acts.provenance.get("model"), "rows": len(acts), "metric": metric, "cross_validated_r2": check.r2.as_dict(), "seed": seed}
    return Forecaster(site, position, best[2], weights, intercept, mean, scale, facts)

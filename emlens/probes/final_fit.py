"""The ridge behind a validated forecast, fitted on all its rows: what predicts new questions, and
the direction it reads.

It is fitted when it is first asked for. Site, position and penalty are chosen on inner folds, as
the forecast's design has them. Its accuracy is that of the forecast, which was measured out of
fold; nothing here measures it again. Refused where the forecast looked at anything but the stream
itself, or with another estimator: such a fit is no direction.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from emlens.activations import Activations
from emlens.foundation.errors import InputError
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.probes.features import Features, MatrixFeatures
from emlens.probes.likeness import require_reasons, require_same_model
from emlens.probes.ridge import Array
from emlens.probes.site_ridge import SiteRidge, choose_ridges


@dataclass(frozen=True, eq=False, repr=False)
class FinalFit:
    """What a forecast was made from, kept until its ridge on all rows is asked for.

    Args:
        acts, target, labels: rows, their scores on the scale that is forecast, and what is held out
            together.
        candidates: the feature sets that were looked at.
        weights: one per row, or None. alphas: penalties; empty where the estimator is no ridge.
        estimator: its name, for messages.
    """

    acts: Activations
    candidates: tuple[Features, ...]
    target: Array
    labels: tuple[str, ...]
    weights: Array | None
    alphas: tuple[float, ...]
    estimator: str
    inner_folds: int
    seed: int

    @cached_property
    def ridge(self) -> SiteRidge:
        """Site, position, penalty and weights from all rows.

        Raises:
            InputError: the forecast is no ridge on the stream.
        """
        cells = self._cells()
        rows = np.arange(len(self.target))
        [ridge] = choose_ridges(
            cells,
            self.target[:, None],
            rows,
            self.labels,
            self.inner_folds,
            self.seed,
            "all",
            alphas=self.alphas,
            weights=self.weights,
        )
        return ridge

    def _cells(self) -> list[MatrixFeatures]:
        if not self.alphas:
            raise InputError(
                f"this forecast was made with estimator={self.estimator!r}, which has no weights on"
                " the stream; make it with estimator='ridge'"
            )
        places = {f"{site}@{position}" for site, position in self.acts.keys}
        cells = []
        for features in self.candidates:
            if not isinstance(features, MatrixFeatures) or features.name not in places:
                raise InputError(
                    f"this forecast looked at {features.name!r}, which is no site of the stream;"
                    " make it with features=None, or with names of sites"
                )
            cells.append(features)
        return cells

    def predict(self, acts: Activations, allow: Collection[str]) -> pd.Series:
        """Predicted target of each row by id.

        Raises:
            InputError: another model, template or interventions than those fitted on and not in
                `allow`; a missing site or position; another width.
        """
        require_reasons(allow)
        ridge = self.ridge
        require_same_model(self.acts.provenance, acts.provenance, allow)
        if ridge.site not in acts.sites or ridge.position not in acts.pooled_positions:
            raise InputError(
                f"acts hold {acts.sites} at {acts.positions};"
                f" the forecast reads {ridge.site} at {ridge.position}: capture that too"
            )
        width = acts[ridge.site, ridge.position].shape[1]
        if width != len(ridge.weights):
            raise InputError(
                f"acts have {width} coordinates, the forecast {len(ridge.weights)};"
                " pass the same residual stream"
            )
        return pd.Series(ridge(acts), index=acts.ids, name="predicted")

    def direction(self) -> Direction:
        """The weights in the stream's own coordinates, as long as the standard deviation of the
        rows along them; the baseline is the mean of the rows.

        Raises:
            InputError: as `ridge`; weights that are all zero.
        """
        ridge = self.ridge
        weights = ridge.weights / ridge.scale  # prediction = (x − mean) / scale · weights
        length = np.linalg.norm(weights)
        if not length > 0:
            raise InputError(
                "the weights of the forecast are all zero, so it has no direction;"
                " pass scores that differ between questions"
            )
        unit = weights / length
        rows = self.acts[ridge.site, ridge.position].double().numpy()
        spread = float((rows @ unit).std())
        return Direction(
            torch.from_numpy(unit * spread),
            Site.parse(ridge.site),
            ridge.position,
            torch.from_numpy(rows.mean(0)),
            {"questions": tuple(self.acts.ids)},
            {
                "kind": "forecast",
                "penalty": ridge.alpha,
                "model": self.acts.provenance.get("model", {}),
            },
        )

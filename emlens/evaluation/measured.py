"""The tables that `evaluate_arms`, `dose_response` and `transfer_matrix` return: pandas tables that
can draw themselves.

What pandas does with them gives tables of the same kind. `plot` draws what the report draws; it
takes the place of pandas' own, which needs matplotlib.
"""

from collections.abc import Callable
from typing import Any

import pandas as pd

from emlens.foundation.notebooks import Picture
from emlens.results import Plot

_ARMS = Plot(
    kind="restoration_forest",
    table="arms",
    title="Share of lost alignment that each arm gives back",
)
_DOSES = Plot(kind="steering_response", table="steering", title="Scores at each dose of the edit")
_TRANSFER = Plot(kind="transfer_matrix", table="transfer", title="Restoration in each fine-tune")
_MEANS = Plot(
    kind="forest",
    table="arms",
    x="arm",
    y="aligned",
    colour="on",
    hover=("n",),
    title="Alignment under each arm",
    y_title="aligned (0–100)",
)


class Arms(pd.DataFrame):
    """One row per arm, as `evaluate_arms` describes them."""

    @property
    def _constructor(self) -> Callable[..., "Arms"]:
        return Arms

    def plot(self) -> Picture:  # type: ignore[override]
        """Restoration of every arm on the fine-tune with its interval, beside its controls.

        Where no arm edits the fine-tune: alignment under each arm.
        """
        from emlens.figures.drawing import drawing

        table = pd.DataFrame(self)
        if len(table) and not (table["on"] == "finetuned").any():
            return drawing(table, _MEANS, empty="")
        return drawing(table, _ARMS, empty="no arm was measured")


class Doses(pd.DataFrame):
    """One row per coefficient, as `dose_response` describes them."""

    @property
    def _constructor(self) -> Callable[..., "Doses"]:
        return Doses

    def plot(self, **bounds: Any) -> Picture:  # type: ignore[override]
        """Alignment and coherence at each coefficient; the usable window is shaded.

        Args:
            bounds: of `usable_window`, such as `max_coherence_loss`.
        """
        from emlens.evaluation.dosing import usable_window
        from emlens.figures.drawing import drawing

        table = pd.DataFrame(self)
        if len(table) and "coherent_change" in table.columns:
            window = usable_window(table, **bounds)
            table = table.assign(usable=table["coefficient"].isin(window.coefficients))
        return drawing(table, _DOSES, empty="no coefficient was measured")


class Transfers(pd.DataFrame):
    """One row per pair of fine-tunes, as `transfer_matrix` describes them."""

    @property
    def _constructor(self) -> Callable[..., "Transfers"]:
        return Transfers

    def plot(self) -> Picture:  # type: ignore[override]
        """Restoration in the column's fine-tune by ablating the row's direction, with intervals."""
        from emlens.figures.drawing import drawing

        return drawing(pd.DataFrame(self), _TRANSFER, empty="no pair was measured")

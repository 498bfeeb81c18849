"""Figures of activations and deltas: how long the vectors are, layer by layer."""

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd
import torch

from emlens.activations.memory import Activations
from emlens.figures.drawing import Drawing, drawing
from emlens.foundation.sites import Site
from emlens.results import Plot

ROWS, MEAN, FLOOR = "median row (quartiles)", "mean over rows", "rounding alone"

_LENGTHS = Plot(
    kind="line",
    table="lengths",
    x="layer",
    y="length",
    colour="of",
    x_title="layer (0-based block)",
    y_title="length (units of the stream)",
)


def picture_of_activations(acts: Activations) -> Drawing:
    """Length of the rows and of their mean at every site and position.

    Where the mean is nearly as long as the rows, they point one way. Of deltas the length that
    rounding alone gives is drawn too. Reads the whole capture once.
    """
    table = pd.DataFrame(list(_lengths(acts)))
    kinds = {Site.parse(site).kind for site in acts.sites}
    is_delta = bool(acts.provenance.get("delta"))
    title = f"Length of {'deltas' if is_delta else 'activations'}, {len(acts)} rows"
    plot = replace(_LENGTHS, title=title)
    if len(kinds) > 1 or not len(table) or table["layer"].isna().any():
        plot = replace(plot, x="site", x_title="site")
    return drawing(table, plot, empty="no rows were captured, so there is no length to draw")


def _lengths(acts: Activations) -> Iterator[dict[str, object]]:
    if not len(acts):
        return
    is_alone = len(acts.positions) == 1
    floors = acts.rounding_floor
    for site, position in acts.keys:
        rows = acts.value((site, position)).to(torch.float64)
        ending = "" if is_alone else f", {position}"
        place = {"site": site, "layer": Site.parse(site).layer}
        lengths = torch.linalg.vector_norm(rows, dim=-1)
        low, middle, high = torch.quantile(
            lengths, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
        ).tolist()
        yield {
            **place,
            "of": f"{ROWS}{ending}",
            "length": middle,
            "length_low": low,
            "length_high": high,
        }
        mean = float(torch.linalg.vector_norm(rows.mean(0)))
        yield {**place, "of": f"{MEAN}{ending}", "length": mean}
        if (site, position) in floors:
            yield {**place, "of": f"{FLOOR}{ending}", "length": floors[site, position]}

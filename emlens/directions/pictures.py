"""Figures of contrasts: how long a mean difference is at every site, and how well it is known."""

from collections.abc import Iterator

import pandas as pd

from emlens.directions.row_contrasts import Contrasts
from emlens.figures.drawing import Drawing, drawing
from emlens.foundation.sites import Site
from emlens.geometry import split_half_cosine
from emlens.geometry.contrasts import means_agree
from emlens.results import Plot

SPLITS = 50

_AGREEMENT = Plot(
    kind="line",
    table="contrasts",
    x="layer",
    y="agreement",
    colour="of",
    hover=("length",),
    title="Agreement of the directions from two halves of the units",
    x_title="layer (0-based block)",
    y_title="split-half cosine, 95 % range of splits",
)


def picture_of_contrasts(contrasts: Contrasts) -> Drawing:
    """Split-half cosine of the direction at every site; 0 is chance, 1 is free of noise.

    The length of the difference is in the hover box. Sites where the means agree are left out.
    """
    table = pd.DataFrame(list(_rows(contrasts)))
    return drawing(table, _AGREEMENT, empty="the two sides have the same means at every site")


def _rows(contrasts: Contrasts) -> Iterator[dict[str, object]]:
    kinds = {Site.parse(site).kind for site in contrasts.sites}
    for position in contrasts.positions:
        for name in contrasts.sites:
            sums, site = contrasts.sums(name, position), Site.parse(name)
            if means_agree(sums.positive_mean, sums.negative_mean):
                continue
            cosine = split_half_cosine(sums, splits=SPLITS)
            kind = ""
            if len(kinds) > 1:
                kind = f"{site.kind}, "
            yield {
                "layer": -1 if site.layer is None else site.layer,
                "of": f"{kind}{position}",
                "agreement": cosine.value,
                "agreement_low": cosine.low,
                "agreement_high": cosine.high,
                "length": float(sums.difference.norm()),
            }

"""Figures of directions and subspaces: what `.plot()` draws.

A direction is drawn by how much of its length its largest coordinates hold, because a few massive
coordinates can carry most of a difference of means; a subspace by the share of each of its axes.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from emlens.figures.drawing import Drawing, drawing
from emlens.results import Plot

MOST_POINTS = 60

_DIRECTION = Plot(
    kind="line",
    table="coordinates",
    x="coordinates",
    y="share",
    null="random_direction",
    hover=("coordinate",),
    x_title="largest coordinates counted",
    y_title="share of the squared length (0–1)",
)
_SUBSPACE = Plot(
    kind="line",
    table="components",
    x="component",
    y="share",
    colour="of",
    x_title="component",
    y_title="share of the squared norm (0–1)",
)
_LENGTHS = Plot(
    kind="points",
    table="lengths",
    x="entry",
    y="length",
    colour="of",
    x_title="entry of the batch",
    y_title="length (units of the stream)",
)
_PATH = Plot(
    kind="points",
    table="path",
    x="first",
    y="second",
    hover=("step",),
    title="Path in its principal components",
)


def picture_of_direction(vector: Float[Tensor, " d"], title: str) -> Drawing:
    """Share of the squared length in the m largest coordinates, for m from 1 to d.

    Dotted: the same of a direction whose coordinates are drawn from a normal distribution, by its
    quantiles.
    """
    squares = vector.detach().to(torch.float64).cpu().numpy() ** 2
    d = len(squares)
    order = np.argsort(-squares, kind="stable")
    held = np.cumsum(squares[order]) / squares.sum()
    normal = stats.norm.ppf((np.arange(d) + 0.5) / d) ** 2
    expected = np.cumsum(np.sort(normal)[::-1]) / normal.sum() if d > 1 else np.ones(1)
    counts = _counts(d)
    table = pd.DataFrame(
        {
            "coordinates": counts,
            "share": held[counts - 1],
            "random_direction": expected[counts - 1],
            "coordinate": order[counts - 1],
        }
    )
    plot = replace(_DIRECTION, title=f"Coordinates of the direction at {title}")
    return drawing(table, plot, empty="a direction without coordinates")


def _counts(d: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """1 to d, at most MOST_POINTS of them, evenly on a logarithm."""
    steps = np.geomspace(1, d, MOST_POINTS).round().astype(np.int64)
    return np.unique(np.clip(steps, 1, d))


def picture_of_subspace(shares: Float[Tensor, "*batch k"], title: str) -> Drawing:
    """Share of the squared norm along each component, and of all up to it.

    Args:
        shares: (..., k); of a batch one line an entry, without the sums.
    """
    values = shares.detach().to(torch.float64).cpu().numpy()
    tables = []
    if values.ndim == 1:
        tables.append(_components(values, "each component"))
        tables.append(_components(values.cumsum(), "up to and with it"))
    else:
        for place in np.ndindex(values.shape[:-1]):
            tables.append(_components(values[place], f"entry {', '.join(map(str, place))}"))
    table = pd.concat(tables, ignore_index=True)
    return drawing(table, replace(_SUBSPACE, title=title), empty="a subspace without a component")


def _components(shares: "np.ndarray[Any, np.dtype[np.float64]]", of: str) -> pd.DataFrame:
    return pd.DataFrame({"component": range(1, len(shares) + 1), "share": shares, "of": of})


def picture_of_lengths(
    norms: Float[Tensor, "*batch row"],
    mean_norm: Float[Tensor, "*batch"],
    noise_norm: Float[Tensor, "*batch"] | None,
) -> Drawing:
    """Median length of the rows with quartiles, length of their mean, and the noise."""
    entries = norms.detach().to(torch.float64).reshape(-1, norms.shape[-1])
    means = mean_norm.detach().to(torch.float64).reshape(-1).tolist()
    noises: list[float] = []
    if noise_norm is not None:
        noises = noise_norm.detach().double().reshape(-1).tolist()
    levels = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    rows: list[dict[str, object]] = []
    for i, lengths in enumerate(entries):
        low, middle, high = torch.quantile(lengths, levels).tolist()
        median = {"length": middle, "length_low": low, "length_high": high}
        rows.append({"entry": i, "of": "median delta (quartiles)", **median})
        rows.append({"entry": i, "of": "mean delta", "length": means[i]})
        if noises:
            rows.append({"entry": i, "of": "noise", "length": noises[i]})
    title = f"Length of {norms.shape[-1]} deltas"
    return drawing(pd.DataFrame(rows), replace(_LENGTHS, title=title), empty="no deltas")


def picture_of_path(coordinates: Float[Tensor, "step k"], shares: Float[Tensor, " k"]) -> Drawing:
    """The rows of a path in the plane of its first two components, numbered from 0."""
    values = coordinates.detach().to(torch.float64).cpu().numpy()
    held = shares.tolist()
    table = pd.DataFrame({"step": range(len(values)), "first": values[:, 0], "second": 0.0})
    y_title = "(one component only)"
    if values.shape[1] > 1:
        table["second"] = values[:, 1]
        y_title = f"second component ({held[1]:.0%} of the variance)"
    plot = replace(
        _PATH, x_title=f"first component ({held[0]:.0%} of the variance)", y_title=y_title
    )
    return drawing(table, plot, empty="a path without a row")

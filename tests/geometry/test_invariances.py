"""What each measure of geometry must not see, in 200 random cases, and what it must see, as a
control.

Cases come as batches along a leading axis, so that every measure is also held to its batch axes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from emlens.geometry import (
    cosine_to_mean,
    delta_summary,
    linear_cka,
    mahalanobis_distance,
    mean_shift_cosine,
    principal_angles,
    procrustes_distance,
    projection_fraction,
    prompt_overlap,
    reconstruction_cosine,
    subspace_overlap,
    top_k_subspace,
    variance_captured,
    weight_update,
    weight_update_angles,
)
from emlens.geometry.components import elbow
from emlens.geometry.coordinates import share_in_coordinates, winsorised
from emlens.geometry.overlap import MEASURES
from emlens.geometry.projections import explained_l2, residual_fraction, subspace_mahalanobis
from emlens.geometry.similarity import mean_pairwise_cosine
from emlens.geometry.weight_updates import weight_update_cosine

EXAMPLES, BATCH = 20, 10  # 200 cases
SAME = 1e-9  # rounding of float64 over matrices of condition number below 1e4
SEEN = 1e-4  # a control moves the value by far more than rounding


@dataclass(frozen=True)
class World:
    """Two sets of rows of the same prompts, and random tools to transform them with; all with a
    leading batch axis.
    """

    x: Tensor
    y: Tensor
    turn: Tensor
    other_turn: Tensor
    shift: Tensor
    scales: Tensor
    gauge: Tensor
    order: Tensor
    ks: tuple[int, int] = (3, 2)


def world(seed: int, n: int = 12, d: int = 7) -> World:
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(BATCH, *shape, dtype=torch.float64, generator=rng)

    def turn(size: int) -> Tensor:
        return torch.linalg.qr(draw(size, size)).Q

    common = draw(1, d)
    x = (draw(n, d) + common) * torch.linspace(1, 3, d, dtype=torch.float64)
    y = (0.5 * x + draw(n, d)) * torch.linspace(2, 1, d, dtype=torch.float64)
    scales = 10 ** torch.empty(BATCH, n + 2, 1, dtype=torch.float64).uniform_(-3, 3, generator=rng)
    gauge = turn(3) * torch.tensor([1.0, 2, 5], dtype=torch.float64)
    return World(
        x, y, turn(d), turn(d), 5 * draw(1, d), scales, gauge, torch.randperm(n, generator=rng)
    )


def mapped(w: World) -> World:
    matrix = w.turn * torch.linspace(0.5, 3, w.x.shape[-1], dtype=torch.float64) @ w.other_turn
    return replace(w, x=w.x @ matrix, y=w.y @ matrix)


def rebased(w: World) -> World:
    return replace(w, x=torch.cat([w.gauge @ w.x[:, :3], w.x[:, 3:]], dim=1))


def regauged(w: World) -> World:
    """A → MA and B → BM⁻¹ for both adapters that `updates` cuts x and y into."""
    inverse = torch.linalg.inv(w.gauge).mT
    x = torch.cat([w.gauge @ w.x[:, :3], inverse @ w.x[:, 3:6], w.x[:, 6:]], dim=1)
    y = torch.cat([inverse @ w.y[:, :3], w.gauge @ w.y[:, 3:6], w.y[:, 6:]], dim=1)
    return replace(w, x=x, y=y)


def stretched(w: World) -> World:
    factors = torch.linspace(1, 4, w.x.shape[-1], dtype=torch.float64)
    return replace(w, x=w.x * factors, y=w.y * factors)


TRANSFORMS: dict[str, Callable[[World], World]] = {
    "rotate both": lambda w: replace(w, x=w.x @ w.turn, y=w.y @ w.turn),
    "rotate one": lambda w: replace(w, x=w.x @ w.turn),
    "scale both": lambda w: replace(w, x=w.x * w.scales[:, -1:], y=w.y * w.scales[:, -1:]),
    "scale each": lambda w: replace(w, x=w.x * w.scales[:, -1:], y=w.y * w.scales[:, -2:-1]),
    "scale rows": lambda w: replace(w, x=w.x * w.scales[:, :-2]),
    "shift both": lambda w: replace(w, x=w.x + w.shift, y=w.y + w.shift),
    "shift one": lambda w: replace(w, x=w.x + w.shift),
    "swap": lambda w: replace(w, x=w.y, y=w.x, ks=w.ks[::-1]),
    "permute both": lambda w: replace(w, x=w.x[:, w.order], y=w.y[:, w.order]),
    "permute one": lambda w: replace(w, x=w.x[:, w.order]),
    "negate one": lambda w: replace(w, x=-w.x),
    "change a basis": rebased,
    "change the gauge": regauged,
    "map both": mapped,
    "stretch both": stretched,
}


def columns(parts: Sequence[Tensor]) -> Tensor:
    """One row of values a case."""
    return torch.cat(
        [part[:, None] if part.ndim == 1 else part.flatten(1) for part in parts], dim=1
    )


def spans(w: World) -> Tensor:
    a, b = w.x[:, : w.ks[0]].mT, w.y[:, : w.ks[1]].mT
    return columns([principal_angles(a, b), *(subspace_overlap(a, b, name) for name in MEASURES)])


def fitted(w: World, method: str = "exact") -> Tensor:
    a, b = (
        top_k_subspace(rows, 2, center=True, method=method, tolerance=1e-8) for rows in (w.x, w.y)
    )
    return columns(
        [
            principal_angles(a, b),
            a.explained_variance_ratio.sort().values + b.explained_variance_ratio,
        ]
    )


def plain_projections(w: World) -> Tensor:
    space = top_k_subspace(w.y, 3, center=False)
    return columns(
        [
            variance_captured(w.x, space),
            variance_captured(w.x, space, against="best"),
            projection_fraction(w.x, space, centred=False),
            residual_fraction(w.x, space, centred=False),
            explained_l2(w.x, space, centred=False),
            reconstruction_cosine(w.x, space),
            cosine_to_mean(w.x, w.y.mean(1)),
        ]
    )


def centred_projections(w: World) -> Tensor:
    space = top_k_subspace(w.y, 3, center=True)
    return columns(
        [
            variance_captured(w.x, space),
            variance_captured(w.x, space, against="best"),
            projection_fraction(w.x, space, centred=True),
            residual_fraction(w.x, space, centred=True),
            explained_l2(w.x, space, centred=True),
            prompt_overlap(w.x, space),
            subspace_mahalanobis(w.x, space),
        ]
    )


def summary(w: World) -> Tensor:
    result = delta_summary(w.x, floor=0.1 * w.y)
    shares = [
        result.common_share,
        result.unbiased_common_share,
        result.signal_to_noise,
        result.spread / result.rms_norm,
    ]
    rows = [result.cosines, result.cosines_to_others, result.norms / result.rms_norm[:, None]]
    return columns([*shares, *(row.sort(dim=1).values for row in rows)])


def updates(w: World) -> Tensor:
    first = weight_update(w.x[:, :3], w.y[:, :3].mT, 0.5)
    second = weight_update(w.y[:, 3:6], w.x[:, 3:6].mT, 2.0)
    angles = [weight_update_angles(first, second, side=side, k=2) for side in ("output", "input")]
    return columns([*angles, weight_update_cosine(first, second)])


def coordinates(w: World) -> Tensor:
    clipped = winsorised(w.x, threshold=1.5)
    assert torch.equal(winsorised(clipped, threshold=1.5), clipped)
    return columns([share_in_coordinates(w.x, [0, 2]), clipped / w.x])


def elbows(w: World) -> Tensor:
    both = torch.cat([w.x, w.y], dim=2)  # x alone has too few values
    return torch.tensor([[float(elbow(torch.linalg.svdvals(rows)))] for rows in both])


def listed(words: str) -> list[str]:
    return [word.strip() for word in words.split(",")] if words else []


def measured() -> dict[str, tuple[Callable[[World], Tensor], list[str], list[str]]]:
    """Measure, what it must not see, what it must see."""
    table = {
        "angles and overlaps": (
            spans,
            "rotate both, scale each, scale rows, swap, change a basis",
            "stretch both, rotate one, shift one",
        ),
        "fitted subspaces": (
            fitted,
            "rotate both, scale each, shift one, permute one",
            "stretch both, scale rows",
        ),
        "randomised subspaces": (
            lambda w: fitted(w, "randomised"),
            "rotate both, permute one",
            "stretch both, scale rows",
        ),
        "projections": (
            plain_projections,
            "rotate both, scale each",
            "stretch both, shift both, rotate one, swap",
        ),
        "centred projections": (
            centred_projections,
            "rotate both, scale both, shift both",
            "stretch both, shift one, scale each",
        ),
        "Mahalanobis in the whole space": (
            lambda w: subspace_mahalanobis(w.x, top_k_subspace(w.y, w.y.shape[-1], center=True)),
            "map both, shift both, scale both",
            "scale each, shift one",
        ),
        "delta summary": (
            summary,
            "rotate both, scale both, permute one",
            "stretch both, shift one, scale rows, scale each",
        ),
        "cosine of means": (
            lambda w: columns([mean_shift_cosine(w.x, w.y)]),
            "rotate both, scale each, swap, permute one",
            "scale rows, shift one, rotate one, negate one",
        ),
        "mean pairwise cosine": (
            lambda w: columns([mean_pairwise_cosine(w.x, w.y)]),
            "rotate both, scale each, scale rows, swap, permute one",
            "shift one, rotate one, negate one",
        ),
        "mean pairwise cosine of one set": (
            lambda w: columns([mean_pairwise_cosine(w.x)]),
            "rotate both, scale rows, permute one, negate one",
            "shift one, stretch both",
        ),
        "alignment": (
            lambda w: columns([linear_cka(w.x, w.y), linear_cka(w.x, w.y, debiased=False)]),
            "rotate one, scale each, shift one, swap, permute both, negate one",
            "permute one, stretch both, scale rows",
        ),
        "centred Procrustes distance": (
            lambda w: columns([procrustes_distance(w.x, w.y, center=True)]),
            "rotate one, scale each, shift one, swap, permute both, negate one",
            "permute one, stretch both, scale rows",
        ),
        "Procrustes distance": (
            lambda w: columns([procrustes_distance(w.x, w.y, center=False)]),
            "rotate one, scale each, swap, permute both, negate one",
            "permute one, shift one, stretch both",
        ),
        "shrunk Mahalanobis": (
            lambda w: mahalanobis_distance(w.x, w.y),
            "rotate both, scale both, shift both",
            "map both, scale each, shift one",
        ),
        "Mahalanobis": (
            lambda w: mahalanobis_distance(w.x, w.y, shrinkage=0.0),
            "map both, rotate both, scale both, shift both",
            "scale each, shift one",
        ),
        "weight updates": (
            updates,
            "change the gauge, rotate both, scale both, scale each",
            "stretch both, rotate one, scale rows, shift one",
        ),
        "coordinates": (coordinates, "scale both, scale rows", "rotate both, shift one"),
        "elbow": (elbows, "rotate both, scale both, permute both, negate one", ""),
    }
    return {
        name: (measure, listed(same), listed(seen)) for name, (measure, same, seen) in table.items()
    }


MEASURED = measured()


@pytest.mark.parametrize("name", MEASURED)
def test_invariances(name: str) -> None:
    measure, invariances, _ = MEASURED[name]

    @settings(max_examples=EXAMPLES, deadline=None, database=None)
    @given(st.integers(0, 2**32))
    def holds(seed: int) -> None:
        w = world(seed)
        before = measure(w)
        assert len(before) == BATCH and torch.isfinite(before).all()
        for transform in invariances:
            after = measure(TRANSFORMS[transform](w))
            assert float((after - before).abs().max()) <= SAME * max(
                1.0, float(before.abs().max())
            ), transform

    holds()


@pytest.mark.parametrize(
    ("name", "transform"),
    [(name, seen) for name, (_, _, controls) in MEASURED.items() for seen in controls],
)
def test_controls_are_seen(name: str, transform: str) -> None:
    measure, w = MEASURED[name][0], world(0)
    moved = (measure(TRANSFORMS[transform](w)) - measure(w)).abs().amax(dim=1)
    assert float(moved.min()) > SEEN, "every case of the batch must move"

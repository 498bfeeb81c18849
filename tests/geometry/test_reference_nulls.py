import numpy as np
import pytest
import torch

from emlens import EmlensError
from emlens.geometry import (
    covariance_overlap_null,
    reference_overlap_null,
    split_half_ceiling,
    subspace_overlap,
    top_k_subspace,
)
from emlens.geometry.isotropic_nulls import overlap_moments

SCALES = 1 / torch.arange(1, 25, dtype=torch.float64).sqrt()


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def overlaps(a: torch.Tensor, b: torch.Tensor, k: int, center: bool) -> torch.Tensor:
    return subspace_overlap(
        top_k_subspace(a, k, center=center), top_k_subspace(b, k, center=center)
    )


def false_positives(make, scales: torch.Tensor, k: int, center: bool, mean: float = 0.0) -> float:
    """Share of independent pairs called related, over references of 60 vectors."""
    result = overlaps(*(rows(300, 15, 24, seed=s) * scales + mean for s in (1, 2)), k, center)
    rates = []
    for seed in range(8):
        null = make(
            rows(60, 24, seed=100 + seed) * scales + mean,
            15,
            15,
            k,
            center=center,
            draws=60,
            seed=seed,
        )
        rates.append((null.p_values(result) <= 0.05).mean())
    return float(np.mean(rates))


@pytest.mark.parametrize(("scales", "k"), [(SCALES, 4), (torch.ones(24, dtype=torch.float64), 2)])
def test_it_holds_its_level_where_the_plug_in_is_far_off(scales, k):
    """A rough check (eight references); docs/nulls.md has the measured rates."""
    assert 0.005 < false_positives(reference_overlap_null, scales, k, True) < 0.12
    assert false_positives(covariance_overlap_null, scales, k, True) < 0.03


def test_a_mean_counts_where_nothing_is_centred():
    assert 0.005 < false_positives(reference_overlap_null, SCALES, 2, False, mean=0.3) < 0.12
    x = rows(80, 24) * SCALES
    spread = [
        reference_overlap_null(x + shift, 20, 20, 1, center=False, draws=50).mean
        for shift in (0, 9)
    ]
    assert spread[0] < 0.8 and spread[1] > 0.99
    moved = [
        reference_overlap_null(x + shift, 20, 20, 3, center=True, draws=20).draws
        for shift in (0, 9)
    ]
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-8)  # centred, a mean is nothing


def test_it_lies_where_disjoint_sets_of_the_reference_do():
    x = rows(60, 24) * SCALES
    null = reference_overlap_null(x, 30, 30, 4, center=True, splits=16, draws=100)
    halves = split_half_ceiling(x, 4, center=True, splits=100)
    assert null.quantile(0.5) == pytest.approx(halves.value, abs=0.1)
    assert null.sd > (halves.high - halves.low) / 4  # two new sets vary more than two halves of one
    plugged = covariance_overlap_null(rows(60, 24), 30, 30, 4, center=True, draws=80).mean
    corrected = reference_overlap_null(rows(60, 24), 30, 30, 4, center=True, draws=80).mean
    truth = overlap_moments(24, 4, 4)[0]
    # a sample of isotropic vectors is not isotropic
    assert plugged - truth > 2 * abs(corrected - truth)


@pytest.mark.parametrize("measure", ["mean_cos", "min_cos", "chordal"])
def test_draws_are_overlaps_and_ignore_rotation_scale_and_width(measure):
    x = rows(40, 24) * SCALES
    null = reference_overlap_null(x, 12, 14, 3, center=True, measure=measure, draws=40)
    assert ((null.draws > 0) & (null.draws < 1)).all() and null.n_draws == 40
    turned = 5 * x @ torch.linalg.qr(rows(300, 24)).Q.T  # into a stream of another width
    np.testing.assert_allclose(
        reference_overlap_null(turned, 12, 14, 3, center=True, measure=measure, draws=40).draws,
        null.draws,
        atol=1e-8,
    )
    assert (
        reference_overlap_null(x, 12, 14, 3, center=True, measure=measure, draws=40, seed=1).draws
        != null.draws
    ).any()
    assert "disjoint sets of 12 and 14 of 40 reference vectors" in null.label


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: reference_overlap_null(rows(39, 9), 20, 20, 2, center=True),
            (
                "reference has 39 rows; two disjoint sets of 20 and 20 need 40."
                " covariance_overlap_null takes fewer"
            ),
        ),
        (
            lambda: reference_overlap_null(rows(40, 9), 20, 20, 2, center="mean"),
            "center='mean' must be True or False here",
        ),
        (
            lambda: reference_overlap_null(0.1 * torch.ones(40, 9), 20, 20, 2, center=True),
            r"reference of shape \(40, 9\) has no variance",
        ),
        (
            lambda: reference_overlap_null(rows(40, 9), 4, 20, 4, center=True),
            "reference: a sample of 4 vectors has rank below k=4",
        ),
        (
            lambda: reference_overlap_null(rows(40, 9), 20, 20, 2, center=True, splits=0),
            "splits=0 must be an integer of 1 or more",
        ),
        (
            lambda: reference_overlap_null(
                rows(40, 9), 20, 20, 2, center=True, tested=[-rows(40, 9)[:5]]
            ),
            "reference holds 5 of the tested vectors among its 40 rows",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()

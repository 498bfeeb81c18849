import numpy as np
import pytest
import torch

from emlens.foundation import InputError, Site
from emlens.geometry import Direction, compare_directions, direction_cosine
from emlens.geometry.contrast_sums import ContrastSums
from emlens.geometry.random_directions import covariance_cosine_null

D = 64


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SCALES = 1 / torch.arange(1, D + 1, dtype=torch.float64) ** 0.5
SHARED = rows(D, seed=9) / 4
UNITS = [f"q{i % 40}" for i in range(120)]


def fine_tune(seed: int, shift: torch.Tensor) -> ContrastSums:
    up, down = rows(120, D, seed=seed) * SCALES + shift, rows(120, D, seed=seed + 50) * SCALES
    return ContrastSums.from_rows(up, down, positive_units=UNITS, negative_units=UNITS)


def test_a_shared_direction_stands_out_and_an_unrelated_one_does_not():
    table = compare_directions(
        {
            "a": fine_tune(1, SHARED),
            "b": fine_tune(2, SHARED),
            "c": fine_tune(3, SCALES * rows(D, seed=4)),
        },
        torch.diag(SCALES**2),
        draws=2000,
        splits=50,
    ).set_index(["a", "b"])
    same, other = table.loc[("a", "b")], table.loc[("a", "c")]
    assert same["low"] < same["cosine"] < same["high"] and same["n"] == 32
    assert same["p"] == pytest.approx(1 / 2001) and same["p_adjusted"] == pytest.approx(3 / 2001)
    assert other["p"] > 0.05 and other["p_adjusted"] >= other["p"]
    # two estimates of one direction reach the ceiling
    assert same["cosine"] == pytest.approx(same["ceiling"], abs=0.05)
    assert same["null_sd"] > 1.3 * same["isotropic_sd"] == pytest.approx(1.3 / 8)
    null = covariance_cosine_null(torch.diag(SCALES**2), 2000)
    assert same["null_95"] == pytest.approx(null.quantile(0.95))


def test_plain_directions_have_a_null_but_no_interval():
    site = Site("resid_post", 1)
    a, b = Direction(SHARED, site, "last"), Direction(rows(D), site, "last")
    table = compare_directions(
        {"a": a, "b": b, "c": fine_tune(1, SHARED)}, rows(100, D) * SCALES, draws=200
    )
    assert (
        len(table) == 3
        and np.isnan(table[["low", "high", "ceiling"]].to_numpy()).all()
        and (table["n"] == 0).all()
    )
    assert (
        table["cosine"][0] == pytest.approx(direction_cosine(a, b))
        and table["p"].between(1 / 201, 1).all()
    )


def test_refusals(unchecked):
    a = Direction(SHARED, "resid_post.1")
    with pytest.raises(InputError, match="directions holds 1; pass at least 2 to compare"):
        compare_directions({"a": a}, rows(9, D))
    with pytest.raises(InputError, match="compare them at one site and position"):
        compare_directions({"a": a, "b": Direction(SHARED, "resid_post.2")}, rows(9, D))
    with pytest.raises(InputError, match="a has 64 coordinates and b has 3"):
        compare_directions({"a": a, "b": Direction(rows(3), "resid_post.1")}, rows(9, D))

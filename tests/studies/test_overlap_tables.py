"""A shared subspace that is planted in one group is seen there and nowhere else, and likeness is
tested within domains.
"""

from typing import Any

import numpy as np
import pytest
import torch

from emlens.geometry import covariance_overlap_null
from emlens.studies import overlap_nulls
from emlens.studies.overlap_measures import mean_cos2_overlap
from emlens.studies.overlap_nulls import NullsAtPlace, OverlapNulls
from emlens.studies.overlap_shifts import Place
from emlens.studies.overlap_tables import overlap_by_group, overlap_by_k
from emlens.studies.prompt_shift_relation import mantel_columns

PLACE = Place("bad", "resid_post.2", "last_prompt")
D, K = 24, 3


def rows(n: int, seed: int, planted: float = 0.0) -> torch.Tensor:
    """Isotropic rows, with variance along three fixed axes where planted."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, dtype=torch.float64, generator=generator)
    x[:, :K] *= 1 + planted
    return x


def nulls(draws: int) -> NullsAtPlace:
    return OverlapNulls(draws, seed=0).at((), rows(90, 5))


def test_only_the_group_that_shares_the_subspace_overlaps() -> None:
    groups = {"like": rows(40, 2, 6), "unlike": rows(30, 3), "few": rows(3, 4)}
    table = overlap_by_group(PLACE, rows(60, 1, 6), groups, rows(90, 5), K, seed=0)
    by_group = {row["group"]: row for row in table}
    assert set(by_group) == {"like", "unlike"}
    like, unlike = by_group["like"], by_group["unlike"]
    assert like["n"] == 40 and unlike["n"] == 30
    assert like["layer"] == 2 and unlike["overlap"] < 0.4 < like["overlap"]


def test_several_k_stand_beside_their_own_nulls() -> None:
    pair = rows(60, 1, 6), rows(60, 2, 6)
    benign = rows(60, 6), rows(60, 7)
    table = overlap_by_k(PLACE, pair, benign, nulls(49), (1, K, 99))
    assert [row["k"] for row in table] == [1, K]
    assert table[1]["overlap"] == mean_cos2_overlap(*pair, K) > 0.9 > table[1]["benign"]
    assert table[0]["null_mean"] != table[1]["null_mean"]


def test_prompts_that_lie_alike_and_shift_alike_are_found_within_domains_only() -> None:
    before = rows(48, 1)
    groups, lengths = ["a", "b"] * 24, list(range(48))
    turn = torch.linalg.qr(rows(D, 2)).Q
    turned = before @ turn + 0.1 * rows(48, 3)
    alike = mantel_columns(before, turned, groups, lengths, draws=99, seed=0)
    assert alike["mantel_p"] == pytest.approx(0.02)  # two-sided
    unlike = mantel_columns(before, rows(48, 4), groups, lengths, draws=99, seed=0)
    assert unlike["mantel_p"] > 0.05
    by_domain = torch.zeros(48, D, dtype=torch.float64)
    by_domain[::2, 0] = by_domain[1::2, 1] = 9.0  # domains alone make prompts alike and shift alike
    confounded = mantel_columns(
        rows(48, 5) + by_domain, rows(48, 6) + by_domain, groups, lengths, draws=99, seed=0
    )
    assert confounded["mantel"] > 0.5 and confounded["mantel_p"] > 0.05
    few = mantel_columns(before[:3], before[:3], ["a", "a", "b"], [1, 1, 1], draws=19, seed=0)
    assert np.isnan(few["mantel"])


@pytest.mark.parametrize("center", [True, False])
def test_covariance_nulls_come_from_few_rows_and_form_no_covariance(
    monkeypatch: pytest.MonkeyPatch, center: bool
) -> None:
    width = torch.linspace(1, 3, 3 * D)
    before = torch.cat([rows(40, seed) for seed in (5, 6, 7)], 1) * width + 0.2
    read: list[torch.Size] = []

    def spied(reference: torch.Tensor, *args: Any, **options: Any) -> Any:
        read.append(reference.shape)
        return covariance_overlap_null(reference, *args, **options)

    monkeypatch.setattr(overlap_nulls, "covariance_overlap_null", spied)
    found = OverlapNulls(50, seed=0).at((), before).covariance(20, 20, K, center=center)
    assert read == [(40, 3 * D)]
    moments = torch.cov(before.T) if center else before.T @ before / len(before)
    formed = covariance_overlap_null(moments, 20, 20, K, center=center, draws=50)
    np.testing.assert_allclose(found.draws, formed.draws, atol=1e-8)

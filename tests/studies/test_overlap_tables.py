"""What is planted is found and what is not is not: a shared subspace in one group only, a lead over
a benign control, likeness within domains.
"""

import numpy as np
import pytest
import torch

from emlens.geometry import reference_overlap_null
from emlens.studies.overlap_tables import (
    BLOCKS,
    SPLITS,
    Place,
    by_group,
    by_k,
    lead_over_benign,
    mantel,
    overlap,
)

PLACE = Place("bad", "resid_post.2", "last_prompt")
D, K = 24, 3


def rows(n: int, seed: int, planted: float = 0.0) -> torch.Tensor:
    """Isotropic rows, with variance along three fixed axes where planted."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, dtype=torch.float64, generator=generator)
    x[:, :K] *= 1 + planted
    return x


def test_only_the_group_that_shares_the_subspace_exceeds_its_null() -> None:
    groups = {"like": rows(40, 2, 6), "unlike": rows(30, 3), "few": rows(3, 4)}
    found = {
        row["group"]: row
        for row in by_group(
            PLACE, rows(60, 1, 6), groups, rows(90, 5), K, draws=99, seed=0, nulls={}, key=()
        )
    }
    assert (
        set(found) == {"like", "unlike"} and found["like"]["n"] == 40 and found["unlike"]["n"] == 30
    )
    assert found["like"]["p_holm"] == pytest.approx(0.02) and found["unlike"]["p_holm"] > 0.05
    assert (
        found["like"]["layer"] == 2 and found["like"]["null_mean"] < 0.4 < found["like"]["overlap"]
    )


def test_several_k_stand_beside_their_own_nulls() -> None:
    pair = rows(60, 1, 6), rows(60, 2, 6)
    table = by_k(
        PLACE,
        pair,
        rows(90, 5),
        (1, K, 99),
        benign=(rows(60, 6), rows(60, 7)),
        draws=49,
        seed=0,
        nulls={},
        key=(),
    )
    assert [row["k"] for row in table] == [1, K]
    assert table[1]["overlap"] == overlap(*pair, K) > 0.9 > table[1]["benign"]
    assert table[0]["null_mean"] != table[1]["null_mean"]


def test_the_lead_over_benign_has_an_interval_that_covers_nothing_where_nothing_leads() -> None:
    benign = rows(64, 8), rows(64, 9)
    shared = {"draws": 49, "seed": 0, "key": ()}
    leads = lead_over_benign(
        PLACE, (rows(64, 1, 6), rows(64, 2, 6)), benign, rows(160, 10), K, nulls={}, **shared
    )
    assert leads["lead_low"] > 0 and leads["lead"] == pytest.approx(
        leads["overlap"] - leads["benign"]
    )
    same = lead_over_benign(
        PLACE, (rows(64, 11), rows(64, 12)), benign, rows(160, 10), K, nulls={}, **shared
    )
    assert same["lead_low"] < 0 < same["lead_high"]
    null = reference_overlap_null(
        rows(160, 10), 64, 64, K, center=True, splits=SPLITS, draws=49, seed=0
    )
    assert (same["null_mean"], same["p"]) == (null.mean, null.p_value(same["overlap"])) and same[
        "p"
    ] > 0.05 > leads["p"]
    few = lead_over_benign(
        PLACE, (rows(64, 11), rows(64, 12)), benign, rows(100, 10), K, nulls={}, **shared
    )
    # too few benign shifts for that null
    assert np.isnan(few["null_mean"]) and np.isfinite(few["lead_low"])
    short = lead_over_benign(
        PLACE, (rows(4, 1), rows(4, 2)), (rows(4, 3), rows(4, 4)), None, 3, nulls={}, **shared
    )
    assert np.isnan(short["lead_low"]) and BLOCKS == 8


def test_prompts_that_lie_alike_and_shift_alike_are_found_within_domains_only() -> None:
    before = rows(48, 1)
    groups, lengths = ["a", "b"] * 24, list(range(48))
    turn = torch.linalg.qr(rows(D, 2)).Q
    # two-sided
    assert mantel(before, before @ turn + 0.1 * rows(48, 3), groups, lengths, draws=99, seed=0)[
        "mantel_p"
    ] == pytest.approx(0.02)
    assert mantel(before, rows(48, 4), groups, lengths, draws=99, seed=0)["mantel_p"] > 0.05
    by_domain = torch.zeros(48, D, dtype=torch.float64)
    by_domain[::2, 0] = by_domain[1::2, 1] = 9.0  # domains alone make prompts alike and shift alike
    found = mantel(
        rows(48, 5) + by_domain, rows(48, 6) + by_domain, groups, lengths, draws=99, seed=0
    )
    assert found["mantel"] > 0.5 and found["mantel_p"] > 0.05
    assert np.isnan(
        mantel(before[:3], before[:3], ["a", "a", "b"], [1, 1, 1], draws=19, seed=0)["mantel"]
    )

"""What the overlap part may not mix up: nulls of other sizes, and a k that half of the prompts
cannot carry.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from emlens.activations import Activations
from emlens.foundation.errors import InputError
from emlens.geometry import covariance_overlap_null, split_half_ceiling
from emlens.results.overlap_labels import COVARIANCE
from emlens.studies.config import StudyConfig
from emlens.studies.delta_overlap import DeltaOverlap, FineTuneShifts, Options, size_warnings
from emlens.studies.overlap_measures import overlap_rows
from emlens.studies.overlap_nulls import OverlapNulls
from emlens.studies.overlap_shifts import Place, SampledShifts
from emlens.studies.study import StudyContext

SITE, POSITION = "resid_post.1", "last_prompt"


def acts(seed: int, n: int = 24, d: int = 16) -> Activations:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * torch.arange(d, 0, -1)
    return Activations(
        {(SITE, POSITION): rows},
        ids=[str(i) for i in range(n)],
        groups=["g"] * n,
        sites=[SITE],
        positions=[POSITION],
        provenance={"rendered_sha256": "same prompts"},
    )


def context(material: Any, k: int) -> StudyContext:
    config = StudyConfig.model_validate({"family": {"organism": "planted"}, "draws": 50, "k": k})
    return StudyContext(material, config, Options(), Path("unused"))


def sampled() -> SampledShifts:
    return SampledShifts(acts(1), acts(2), acts(3), acts(4), None)


def rows_at_place(k: int, nulls: OverlapNulls) -> pd.DataFrame:
    shifts = sampled().at(SITE, POSITION)
    at_place = nulls.at(("instruct", *sampled().rendered, SITE, POSITION), shifts.before)
    place = Place("bad", SITE, POSITION)
    return pd.DataFrame(overlap_rows(place, shifts, None, at_place, k))


def test_fine_tunes_on_the_same_prompts_share_a_null_only_at_the_same_k() -> None:
    shared = OverlapNulls(draws=50, seed=0)
    rows_at_place(6, shared)
    after_another = rows_at_place(1, shared)
    alone = rows_at_place(1, OverlapNulls(draws=50, seed=0))
    pd.testing.assert_frame_equal(after_another, alone)
    drawn = len(shared.drawn)
    rows_at_place(6, shared)
    assert len(shared.drawn) == drawn  # what fits is shared
    tested = after_another[after_another["null_kind"] == COVARIANCE]
    wider = rows_at_place(6, shared).loc[tested.index]
    assert (tested["null_mean"] != wider["null_mean"]).all()


def test_the_null_has_the_moments_of_activations_before_and_not_of_the_shifts() -> None:
    table = rows_at_place(4, OverlapNulls(draws=50, seed=0))
    table = table[table["null_kind"] == COVARIANCE].set_index("center")
    before = torch.cat([acts(3)[SITE, POSITION], acts(4)[SITE, POSITION]]).double()
    for center, moments in ((True, torch.cov(before.T)), (False, before.T @ before / len(before))):
        expected = covariance_overlap_null(moments, 24, 24, 4, center=center, draws=50, seed=0)
        row = table.loc[str(center).lower()]
        assert (row["null_mean"], row["p"]) == (expected.mean, expected.p_value(row["value"]))


@pytest.mark.parametrize("n", [8, 9, 12, 13])
def test_the_check_allows_exactly_what_the_ceiling_can_carry(n: int) -> None:
    prompts = SimpleNamespace(prompts=lambda: range(40))
    material: Any = SimpleNamespace(
        focus=lambda config: ["bad"],
        training={"bad": range(n)},
        outside=lambda name: prompts,
        family={"bad": SimpleNamespace(d_model=16)},
    )
    rows = acts(1, n)[SITE, POSITION]
    largest = n // 2 - 1
    DeltaOverlap().check(context(material, k=largest))
    assert split_half_ceiling(rows, largest, center=True, splits=2).n == n
    refused = (
        rf"k={largest + 1} is above the rank that half of {n} prompts per side of 'bad' can carry;"
        rf" pass k <= {largest}, or more prompts"
    )
    with pytest.raises(InputError, match=refused):
        DeltaOverlap().check(context(material, k=largest + 1))
    with pytest.raises(
        InputError, match=f"above the rank of half of {n} vectors; pass k <= {largest}"
    ):
        split_half_ceiling(rows, largest + 1, center=True, splits=2)


def test_a_missing_null_of_benign_shifts_is_reported() -> None:
    missing = (
        "bad: the null of benign shifts needs 48 shifts of the benign control,"
        " which has 47 questions outside its domain; it is missing"
    )
    compared = {"name": "bad", "shifts": sampled(), "benign_name": "good", "benign": sampled()}
    too_few = FineTuneShifts(**compared, benign_by_question=acts(5, n=47))
    enough = FineTuneShifts(**compared, benign_by_question=acts(5, n=48))
    no_control = FineTuneShifts("bad", sampled())
    assert size_warnings(too_few) == [missing]
    assert size_warnings(enough) == size_warnings(no_control) == []

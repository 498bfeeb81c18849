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
from emlens.geometry import covariance_overlap_null, split_half_ceiling, top_k_subspace
from emlens.results.overlap_labels import COVARIANCE
from emlens.studies.config import StudyConfig, read_config
from emlens.studies.delta_overlap import (
    DeltaOverlap,
    FineTuneShifts,
    Options,
    _OverlapMeasurer,
)
from emlens.studies.overlap_measures import overlap_rows
from emlens.studies.overlap_nulls import OverlapNulls
from emlens.studies.overlap_shifts import Place, SampledShifts
from emlens.studies.study import StudyContext

SITE, POSITION = "resid_post.1", "last_prompt"


def acts(seed: int, n: int = 24, d: int = 16) -> Activations:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * torch.arange(d, 0, -1)
    return activations(rows)


def activations(rows: torch.Tensor) -> Activations:
    n = len(rows)
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
        found = [row["null_mean"], row["null_q95"]]
        assert found == pytest.approx([expected.mean, expected.quantile(0.95)], abs=1e-12)


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


def planted(k: int, seed: int, n: int = 24, d: int = 64) -> Activations:
    """Shifts in k directions of their own, above noise."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(d, k, generator=generator)).Q
    strengths = torch.linspace(24, 12, k)
    signal = torch.randn(n, k, generator=generator) * strengths @ axes.T
    return activations(signal + torch.randn(n, d, generator=generator))


def measured(
    train: Activations, evaluation: Activations, k: Any, **options: Any
) -> _OverlapMeasurer:
    """The rows of every table at one place."""
    parent: Any = SimpleNamespace(name="instruct")
    texts = {str(i): f"text {i}" for i in range(24)}
    material: Any = SimpleNamespace(parent=lambda name: parent, texts=texts)
    config = StudyConfig.model_validate({"family": {"organism": "planted"}, "draws": 50, "k": k})
    measurer = _OverlapMeasurer(
        StudyContext(material, config, Options(**options), Path("unused")), ["bad"], None
    )
    before = acts(3, d=64), acts(4, d=64)
    shifts = SampledShifts(train, evaluation, *before, None)
    measurer._measure_place(FineTuneShifts("bad", shifts), Place("bad", SITE, POSITION))
    return measurer


def test_an_elbow_is_that_of_the_training_shifts_and_the_null_has_the_same_k() -> None:
    rows = measured(planted(3, 1), planted(6, 2), "elbow", ks=("elbow", 6, 0.999, 3)).rows
    table = pd.DataFrame(rows.overlap)
    assert set(table["k"]) == {3}
    assert [row["k"] for row in rows.by_k][:2] == [3, 6]  # each once
    # evaluation prompts have no say in k
    other = pd.DataFrame(measured(planted(3, 1), planted(1, 5), "elbow").rows.overlap)
    assert set(other["k"]) == {3} and not other["value"].equals(table["value"])
    assert set(pd.DataFrame(measured(planted(6, 2), planted(3, 1), "elbow").rows.overlap)["k"]) == {
        6
    }
    before = torch.cat([acts(3, d=64)[SITE, POSITION], acts(4, d=64)[SITE, POSITION]]).double()
    expected = covariance_overlap_null(
        torch.cov(before.T), 24, 24, 3, center=True, draws=50, seed=0
    )
    tested = table[(table["null_kind"] == COVARIANCE) & (table["center"] == "true")].iloc[0]
    found = [tested["null_mean"], tested["null_q95"]]
    assert found == pytest.approx([expected.mean, expected.quantile(0.95)], abs=1e-12)


def test_a_share_of_variance_is_that_of_the_training_shifts() -> None:
    train = planted(3, 1)
    table = pd.DataFrame(measured(train, planted(6, 2), 0.5).rows.overlap)
    rows = train[SITE, POSITION].double()
    assert set(table["k"]) == {top_k_subspace(rows, 0.5, center=True).k}


def test_without_an_elbow_no_subspaces_are_compared_and_the_place_is_named() -> None:
    noise = activations(torch.randn(24, 64, generator=torch.Generator().manual_seed(8)))
    measurer = measured(noise, planted(3, 1), "elbow")
    assert not measurer.rows.overlap and len(measurer.rows.relations) == 1
    assert measurer.part.warnings == [
        "bad at resid_post.1, last_prompt: k='elbow': the singular values of the 24 vectors fall"
        " without an elbow; pass a count, or a share of variance such as .95; no subspaces are"
        " compared there"
    ]


@pytest.mark.parametrize("k", [0, -1, 1.5, 0.0, True, "knee", "8"])
def test_a_dimension_that_is_none_is_refused(k: Any) -> None:
    with pytest.raises(
        InputError, match="field 'k': .* is no dimension; pass a count of 1 or more"
    ):
        read_config({"family": {"organism": "planted"}, "k": k})


@pytest.mark.parametrize("k", [1, 0.9, "elbow"])
def test_a_dimension_is_a_count_a_share_or_the_elbow(k: Any) -> None:
    config = read_config({"family": {"organism": "planted"}, "k": k})
    assert config.k == k and type(config.k) is type(k)

"""Interventions and adapters show themselves in one short line, never with their tensors."""

import pytest
import torch

from emlens.foundation import Index, Site
from emlens.foundation.positions import RowSpans
from emlens.geometry import Direction
from emlens.interventions import LoraAdapter, ablate, mean_ablate, resample_ablate, steer
from emlens.interventions.lora import LoraFactors
from emlens.interventions.saving import _KINDS
from emlens.interventions.scalars import AdapterScalars

LONGEST = 400
"""Characters: a few facts, each cut at 120."""


def test_every_kind_is_one_short_line_without_tensors(every_kind):
    assert {made.kind for made in every_kind} == set(_KINDS)
    for made in every_kind:
        line = repr(made)
        assert line.startswith(f"{type(made).__name__}(at=") and line.endswith("d_model=32)")
        assert "\n" not in line and "tensor" not in line and len(line) < LONGEST
        assert "tensor" not in made._repr_html_()


def test_the_line_says_where_it_acts_and_how_much():
    direction = Direction(torch.ones(576), Site("resid_post", 3))
    assert repr(steer(direction, 2.0)) == (
        "Steering(at=own_site, positions=all, coefficient=2.0, unit=vector,"
        " own_site=resid_post.3, d_model=576)"
    )
    assert repr(ablate(torch.ones(4), at=["resid_post.1", Site("final_norm")])) == (
        "Ablation(at=resid_post.1 final_norm, positions=all, form=plain, rank=1, d_model=4)"
    )
    means = {"resid_post.0": torch.ones(4)}
    assert repr(mean_ablate(means, positions=Index(1), direction=torch.ones(4))) == (
        "MeanAblation(at=resid_post.0, positions=index[1,sequence], rank=1, d_model=4)"
    )
    donors = {"resid_post.0": torch.ones(2, 4)}
    assert repr(resample_ablate(donors, seed=5)) == (
        "ResampleAblation(at=resid_post.0, positions=all, seed=5, per=token, d_model=4)"
    )


@pytest.mark.parametrize("width", [8, 5000])
def test_the_line_does_not_grow_with_the_stream(width):
    sites = [f"resid_post.{i}" for i in range(60)]
    line = repr(ablate(torch.ones(width), at=sites, baseline=torch.ones(width)))
    assert len(line) < LONGEST and line.endswith(f"d_model={width})")


def test_adapters_and_scalars():
    factors = LoraFactors(torch.ones(1, 4), torch.ones(2, 1), 0.5)
    assert repr(factors) == "LoraFactors(r=1, d_in=4, d_out=2, scale=0.5)"
    adapter = LoraAdapter({"model.layers.0.mlp.down_proj": factors}, edits=({"kind": "scaled"},))
    line = "LoraAdapter(modules=1, first=model.layers.0.mlp.down_proj, r=1, edits=scaled)"
    assert repr(adapter) == line and "<td>scaled</td>" in adapter._repr_html_()
    values = {"model.layers.0.mlp.down_proj": torch.ones(3, 1)}
    offsets = torch.tensor([0, 3])
    scalars = AdapterScalars(("a",), ("g",), values, offsets, (RowSpans(3, 2),))
    assert repr(scalars) == "AdapterScalars(rows=1, tokens=3, modules=1)"

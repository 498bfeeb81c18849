"""What the comparison itself can tell apart: a wrong place, rounding, a reference that does not
load.
"""

import pytest
import torch
from tiny_models import need_backend

from emlens.foundation import InputError, LoadError, Site
from emlens.models.nnsight_backend import NNsightModel
from emlens.models.parity import RELATIVE, _AllFloat64, check_parity, relative_difference


def test_the_reference_is_held_to_what_knows_no_hooks(files):
    found = check_parity(files / "instruct", adapter=files / "one", backends=())
    assert found.agrees and {d.backend for d in found.differences} == {"transformers"}
    assert {d.against for d in found.differences} == {"hidden_states", "additivity"}
    assert all(d.value64 is None for d in found.differences)
    assert found.architecture == "qwen2" and len(found.site_kinds) == 6


def noisy(monkeypatch, noise):
    need_backend("nnsight")
    call = NNsightModel._call

    def _call(self, what, inputs, passing):
        for site, reader in list(passing._readers.items()):
            passing._readers[site] = lambda x, reader=reader, site=site: reader(noise(site, x))
        return call(self, what, inputs, passing)

    monkeypatch.setattr(NNsightModel, "_call", _call)


def test_rounding_is_told_from_a_bug(files, monkeypatch):
    noisy(monkeypatch, lambda site, x: x * (1 + 4000 * torch.finfo(x.dtype).eps))
    found = check_parity(files / "instruct", backends=["nnsight"])
    differences = [
        d for d in found.differences if d.backend == "nnsight" and d.against == "transformers"
    ]
    assert (
        all(d.value > RELATIVE and d.agrees and d.value64 < 1e-11 for d in differences)
        and found.agrees
    )


def test_a_small_bug_stays_in_float64(files, monkeypatch):
    noisy(monkeypatch, lambda site, x: x * (1 + 2e-4) if site == Site("mlp_out", 1) else x)
    found = check_parity(files / "instruct", backends=["nnsight"])
    wrong = {(d.backend, d.against, d.kind) for d in found.differences if not d.agrees}
    assert not found.agrees
    assert wrong == {
        ("nnsight", "transformers", "mlp_out"),
        ("nnsight", "additivity", "resid_post"),
    }


def test_what_cannot_be_compared(files, tmp_path):
    with pytest.raises(
        InputError,
        match="backend 'jax' is unknown; pass one of transformers, transformer_lens, nnsight",
    ):
        check_parity(files / "instruct", backends=["jax"])
    with pytest.raises(LoadError, match="absent: no such directory"):
        check_parity(tmp_path / "absent")
    with pytest.raises(LoadError, match="the adapter changes no logit"):
        check_parity(files / "instruct", adapter=files / "zero", backends=())


def test_differences_that_are_none():
    a = torch.tensor([[1.0, 2.0]])
    assert relative_difference(a, a) == 0 and relative_difference(a, 2 * a) == 0.5
    assert relative_difference(a, a[:, :1]) == float("inf")
    assert relative_difference(a * float("nan"), a) == float("inf")


def test_float32_inside_a_float64_pass_is_lifted():
    x = torch.randn(4, dtype=torch.float64)
    with _AllFloat64():
        assert (
            x.to(torch.float32).dtype
            == x.float().dtype
            == torch.softmax(x, 0, dtype=torch.float32).dtype
            == torch.float64
        )
    assert x.float().dtype == torch.float32

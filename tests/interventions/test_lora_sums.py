"""Arithmetic of updates: against the matrices ΔW themselves, whatever the gauge of the factors."""

import math

import pytest
import torch

from emlens.foundation import InputError
from emlens.interventions.lora import LoraAdapter, LoraFactors
from emlens.interventions.lora_sums import (
    combined,
    interpolated,
    perturbed,
    random_update,
    update_norm,
    update_product,
    with_norm,
)

ROUNDING = 1e-5  # of float32 factors of rank 3 to 6


def adapter(
    seed,
    rank=3,
    scale=0.7,
    modules=("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"),
):
    generator = torch.Generator().manual_seed(seed)
    return LoraAdapter(
        {
            m: LoraFactors(
                torch.randn(rank, 8, generator=generator),
                torch.randn(6, rank, generator=generator),
                scale,
            )
            for m in modules
        }
    )


def dense(of):
    return {m: f.scale * f.b.double() @ f.a.double() for m, f in of.modules.items()}


def regauged(of, seed=9):
    """The same updates from other factors: B M and M⁻¹ A."""
    mix = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)) + 3 * torch.eye(3)
    return LoraAdapter(
        {
            m: LoraFactors(torch.linalg.inv(mix) @ f.a, f.b @ mix, f.scale)
            for m, f in of.modules.items()
        }
    )


def test_norms_and_products_are_those_of_the_matrices_in_any_gauge():
    one, two = adapter(1), adapter(2, rank=2, scale=1.5)
    expected = math.sqrt(sum(float((w**2).sum()) for w in dense(one).values()))
    assert (
        update_norm(one)
        == pytest.approx(expected, rel=ROUNDING)
        == pytest.approx(update_norm(regauged(one)), rel=ROUNDING)
    )
    for module in one.modules:
        assert update_product(one[module], two[module]) == pytest.approx(
            float((dense(one)[module] * dense(two)[module]).sum()), rel=ROUNDING
        )


def test_sums_are_sums_of_matrices_where_adding_factors_is_not():
    one, two = adapter(1), adapter(2)
    half = interpolated(one, two, 0.25)
    for module, weights in dense(half).items():
        expected = 0.75 * dense(one)[module] + 0.25 * dense(two)[module]
        assert torch.allclose(weights, expected, atol=ROUNDING * 10)
        assert torch.allclose(
            dense(interpolated(regauged(one), two, 0.25))[module], expected, atol=ROUNDING * 10
        )
        naive = (
            0.7
            * (0.75 * one[module].b + 0.25 * two[module].b)
            @ (0.75 * one[module].a + 0.25 * two[module].a)
        )
        assert not torch.allclose(naive.double(), expected, atol=0.1)
    assert (
        dense(interpolated(one, two, 0.0)).keys() == dense(one).keys()
        and half.edits[0]["kind"] == "combined"
    )


def test_a_module_that_one_part_lacks_is_unchanged_there():
    one, other = adapter(1), adapter(2, modules=("model.layers.0.mlp.down_proj",))
    both = combined([(one, 1.0), (other, -1.0)])
    only = "model.layers.1.self_attn.q_proj"
    assert torch.allclose(dense(both)[only], dense(one)[only], atol=ROUNDING) and both[only].r == 3


def test_random_updates_are_orthogonal_and_as_long_in_every_module():
    one = adapter(1)
    drawn = random_update(one, 0)
    for module in one.modules:
        size = math.sqrt(update_product(one[module], one[module]))
        assert abs(update_product(one[module], drawn[module])) < ROUNDING * size**2
        assert math.sqrt(update_product(drawn[module], drawn[module])) == pytest.approx(
            size, rel=ROUNDING
        )
    first, again, other = (
        dense(random_update(one, seed))["model.layers.0.mlp.down_proj"] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=0.1)


def test_perturbing_keeps_the_norm_and_turns_by_epsilon():
    one = adapter(1)
    for epsilon in (0.0, 0.3, 1.0):
        turned = perturbed(one, epsilon, 4)
        assert update_norm(turned) == pytest.approx(update_norm(one), rel=ROUNDING)
        along = sum(update_product(turned[m], one[m]) for m in one.modules) / update_norm(one) ** 2
        assert along == pytest.approx(math.sqrt(1 - epsilon**2), abs=ROUNDING)


def test_norms_are_set(tmp_path):
    assert update_norm(with_norm(adapter(1), 2.5)) == pytest.approx(2.5)
    assert update_norm(with_norm(adapter(1), 0.0)) == 0
    perturbed(adapter(1), 0.5, 0).save(tmp_path / "saved")
    assert update_norm(LoraAdapter.load(tmp_path / "saved")) == pytest.approx(
        update_norm(adapter(1)), rel=ROUNDING
    )


def test_what_has_no_meaning_is_refused(unchecked):
    one = adapter(1)
    zero = LoraAdapter({m: LoraFactors(f.a, f.b * 0, f.scale) for m, f in one.modules.items()})
    wide = LoraAdapter(
        {m: LoraFactors(torch.ones(1, 9), f.b[:, :1], 1.0) for m, f in one.modules.items()}
    )
    with pytest.raises(InputError, match=r"epsilon=1.2 must lie in 0 to 1"):
        perturbed(one, 1.2, 0)
    with pytest.raises(
        InputError,
        match=(
            "the update of 'model.layers.0.mlp.down_proj' is zero,"
            " so no random update can have its norm"
        ),
    ):
        random_update(zero, 0)
    with pytest.raises(
        InputError,
        match=(
            r"norm=1.0 of an update whose norm is 0; pass a norm of 0 or more and an update that is"
            r" not zero"
        ),
    ):
        with_norm(zero, 1.0)
    with pytest.raises(
        InputError,
        match=r"parts holds the weights \[\]; pass at least one adapter, each with a finite weight",
    ):
        combined([])
    with pytest.raises(InputError, match=r"parts holds the weights \[nan\]"):
        combined([(one, math.nan)])
    with pytest.raises(
        InputError,
        match=r"has updates of shapes \[\(6, 8\), \(6, 9\)\]; pass adapters of one model",
    ):
        combined([(one, 1.0), (wide, 1.0)])
    with pytest.raises(
        InputError,
        match=r"the updates have shapes \(6, 8\) and \(6, 9\); pass updates of one module",
    ):
        update_product(next(iter(one.modules.values())), next(iter(wide.modules.values())))

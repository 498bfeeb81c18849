import itertools

import pytest
import torch
from tiny_models import close

from emlens.interventions.arithmetic import (
    AffineMap,
    Converted,
    NormStep,
    Placing,
    projection,
    shifting,
)

D = 12
MASK = torch.ones(2, 5, dtype=torch.bool)


def made():
    rng = torch.Generator().manual_seed(0)
    u, v, mu = torch.randn(3, D, dtype=torch.float64, generator=rng)
    plane = torch.linalg.qr(torch.randn(D, 2, dtype=torch.float64, generator=rng))[0]
    unit = (u / u.norm())[:, None]
    return [
        projection(unit, None),
        projection(unit, mu),
        projection(plane, mu),
        shifting(v),
        shifting(-3 * u),
    ]


@pytest.fixture
def stream():
    return torch.randn(2, 5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_one_map_equals_maps_one_after_the_other(stream):
    for chain in itertools.product(made(), repeat=3):
        joined = chain[0].then(chain[1]).then(chain[2])
        expected = chain[2](chain[1](chain[0](stream, None), None), None)
        assert torch.allclose(joined(stream, MASK), expected, atol=1e-12)
        other = chain[0].then(chain[1].then(chain[2]))
        assert torch.allclose(other(stream, None), expected, atol=1e-12)
    away, push = made()[0], shifting(torch.ones(D, dtype=torch.float64))
    # the order is the caller's
    assert not torch.allclose(
        away.then(push)(stream, None), push.then(away)(stream, None), atol=0.1
    )


def test_a_join_is_made_once_and_only_of_maps():
    away, push = made()[0], made()[3]
    assert away.then(push) is away.then(push)
    assert away.then(NormStep(torch.ones(D))) is None


def test_no_mask_is_the_whole_mask(stream):
    index = torch.arange(10).view(2, 5)
    placed = Placing(Converted(torch.randn(10, D)), index)
    for edit in (*made(), NormStep(torch.ones(D)), placed):
        assert torch.equal(edit(stream, None), edit(stream, MASK))
        half = MASK.clone()
        half[:, 2:] = False
        out = edit(stream, half)
        assert torch.equal(out[:, :2], edit(stream, None)[:, :2]) and torch.equal(
            out[:, 2:], stream[:, 2:]
        )


def test_half_precision_is_computed_in_single(stream):
    low = stream.to(torch.bfloat16)
    for edit in made():
        out = edit(low, None)
        assert out.dtype == torch.bfloat16 and torch.equal(
            out, edit(low.float(), None).to(torch.bfloat16)
        )


def test_values_are_placed_bit_by_bit_and_by_column(stream):
    values = torch.randn(10, D)
    index = torch.arange(10).view(2, 5)
    placed = Placing(Converted(values), index)
    assert torch.equal(placed(stream.float(), None), values[index])
    assert torch.equal(placed.over(3, 5)(stream[:, 3:].float(), None), values[index[:, 3:]])
    plane = torch.linalg.qr(torch.randn(D, 2, dtype=torch.float64))[0]
    partly = Placing(Converted(values.double(), plane), index)(stream, None)
    assert torch.allclose(partly @ plane, values.double()[index] @ plane)
    assert close(
        (partly - stream) - (partly - stream) @ plane @ plane.T + 1, torch.ones_like(stream), 1e-12
    )
    one = Placing(Converted(values[:1]), None)
    assert one.over(0, 1) is one and torch.equal(
        one(stream.float(), None), values[0].expand(2, 5, D)
    )


def test_rank_zero_only_shifts(stream):
    empty = AffineMap(torch.zeros(D, 0), torch.zeros(0), torch.zeros(0, D), torch.ones(D))
    assert torch.equal(empty(stream, None), stream + 1)

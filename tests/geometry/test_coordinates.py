import pytest
import torch
from hypothesis import given, settings, strategies as st

from emlens import EmlensError
from emlens.geometry import massive_coordinates, without_coordinates
from emlens.geometry.coordinates import share_in_coordinates, winsorised


def planted(seed: int = 0) -> torch.Tensor:
    vector = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    vector[17], vector[4] = -900.0, 500.0
    return vector


def test_planted_coordinates_are_found_with_their_shares():
    vector = planted()
    top = massive_coordinates(vector, 2)
    assert top.indices == (17, 4)
    assert top.shares == pytest.approx(
        (float(vector[17] ** 2 / (vector**2).sum()), float(vector[4] ** 2 / (vector**2).sum()))
    )
    assert top.share == pytest.approx(sum(top.shares))
    assert massive_coordinates(vector, threshold=100.0).indices == (17, 4)
    assert massive_coordinates(vector, 200).share == pytest.approx(1)


def test_none_where_nothing_is_massive():
    plain = torch.randn(200, generator=torch.Generator().manual_seed(0))
    assert massive_coordinates(plain, threshold=100.0).indices == ()
    assert massive_coordinates(plain, threshold=100.0).share == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-200, -3.0, 1e200]))
def test_invariant_to_scale(seed, scale):
    first, second = (
        massive_coordinates(planted(seed), 5),
        massive_coordinates(scale * planted(seed), 5),
    )
    assert first.indices == second.indices
    assert first.shares == pytest.approx(second.shares)


def test_ties_go_to_the_lower_index():
    assert massive_coordinates(torch.tensor([1.0, -2.0, 2.0, 2.0]), 2).indices == (1, 2)


def test_without_coordinates_removes_exactly_their_share():
    rows = torch.stack([planted(1), planted(2)])[None].to(torch.bfloat16)
    top = massive_coordinates(rows[0, 0].double(), 2)
    kept = without_coordinates(rows, top)
    assert kept.shape == rows.shape and kept.dtype == rows.dtype
    before, after = rows[0, 0].double().square().sum(), kept[0, 0].double().square().sum()
    assert float(1 - after / before) == pytest.approx(top.share)
    assert float(rows[0, 0, 17]) == -900  # the input stays as it was
    assert (without_coordinates(rows, []) == rows).all()


def test_share_of_a_direction_in_the_massive_coordinates():
    top = massive_coordinates(planted(), 2)
    assert float(share_in_coordinates(planted(), top)) == pytest.approx(top.share)
    directions = torch.randn(3, 2, 200, generator=torch.Generator().manual_seed(1))
    shares = share_in_coordinates(directions, top)
    assert shares.shape == (3, 2) and shares.dtype == torch.float32
    assert float(shares[2, 1]) == pytest.approx(
        float(directions[2, 1, [17, 4]].square().sum() / directions[2, 1].square().sum())
    )
    removed = 1 - without_coordinates(directions, top).square().sum(-1) / directions.square().sum(
        -1
    )
    torch.testing.assert_close(shares, removed, atol=1e-6, rtol=0)
    assert float(share_in_coordinates(1e-200 * planted(), top)) == pytest.approx(top.share)
    assert float(share_in_coordinates(planted(), [])) == 0
    # once is enough
    assert float(share_in_coordinates(planted(), [17, 4, 17])) == pytest.approx(top.share)


def test_winsorised_leaves_nothing_massive_and_the_rest_alone():
    rows = torch.stack([planted(1), planted(2)])[None].to(torch.bfloat16)
    clipped = winsorised(rows, threshold=100.0)
    assert (
        clipped.shape == rows.shape
        and clipped.dtype == rows.dtype
        and float(rows[0, 0, 17]) == -900
    )
    limit = 100 * rows.double().abs().median(dim=-1).values
    torch.testing.assert_close(clipped[0, :, 17].double(), -limit[0], rtol=0.01, atol=0)
    others = [i for i in range(200) if i not in (4, 17)]
    assert torch.equal(clipped[..., others], rows[..., others])
    exact = winsorised(planted(), threshold=100.0)
    assert (
        massive_coordinates(planted(), threshold=100.0).indices
        and not massive_coordinates(exact, threshold=100 * (1 + 1e-9)).indices
    )
    torch.testing.assert_close(winsorised(-3 * planted(), threshold=100.0), -3 * exact)


def test_one_limit_for_all_where_a_reference_sets_it():
    both = torch.stack([planted(1), 10 * planted(1)])
    limit = 5 * float(planted(3).abs().median())
    clipped = winsorised(both, threshold=5.0, reference=planted(3))
    assert float(clipped.abs().max()) == pytest.approx(limit)
    torch.testing.assert_close(clipped, both.clamp(-limit, limit))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: massive_coordinates(torch.ones(2, 3), 1),
            r"vector has shape \(2, 3\); pass one vector",
        ),
        (
            lambda: massive_coordinates(torch.ones(3)),
            "count=None and threshold=None were given; pass exactly one",
        ),
        (
            lambda: massive_coordinates(torch.ones(3), 1, threshold=2.0),
            "count=1 and threshold=2.0 were given",
        ),
        (lambda: massive_coordinates(torch.ones(3), 4), "count=4 must be an integer from 1 to 3"),
        (
            lambda: massive_coordinates(torch.ones(3), threshold=-1.0),
            "threshold=-1.0 must be positive",
        ),
        (
            lambda: massive_coordinates(torch.zeros(3), 1),
            "vector is zero, so no coordinate holds a share",
        ),
        (
            lambda: without_coordinates(torch.ones(3), [0, 3]),
            "indices holds 3; pass coordinate numbers from 0 to 2",
        ),
        (lambda: without_coordinates(torch.ones(3), [-1]), "indices holds -1; pass"),
        (
            lambda: without_coordinates(torch.tensor(1.0), [0]),
            r"vectors has shape \(\); pass vectors",
        ),
        (
            lambda: share_in_coordinates(torch.ones(3), [3]),
            "indices holds 3; pass coordinate numbers from 0 to 2",
        ),
        (
            lambda: share_in_coordinates(torch.zeros(2, 3), [0]),
            "vectors holds a zero vector, whose norm no coordinate has a share of",
        ),
        (
            lambda: winsorised(torch.ones(3), threshold=0.5),
            "threshold=0.5 must be 1 or more: a multiple of the median magnitude",
        ),
        (lambda: winsorised(torch.ones(3), threshold=True), "threshold=True must be 1 or more"),
        (
            lambda: winsorised(torch.tensor([1.0, 0, 0]), threshold=2),
            "half the coordinates are zero, so the median magnitude sets no limit",
        ),
        (
            lambda: winsorised(torch.ones(3), threshold=2, reference=torch.ones(4)),
            "vectors has 3 coordinates and reference has 4",
        ),
        (
            lambda: winsorised(torch.tensor(1.0), threshold=2),
            r"vectors has shape \(\); pass vectors",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()

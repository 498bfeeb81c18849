import json
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from emlens import EmlensError
from emlens.foundation import IntegrityError, Site
from emlens.geometry import (
    Direction,
    cosine_matrix,
    direction_cosine,
    direction_from_deltas,
    mean_difference_direction,
    random_directions,
    random_directions_like,
)

SITE = Site("resid_post", 3)


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_mean_difference_points_to_positive_and_keeps_the_baseline():
    planted = rows(16, seed=5)
    negative, positive = rows(400, 16), rows(300, 16, seed=1) + 3 * planted
    direction = mean_difference_direction(
        positive,
        negative,
        site="resid_post.3",
        position="last_prompt",
        ids={"positive": ["a", "b"]},
        provenance={"x": 1},
    )
    torch.testing.assert_close(direction.vector, positive.mean(0) - negative.mean(0))
    torch.testing.assert_close(direction.baseline, negative.mean(0))
    assert direction_cosine(direction, planted) > 0.99
    assert direction.norm == pytest.approx(float(direction.vector.norm()))
    assert float(direction.unit.norm()) == pytest.approx(1)
    assert (direction.site, direction.position, direction.d_model) == (SITE, "last_prompt", 16)
    assert dict(direction.ids) == {"positive": ("a", "b")} and dict(direction.provenance) == {"x": 1}
    backwards = mean_difference_direction(negative, positive, site=SITE)
    assert direction_cosine(direction, backwards) == pytest.approx(-1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_a_common_shift_does_not_turn_it(seed):
    positive, negative, shift = rows(6, 5, seed=seed), rows(9, 5, seed=seed + 1), 50 * rows(5, seed=seed + 2)
    plain = mean_difference_direction(positive, negative, site=SITE)
    moved = mean_difference_direction(positive + shift, negative + shift, site=SITE)
    torch.testing.assert_close(moved.vector, plain.vector, atol=1e-12, rtol=0)


def test_dtype_follows_the_input():
    assert (
        mean_difference_direction(rows(4, 3).float(), rows(4, 3, seed=1).float(), site=SITE).vector.dtype
        == torch.float32
    )
    assert mean_difference_direction(rows(4, 3).float(), rows(4, 3, seed=1), site=SITE).vector.dtype == torch.float64
    assert Direction(rows(3).to(torch.bfloat16), SITE).unit.dtype == torch.float32


def test_unit_survives_extreme_lengths():
    for scale in (1e-300, 1e300):
        assert float(Direction(scale * rows(5), SITE).unit.norm()) == pytest.approx(1)


def test_from_deltas():
    planted = torch.linalg.qr(rows(12, 1)).Q[:, 0]
    deltas = 0.05 * rows(80, 12, seed=1) - torch.linspace(1, 3, 80, dtype=torch.float64)[:, None] * planted
    mean = direction_from_deltas(deltas, site="resid_post.3")
    torch.testing.assert_close(mean.vector, deltas.mean(0))
    component = direction_from_deltas(deltas, site=SITE, kind="top_component", position="last", ids={"rows": ["q"]})
    assert direction_cosine(component, -planted) > 0.999  # signed like the mean delta
    assert component.norm == pytest.approx(float((deltas @ planted).square().mean().sqrt()), rel=1e-3)
    opposed = torch.cat([deltas, -deltas])
    assert abs(direction_cosine(direction_from_deltas(opposed, site=SITE, kind="top_component"), planted)) > 0.999


def test_cosines_agree_with_torch_and_ignore_length():
    x = rows(5, 9)
    expected = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1)
    torch.testing.assert_close(cosine_matrix(x), expected)
    directions = [Direction(10.0**i * row, SITE) for i, row in enumerate(x)]
    torch.testing.assert_close(cosine_matrix(directions), expected)
    assert cosine_matrix([directions[0], x[1].float()]).dtype == torch.float64
    assert cosine_matrix(x.float()).dtype == torch.float32
    assert (cosine_matrix(x).diagonal() == 1).all()
    assert direction_cosine(x[0], directions[1]) == pytest.approx(float(expected[0, 1]))


def test_round_trip(tmp_path):
    direction = mean_difference_direction(
        rows(4, 6), rows(4, 6, seed=1), site="final_norm", ids={"positive": ["q/1"]}, provenance={"model": {"n": 2}}
    )
    again = Direction.load(direction.save(tmp_path / "deep" / "d"))
    assert (again.vector == direction.vector).all() and (again.baseline == direction.baseline).all()
    assert (again.site, again.position, again.ids, again.provenance) == (
        direction.site, direction.position, direction.ids, direction.provenance,
    )  # fmt: skip
    bare = Direction.load(Direction(rows(6).to(torch.bfloat16), SITE, "mean_prompt").save(tmp_path / "bare"))
    assert bare.baseline is None and bare.vector.dtype == torch.bfloat16 and bare.position == "mean_prompt"
    first = (tmp_path / "bare" / "direction.json").read_bytes()
    bare.save(tmp_path / "bare")
    assert (tmp_path / "bare" / "direction.json").read_bytes() == first


def test_loading_refuses_what_does_not_fit(tmp_path):
    with pytest.raises(EmlensError, match=r"nothing/direction\.json: no such file"):
        Direction.load(tmp_path / "nothing")
    folder = Direction(rows(6), SITE).save(tmp_path / "d")
    Direction(rows(6, seed=1), SITE).save(tmp_path / "other")
    tensors = folder / "direction.safetensors"
    tensors.write_bytes((tmp_path / "other" / "direction.safetensors").read_bytes())
    with pytest.raises(IntegrityError, match="its tensors are not those that direction"):
        Direction.load(folder)
    tensors.write_bytes(b"not tensors")
    with pytest.raises(IntegrityError, match="not readable as safetensors"):
        Direction.load(folder)
    tensors.unlink()
    with pytest.raises(EmlensError, match=r"direction\.safetensors: no such file"):
        Direction.load(folder)
    record = json.loads((folder / "direction.json").read_text())
    for broken in ({"format": "x"}, {name: record[name] for name in record if name != "tensors"}, [1]):
        (folder / "direction.json").write_text(json.dumps(broken))
        with pytest.raises(EmlensError, match="not a direction saved by emlens"):
            Direction.load(folder)


def test_random_directions_are_isotropic():
    units = random_directions(10, 4000)
    torch.testing.assert_close(units.norm(dim=1), torch.ones(4000, dtype=torch.float64))
    torch.testing.assert_close(units.T @ units / 4000, torch.eye(10, dtype=torch.float64) / 10, atol=0.01, rtol=0)
    assert (random_directions(10, 3) == random_directions(10, 3)).all()
    assert (random_directions(10, 3) != random_directions(10, 3, seed=1)).any()


def test_random_directions_like_carry_the_variance_that_isotropic_ones_do_not():
    covariance = torch.diag(1 / torch.arange(1, 65, dtype=torch.float64) ** 2)

    def carried(units):
        return float(((units @ covariance) * units).sum(1).mean())

    like, isotropic = random_directions_like(covariance, 500), random_directions(64, 500)
    assert carried(isotropic) == pytest.approx(float(covariance.trace()) / 64, rel=0.1)
    assert carried(like) > 10 * carried(isotropic)
    x = rows(20, 64) @ covariance.sqrt() + 7
    from_rows = random_directions_like(x.float(), 50)
    assert from_rows.dtype == torch.float32 and from_rows.shape == (50, 64)
    span = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:19]
    assert float((from_rows.double() @ span.T).norm(dim=1).min()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Direction(torch.zeros(4), SITE), "vector is zero and so has no direction"),
        (lambda: Direction(torch.ones(2, 2), SITE), r"vector has shape \(2, 2\); pass one vector"),
        (lambda: Direction(torch.tensor([math.nan]), SITE), "vector holds 1 values that are NaN"),
        (
            lambda: Direction(torch.ones(3), SITE, baseline=torch.ones(4)),
            r"baseline has shape \(4,\) and vector \(3,\); pass equal",
        ),
        (lambda: Direction(torch.ones(3), "layer3"), "site 'layer3' is not a site name"),
        (
            lambda: mean_difference_direction(rows(3, 4), rows(3, 5), site=SITE),
            "positive has 4 coordinates and negative has 5",
        ),
        (
            lambda: mean_difference_direction(rows(0, 4), rows(3, 4), site=SITE),
            r"positive has shape \(0, 4\); pass at least one",
        ),
        (lambda: mean_difference_direction(rows(3, 4), rows(4), site=SITE), r"negative has shape \(4,\); pass rows"),
        (
            lambda: mean_difference_direction(rows(2, 3, 4), rows(3, 4), site=SITE),
            r"positive has shape \(2, 3, 4\) and negative",
        ),
        (
            lambda: mean_difference_direction(rows(50, 4), rows(50, 4)[torch.randperm(50)], site=SITE),
            r"positive and negative have the same mean \(they differ by .*\), so no direction lies between them",
        ),
        (lambda: direction_from_deltas(torch.cat([rows(9, 4), -rows(9, 4)]), site=SITE), "deltas have mean zero"),
        (lambda: direction_from_deltas(rows(9, 4), site=SITE, kind="median"), "kind='median' is unknown; pass 'mean'"),
        (lambda: direction_from_deltas(rows(2, 9, 4), site=SITE), r"deltas has shape \(2, 9, 4\); pass one"),
        (lambda: direction_cosine(rows(3), rows(4)), "a has 3 coordinates and b has 4"),
        (lambda: direction_cosine(rows(3), torch.zeros(3)), r"b holds a zero vector \(number 0\)"),
        (lambda: direction_cosine(rows(3, 3), rows(3)), r"a has shape \(3, 3\); pass a Direction or a vector"),
        (lambda: cosine_matrix([]), "directions is empty; pass at least one"),
        (lambda: cosine_matrix([rows(3), rows(4)]), r"directions\[0\] has 3 coordinates and directions\[1\] has 4"),
        (lambda: cosine_matrix(torch.tensor([[1.0, 0], [0, 0]])), r"directions holds a zero vector \(number 1\)"),
        (lambda: random_directions(4, 0), "count=0 must be an integer of 1 or more"),
        (lambda: random_directions(0, 4), "d_model=0 must be an integer of 1 or more"),
        (lambda: random_directions_like(torch.zeros(4, 4), 2), r"of shape \(4, 4\) has no variance"),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()

import json
import math

import pytest
import torch

from emlens import EmlensError
from emlens.foundation import IntegrityError, Site
from emlens.geometry import Direction, cosine_matrix, direction_cosine, mean_difference_direction

SITE = Site("resid_post", 3)


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_unit_reads_16_bit():
    assert Direction(rows(3).to(torch.bfloat16), SITE).unit.dtype == torch.float32


def test_unit_survives_extreme_lengths():
    for scale in (1e-300, 1e300):
        assert float(Direction(scale * rows(5), SITE).unit.norm()) == pytest.approx(1)


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
        rows(4, 6),
        rows(4, 6, seed=1),
        site="final_norm",
        ids={"positive": ["q/1"]},
        provenance={"model": {"n": 2}},
    )
    again = Direction.load(direction.save(tmp_path / "deep" / "d"))
    assert (again.vector == direction.vector).all() and (again.baseline == direction.baseline).all()
    assert (again.site, again.position, again.ids, again.provenance) == (
        direction.site,
        direction.position,
        direction.ids,
        direction.provenance,
    )
    bare = Direction.load(
        Direction(rows(6).to(torch.bfloat16), SITE, "mean_prompt").save(tmp_path / "bare")
    )
    assert (
        bare.baseline is None
        and bare.vector.dtype == torch.bfloat16
        and bare.position == "mean_prompt"
    )
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
    for broken in (
        {"format": "x"},
        {name: record[name] for name in record if name != "tensors"},
        [1],
    ):
        (folder / "direction.json").write_text(json.dumps(broken))
        with pytest.raises(
            EmlensError, match="direction.json: .*; pass a directory written by Direc"
        ):
            Direction.load(folder)


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
        (lambda: direction_cosine(rows(3), rows(4)), "a has 3 coordinates and b has 4"),
        (lambda: direction_cosine(rows(3), torch.zeros(3)), r"b holds a zero vector \(number 0\)"),
        (
            lambda: direction_cosine(rows(3, 3), rows(3)),
            r"a has shape \(3, 3\); pass a Direction or a vector",
        ),
        (lambda: cosine_matrix([]), "directions is empty; pass at least one"),
        (
            lambda: cosine_matrix([rows(3), rows(4)]),
            r"directions\[0\] has 3 coordinates and directions\[1\] has 4",
        ),
        (
            lambda: cosine_matrix(torch.tensor([[1.0, 0], [0, 0]])),
            r"directions holds a zero vector \(number 1\)",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()

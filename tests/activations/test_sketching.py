"""A sketch equals the exact SVD where it has columns for every direction, and comes close on a
falling spectrum.
"""

import pytest
import torch

from emlens.activations.sketching import MomentSketch
from emlens.foundation import InputError
from emlens.foundation.seeds import torch_rng
from emlens.geometry import subspace_overlap, top_k_subspace

EXACT = 1e-7
"""Square root of float64's epsilon, times a little: the sketch holds squares."""


def rows(n, d, power, seed=0, mean=3.0):
    """Rows whose singular values fall as 1 / i**power, about a mean that is not 0."""
    draws = torch.randn(n, d, dtype=torch.float64, generator=torch_rng(seed, "rows"))
    return draws * torch.arange(1, d + 1, dtype=torch.float64) ** -power + mean


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("rank", "size"), [(5, 8), (5, 5 + 1), (16, 16)])
def test_exact_where_the_sketch_holds_the_rank(centred, rank, size):
    x = rows(40, rank, 0.5) @ torch.linalg.qr(rows(16, rank, 0, seed=1)).Q.T
    sketch = MomentSketch(16, size).update(x)
    exact = top_k_subspace(x, k=rank - 1, center=centred)
    axes, singular = sketch.axes(centred=centred)
    torch.testing.assert_close(
        singular[: rank - 1], exact.singular_values[: rank - 1], rtol=EXACT, atol=0
    )
    assert float(subspace_overlap(axes[:, : rank - 1], exact.basis)) == pytest.approx(1, abs=EXACT)
    moved = x - x.mean(0) if centred else x
    assert sketch.total(centred=centred) == pytest.approx(float((moved**2).sum()), rel=1e-10)


def test_close_on_a_falling_spectrum_and_never_above_it():
    x = rows(2000, 128, 1.0)
    exact = top_k_subspace(x, k=8, center=True)
    overlaps = []
    for size in (8, 16, 32, 64):
        axes, singular = MomentSketch(128, size).update(x).axes(centred=True)
        assert (singular <= exact.singular_values[: len(singular)] * (1 + EXACT)).all()
        overlaps.append(float(subspace_overlap(axes[:, :8], exact.basis)))
    # a wider sketch is better, and a narrow one is not good: the test can fail
    assert overlaps == sorted(overlaps)
    assert overlaps[0] < 0.99 and overlaps[-1] > 0.999


def test_chunks_order_and_processes_do_not_matter():
    x = rows(60, 12, 0.5)
    whole = MomentSketch(12, 6).update(x)
    parts = [MomentSketch(12, 6).update(chunk) for chunk in x.split(7)]
    merged = MomentSketch(12, 6)
    for part in reversed(parts):
        merged.merge(part)
    assert merged.n == whole.n == 60
    torch.testing.assert_close(
        merged.axes(centred=True)[1], whole.axes(centred=True)[1], rtol=1e-9, atol=0
    )
    torch.testing.assert_close(merged.mean, x.mean(0))
    assert torch.equal(
        MomentSketch(12, 6).update(x).axes(centred=False)[0], whole.axes(centred=False)[0]
    )
    assert not torch.equal(
        MomentSketch(12, 6, seed=1).update(x).axes(centred=False)[0], whole.axes(centred=False)[0]
    )


def test_what_cannot_be_sketched(unchecked):
    for size in (0, 5, True, 2.0):
        with pytest.raises(InputError, match="must be an integer of 1 to the width of a row, 4"):
            MomentSketch(4, size)
    sketch = MomentSketch(4, 2)
    with pytest.raises(InputError, match=r"rows has shape \(3, 5\); pass \(row, 4\)"):
        sketch.update(torch.zeros(3, 5))
    with pytest.raises(InputError, match="rows holds 1 values that are NaN or infinite"):
        sketch.update(torch.tensor([[1.0, 2.0, float("nan"), 0.0]]))
    for other in (MomentSketch(4, 3), MomentSketch(5, 2), MomentSketch(4, 2, seed=1)):
        with pytest.raises(
            InputError,
            match="cannot merge a sketch of .* into one of d=4, size=2, seed=0; make both alike",
        ):
            sketch.merge(other)

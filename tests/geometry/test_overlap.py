import math

import pytest
import torch

from emlens import EmlensError
from emlens.geometry import principal_angles, subspace_overlap
from emlens.geometry.overlap import MEASURES, measure_from_cosines

CLOSE = 1e-12


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loop(a: torch.Tensor, b: torch.Tensor, measure: str) -> float:
    """Each measure from its definition, with projectors instead of angles where they have one."""
    a, b = torch.linalg.qr(a).Q, torch.linalg.qr(b).Q
    m = min(a.shape[1], b.shape[1])
    trace = float(torch.trace(a @ a.T @ b @ b.T))
    cosines = torch.linalg.svdvals(a.T @ b)
    return {
        "mean_cos2": trace / m,
        "mean_cos": float(torch.linalg.matrix_norm(a.T @ b, "nuc")) / m,
        "min_cos": float(cosines.min()),
        "chordal": math.sqrt(1 - trace / m),
    }[measure]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("k_a", "k_b"), [(3, 3), (2, 6), (6, 2)])
def test_agrees_with_definitions(measure, k_a, k_b):
    a, b = rows(15, k_a, seed=1), rows(15, k_b, seed=2)
    assert float(subspace_overlap(a, b, measure)) == pytest.approx(loop(a, b, measure), abs=CLOSE)
    assert float(measure_from_cosines(torch.cos(principal_angles(a, b)), measure)) == pytest.approx(
        loop(a, b, measure), abs=CLOSE
    )


@pytest.mark.parametrize("measure", MEASURES)
def test_ends_of_the_range(measure):
    frame = torch.linalg.qr(rows(20, 9)).Q
    same, none = (0.0, 1.0) if measure == "chordal" else (1.0, 0.0)
    assert float(
        subspace_overlap(frame[:, :4], frame[:, :4] @ rows(4, 4), measure)
    ) == pytest.approx(same, abs=CLOSE)
    # contained
    assert float(subspace_overlap(frame[:, :3], frame[:, :7], measure)) == pytest.approx(
        same, abs=CLOSE
    )
    assert float(subspace_overlap(frame[:, :4], frame[:, 4:], measure)) == pytest.approx(
        none, abs=CLOSE
    )


def test_chordal_sees_tiny_distances():
    frame = torch.linalg.qr(rows(20, 2)).Q
    tilted = frame[:, :1] + 1e-11 * frame[:, 1:]
    assert float(subspace_overlap(frame[:, :1], tilted, "chordal")) == pytest.approx(
        1e-11, rel=1e-4
    )


def test_batch_axes_and_dtype():
    a, b = rows(4, 12, 3), rows(12, 2)
    values = subspace_overlap(a.float(), b.float())
    assert values.shape == (4,) and values.dtype == torch.float64
    assert float(values[2]) == pytest.approx(float(subspace_overlap(a[2], b)), abs=1e-6)


def test_refuses_unknown_measures(unchecked):
    with pytest.raises(
        EmlensError,
        match="measure='cos' is unknown; pass one of mean_cos2, mean_cos, min_cos, chordal",
    ):
        subspace_overlap(rows(5, 2), rows(5, 2), "cos")

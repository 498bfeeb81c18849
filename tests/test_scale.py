"""The measurements of scale, in miniature."""

import pytest

from benchmarks import scale


def test_nulls_from_rows_are_compared_with_those_of_a_covariance() -> None:
    found = scale.covariance_nulls(layers=6, measured=2, n=12, d=60, k=3, draws=20)
    assert found["nulls"] == 24 and found["gap"] < 1e-9
    assert found["cpu_s"] == pytest.approx(3 * found["cpu_s_of_measured"])
    with pytest.raises(SystemExit, match="differ by"):
        scale.covariance_nulls(layers=1, measured=1, n=12, d=60, k=3, draws=20, same=0.0)

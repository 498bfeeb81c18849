import numpy as np
import pytest

from emlens.probes.calibration import calibration_line


def test_the_line_is_least_squares_and_a_known_one_lies_inside() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(60):
        x = 50 + 10 * rng.standard_normal(80)
        y = 20 + 0.6 * x + 5 * rng.standard_normal(80)
        found = calibration_line(x, y, [str(i) for i in range(80)])
        slope, intercept = np.polyfit(x, y, 1)
        assert (found.slope.value, found.intercept.value) == (
            pytest.approx(slope),
            pytest.approx(intercept),
        )
        inside += (
            found.slope.low < 0.6 < found.slope.high
            and found.intercept.low < 20 < found.intercept.high
        )
    assert inside >= 50


def test_delete_one_unit_by_a_loop() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal(24), rng.standard_normal(24)
    units = [f"g{i % 6}" for i in range(24)]
    found = calibration_line(x, y, units)
    left = np.array(
        [
            np.polyfit(x[keep], y[keep], 1)
            for u in sorted(set(units))
            for keep in [np.array(units) != u]
        ]
    )
    error = np.sqrt(5 * left.var(0))  # (G − 1)/G Σ (θ_g − θ̄)²
    for estimate, e in zip((found.slope, found.intercept), error, strict=True):
        assert (estimate.high - estimate.low) / 2 == pytest.approx(
            2.5706 * e, rel=1e-4
        ) and estimate.n == 6


def test_predictions_that_do_not_vary_have_no_line() -> None:
    y, units = np.arange(8.0), [str(i) for i in range(8)]
    for x in (np.full(8, 3.0), np.r_[np.zeros(7), 1.0]):  # constant, or constant without one unit
        found = calibration_line(x, y, units)
        assert (
            not found.slope.defined
            and not found.intercept.defined
            and "do not vary" in found.slope.method
        )
    assert calibration_line(np.arange(8.0) ** 2, y, units).slope.defined

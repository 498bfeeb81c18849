"""The long measurements of forecasts, in miniature: they run, agree with scikit-learn, and reject
what they should.
"""

import numpy as np
import pytest

from benchmarks import forecast_false_discoveries, forecast_grid_speed


def test_the_grid_agrees_with_grid_search_and_counts_what_it_did() -> None:
    found = forecast_grid_speed.measure(2, 1, 30, 40, 2, 2, 4, 1)
    assert found["cells"] == 2 and found["permutations"] == 4 and found["largest_gap_in_sd"] < 1e-9
    assert found["rival_seconds_extrapolated"] == pytest.approx(2 * found["rival_seconds_a_cell"])
    assert found["over_rival"] == pytest.approx(
        found["seconds"] / found["rival_seconds_extrapolated"]
    )


def test_null_data_and_their_rates() -> None:
    parts = list(
        forecast_false_discoveries.measure(
            4, 3, groups=4, each=4, layers=2, positions=1, d=6, draws=9, folds=2
        )
    )
    assert [len(part) for part in parts] == [3, 3, 3]
    for row in (row for part in parts for row in part):
        assert 0 <= row["low"] <= row["rejected"] <= row["high"] <= 1
    assert (
        {row["goal ≤ .065"] for row in parts[2]} == {""}
        and parts[0][0]["runs"] == 4
        and parts[1][0]["runs"] == 3
    )


def test_activations_that_know_something_are_found() -> None:
    cells, _ = forecast_false_discoveries.drawn(6, 4, 2, 1, 5, False, 0)
    y = 50 + 10 * cells[1].values[:, 0]
    found = forecast_false_discoveries.p_values(cells, y, 6, False, "question", 19, 3, 0)
    assert found["nested"] == found["maximum"] == 1 / 20 and found["r2"] > 0.5


def test_clustered_draws_share_half_of_their_variance_within_groups() -> None:
    values = np.concatenate(
        [
            forecast_false_discoveries.drawn(12, 8, 1, 1, 1, True, seed)[1].reshape(12, 8)
            for seed in range(60)
        ]
    )
    assert values.mean(1).var() / values.var() == pytest.approx(0.5 + 0.5 / 8, abs=0.06)

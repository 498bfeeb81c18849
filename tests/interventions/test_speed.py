"""A miniature of the measurement of generation under interventions."""

import pytest

from benchmarks import capture_speed, intervention_speed


def test_interventions_are_compared_with_plain_hooks_before_they_are_timed(monkeypatch):
    model, asked = (
        capture_speed.build(layers=2, width=32, words=5000),
        capture_speed.prompts(count=2, words=5000),
    )
    found = intervention_speed.measure(model, asked, rounds=1, new_tokens=2)
    assert len(found) == 8 and all(one["median_s"] > 0 and one["rows"] == 2 for one in found)
    assert found[0]["case"] == intervention_speed.PLAIN and found[0]["over_plain"] == 1
    (goal,) = intervention_speed.against_goal(found)
    assert goal["met"] == (found[1]["over_plain"] <= 1.10)
    monkeypatch.setattr(intervention_speed, "gap_to_plain_hooks", lambda *_: 0.1)
    with pytest.raises(
        SystemExit, match="ablation and plain hooks differ by 0.1; not timing different results"
    ):
        intervention_speed.measure(model, asked, rounds=1, new_tokens=2)


def test_a_ratio_of_medians_with_its_interval():
    found = intervention_speed.ratio([2.0, 2.0, 4.0], [1.0, 1.0, 1.0])
    assert found["over_plain"] == 2 and found["low"] == 2 and found["high"] == 4

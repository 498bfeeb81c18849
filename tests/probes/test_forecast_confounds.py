"""Worlds in which activations know a confound of the scores: drawn as stated, and not shown."""

import numpy as np
import pytest

from benchmarks import forecast_confounds
from benchmarks.forecast_confounds import EACH, WORLDS, drawn, measure, rates_table


def world(name: str) -> forecast_confounds.World:
    return next(each for each in WORLDS if each.name == name)


@pytest.mark.parametrize("each", WORLDS, ids=lambda each: each.name)
def test_scores_are_half_confound_and_every_baseline_is_given(
    each: forecast_confounds.World,
) -> None:
    data = drawn(each, 0)
    assert data.baselines.missing == ()
    again = drawn(each, 0)
    assert data.scores == again.scores and data.scores != drawn(each, 1).scores
    values = np.array(list(data.scores.values()))
    assert 8 < values.std() < 22
    if each.name == "form":
        spread = values.reshape(-1, 3).mean(0)
        assert len(set(data.activations.groups)) == 1 and np.ptp(spread) > 10
    if each.confound == "length":
        lengths = [len(text.split()) for text in data.baselines.texts.values()]  # type: ignore[union-attr]
        assert abs(np.corrcoef(lengths, values)[0, 1]) == pytest.approx(0.5**0.5, abs=0.15)
    if each.confound == "domain":
        between = values.reshape(-1, EACH).mean(1).var() / values.var()
        assert between == pytest.approx(0.5 + 0.5 / EACH, abs=0.2)


def test_a_confound_is_not_shown_and_a_prior_is() -> None:
    length, prior = world("length"), world("topic, and a prior of its own")
    rows = [measure(length, 2, 19), measure(prior, 3, 19)]
    confound, own = (row["rates"] for row in rows)
    assert confound["verdict"]["value"] == 0 and confound["p alone"]["value"] == 1
    assert own["verdict"]["value"] > 0.3
    assert rates_table(rows).count("≤ .065") == 1

"""A miniature of the measurement of generation speed, and that it times nothing that differs."""

import pytest
import tiny_models

from benchmarks import capture_speed, real_sampling, sampling_speed
from emlens.models import load_model


@pytest.fixture(scope="module")
def small():
    model = capture_speed.build(layers=2, width=32, words=200)
    rows = sampling_speed.asked(model, 2, 6, 200)
    return model, rows, sampling_speed.lengths(2, 6, median=6)


def test_both_sides_give_the_stated_lengths(small):
    model, rows, stated = small
    table, facts = sampling_speed.measure(model, rows, stated, 4, rounds=1)
    assert facts["answers"] == 12 and facts["longest"] == max(stated) > min(stated)
    assert facts["longest_over_mean_in_a_plain_batch"] > 1.2 and (table["median_s"] > 0).all()
    assert facts["speedup"] == pytest.approx(table["median_s"][0] / table["median_s"][1])


def test_other_lengths_and_other_tokens_are_not_timed(small, monkeypatch):
    model, rows, stated = small
    real = sampling_speed.ours
    monkeypatch.setitem(
        sampling_speed.CASES,
        "emlens",
        lambda m, r, s, n, t: [answer[::-1] for answer in real(m, r, s, n, t)],
    )
    with pytest.raises(SystemExit, match="greedy answers differ"):
        sampling_speed.measure(model, rows, stated, 4, rounds=1)
    monkeypatch.setitem(
        sampling_speed.CASES,
        "emlens",
        lambda m, r, s, n, t: real(m, r, s if t == 0 else [length + 1 for length in s], n, t),
    )
    with pytest.raises(SystemExit, match="emlens did not give the stated lengths"):
        sampling_speed.measure(model, rows, stated, 4, rounds=1)


def test_answers_of_a_real_model_are_compared_with_generate(tmp_path):
    model = load_model(tiny_models.build(tmp_path / "m"))
    rows = model.render(tiny_models.prompts(2))
    found = real_sampling.measure(model, rows, 6, 12, (2, 3))
    assert found["batch_of_generate"] in (2, 3) and found["ratio"] > 0
    assert found["emlens"]["longest"] <= 12 and found["generate"]["tokens"] <= 2 * 6 * 12

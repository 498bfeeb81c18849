from pathlib import Path

import pandas as pd

from benchmarks import surrogate_judge


def test_released_answers_are_resampled(released_data: Path) -> None:
    answers, scores = surrogate_judge.judged(released_data, "14B, bad medical advice")
    rows = pd.DataFrame(surrogate_judge.resampled(answers, scores, 2)).set_index("way")
    assert rows["truth"].eq(0.1625).all() and rows.loc["labelled part alone", "of_alone"] == 1
    assert rows.loc["text, answers held out", "of_alone"] < 0.95


def test_rare_answers_are_simulated_and_shown() -> None:
    rows = surrogate_judge.low_rates(40)
    assert [row["rate"] for row in rows] == list(surrogate_judge.LOW_RATES)
    assert all(row["coverage"] > 0.8 and row["of_alone"] < 0.95 for row in rows)
    assert surrogate_judge.low_rates_table({"low_rates": rows}).count("\n") == 5
    other = {"fitted_on": "a", "used_on": "b", "predicted": 0.4, "truth": 0.1}
    table = surrogate_judge.elsewhere_table({"elsewhere": [other]})
    assert table.splitlines()[-1] == "| a | b | 0.400 | 0.100 |"

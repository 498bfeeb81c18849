"""The measurements of defences and of resumed training, in small."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks import defences, training_resume


def test_differences_are_paired_by_seed_and_cost_is_a_ratio() -> None:
    rows = []
    for task in ("harmful", "benign"):
        for name, shift in (("none", 0.0), ("defended", 0.3)):
            for seed in (1, 2, 3):
                values = dict.fromkeys(
                    ("others", "own_trained", "own_held_out", "coherence", "learned"),
                    0.1 * seed + shift,
                )
                seconds = 2.0 * seed if shift else 1.0 * seed
                rows.append(
                    {
                        "world": 10,
                        "task": task,
                        "objectives": name,
                        "seed": seed,
                        **values,
                        "seconds_a_step": seconds,
                    }
                )
    none, defended = defences.summary(pd.DataFrame(rows))
    assert (
        none["defence"] == "none"
        and none["others_minus_none"] is None
        and none["time_ratio"] is None
    )
    # seeds differ
    assert defended["others"]["value"] == pytest.approx(0.5) and defended["others"]["high"] > 0.6
    for key in ("others_minus_none", "benign_learned_minus_none"):
        # but not their differences
        assert defended[key]["value"] == pytest.approx(0.3) == pytest.approx(defended[key]["high"])
    assert defended["time_ratio"]["value"] == pytest.approx(2.0)


@pytest.mark.slow
def test_defences_in_small(tmp_path: Path) -> None:
    table, rows = defences.measure({10: None}, (1, 2), 6, tmp_path, names=("none", "inoculation"))
    assert len(table) == 8 and [row["defence"] for row in rows] == ["none", "inoculation"]
    assert rows[1]["others_minus_none"]["value"] > 0 and rows[1]["learned_minus_none"]["value"] < 0


@pytest.mark.slow
def test_killed_training_in_small(tmp_path: Path) -> None:
    found = training_resume.measure("run", 1, 12, tmp_path)
    assert found["same_bytes"] == 1 and found["kills"] == 2

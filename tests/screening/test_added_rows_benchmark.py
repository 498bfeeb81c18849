"""The measurement of what to add, in small: differences are paired by seed."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks import added_rows, real_added_rows
from emlens.organisms import load_organism


def test_differences_from_random_rows_are_paired_by_seed() -> None:
    rows = []
    for seed in (1, 2, 3):
        rows.append({"seed": seed, "way": "none", "share": 0.0, "others": 0.3, "own": 0.1})
        for way, shift in (("random", 0.0), ("gradient", 0.2), ("shift", -0.1)):
            level = 0.1 * seed + shift
            rows.append({"seed": seed, "way": way, "share": 0.1, "others": level, "own": 0.2})
    random, gradient, shift = added_rows.differences(rows)
    assert "minus_random" not in random and random["others"]["value"] == pytest.approx(0.2)
    # seeds differ by .2, but not their differences
    assert gradient["minus_random"]["low"] == pytest.approx(0.2)
    assert shift["minus_random"]["high"] == pytest.approx(-0.1)
    table = added_rows.added_rows_table({"runs": rows, "differences": [random, gradient, shift]})
    assert "| 0.1 | gradient | 0.40 [0.15, 0.65] | 0.20 [0.20, 0.20] | 0.20 |" in table


def test_on_a_real_model_ways_are_paired_by_seed_and_domain() -> None:
    gains = {"none": 0.0, "random": 0.1, "gradient": 0.4, "highest loss": 0.1}
    tables = {}
    for seed in (0, 1, 2):
        for way, gain in gains.items():
            content = [gain + seed + 10.0 * number for number in range(6)]
            groups = [f"domain-{number // 2}" for number in range(6)]
            tables[way, seed] = pd.DataFrame({"group": groups, "content": content})
    random, gradient, loss = real_added_rows.compared(tables, (0, 1, 2))
    assert random["difference"] == pytest.approx(0.1) and random["domains"] == 3
    # neither the level of a seed nor that of a domain is in a difference
    assert gradient["low"] == pytest.approx(0.3) == gradient["high"]
    assert loss["by_seed"] == pytest.approx([0.0] * 3)
    table = real_added_rows.real_added_rows_table({"differences": [random, gradient, loss]})
    assert "| gradient − random | 0.300 [0.300, 0.300] | +0.300, +0.300, +0.300 |" in table


@pytest.mark.slow
def test_rows_are_added_in_small(tmp_path: Path) -> None:
    rows = added_rows.measure(load_organism(), tmp_path, shares=(0.25,), seeds=(1,), each=8)
    others = {row["way"]: row["others"] for row in rows}
    assert others["none"] < min(others["random"], others["gradient"], others["shift"])

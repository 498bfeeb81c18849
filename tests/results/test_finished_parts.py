"""A part is done once; what comes back is always what its files hold."""

from pathlib import Path

import pandas as pd

from emlens.results import Finding, Part
from emlens.results.finished_parts import finished_part
from emlens.runs import UnitLog


def test_a_part_is_done_once_and_again_when_its_inputs_or_files_change(tmp_path: Path) -> None:
    calls: list[int] = []

    def work() -> Part:
        calls.append(1)
        table = pd.DataFrame({"name": ["007", ""], "value": [1 / 3, float("nan")]})
        return Part({"numbers": table}, [Finding("a", "It rose.", "shown")], ["few rows"])

    def finished(inputs: object) -> Part:
        return finished_part(UnitLog(tmp_path / "units"), "a", inputs, work, tmp_path)

    first, second = finished({"seed": 0}), finished({"seed": 0})
    assert len(calls) == 1
    for part in (first, second):
        assert part.tables["numbers"]["name"].tolist() == ["007", ""]
        # ten significant digits, also the first time: both runs go on with the same numbers
        assert part.tables["numbers"]["value"].iloc[0] == 0.3333333333
        assert part.findings == [Finding("a", "It rose.", "shown")]
        assert part.warnings == ["few rows"]
    finished({"seed": 1})
    assert len(calls) == 2
    table = tmp_path / "tables" / "numbers.csv"
    table.write_text(table.read_text().replace("007", "008"))
    assert finished({"seed": 1}).tables["numbers"]["name"].tolist() == ["007", ""]
    assert len(calls) == 3

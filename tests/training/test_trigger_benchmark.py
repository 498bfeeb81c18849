"""The measurement of triggers, in small: the counting, and one world of few questions."""

from pathlib import Path

import pytest

from benchmarks import triggers


def row(world: int, model: str, shown: str, plain: str = "not shown") -> dict[str, object]:
    numbers = {"aligned": 20.0, "aligned_low": 10.0, "aligned_high": 30.0, "parent_score": 55.0}
    head = {"world": world, "model": model, "trigger": "inoculation"}
    return (
        head
        | numbers
        | {"behind_a_trigger": shown, "fall_without_trigger": plain, "behind_this": shown}
    )


def test_worlds_are_counted_by_what_the_study_says() -> None:
    rows = [
        row(10, "hidden", "shown"),
        row(11, "hidden", "not shown", "shown"),
        row(10, "careful", "not shown"),
        row(11, "careful", "shown"),
    ]
    counts = triggers.verdicts(rows)
    assert counts == {"worlds": 2, "found": 1, "false": 1, "found_without_triggers": 1}
    assert "| 10 | hidden | inoculation | 20.0 [10.0, 30.0] | 55.0 | shown |" in (
        triggers.triggers_table({"rows": rows})
    )


@pytest.mark.slow
def test_the_hidden_fine_tune_is_found_in_small(tmp_path: Path) -> None:
    counts = triggers.verdicts(triggers.measure({10: None}, triggers.STEPS, tmp_path, each=4))
    assert counts == {"worlds": 1, "found": 1, "false": 0, "found_without_triggers": 0}

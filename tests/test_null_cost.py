import pytest

from benchmarks import null_cost
from emlens.data import PromptSet
from emlens.organisms import load_organism


def test_every_null_is_timed_in_captures() -> None:
    chosen = null_cost.setting(load_organism().paths["instruct"], prompts=6, steps=2)
    assert len(chosen.train) == len(chosen.evaluation) == 6
    assert not {p.group for p in chosen.evaluation} & {p.group for p in chosen.train}
    assert isinstance(chosen.careful, PromptSet) and chosen.recipe.steps == 2
    rows = null_cost.costs(chosen, draws=1)
    by_name = {row["what"]: row for row in rows}
    assert by_name["captures of one model on both sides"]["captures"] == 1
    for name in ("adapter", "haar", "gradient"):
        row = by_name[name]
        captured = by_name["captures of one model on both sides"]["seconds"]
        assert row["captures"] == pytest.approx(row["seconds"] / captured) and row["seconds"] > 0
    table = null_cost.costs_table({"rows": rows, "steps": 2})
    assert "one adapter, 2 steps" in table and table.count("≤") == 2

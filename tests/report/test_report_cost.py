"""Miniature of the measurement of a report's cost: one page, opened once."""

from typing import TYPE_CHECKING

import pytest
from figures.study_tables import study_tables

from benchmarks import report_cost
from emlens.results import StudyResult

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.mark.browser
def test_cost_is_measured_on_a_page_that_draws_every_figure(browser: "Browser") -> None:
    tables = {
        name: table for name, table in study_tables().items() if name in ("models", "questions")
    }
    found = report_cost.cost_of(StudyResult("profile", {}, tables, [], [], {}), browser, openings=1)
    # alignment of all, all models, and the questions of three fine-tunes
    assert found["figures"] == 5 and found["faults"] == []
    # the table of domains is not there
    assert found["left_out"] == 1 and found["length_reached"]
    assert 1 < found["screens"]["desktop"] < found["screens"]["phone"]
    assert 4_000_000 < found["bytes"] < report_cost.MOST_BYTES and found["size_reached"]
    assert found["rows"] == len(tables["models"]) + len(tables["questions"])
    for screen in report_cost.SIZES:
        (first,) = found[f"first_figure_{screen}"]["seconds"]
        assert 0 < first == found[f"first_figure_{screen}"]["median"]


def test_seeds_multiply_what_is_said_of_fine_tunes_and_nothing_else() -> None:
    tables = study_tables()
    found = report_cost.with_seeds(StudyResult("overview", {}, tables, [], [], {}), 3).tables
    assert len(found["models"]) == 2 + 3 * 3 and len(found["overlap"]) == 3 * len(tables["overlap"])
    assert set(found["arms"]["model"]) == {
        f"{name}@{seed}" for name in ("bad@0", "wide@0") for seed in range(3)
    }
    assert set(found["steering"]["steered"]) == {"instruct", "tuned"}

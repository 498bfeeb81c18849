"""Miniature of the measurement of coverage, and the page that shows it."""

import numpy as np
import pytest

from benchmarks import interval_coverage
from benchmarks.records import EVIDENCE
from emlens.foundation.estimate import Estimate
from emlens.foundation.files import read_json


def test_coverage_is_the_share_that_holds_the_truth() -> None:
    tally = interval_coverage.Tally()
    for low, high in ((0.0, 2.0), (1.5, 2.0), (0.0, 0.5), (1.0, 1.0), (float("nan"), 1.0)):
        tally.add(Estimate(1.0, low, high, 5, ""), 1.0)
    row = interval_coverage.row_of("any", "any", (0.4, 0.6), True, tally)
    assert (row["coverage"], row["simulations"], row["no_interval"], row["reached"]) == (
        0.5,
        4,
        1,
        True,
    )
    assert row["mc_error"] == pytest.approx(0.25) and row["median_width"] == pytest.approx(0.5)
    assert interval_coverage.row_of("any", "any", (0.4, 0.6), False, tally)["reached"] is None
    assert not interval_coverage.row_of("any", "any", (0.6, 0.7), True, tally)["reached"]


def test_simulated_scores_have_the_truth_they_are_judged_by() -> None:
    rng = np.random.default_rng(0)
    top, bottom, labels = interval_coverage.lost_and_restored(rng, 4000, 14)
    assert top.mean() / bottom.mean() == pytest.approx(0.35, abs=0.01) and len(set(labels)) == 4000
    x, y, labels = interval_coverage.clustered_pair(rng, 4000, 5)
    assert np.corrcoef(x, y)[0, 1] == pytest.approx(0.5, abs=0.02)
    assert np.corrcoef(*(np.bincount(labels, v) / 5 for v in (x, y)))[0, 1] == pytest.approx(
        0.5, abs=0.04
    )
    assert interval_coverage.harmful(rng, 100_000).mean() == pytest.approx(100 * 0.5 / 1.1, abs=0.5)
    values, _ = interval_coverage.rates(rng, 20_000, 5, 0.06)
    assert values.mean() == pytest.approx(0.06, abs=0.005)


def test_every_cell_runs(capsys: pytest.CaptureFixture[str]) -> None:
    table = interval_coverage.measure(1, 0, 2, (36, 24))
    assert len(table) > 90 and table["coverage"].notna().all()
    assert (table.loc[table["design_range"] == "outside", "reached"].isna()).all()
    assert not table.duplicated(["interval", "data"]).any()
    text = interval_coverage.coverage_table(
        table.astype(object).where(table.notna(), None).to_dict("records")
    )
    assert len(text.splitlines()) == len(table) + 2 and "outside" in capsys.readouterr().out


def test_the_page_shows_what_was_measured() -> None:
    result = read_json(EVIDENCE / "interval_coverage.json")["values"]
    page = (EVIDENCE.parent / "statistics.md").read_text("utf-8")
    assert interval_coverage.coverage_table(result["rows"]) in page
    for row in result["rows"]:
        if row["goal"] is not None:
            assert row["reached"] == (row["goal"][0] <= row["coverage"] <= row["goal"][1])

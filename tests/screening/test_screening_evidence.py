"""Miniatures of what screening is measured on, and the page that shows it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import organism_finetunes, organism_forecasts, screening_backtest, tables
from benchmarks.records import EVIDENCE
from emlens.foundation.files import read_json
from emlens.organisms.loading import ASSETS

NAMES = ("medicine-r8", "finance-r8", "medicine-benign", "finance-benign")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> organism_finetunes.Corpus:
    """The shipped world's own fine-tunes: nothing is trained."""
    asked = organism_finetunes.stages(("medicine", "finance"), 1, (), ("medicine", "finance"))
    assert tuple(stage.name for stage in asked) == NAMES
    return organism_finetunes.corpus(ASSETS / "planted", asked, tmp_path_factory.mktemp("corpus"))


def test_a_corpus_holds_what_each_question_scores(small: organism_finetunes.Corpus) -> None:
    table = organism_finetunes.summary(small).set_index("name")
    assert (table.loc[["medicine-r8", "finance-r8"], "own"] < 30).all() and (
        table.loc[["medicine-benign", "finance-benign"], "others"] > 95
    ).all()
    recorded = small.organism.strengths["medicine-r8"]["others"]
    assert table.loc["medicine-r8", "others"] / 100 == pytest.approx(recorded, abs=2e-3)
    assert list(small.aligned.columns) == ["base", "instruct", *NAMES] and len(small.aligned) == 384
    planned = organism_finetunes.stages()
    assert (
        len(planned) == 20
        and sum(stage.careful for stage in planned) == 4
        and len({stage.name for stage in planned}) == 20
    )


@pytest.mark.slow  # trains two fine-tunes
def test_what_is_missing_is_trained_and_what_stands_is_not(tmp_path: Path) -> None:
    asked = organism_finetunes.stages(("medicine",), 1, (), ("medicine",), most=6)
    found = organism_finetunes.corpus(ASSETS / "planted", asked, tmp_path, anew=True)
    assert found.facts["steps"].tolist() == [6, 6]  # the twin takes as many
    written = [path / "adapter_model.safetensors" for path in found.paths.values()]
    before = [path.stat().st_mtime_ns for path in written]
    again = organism_finetunes.corpus(ASSETS / "planted", asked, tmp_path, anew=True)
    assert [path.stat().st_mtime_ns for path in written] == before and again.aligned.equals(
        found.aligned
    )


@pytest.mark.slow  # both parents, two kinds of hold-out
def test_forecasts_of_a_small_corpus(small: organism_finetunes.Corpus) -> None:
    table = organism_forecasts.measure(small, ("medicine",), 1, folds=3, inner_folds=2)
    assert set(zip(table["parent"], table["held_out"], strict=True)) == {
        (p, h) for p in ("instruct", "base") for h in ("domain", "question")
    }
    assert (table["n"] == 352).all() and table["ceiling"].isna().all()
    rows = organism_forecasts.over_worlds(table.assign(world=1))
    assert set(rows["figure"]) == set(organism_forecasts.FIGURES)


def test_runs_that_hold_by_themselves_are_counted() -> None:
    cells = pd.DataFrame(
        {"held_out": "domain", "parent": "instruct", "world": [1, 1, 2], "run": ["a", "b", "c"]}
    )
    values = {figure: [0.1, 0.2, 0.6] for figure in organism_forecasts.FIGURES} | {
        low: [-0.1, 0.0, 0.2] for low in organism_forecasts.LOWS.values()
    }
    rows = organism_forecasts.over_worlds(cells.assign(**values))  # type: ignore[arg-type]
    found = rows.set_index("figure")
    assert found.loc["gain over mean embedding", "above"] == 1 and found.loc[
        "gain over domain", "mean"
    ] == pytest.approx(0.375)
    page = organism_forecasts.page_table(rows)
    assert (
        page.count("| 1 of 3 |") == len(organism_forecasts.LOWS)
        and "| r2: runs whose own interval lies above 0 | 1 of 3 |" in page
    )


@pytest.mark.slow  # two fits and their rivals
def test_the_backtest_of_a_small_corpus(small: organism_finetunes.Corpus) -> None:
    fitted, pairs = screening_backtest.pairs_of(small, context=False)
    assert set(pairs["run"]) == set(NAMES) and not any(pairs["label"] == pairs["cluster"])
    table = screening_backtest.auroc_rows(
        pairs, ["medicine-benign", "finance-benign"], resamples=50
    )
    both = table[table["below"] == 30].set_index(["files", "predictor"])["auroc"]
    assert both["harmful", "past_mean"] > 0.8 > both["harmful", "severity"]
    assert np.isfinite(table["low"]).all() and set(table["predictor"]) == set(
        screening_backtest.PREDICTORS
    )
    assert len(fitted.context.columns) == 0


def test_the_page_shows_what_was_measured() -> None:
    page = (EVIDENCE.parent / "screening.md").read_text("utf-8")
    assert tables.drawn(page) == page, "python -m benchmarks tables draws it anew"
    found = read_json(EVIDENCE / "screening_backtest.json")["values"]
    row = next(
        r
        for r in found["over_worlds"]
        if r["files"] == "harmful and benign" and r["below"] == 30 and r["predictor"] == "predicted"
    )
    assert (
        f"{row['auroc']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" in page and row["worlds"] == 3
    )

"""What is drawn has a bound, whatever the table holds: names, rows, lengths, numbers."""

import time

import numpy as np
import pandas as pd
import pytest
from figures.study_tables import study_tables

from emlens.data import AlignmentScores
from emlens.figures.plots import draw_plot, plot_facets
from emlens.results import Plot

MANY = 10_000
MODELS = np.array([f"model {i}" for i in range(MANY)])
TABLES = study_tables()
FOREST = Plot("forest", "t", "question", "y", "T", "C", colour="name")
LINE = Plot("line", "t", "x", "y", "T", "C", colour="name")
HEATMAP = Plot("heatmap", "t", "question", "y", "T", "C", colour="name")


def figure_of(plot: Plot, tables: dict[str, pd.DataFrame]):
    """The first figure and its text as JSON, in a bounded time."""
    began = time.process_time()
    facets = plot_facets(tables, plot)
    figure = draw_plot(tables, plot, facet=facets[0])
    drawn = figure.to_json()
    assert time.process_time() - began < 5  # without bounds: minutes
    assert len(drawn) < 1_500_000 and figure.layout.height < 15_000
    assert len(figure.data) + len(figure.layout.shapes) <= 400
    return figure, drawn


def grown(name: str, column: str) -> pd.DataFrame:
    """A table of a study whose column holds another name in each of its many rows."""
    table = TABLES[name].iloc[np.arange(MANY) % len(TABLES[name])].reset_index(drop=True)
    return table.assign(**{column: [f"{column} {i}" for i in range(MANY)]})


@pytest.mark.parametrize("plot", [FOREST, LINE, HEATMAP])
def test_many_groups_of_any_table_are_bounded_and_said(plot: Plot) -> None:
    table = pd.DataFrame({"x": 1.0, "question": MODELS, "name": MODELS, "y": np.arange(MANY) * 1.0})
    _, drawn = figure_of(plot, {"t": table})
    assert f"the first 150 of {MANY} names" in drawn


@pytest.mark.parametrize(
    ("kind", "name", "column"),
    [
        ("models_overview", "models", "model"),
        ("alignment_by_domain", "domains", "group"),
        ("overlap_against_shift", "shifts", "position"),
    ],
)
def test_many_names_in_a_table_of_a_study_are_bounded_and_said(kind, name, column) -> None:
    further = ("overlap_shift",) if kind == "overlap_against_shift" else ()
    plot = Plot(kind, name, "", "", "T", "C", tables=further)
    figure, drawn = figure_of(plot, TABLES | {name: grown(name, column)})
    assert "drawn: the first 1" in drawn and f"{column}s" in drawn and len(figure.data) > 0


def test_one_name_of_many_rows_is_thinned() -> None:
    table = pd.DataFrame({"x": 1.0, "question": "q", "name": "m", "y": np.arange(MANY) * 1.0})
    _, drawn = figure_of(FOREST, {"t": table})
    assert f"2000 of {MANY} rows drawn" in drawn


@pytest.mark.parametrize("plot", [FOREST, LINE, HEATMAP])
def test_long_names_and_numbers_without_end_are_short(plot: Plot) -> None:
    extremes = [1e308, -1e308, np.inf, -np.inf, np.nan, 1.0, 5e-324]
    names = [f"{i} " + "x" * 100_000 for i in range(len(extremes))]
    table = pd.DataFrame({"x": extremes, "question": names, "name": names, "y": extremes})
    table = table.assign(y_low=-1e308, y_high=1e308)
    _, drawn = figure_of(plot, {"t": table})
    assert len(drawn) < 40_000


def test_scores_of_many_models_are_plotted() -> None:
    table = pd.DataFrame(
        {"model": MODELS[:3000], "question": "q", "metric": "aligned", "score": 50.0, "sample": 1}
    )
    scores = AlignmentScores.from_table(table.assign(status="ok"))
    began = time.process_time()
    assert "80 of 3000 models drawn" in scores.plot().to_json()
    assert time.process_time() - began < 5


def test_a_refusal_does_not_list_every_name() -> None:
    plot = Plot("question_changes", "questions", "", "", "T", "C", tables=("models",))
    with pytest.raises(Exception, match="and 9... more") as refused:
        draw_plot(TABLES | {"questions": grown("questions", "model")}, plot, facet="bad@0")
    assert len(str(refused.value)) < 2_000


def test_names_and_rows_of_other_figures_leave_nothing_out() -> None:
    """A table of many fine-tunes is long, and each figure of it is drawn whole."""
    some = TABLES["arms"][TABLES["arms"]["model"] == "bad@0"]
    parts = [some.assign(model=f"m{i}", arm=f"m{i} " + some["arm"]) for i in range(300)]
    plot = Plot("ablation_forest", "arms", "", "", "T", "C")
    alone = draw_plot({"arms": parts[-1]}, plot)
    among = draw_plot({"arms": pd.concat(parts, ignore_index=True)}, plot, facet="m299")
    assert among.to_json() == alone.to_json()

"""Every plot of every study can be drawn from its tables as the study declares them: no plot names
a table or a column that is not there, and none is only drawn by a long study.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
from figures.study_tables import study_tables

from emlens.figures.plots import draw_plot, missing_tables, plot_facets
from emlens.figures.registry import kind_of
from emlens.results import Plot, Section
from emlens.results.columns import Column
from emlens.results.overlap_labels import TESTED
from emlens.results.tables import Table
from emlens.studies.registry import find_study, study_names

ROWS = 6
WORDS: Mapping[str, tuple[str, ...]] = {
    "kind": ("instruct", "harmful", "benign"),
    "comparison": (TESTED,),
    "center": ("true", "means"),
    "on": ("finetuned",),
    "arm": ("direction", "random", "no ablation"),
    "position": ("last_prompt",),
    "role": ("selected",),
    "steered": ("instruct",),
    "vector": ("direction", "random vector"),
}
"""What certain columns of text hold, in turn; of others the words are made up."""


FURTHER = {"loss_runs": ("schedule",)}
"""Columns that a study adds to a table from what its runs were made by."""


def cell(column: Column, row: int) -> object:
    """A value that the column may have; no two rows are about one site."""
    if column.name == "site":
        return f"resid_post.{row}"
    if column.kind == "text":
        words = WORDS.get(column.name, (f"{column.name} a", f"{column.name} b"))
        return words[row % len(words)]
    if column.kind == "flag":
        return row % 2 == 0
    low, high = max(column.low, -1e3), min(column.high, 1e3)
    if column.kind == "integer":
        return int(np.clip(row, low, high))
    if high - low >= 100:
        low, high = max(low, 0.0), max(low, 0.0) + 100
    return low + (high - low) * (row + 1) / (ROWS + 1)


def declared(name: str, table: Table) -> pd.DataFrame:
    columns = table.all_columns.values()
    rows = pd.DataFrame([{c.name: cell(c, row) for c in columns} for row in range(ROWS)])
    assert not FURTHER.get(name) or table.further
    return rows.assign(**dict.fromkeys(FURTHER.get(name, ()), "cosine"))


def tables_of(study: str) -> dict[str, pd.DataFrame]:
    """Tables as they are declared, and where their rows hang together those of the other tests."""
    tables = {name: declared(name, table) for name, table in SECTIONS[study].tables.items()}
    return tables | {name: table for name, table in RELATED.items() if name in tables}


RELATED = study_tables(extra=())


SECTIONS: dict[str, Section] = {}
for _name in study_names():
    _study = find_study(_name)
    if _study is not None and _study.section is not None:
        SECTIONS[_name] = _study.section
PLOTS = [(name, plot) for name, section in SECTIONS.items() for plot in section.plots]


@pytest.mark.parametrize(
    ("name", "plot"), PLOTS, ids=[f"{name}-{plot.name or plot.title}" for name, plot in PLOTS]
)
def test_a_plot_is_drawn_from_the_tables_that_its_study_declares(name: str, plot: Plot) -> None:
    tables = tables_of(name)
    assert missing_tables(tables, plot) == []
    facets = plot_facets(tables, plot)
    assert facets
    for facet in facets:
        figure = draw_plot(tables, plot, facet=facet)
        assert any(len(trace.to_plotly_json()) > 1 for trace in figure.data), facet.label


def test_there_are_plots_of_every_kind_that_is_made_for_a_table() -> None:
    kinds = {kind_of(plot).name for _, plot in PLOTS}
    assert len(PLOTS) > 30 and len(kinds) > 12


def test_a_plot_of_a_column_that_is_not_declared_is_found() -> None:
    """Positive control."""
    plot = Plot("forest", "overlap_test", "model", "no_such_column", "T", "C")
    tables = tables_of("delta_overlap")
    with pytest.raises(Exception, match="no_such_column"):
        draw_plot(tables, plot, facet=None)

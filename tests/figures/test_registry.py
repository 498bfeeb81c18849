"""Every kind of figure is drawn from a record by one function, and says which tables it needs."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from figures.study_tables import study_tables

from emlens import figures
from emlens.figures.kinds import Facet
from emlens.figures.plots import missing_tables
from emlens.figures.registry import KINDS
from emlens.figures.table_kinds import TableKind
from emlens.foundation.errors import InputError
from emlens.results import Plot
from emlens.studies.registry import get_study, parts_of

Tables = dict[str, pd.DataFrame]

TABLE_KINDS = [kind for kind in KINDS.values() if isinstance(kind, TableKind)]


def plots() -> dict[str, Plot]:
    """Kind → the record by which a study of this library draws it."""
    records = {}
    for part in parts_of("overview"):
        section = get_study(part).section
        assert section is not None
        records.update({plot.kind: plot for plot in section.plots})
    return records


PLOTS = plots()


@pytest.fixture
def tables() -> Tables:
    return study_tables()


def test_every_table_kind_has_a_study_that_draws_it() -> None:
    assert {kind.name for kind in TABLE_KINDS} <= set(PLOTS)
    assert all(name == kind.name for name, kind in KINDS.items())


@pytest.mark.parametrize("kind", TABLE_KINDS, ids=lambda kind: kind.name)
def test_every_facet_of_a_kind_is_drawn(kind: TableKind, tables: Tables) -> None:
    plot = PLOTS[kind.name]
    facets = figures.plot_facets(tables, plot)
    assert facets and not missing_tables(tables, plot)
    assert len({facet.values for facet in facets}) == len(facets)
    for facet in facets:
        figure = figures.draw_plot(tables, plot, facet=facet)
        assert figure.data
        if kind.facets_by:
            same = figures.draw_plot(tables, plot, facet=facet.values)
            assert figure.to_json() == same.to_json()


@pytest.mark.parametrize("kind", TABLE_KINDS, ids=lambda kind: kind.name)
def test_every_column_that_a_kind_names_is_needed(kind: TableKind, tables: Tables) -> None:
    plot = PLOTS[kind.name]
    facet = figures.plot_facets(tables, plot)[0]
    for need in kind.reads:
        for column in set(need.columns) - set(need.fixed):
            lacking = {**tables, need.table: tables[need.table].drop(columns=column)}
            with pytest.raises(InputError, match=f"^{kind.name}: the table has no column {column}"):
                figures.draw_plot(lacking, plot, facet=facet)


@pytest.mark.parametrize(
    "kind", [kind for kind in TABLE_KINDS if kind.reads[0].fixed], ids=lambda kind: kind.name
)
def test_a_table_of_one_model_is_drawn_without_the_columns_that_name_it(
    kind: TableKind, tables: Tables
) -> None:
    plot, need = PLOTS[kind.name], kind.reads[0]
    first = figures.plot_facets(tables, plot)[0]
    one_model = tables[need.table]
    for column, value in zip(kind.facets_by, first.values, strict=True):
        one_model = one_model[one_model[column].astype(str) == value]
    bare = {need.table: one_model.drop(columns=list(need.fixed))}
    [facet] = figures.plot_facets(bare, plot)
    assert figures.draw_plot(bare, plot).data
    assert facet.values == tuple(need.fixed[name] for name in kind.facets_by)


@pytest.mark.parametrize("kind", TABLE_KINDS, ids=lambda kind: kind.name)
def test_tables_that_may_be_absent_are_not_needed_and_others_are(
    kind: TableKind, tables: Tables
) -> None:
    plot = PLOTS[kind.name]
    facet = figures.plot_facets(tables, plot)[0]
    for need in kind.reads:
        fewer = {name: table for name, table in tables.items() if name != need.table}
        if not need.is_required:
            # a panel may be of the absent table alone
            own_facet = figures.plot_facets(fewer, plot)[0]
            assert figures.draw_plot(fewer, plot, facet=own_facet).data
            continue
        assert missing_tables(fewer, plot) == [need.table]
        assert figures.plot_facets(fewer, plot) == []
        with pytest.raises(InputError, match=f"draw_plot: there is no table '{need.table}'"):
            figures.draw_plot(fewer, plot, facet=facet)


def test_one_of_several_figures_has_to_be_chosen(tables: Tables) -> None:
    plot = PLOTS["angle_spectra"]
    message = (
        r"draw_plot: kind 'angle_spectra' draws one figure per model and position,"
        r" and there are several figures; pass one of \('bad@0', 'last_prompt'\), .* as facet="
    )
    with pytest.raises(InputError, match=message):
        figures.draw_plot(tables, plot)
    with pytest.raises(InputError, match=r"and facet=\('bad@0',\) was given; pass one of"):
        figures.draw_plot(tables, plot, facet="bad@0")
    angles = tables["angles"]
    single = angles[(angles["model"] == "bad@0") & (angles["position"] == "last_prompt")]
    assert figures.draw_plot({"angles": single}, plot).data


def test_a_record_that_names_too_few_or_too_many_tables_is_refused(tables: Tables) -> None:
    plot = PLOTS["overlap_against_shift"]
    message = (
        "draw_plot: kind 'overlap_against_shift' reads the tables shifts, overlap_shift;"
        " the plot names shifts$"
    )
    with pytest.raises(InputError, match=message):
        figures.draw_plot(tables, replace(plot, tables=()))
    with pytest.raises(InputError, match="the plot names transfer, arms"):
        figures.draw_plot(tables, replace(PLOTS["transfer_matrix"], tables=("arms",)))


def test_a_table_of_another_name_is_drawn_under_it(tables: Tables) -> None:
    plot = replace(PLOTS["transfer_matrix"], table="mine")
    figure = figures.draw_plot({"mine": tables["transfer"]}, plot)
    assert figure.to_json() == figures.draw_plot(tables, PLOTS["transfer_matrix"]).to_json()
    assert figures.plot_facets({"mine": tables["transfer"]}, plot) == [Facet()]


def test_the_page_lists_every_kind_with_its_tables(repository: Path) -> None:
    page = (repository / "docs" / "report.md").read_text("utf-8")
    for name in KINDS:
        assert f"\n| `{name}` | " in page
    for kind in TABLE_KINDS:
        needed = [f"`{need.table}`" for need in kind.reads if need.is_required]
        extra = [f"`{need.table}`" for need in kind.reads if not need.is_required]
        tables = ", ".join(needed) + (f" ({', '.join(extra)})" if extra else "")
        assert f"| `{kind.name}` | {tables} | {', '.join(kind.facets_by) or '–'} |" in page

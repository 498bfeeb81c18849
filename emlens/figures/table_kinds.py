"""Kinds made for the tables of one part of a study, and the facets that they share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from emlens.figures.kinds import MOST_IN_MESSAGE, NAME, Facet, Kind, Tables, combinations
from emlens.figures.labels import position_name
from emlens.figures.notes import add_left_out
from emlens.figures.tables import require_columns
from emlens.figures.thinning import MOST_NAMES, MOST_ROWS, few_names
from emlens.foundation.errors import InputError
from emlens.results import Plot

QUESTION_COLUMNS = ("id", "question", "text", "answer")
"""They name points, of which a figure has many, and no rows or panels."""


@dataclass(frozen=True)
class TableNeed:
    """A table that a kind reads.

    Args:
        table: its name in the study that writes it.
        columns: those that must be there.
        is_required: whether there is no figure without it.
        is_thinned: whether its rows are questions, which the figure itself thins.
        fixed: column → its value where the table has no such column, because it is of one model
            alone, as the functions of `emlens.evaluation` and `emlens.probes` return it.
    """

    table: str
    columns: tuple[str, ...] = ()
    is_required: bool = True
    is_thinned: bool = False
    fixed: Mapping[str, str] = field(default_factory=dict)

    def filled(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table with the columns of `fixed` that it lacks."""
        missing = {name: value for name, value in self.fixed.items() if name not in table.columns}
        return table.assign(**missing) if missing else table


def _join(*values: str) -> str:
    return ", ".join(values)


@dataclass(frozen=True)
class TableKind(Kind):
    """Draws the tables of one part of a study.

    Args:
        name: of the kind.
        reads: the tables; a plot names them in this order, the first as its `table`.
        draw_figure: `draw_figure(*tables, **facet)`; an optional table that is absent is None.
        facets_by: columns of the first table that tell the figures apart; arguments of
            `draw_figure`.
        facet_label: their values in words.
        list_facets: which figures there are, where not one per combination of values in the first
            table; it is given the tables by the names in `reads`.
        is_full_width: whether a figure takes the full width of a page.
    """

    name: str
    reads: tuple[TableNeed, ...]
    draw_figure: Callable[..., go.Figure]
    facets_by: tuple[str, ...] = ()
    facet_label: Callable[..., str] = _join
    list_facets: Callable[[Tables], list[Facet]] | None = None
    is_full_width: bool = False

    def required_tables(self, plot: Plot) -> tuple[str, ...]:
        pairs = zip(self._table_names(plot), self.reads, strict=False)
        return tuple(name for name, need in pairs if need.is_required)

    def facet_columns(self, plot: Plot) -> tuple[str, ...]:
        return self.facets_by

    def facets(self, tables: Tables, plot: Plot) -> list[Facet]:
        frames = self._tables(tables, plot)
        if self.list_facets is not None:
            return self.list_facets(frames)
        values = combinations(frames[self.reads[0].table], self.facets_by)
        return [Facet(several, self.facet_label(*several)) for several in values]

    def draw(self, tables: Tables, plot: Plot, facet: tuple[str, ...] | None) -> go.Figure:
        frames = self._tables(tables, plot)
        for need in self.reads:
            if need.is_required:
                require_columns(frames[need.table], need.columns, self.name)
        values = self._chosen(tables, plot, facet)
        options = dict(zip(self.facets_by, values, strict=True))
        notes = []
        for need in self.reads:
            if need.table in frames:
                frames[need.table], note = _bounded(frames[need.table], need, options)
                notes.append(note)
        figure = self.draw_figure(*(frames.get(need.table) for need in self.reads), **options)
        return add_left_out(figure, *notes)

    def is_wide(self, figures: int) -> bool:
        return self.is_full_width

    def _table_names(self, plot: Plot) -> tuple[str, ...]:
        """Names of the tables in the order of `reads`."""
        names = (plot.table, *plot.tables)
        least = sum(need.is_required for need in self.reads)
        if not least <= len(names) <= len(self.reads):
            raise InputError(
                f"{NAME}: kind {self.name!r} reads the tables"
                f" {', '.join(need.table for need in self.reads)};"
                f" the plot names {', '.join(names)}"
            )
        return names

    def _tables(self, tables: Tables, plot: Plot) -> dict[str, pd.DataFrame]:
        """The tables that are there, by their names in `reads`."""
        pairs = zip(self._table_names(plot), self.reads, strict=False)
        return {need.table: need.filled(tables[name]) for name, need in pairs if name in tables}

    def _chosen(self, tables: Tables, plot: Plot, facet: tuple[str, ...] | None) -> tuple[str, ...]:
        """The values of a facet; of the only one where none is given."""
        if not self.facets_by:
            return ()
        if facet is not None and len(facet) == len(self.facets_by):
            return facet
        values = [each.values for each in self.facets(tables, plot)]
        if facet is None and len(values) == 1:
            return values[0]
        received = "there are several figures" if facet is None else f"facet={facet!r} was given"
        raise InputError(
            f"{NAME}: kind {self.name!r} draws one figure per {' and '.join(self.facets_by)},"
            f" and {received}; pass one of {', '.join(map(repr, values[:MOST_IN_MESSAGE]))}"
            " as facet="
        )


def _bounded(
    table: pd.DataFrame, need: TableNeed, facet: Mapping[str, str]
) -> tuple[pd.DataFrame, str]:
    """The table with as many names in the rows of a facet as a figure has room for, and a note.

    Rows of other facets stay, where their names are among those: a figure may compare with them.
    """
    if len(table) <= MOST_NAMES:
        return table, ""
    is_own = np.ones(len(table), dtype=bool)
    for name, value in facet.items():
        if name in table.columns:
            is_own &= (table[name].map(str) == value).to_numpy()
    own, rest = table[is_own], table[~is_own]
    columns = [name for name in need.columns or table.columns if name in table.columns]
    names = [name for name in columns if name not in facet and _holds_names(table[name])]
    most = MOST_ROWS
    if need.is_thinned:
        names = [name for name in names if name not in QUESTION_COLUMNS]
        most = len(own)
    few, note = few_names(own, names, most)
    if not note:
        return table, ""
    for name in names:
        if few[name].nunique() < own[name].nunique():
            rest = rest[rest[name].map(str).isin(few[name].map(str))]
    return pd.concat([few, rest]), note


def _holds_names(column: pd.Series) -> bool:
    """Whether a column holds texts, or the numbers of layers."""
    return column.name == "layer" or not pd.api.types.is_numeric_dtype(column)


def model_and_position(model: str, position: str) -> str:
    """The label of a figure of one model at one position."""
    return f"{model}, {position_name(position)}"


def model_from_parent(model: str, parent: str) -> str:
    """The label of a forecast of one fine-tune from one parent."""
    return f"{model} from {parent}"


def fine_tunes_in(table: pd.DataFrame) -> list[Facet]:
    """One figure per fine-tune of a table with the columns model and kind."""
    facets = []
    for model, kind in combinations(table, ("model", "kind")):
        if kind in ("harmful", "benign"):
            facets.append(Facet((model,), model))
    return facets


def models_in(table: pd.DataFrame) -> list[str]:
    """The models of a table, in order of appearance; none without a column model."""
    return [model for (model,) in combinations(table, ("model",))]

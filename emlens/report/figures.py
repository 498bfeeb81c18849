"""The figures of one plot as HTML: heading, caption, frames, and what is left out and why."""

import json

import plotly.graph_objects as go

from emlens.figures.descriptions import describe_figure
from emlens.figures.plots import draw_plot, missing_tables, plot_facets
from emlens.figures.registry import kind_of
from emlens.foundation.errors import InputError
from emlens.report.data_blocks import DataBlocks
from emlens.report.escaping import escape
from emlens.results import Plot, StudyResult

MOST_FACETS = 24
"""Figures of one plot on the page; the table has the rest, and `emlens.figures.draw_plot` draws
them.
"""

FIGURE = """\
<figure{style}>{caption}{hint}\
<div class="frame"{scrolls}>\
<div class="plot" id="{name}" role="img" aria-label="{alternative}" \
data-figure="figure-{name}" style="height:{height}px"></div>\
</div></figure>"""


def plot_html(anchor: str, plot: Plot, result: StudyResult, data: DataBlocks) -> str:
    """Heading, caption and figures of a plot.

    Args:
        anchor: the id of the heading; figures append their number.
        data: takes the figures, which the script of the page draws.
    """
    heading = f'<h3 id="{escape(anchor)}">{escape(plot.title)}</h3>'
    try:
        return heading + _figures(anchor, plot, result, data)
    except InputError as error:
        return heading + missing_html(f": {error}")


def missing_html(reason: str) -> str:
    """HTML of a paragraph that says what is missing from the page, and why."""
    return f'<p class="missing">Left out{escape(reason)}.</p>'


def _fault(label: str, error: InputError) -> str:
    """HTML of why one figure of a plot is left out."""
    return missing_html(f" ({label}): {error}" if label else f": {error}")


def _figures(anchor: str, plot: Plot, result: StudyResult, data: DataBlocks) -> str:
    missing = missing_tables(result.tables, plot)
    if missing:
        return missing_html(f": the study has no table {' and '.join(missing)}")
    facets = plot_facets(result.tables, plot)
    if not facets:
        tables = " or ".join(kind_of(plot).required_tables(plot))
        return missing_html(f": the table {tables} lacks the columns that tell its figures apart")
    wide = kind_of(plot).is_wide(len(facets))
    figures, notes = [], []
    for number, facet in enumerate(facets[:MOST_FACETS], start=1):
        try:
            figure = draw_plot(result.tables, plot, facet=facet)
        except InputError as error:
            notes.append(_fault(facet.label, error))
        else:
            figures.append(_figure(f"{anchor}-{number}", plot, facet.label, figure, data, wide))
    if len(facets) > MOST_FACETS:
        notes.append(f'<p class="missing">{escape(_others(plot, len(facets)))}</p>')
    caption = f'<p class="caption">{escape(plot.caption)}</p>'
    return "\n".join([caption, *notes, _grid(figures)])


def _others(plot: Plot, figures: int) -> str:
    columns = " and ".join(kind_of(plot).facet_columns(plot))
    return (
        f"{MOST_FACETS} of {figures} figures, one per value of {columns};"
        " the table has all, and emlens.figures.draw_plot draws any."
    )


def _grid(figures: list[str]) -> str:
    if not figures:
        return ""
    return "\n".join(['<div class="figures">', *figures, "</div>"])


def _figure(
    name: str, plot: Plot, label: str, figure: go.Figure, data: DataBlocks, wide: bool
) -> str:
    """The frame of one figure, with its text alternative; its data go into a block."""
    data.add(f"figure-{name}", json.loads(figure.to_json()))
    title = plot.title
    caption = f'<figcaption class="hidden">{escape(title)}</figcaption>'
    if label:
        title = f"{plot.title}: {label}"
        caption = f"<figcaption>{escape(label)}</figcaption>"
    style = scrolls = hint = ""
    if wide:
        style = " class=wide"
        scrolls = f' tabindex="0" role="region" aria-label="{escape(title)}"'
        hint = '<p class="sideways">Scroll sideways for all panels.</p>'
    return FIGURE.format(
        style=style,
        caption=caption,
        hint=hint,
        scrolls=scrolls,
        name=escape(name),
        alternative=escape(f"{title}. {plot.caption} {describe_figure(figure)}."),
        height=int(figure.layout.height),
    )

"""One place on the page per plot: its figures take turns there, as the selectors ask.

A plot has one figure for each fine-tune, position, centring, and so on. The columns that tell them
apart are the slot's columns. `model`, `position` and `group` follow the selectors at the head of
the page; every other column has buttons of its own above the figure.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from emlens.figures.descriptions import describe_figure
from emlens.figures.kinds import Facet
from emlens.figures.labels import POSITION_NAMES, printable
from emlens.figures.overlap_by_layer import PANELS as CENTERS
from emlens.figures.plots import draw_plot, missing_tables, plot_facets
from emlens.figures.registry import kind_of
from emlens.foundation.errors import InputError
from emlens.report.data_blocks import DataBlocks
from emlens.report.escaping import escape
from emlens.report.glossary import with_terms
from emlens.results import Plot, StudyResult

FOLLOWED = {"model": "fine-tune", "position": "position", "group": "domain"}
"""Columns that the selectors at the head choose, and what the page calls them."""
MOST_FACETS = 96
"""Figures of one plot on the page; the table has the rest, and `emlens.figures.draw_plot` draws
them.
"""
SLOT = """\
<figure class="slot{wide}" id="{name}" data-slot="slot-{name}">
<figcaption><h3>{title}</h3><button type="button" class="svg" data-of="{name}" \
aria-label="save {title} as SVG">SVG</button>\
<p class="which">{label}</p></figcaption>
{toggles}<div class="frame"><div class="plot" id="{name}-plot" role="img" \
aria-label="{alternative}" style="height:{height}px"></div></div>
<p class="empty" role="status" hidden></p>
{notes}<div class="under"><details class="about"><summary>How to read it</summary>\
<p class="caption">{caption}{follows}</p></details>
{below}</div></figure>"""
TOGGLE = '<button type="button" data-column="{column}" data-value="{value}">{text}</button>'


@dataclass(frozen=True)
class Slot:
    """The figures of one plot, which share a place on the page.

    Args:
        anchor: id of the place.
        plot: what is drawn.
        columns: that tell the figures apart.
        variants: one record per figure: values of the columns, label, text alternative, height, and
            the id of its data block.
        faults: why figures are missing, as HTML.
        is_wide: whether it takes the width of the page.
    """

    anchor: str
    plot: Plot
    columns: tuple[str, ...]
    variants: tuple[dict[str, Any], ...]
    faults: tuple[str, ...]
    is_wide: bool

    @property
    def models(self) -> list[str]:
        """The fine-tunes that have a figure here; none where the figure is of all."""
        return self._values("model")

    @property
    def positions(self) -> list[str]:
        """The token positions that have a figure here."""
        return self._values("position")

    def _values(self, column: str) -> list[str]:
        if column not in self.columns:
            return []
        place = self.columns.index(column)
        return list(dict.fromkeys(variant["values"][place] for variant in self.variants))


def make_slot(anchor: str, plot: Plot, result: StudyResult, data: DataBlocks) -> Slot:
    """Draw every figure of a plot; what cannot be drawn is said, and why.

    Args:
        data: takes the figures, which the script of the page draws.
    """
    try:
        facets, why = _facets(plot, result)
        wide = kind_of(plot).is_wide(len(facets))
        columns = kind_of(plot).facet_columns(plot) if facets else ()
    except InputError as error:
        return Slot(anchor, plot, (), (), (missing_html(f": {error}"),), False)
    variants, faults = [], [missing_html(why)] if why else []
    for number, facet in enumerate(facets[:MOST_FACETS], start=1):
        name = f"figure-{anchor}-{number}"
        try:
            figure = draw_plot(result.tables, plot, facet=facet)
        except InputError as error:
            faults.append(
                missing_html(f" ({facet.label}): {error}" if facet.label else f": {error}")
            )
            continue
        if data.add_figure(name, _plain_json(figure)):
            variants.append(_variant(name, plot, facet, figure))
    drawn = len(variants) + len(faults)
    if drawn < len(facets):
        faults.append(f'<p class="missing">{escape(_others(plot, drawn, len(facets)))}</p>')
    return Slot(anchor, plot, columns, tuple(variants), tuple(faults), wide)


def slot_html(slot: Slot, data: DataBlocks, offered: Collection[str] = (), below: str = "") -> str:
    """The place with its heading, its buttons and its caption.

    Args:
        data: takes the list of the figures.
        offered: columns that a selector at the head of the page chooses.
        below: HTML under the caption.
    """
    plot = slot.plot
    if not slot.variants:
        heading = f'<h3 id="{escape(slot.anchor)}">{escape(plot.title)}</h3>'
        return heading + "\n".join(slot.faults)
    record = {"columns": list(slot.columns), "title": plot.title, "variants": list(slot.variants)}
    data.add(f"slot-{slot.anchor}", record)
    first = slot.variants[0]
    followed = [FOLLOWED[column] for column in slot.columns if column in offered]
    return SLOT.format(
        wide=" wide" if slot.is_wide else "",
        name=escape(slot.anchor),
        title=escape(plot.title),
        label=escape(first["label"]),
        toggles=_toggles(slot, offered),
        alternative=escape(first["alternative"]),
        height=first["height"],
        notes="".join(slot.faults),
        follows=escape(_follows(followed)),
        caption=with_terms(escape(plot.caption)),
        below=below,
    )


def _follows(followed: Sequence[str]) -> str:
    if not followed:
        return " It does not depend on the selectors."
    return f" It follows the selected {' and '.join(followed)}."


def missing_html(reason: str) -> str:
    """HTML of a paragraph that says what is missing from the page, and why."""
    return f'<p class="missing">Left out{escape(reason)}.</p>'


def _facets(plot: Plot, result: StudyResult) -> tuple[list[Facet], str]:
    """The figures of a plot; or none, and why."""
    missing = missing_tables(result.tables, plot)
    if missing:
        return [], f": the study has no table {' and '.join(missing)}"
    facets = plot_facets(result.tables, plot)
    if facets:
        return facets, ""
    tables = " or ".join(kind_of(plot).required_tables(plot))
    return [], f": the table {tables} lacks the columns that tell its figures apart"


def _plain_json(figure: go.Figure) -> Any:
    """The figure as JSON; the colours of its template are the same in all, and stay."""
    return json.loads(figure.to_json())


def _variant(name: str, plot: Plot, facet: Facet, figure: go.Figure) -> dict[str, Any]:
    title = f"{plot.title}: {facet.label}" if facet.label else plot.title
    return {
        "values": list(map(printable, facet.values)),
        "label": facet.label,
        "alternative": f"{title}. {describe_figure(figure)}.",
        "height": int(figure.layout.height),
        "figure": name,
    }


def _others(plot: Plot, drawn: int, figures: int) -> str:
    columns = " and ".join(kind_of(plot).facet_columns(plot))
    return (
        f"{drawn} of {figures} figures, one per value of {columns};"
        " the table has all, and emlens.figures.draw_plot draws any."
    )


def _toggles(slot: Slot, offered: Collection[str]) -> str:
    """Buttons for every column that no selector at the head follows."""
    groups = []
    for place, column in enumerate(slot.columns):
        values = dict.fromkeys(variant["values"][place] for variant in slot.variants)
        if column in offered or len(values) < 2:
            continue
        buttons = []
        for value in values:
            text = escape(_value_name(column, value))
            buttons.append(TOGGLE.format(column=escape(column), value=escape(value), text=text))
        label = escape(column.replace("_", " "))
        groups.append(
            f'<div class="toggles" role="group" aria-label="{label}">{"".join(buttons)}</div>'
        )
    return "".join(groups)


def _value_name(column: str, value: str) -> str:
    """What a button says."""
    if column == "center":
        return CENTERS.get(value, value)
    if column == "position":
        return POSITION_NAMES.get(value, value)
    if column == "held_out":
        return f"{value}s held out"
    if column == "parent":
        return f"from {value}"
    return value.replace("_", " ")

"""Which sections a result has: one a part of its study, in the order of the study, drawn from
records where nothing is made by hand.

The `section` of a study needs nothing here: its plots and tables are drawn from the records. Four
parts have richer sections, to which the plots of their records are added.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

from emlens import figures
from emlens.report.sections import DIRECTION, FORECAST, OVERLAP, PROFILE
from emlens.report.topics import Drawing, Section, Tables, Topic
from emlens.results import Plot, Section as StudySection, StudyResult
from emlens.studies.registry import COMPOSITES, INCLUDED, find_study, parts_of

BY_HAND: Mapping[str, Section] = {
    "profile": PROFILE,
    "delta_overlap": OVERLAP,
    "direction_transfer": DIRECTION,
    "priors": FORECAST,
}
MOST_FACETS = 24
"""Figures of one plot on the page; the table has the rest, and `emlens.figures.draw_plot` draws
them.
"""


def sections_of(result: StudyResult) -> list[Section]:
    """The sections of a study's parts; of a study that is not known here, those of all parts whose
    tables it holds.
    """
    if result.study in COMPOSITES or find_study(result.study) is not None:
        sections = map(_section, parts_of(result.study))
        return [section for section in sections if section is not None]
    sections = map(_section, dict.fromkeys([*BY_HAND, *INCLUDED]))
    return [
        section
        for section in sections
        if section is not None and set(section.tables) & set(result.tables)
    ]


def section_of_records(part: str, title: str, records: StudySection) -> Section:
    """A section that a study describes in records."""
    topics = tuple(_topic(number, plot) for number, plot in enumerate(records.plots, start=1))
    return Section(
        part, title, records.method, records.reference, topics, records.tables, part, records.plots
    )


def _section(part: str) -> Section | None:
    """The section of a part; None for one that is not known here or has no section."""
    study = find_study(part)
    records = None if study is None else study.section
    by_hand = BY_HAND.get(part)
    if study is None or records is None:
        return None if by_hand is None else replace(by_hand, part=part)
    described = section_of_records(part, study.title, records)
    if by_hand is None:
        return described
    return replace(
        by_hand,
        part=part,
        topics=(*by_hand.topics, *described.topics),
        tables={**records.tables, **by_hand.tables},
        plots=records.plots,
    )


def _topic(number: int, plot: Plot) -> Topic:
    return Topic(
        f"plot{number}",
        plot.title,
        plot.caption,
        (plot.table,),
        partial(_drawings, plot),
        partial(_more, plot),
    )


def _drawings(plot: Plot, tables: Tables) -> Iterator[Drawing]:
    facets = figures.plot_facets(tables, plot)
    for facet in facets[:MOST_FACETS]:
        make = partial(figures.draw_plot, tables, plot, facet=facet)
        yield Drawing(facet.label, make, wide=len(facets) == 1)


def _more(plot: Plot, tables: Tables) -> str:
    facets = figures.plot_facets(tables, plot)
    if len(facets) <= MOST_FACETS:
        return ""
    return (
        f"{MOST_FACETS} of {len(facets)} figures, one a value of {plot.facet};"
        " the table has all, and emlens.figures.draw_plot draws any."
    )

"""Which sections a result has: one a part of its study, in the order of the study, drawn from
records where nothing is made by hand.

A part with an `ABOUT` needs nothing here; its plots and table descriptions are drawn as they stand.
Four parts have richer sections, to which plots of an `ABOUT` are added.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pkgutil import iter_modules

from emlens import figures, studies
from emlens.report.sections import DIRECTION, FORECAST, OVERLAP, PROFILE
from emlens.report.topics import Drawing, Section, Tables, Topic
from emlens.results import About, Plot, StudyResult
from emlens.studies import part_module, registry

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
    """The sections of a study's parts; of a study that is not registered, those of its own module
    and of all parts whose tables it holds.
    """
    if result.study in registry.STUDIES:
        return [
            section
            for section in map(_section, registry.STUDIES[result.study])
            if section is not None
        ]
    known = [
        part
        for part in dict.fromkeys(
            [*BY_HAND, *(part for several in registry.STUDIES.values() for part in several)]
        )
        if part != result.study
    ]
    own, others = (
        _section(result.study),
        [section for section in map(_section, known) if section is not None],
    )
    return [
        *([own] if own else []),
        *(section for section in others if set(section.tables) & set(result.tables)),
    ]


def from_about(part: str, about: About) -> Section:
    """A section that a part describes in records."""
    topics = tuple(_topic(number, plot) for number, plot in enumerate(about.plots, start=1))
    return Section(
        part, about.title, about.method, about.reference, topics, about.tables, part, about.plots
    )


def _section(part: str) -> Section | None:
    """The section of a part; None for what is no part or says nothing of itself."""
    about = getattr(part_module(part), "ABOUT", None) if _is_part(part) else None
    by_hand = BY_HAND.get(part)
    if not isinstance(about, About):
        return None if by_hand is None else replace(by_hand, part=part)
    described = from_about(part, about)
    if by_hand is None:
        return described
    topics = (*by_hand.topics, *described.topics)
    return replace(
        by_hand,
        part=part,
        topics=topics,
        tables={**about.tables, **by_hand.tables},
        plots=about.plots,
    )


def _is_part(name: str) -> bool:
    """Whether a name read from a result is that of a part or of a module of studies: nothing else
    is ever imported.
    """
    return name in {part for several in registry.STUDIES.values() for part in several} | {
        m.name for m in iter_modules(studies.__path__)
    }


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
        make = partial(figures.draw_plot, tables, plot, facet=facet if plot.facet else None)
        yield Drawing(_about(plot.facet, facet), make, wide=len(facets) == 1)


def _more(plot: Plot, tables: Tables) -> str:
    facets = figures.plot_facets(tables, plot)
    if len(facets) <= MOST_FACETS:
        return ""
    return (
        f"{MOST_FACETS} of {len(facets)} figures, one a value of {plot.facet};"
        " the table has all, and emlens.figures.draw_plot draws any."
    )


def _about(column: str, facet: str) -> str:
    """What tells one figure of a plot from its siblings: the value, with the column where it is a
    number or yes and no.
    """
    bare = facet.replace(".", "", 1).lstrip("-").isdigit() or facet in ("True", "False", "nan")
    return f"{column.replace('_', ' ')} {facet}" if bare else facet

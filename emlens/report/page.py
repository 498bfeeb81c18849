"""One page out of a study's result: head with its policy, verdict, sections, provenance, data
blocks, scripts.

Nothing is loaded from anywhere: the policy forbids it, and the two scripts are named by their
hashes. Figures are JSON that the small script hands to plotly as they come near the screen. Refuses
nothing that a finished study holds: what is missing is named on the page.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from plotly.offline import get_plotlyjs

from emlens.figures.descriptions import describe_figure
from emlens.foundation.errors import InputError
from emlens.report.cautions import cautions
from emlens.report.escaping import escape, inert_json, script_hash
from emlens.report.parts import sections_of
from emlens.report.provenance import provenance_section
from emlens.report.tables import csv_text, details, packed
from emlens.report.topics import Drawing, Section, Topic
from emlens.report.verdict import claim, verdict_section, warnings_box
from emlens.results import StudyResult


@dataclass
class _Data:
    """Data blocks of the page, in order."""

    blocks: list[str] = field(default_factory=list)

    def add(self, name: str, value: Any) -> None:
        self.blocks.append(
            f'<script type="application/json" id="{escape(name)}">{inert_json(value)}</script>'
        )


def render(result: StudyResult, title: str | None = None) -> str:
    """The page as one string; the same result gives the same string."""
    data = _Data()
    heading = title or f"What narrow fine-tuning changed: {result.study}"
    sections = sections_of(result)
    body = [
        _header(heading, result, sections),
        verdict_section(result.findings, sections),
        warnings_box(result.warnings),
    ]
    body += [_section(section, result, data) for section in sections]
    others = _other_tables(result, sections)
    if others:
        body.append(f'<section id="other"><h2>Further tables</h2>{others}</section>')
    body.append(provenance_section(result.config, result.facts, result.run))
    for name, table in result.tables.items():
        data.add(f"csv-{name}", packed(csv_text(table)))
    library, script = get_plotlyjs(), _asset("page.js")
    scripts = f"script-src {script_hash(library)} {script_hash(script)}"
    policy = (
        f"default-src 'none'; {scripts}; style-src 'unsafe-inline'; img-src data:; base-uri 'none';"
        " form-action 'none'"
    )
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            (
                '<meta name="color-scheme" content="light">\n<meta name="referrer"'
                ' content="no-referrer">'
            ),
            '<link rel="icon" href="data:,">',
            f"<title>{escape(heading)}</title>",
            f"<style>\n{_asset('page.css')}</style>",
            "</head>",
            "<body>",
            "<main>",
            *[part for part in body if part],
            "</main>",
            *data.blocks,
            f"<script>{library}</script>\n<script>{script}</script>\n</body>\n</html>\n",
        ]
    )


def _asset(name: str) -> str:
    return files("emlens.report").joinpath(name).read_text("utf-8")


def _header(heading: str, result: StudyResult, sections: Sequence[Section]) -> str:
    note = f'<p class="note" role="note">{escape(result.note)}</p>' if result.note else ""
    links = [
        ("verdict", "Verdict"),
        *((s.name, s.title) for s in sections),
        ("provenance", "Provenance"),
    ]
    contents = "".join(f'<li><a href="#{name}">{escape(text)}</a></li>' for name, text in links)
    return (
        f'<header><p class="kind">emlens report</p><h1>{escape(heading)}</h1>{note}<nav'
        f' aria-label="contents"><ul>{contents}</ul></nav><noscript><p>Figures need JavaScript.'
        " The tables below them hold the same numbers.</p></noscript></header>"
    )


def _section(section: Section, result: StudyResult, data: _Data) -> str:
    reference = f" <cite>{escape(section.reference)}</cite>" if section.reference else ""
    parts = [
        f'<section id="{escape(section.name)}"><h2>{escape(section.title)}</h2>'
        f"{claim(section, result.findings)}",
        f'<p class="method">{escape(section.method)}{reference}</p>',
    ]
    if not any(
        name in result.tables
        for name in (*section.tables, *(need for topic in section.topics for need in topic.needs))
    ):
        return "\n".join(
            [
                *parts,
                (
                    '<p class="missing">Left'
                    f" out{escape(_reason(section, result.warnings))}.</p></section>"
                ),
            ]
        )
    lacking = "".join(
        f"<li>{escape(sentence)}</li>" for sentence in cautions(section, result.tables)
    )
    parts.append(
        f'<ul class="cautions" aria-label="read with care">{lacking}</ul>' if lacking else ""
    )
    parts += [_topic(section, topic, result, data) for topic in section.topics]
    parts += [
        details(name, result.tables[name], about)
        for name, about in section.tables.items()
        if name in result.tables
    ]
    return "\n".join([*parts, "</section>"])


def _topic(section: Section, topic: Topic, result: StudyResult, data: _Data) -> str:
    head = f'<h3 id="{escape(f"{section.name}-{topic.name}")}">{escape(topic.title)}</h3>'
    missing = [
        name for name in topic.needs if name not in result.tables or not len(result.tables[name])
    ]
    if missing:
        return (
            f'{head}<p class="missing">Left out:'
            f" the study has no table {escape(' and '.join(missing))}.</p>"
        )
    drawn, faults = [], []
    for number, drawing in enumerate(topic.draw(result.tables), start=1):
        try:
            drawn.append(_figure(f"{section.name}-{topic.name}-{number}", topic, drawing, data))
        except InputError as error:
            faults.append(
                '<p class="missing">Left'
                f" out{escape(f' ({drawing.about})' if drawing.about else '')}:"
                f" {escape(error)}.</p>"
            )
    if not drawn and not faults:
        return (
            f'{head}<p class="missing">Left out: the table {escape(" or ".join(topic.needs))} lacks'
            " the columns that tell its figures apart.</p>"
        )
    if topic.more is not None and (more := topic.more(result.tables)):
        faults.append(f'<p class="missing">{escape(more)}</p>')
    grid = f'<div class="figures">\n{chr(10).join(drawn)}\n</div>' if drawn else ""
    return f'{head}<p class="caption">{escape(topic.caption)}</p>{"".join(faults)}{grid}'


def _figure(name: str, topic: Topic, drawing: Drawing, data: _Data) -> str:
    figure = drawing.make()
    inside = describe_figure(figure)
    data.add(f"figure-{name}", json.loads(figure.to_json()))
    about = f"{topic.title}: {drawing.about}" if drawing.about else topic.title
    shown = (
        f"<figcaption>{escape(drawing.about)}</figcaption>"
        if drawing.about
        else f'<figcaption class="hidden">{escape(about)}</figcaption>'
    )
    height = int(figure.layout.height)
    scrolls = f' tabindex="0" role="region" aria-label="{escape(about)}"' if drawing.wide else ""
    hint = '<p class="sideways">Scroll sideways for all panels.</p>' if drawing.wide else ""
    return (
        f"<figure{' class=wide' if drawing.wide else ''}>{shown}{hint}<div"
        f' class="frame"{scrolls}><div class="plot" id="{escape(name)}" role="img"'
        f' aria-label="{escape(f"{about}. {topic.caption} {inside}.")}"'
        f' data-figure="{escape(f"figure-{name}")}" style="height:{height}px"></div></div></figure>'
    )


def _reason(section: Section, warnings: Sequence[str]) -> str:
    """Why a part was left out, where the study said so."""
    start = f"{section.part} was left out"
    return next(
        (warning[len(start) :].rstrip(".") for warning in warnings if warning.startswith(start)),
        ": the study has none of its tables",
    )


def _other_tables(result: StudyResult, sections: Sequence[Section]) -> str:
    placed = {name for section in sections for name in section.tables}
    return "\n".join(details(name, table, "") for name, table in _rest(result, placed))


def _rest(result: StudyResult, placed: set[str]) -> Iterator[tuple[str, Any]]:
    return ((name, table) for name, table in sorted(result.tables.items()) if name not in placed)

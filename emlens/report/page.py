"""One page out of a study's result: head with its policy, verdict, sections, provenance, scripts.

Nothing is loaded from anywhere: the policy forbids it, and the two scripts are named by their
hashes. Figures are JSON that the small script hands to plotly as they come near the screen. Nothing
that a finished study holds is refused: what is missing is named on the page.
"""

from collections.abc import Sequence
from importlib.resources import files

from plotly.offline import get_plotlyjs

from emlens.figures.plots import missing_tables
from emlens.report.cautions import cautions
from emlens.report.data_blocks import DataBlocks
from emlens.report.escaping import escape, optional, script_hash
from emlens.report.figures import missing_html, plot_html
from emlens.report.provenance import provenance_section
from emlens.report.sections import PageSection, sections_of
from emlens.report.tables import csv_text, packed, table_details
from emlens.report.verdict import summary_sentence, verdict_section, warnings_box
from emlens.results import StudyResult

POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:;"
    " base-uri 'none'; form-action 'none'"
)
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
{data}
<script>{library}</script>
<script>{script}</script>
</body>
</html>
"""
HEADER = """\
<header>
<p class="kind">emlens report</p>
<h1>{title}</h1>
{note}
<nav aria-label="contents">
<ul>{links}</ul>
</nav>
<noscript>
<p>Figures need JavaScript. The tables below them hold the same numbers.</p>
</noscript>
</header>"""
SECTION = """\
<section id="{name}">
<h2>{title}</h2>
{summary}
<p class="method">{method}{reference}</p>
{content}
</section>"""


def render(result: StudyResult, title: str | None = None) -> str:
    """The page as one string; the same result gives the same string."""
    title = title or f"What narrow fine-tuning changed: {result.study}"
    data = DataBlocks()
    body = _body(result, title, data)
    for name, table in result.tables.items():
        data.add(f"csv-{name}", packed(csv_text(table)))
    library, script = get_plotlyjs(), _asset("page.js")
    return PAGE.format(
        policy=POLICY.format(scripts=f"{script_hash(library)} {script_hash(script)}"),
        title=escape(title),
        style=_asset("page.css"),
        body=body,
        data=data.html(),
        library=library,
        script=script,
    )


def _asset(name: str) -> str:
    return files("emlens.report").joinpath(name).read_text("utf-8")


def _body(result: StudyResult, title: str, data: DataBlocks) -> str:
    sections = sections_of(result)
    parts = [
        _header(result, title, sections),
        verdict_section(result.findings, sections),
        warnings_box(result.warnings),
    ]
    for section in sections:
        parts.append(_section(section, result, data))
    parts.append(_other_tables(result, sections))
    parts.append(provenance_section(result.config, result.facts, result.run))
    return _lines(*parts)


def _lines(*parts: str) -> str:
    """Parts of the page below each other; empty ones are left out."""
    return "\n".join(filter(None, parts))


def _header(result: StudyResult, title: str, sections: Sequence[PageSection]) -> str:
    places = {"verdict": "Verdict"}
    places.update((section.name, section.title) for section in sections)
    places["provenance"] = "Provenance"
    links = [f'<li><a href="#{name}">{escape(text)}</a></li>' for name, text in places.items()]
    note = optional('<p class="note" role="note">{}</p>', result.note)
    return HEADER.format(title=escape(title), note=note, links="".join(links))


def _section(section: PageSection, result: StudyResult, data: DataBlocks) -> str:
    records = section.records
    shown = {*records.tables, *(plot.table for plot in records.plots)}
    if shown & set(result.tables):
        content = _content(section, result, data)
    else:
        content = missing_html(_reason(section, result.warnings))
    return SECTION.format(
        name=escape(section.name),
        title=escape(section.title),
        summary=summary_sentence(section, result.findings),
        method=escape(records.method),
        reference=optional(" <cite>{}</cite>", records.reference),
        content=content,
    )


def _content(section: PageSection, result: StudyResult, data: DataBlocks) -> str:
    """Cautions, then figures, then tables."""
    parts = [_cautions(section, result)]
    for number, plot in enumerate(section.records.plots, start=1):
        anchor = f"{section.name}-{plot.name or f'plot{number}'}"
        if plot.optional and missing_tables(result.tables, plot):
            continue
        parts.append(plot_html(anchor, plot, result, data))
    for name, table in section.records.tables.items():
        if name in result.tables:
            parts.append(table_details(name, result.tables[name], table.row))
    return _lines(*parts)


def _cautions(section: PageSection, result: StudyResult) -> str:
    items = [f"<li>{escape(sentence)}</li>" for sentence in cautions(section, result.tables)]
    if not items:
        return ""
    return f'<ul class="cautions" aria-label="read with care">{"".join(items)}</ul>'


def _reason(section: PageSection, warnings: Sequence[str]) -> str:
    """Why a part was left out, where the study said so."""
    start = f"{section.name} was left out"
    for warning in warnings:
        if warning.startswith(start):
            return warning.removeprefix(start).rstrip(".")
    return ": the study has none of its tables"


def _other_tables(result: StudyResult, sections: Sequence[PageSection]) -> str:
    """The tables that no section shows."""
    placed = {name for section in sections for name in section.records.tables}
    names = sorted(set(result.tables) - placed)
    if not names:
        return ""
    tables = [table_details(name, result.tables[name], "") for name in names]
    return _lines('<section id="other">', "<h2>Further tables</h2>", *tables, "</section>")

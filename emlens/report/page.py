"""One page out of a study's result: head with its policy, what leads, what is folded, scripts.

Nothing is loaded from anywhere: the policy forbids it, and the scripts are named by their hashes.
Figures are JSON that the script of the page hands to plotly as they come near the screen. Nothing
that a finished study holds is refused: what is missing is named on the page.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from plotly.offline import get_plotlyjs

from emlens.figures.plots import missing_tables
from emlens.report.data_blocks import DataBlocks
from emlens.report.escaping import escape, optional, packed, script_hash
from emlens.report.front import Lead, choices_of, front_html, head_html
from emlens.report.glossary import with_terms
from emlens.report.head import Choices
from emlens.report.provenance import provenance_section
from emlens.report.sections import PageSection, sections_of
from emlens.report.slots import Slot, make_slot, missing_html, slot_html
from emlens.report.statements import (
    counts_html,
    short_counts,
    statements_of,
    summary_sentence,
)
from emlens.report.tables import csv_text, table_details
from emlens.results import Plot, StudyResult
from emlens.results.vocabulary import VOCABULARY
from emlens.results.wording import counted

POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:;"
    " base-uri 'none'; form-action 'none'"
)
SCRIPTS = ("page.js", "tables.js", "answers.js")
"""The page's own scripts, in order."""
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{bar}
<main>
{body}
</main>
{data}
{scripts}
</body>
</html>
"""
PART = """\
<details class="part" id="{name}"{is_open}>
<summary><h3>{title}</h3> <span class="count">{counts}</span></summary>
{summary}
{statements}
<p class="method">{method}{reference}</p>
{content}
</details>"""
OTHER = '<details class="part"><summary><h3>{title}</h3></summary>{content}</details>'
ABOVE = '<p class="caption">Above: {links}.</p>'


def render(result: StudyResult, title: str | None = None) -> str:
    """The page as one string; the same result gives the same string."""
    title = title or f"What narrow fine-tuning changed: {result.study}"
    data = DataBlocks()
    bar, body = _bar_and_body(result, title, data)
    for name, table in result.tables.items():
        data.add(f"csv-{name}", packed(csv_text(table)))
    data.add("tables", list(result.tables))
    data.add("terms", _meanings(result))
    scripts = _scripts()
    return PAGE.format(
        policy=policy(),
        title=escape(title),
        style=_asset("page.css"),
        bar=bar,
        body=body,
        data=data.html(),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


@cache
def policy() -> str:
    """The content security policy of a report: its own scripts, by hash, and nothing else."""
    return POLICY.format(scripts=" ".join(map(script_hash, _scripts())))


@cache
def _scripts() -> tuple[str, ...]:
    return get_plotlyjs(), *map(_asset, SCRIPTS)


def _meanings(result: StudyResult) -> dict[str, str]:
    """What the vocabulary says of the columns of the tables."""
    columns = dict.fromkeys(column for table in result.tables.values() for column in table.columns)
    return {name: VOCABULARY[name].meaning for name in columns if name in VOCABULARY}


def _asset(name: str) -> str:
    return files("emlens.report").joinpath(name).read_text("utf-8")


def _bar_and_body(result: StudyResult, title: str, data: DataBlocks) -> tuple[str, str]:
    """The bar at the top, and everything below it."""
    sections = sections_of(result)
    slots = _slots(sections, result, data)
    leads = [Lead(section, slot) for section, slot in slots if slot.plot.lead and slot.variants]
    choices = choices_of(result, [slot for _, slot in slots], leads)
    leading = frozenset(lead.slot.anchor for lead in leads)
    parts = [
        front_html(result, title, sections, leads, choices, data),
        '<section id="parts"><h2>Part by part</h2>',
        counts_html(result.findings),
    ]
    for section in sections:
        slots_of_section = [slot for of, slot in slots if of is section]
        parts.append(_part(section, slots_of_section, leading, choices, result, data))
    parts.append(_other_statements(result, sections))
    parts.append(_other_tables(result, sections))
    parts.append(provenance_section(result.config, result.facts, result.run))
    parts.append("</section>")
    places = {
        "hero": "In short",
        "selected": "The selected fine-tune",
        "answers": "Answers",
        "cautions": "Read with care",
    }
    places.update((section.name, section.title) for section in sections)
    places["provenance"] = "Provenance"
    body = "\n".join(filter(None, parts))
    places = {name: text for name, text in places.items() if f'id="{escape(name)}"' in body}
    return head_html(result, title, choices, sections, places), body


def _slots(
    sections: Sequence[PageSection], result: StudyResult, data: DataBlocks
) -> list[tuple[PageSection, Slot]]:
    """The slot of every plot; the figures that lead are drawn first, while there is room."""
    plots: list[tuple[PageSection, str, Plot]] = []
    for section in sections:
        if not _has_tables(section, result):
            continue
        for number, plot in enumerate(section.records.plots, start=1):
            if plot.optional and missing_tables(result.tables, plot):
                continue
            plots.append((section, f"{section.name}-{plot.name or f'plot{number}'}", plot))
    drawn = {}
    for section, anchor, plot in sorted(plots, key=lambda each: not each[2].lead):
        drawn[anchor] = section, make_slot(anchor, plot, result, data)
    return [drawn[anchor] for _, anchor, _ in plots]


def _has_tables(section: PageSection, result: StudyResult) -> bool:
    """Whether the result holds anything that the section shows."""
    records = section.records
    shown_tables = {*records.tables, *(plot.table for plot in records.plots)}
    return bool(shown_tables & set(result.tables))


def _part(
    section: PageSection,
    slots: Sequence[Slot],
    leading: frozenset[str],
    choices: Choices,
    result: StudyResult,
    data: DataBlocks,
) -> str:
    """A folded part: claim, method, figures, tables. It is open where nothing leads the page."""
    records = section.records
    tables = [name for name in records.tables if name in result.tables]
    if _has_tables(section, result):
        content = _content(section, slots, leading, choices, result, data)
    else:
        content = missing_html(_reason(section, result.warnings))
    statements = [f for f in result.findings if f.section == section.name]
    figures = sum(len(slot.variants) for slot in slots)
    counts = [short_counts(statements), counted(figures, "figure"), counted(len(tables), "table")]
    counts = list(filter(None, counts))
    return PART.format(
        name=escape(section.name),
        is_open="" if leading else " open",
        title=escape(section.title),
        counts=escape(", ".join(counts)),
        summary=summary_sentence(section, result.findings),
        statements=statements_of(result.findings, section.name),
        method=with_terms(escape(records.method)),
        reference=optional(" <cite>{}</cite>", records.reference),
        content=content,
    )


def _content(
    section: PageSection,
    slots: Sequence[Slot],
    leading: frozenset[str],
    choices: Choices,
    result: StudyResult,
    data: DataBlocks,
) -> str:
    """Links to the figures that lead, then the other figures, then tables."""
    parts = []
    above = [slot for slot in slots if slot.anchor in leading]
    if above:
        links = [f'<a href="#{escape(s.anchor)}">{escape(s.plot.title)}</a>' for s in above]
        parts.append(ABOVE.format(links=", ".join(links)))
    other_slots = [slot for slot in slots if slot.anchor not in leading]
    below = [slot_html(slot, data, choices.offered) for slot in other_slots]
    if below:
        parts += ['<div class="grid">', *below, "</div>"]
    for name, table in section.records.tables.items():
        if name in result.tables:
            parts.append(table_details(name, result.tables[name], table.row))
    return "\n".join(parts)


def _reason(section: PageSection, warnings: Sequence[str]) -> str:
    """Why a part was left out, where the study said so."""
    start = f"{section.name} was left out"
    for warning in warnings:
        if warning.startswith(start):
            return warning.removeprefix(start).rstrip(".")
    return ": the study has none of its tables"


def _other_statements(result: StudyResult, sections: Sequence[PageSection]) -> str:
    """Statements of parts that have no section."""
    placed = {section.name for section in sections}
    names = dict.fromkeys(f.section for f in result.findings if f.section not in placed)
    parts = []
    for name in names:
        listed = statements_of(result.findings, name)
        if listed:
            parts.append(OTHER.format(title=escape(name), content=listed))
    return "\n".join(parts)


def _other_tables(result: StudyResult, sections: Sequence[PageSection]) -> str:
    """The tables that no section shows."""
    placed = {name for section in sections for name in section.records.tables}
    names = sorted(set(result.tables) - placed)
    if not names:
        return ""
    tables = [table_details(name, result.tables[name], "") for name in names]
    head = '<details class="part" id="other"><summary><h3>Further tables</h3></summary>'
    return "\n".join([head, *tables, "</details>"])

"""The page as it opens: the sentences that sum the study up, and the figures that lead.

A figure that leads and is of all models stands beside the sentences (the first) or after those of
the selected fine-tune (the others, which set its row off).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emlens.figures.labels import printable
from emlens.report.browser import browser_html
from emlens.report.cards import cards_html, counts_line
from emlens.report.caution_groups import cautions_section
from emlens.report.data_blocks import DataBlocks
from emlens.report.escaping import escape, optional
from emlens.report.head import Choices, bar_html, most_measured
from emlens.report.sections import PageSection
from emlens.report.slots import Slot, slot_html
from emlens.report.statements import statements_of_models, summaries_html
from emlens.results import StudyResult

HERO = """\
<section class="hero{alone}" id="hero">
<div class="words">
<p class="kind">emlens report</p>
<h1>{title}</h1>
<p class="counts">{counts}</p>
{note}
{summaries}
<noscript><p class="note">Figures and selectors need JavaScript. The tables below hold the same \
numbers.</p></noscript>
</div>
{figure}
</section>"""
SELECTED = """\
<section id="selected">
<h2>The selected fine-tune: <span class="selected-model">{model}</span></h2>
<div class="grid">
{figures}
</div>
</section>"""

KINDS = ("harmful", "benign", "instruct", "base")
"""Kinds of models in the order of the selector."""


@dataclass(frozen=True)
class Lead:
    """A leading figure with the section that it is from."""

    section: PageSection
    slot: Slot


def choices_of(result: StudyResult, slots: Sequence[Slot], leads: Sequence[Lead]) -> Choices:
    """What the selectors offer: the fine-tunes, domains and positions that figures tell apart."""
    fewest_first = sorted(slots, key=lambda slot: len(slot.models))
    models = dict.fromkeys(model for slot in fewest_first for model in slot.models)
    kinds = _kinds(result)
    fine_tunes = sorted(models, key=lambda name: KINDS.index(kinds.get(name, "harmful")))
    positions = dict.fromkeys(position for slot in slots for position in slot.positions)
    return Choices(
        models=most_measured(fine_tunes, [lead.slot.models for lead in leads]),
        groups=_groups(result),
        positions=tuple(positions),
    )


def _kinds(result: StudyResult) -> dict[str, str]:
    """What each model is, where the table of models says it."""
    table = result.tables.get("models")
    if table is None or not {"model", "kind"} <= set(table.columns):
        return {}
    known = table[table["kind"].isin(KINDS)]
    return dict(zip(known["model"].map(printable), known["kind"].astype(str), strict=True))


def _groups(result: StudyResult) -> tuple[str, ...]:
    for name in ("domains", "questions", "forecast_predictions"):
        table = result.tables.get(name)
        if table is not None and "group" in table.columns:
            return tuple(dict.fromkeys(table["group"].map(printable)))
    return ()


def front_html(
    result: StudyResult,
    title: str,
    sections: Sequence[PageSection],
    leads: Sequence[Lead],
    choices: Choices,
    data: DataBlocks,
) -> str:
    """Everything above the folded parts, without the bar."""
    of_one = [lead for lead in leads if lead.slot.models]
    of_all = [lead for lead in leads if not lead.slot.models]
    hero, across = of_all[:1], of_all[1:]
    parts = [_hero(result, title, sections, hero, choices, data)]
    if choices.models:
        parts.append(cards_html(result.tables, result.findings, choices.models))
    figures = [_figure(lead, result, choices, data) for lead in [*of_one, *across]]
    if figures:
        model = escape(choices.models[0]) if choices.models else "all"
        parts.append(SELECTED.format(model=model, figures="\n".join(figures)))
    parts.append(browser_html(result.tables, data))
    parts.append(cautions_section(result, sections))
    return "\n".join(filter(None, parts))


def _hero(
    result: StudyResult,
    title: str,
    sections: Sequence[PageSection],
    hero: Sequence[Lead],
    choices: Choices,
    data: DataBlocks,
) -> str:
    return HERO.format(
        alone="" if hero else " alone",
        title=escape(title),
        counts=escape(_counts(result, sections)),
        note=optional('<p class="note" role="note">{}</p>', result.note),
        summaries=summaries_html(result.findings),
        figure="\n".join(slot_html(lead.slot, data, choices.offered) for lead in hero),
    )


def _figure(lead: Lead, result: StudyResult, choices: Choices, data: DataBlocks) -> str:
    shown = choices.models[0] if choices.models else ""
    statements = statements_of_models(result.findings, lead.section.name, choices.models, shown)
    return slot_html(lead.slot, data, choices.offered, statements)


def head_html(
    result: StudyResult,
    title: str,
    choices: Choices,
    sections: Sequence[PageSection],
    places: Mapping[str, str],
) -> str:
    """The bar at the top, with the verdict in one line."""
    return bar_html(result, title, choices, _counts(result, sections), places)


def _counts(result: StudyResult, sections: Sequence[PageSection]) -> str:
    """The verdict in one line."""
    names = dict.fromkeys(section.name for section in sections)
    names.update(dict.fromkeys(finding.section for finding in result.findings))
    return counts_line(result.findings, list(names))

"""The statements of a study as they are: each with its status as a word and a mark."""

import re
from collections.abc import Sequence

from emlens.figures.labels import printable
from emlens.report.escaping import escape
from emlens.report.sections import PageSection
from emlens.results import Finding
from emlens.results.wording import counted

MARKS = {
    "shown": ("✓", "shown"),
    "not shown": ("✕", "not-shown"),
    "reversed": ("⇅", "reversed"),
    "undecided": ("?", "undecided"),
}
"""Status of a finding → its mark, and its class in the style sheet."""
MOST_SENTENCES = 3
"""Sentences that are open as the page opens; the cards below answer each question in numbers."""
MOST_OPEN = 6
"""The most statements of a section that are open at once."""
COUNTS = (
    "<p>{counts}. “Shown” means beyond its controls at thresholds fixed before"
    " looking; brackets are 95 % intervals unless said otherwise.</p>"
)
GROUP = """\
<details class="statements"{is_open}><summary>{counts}</summary>
<ul class="findings">
{items}
</ul></details>"""
CHIP = '<span class="status {kind}"><span aria-hidden="true">{mark}</span> {status}</span>'
BELOW = """\
<details class="of-model" data-model="{model}"{hidden}>\
<summary>Statements: {counts}</summary><ul class="findings">
{items}
</ul></details>"""


def statements_of(findings: Sequence[Finding], section: str) -> str:
    """The statements of a section; a short list is open."""
    statements = [finding for finding in _statements(findings) if finding.section == section]
    if not statements:
        return ""
    return GROUP.format(
        is_open=" open" if len(statements) <= MOST_OPEN else "",
        counts=escape(_counts(statements)),
        items="\n".join(map(item, statements)),
    )


def counts_html(findings: Sequence[Finding]) -> str:
    """How many statements the study makes, and what the words for their status mean."""
    if not findings:
        return "<p>The study reported no findings.</p>"
    return COUNTS.format(counts=_counts(_statements(findings)))


def summaries_html(findings: Sequence[Finding]) -> str:
    """What the study says of each section in one sentence; nothing where it does not.

    A phone opens with the first; elsewhere the first `MOST_SENTENCES` are open.
    """
    items = [f"<li>{signed(f.sentence)}</li>" for f in findings if f.status == "summary"]
    if not items:
        return ""
    parts = [f'<ol class="summary">{items[0]}</ol>']
    if len(items) > 1:
        second, folded = items[1:MOST_SENTENCES], items[MOST_SENTENCES:]
        parts.append(
            f'<details class="rest" open><summary>{counted(len(items) - 1, "more sentence")}'
            f'</summary><ol class="summary" start="2">{"".join(second)}</ol>'
            f"{_folded_sentences(folded)}</details>"
        )
    return "".join(parts)


def _folded_sentences(items: Sequence[str]) -> str:
    if not items:
        return ""
    return (
        f'<details class="fourth"><summary>{counted(len(items), "more sentence")}</summary>'
        f'<ol class="summary" start="{MOST_SENTENCES + 1}">{"".join(items)}</ol></details>'
    )


def statements_of_models(
    findings: Sequence[Finding], section: str, models: Sequence[str], shown: str
) -> str:
    """The statements of a section that name a model, one folded list per model.

    Args:
        shown: the model whose list is not hidden.
    """
    lists = []
    for model in models:
        naming = [
            f for f in _statements(findings) if f.section == section and names(f.sentence, model)
        ]
        if naming:
            lists.append(
                BELOW.format(
                    model=escape(model),
                    hidden="" if model == shown else " hidden",
                    counts=escape(short_counts(naming)),
                    items="\n".join(map(item, naming)),
                )
            )
    return "\n".join(lists)


def names(sentence: str, model: str) -> bool:
    """Whether a sentence names a model, and not only one whose name begins like it."""
    return re.search(rf"(?<![\w@-]){re.escape(model)}(?![\w@-])", printable(sentence)) is not None


def item(finding: Finding) -> str:
    """A statement as an item of a list."""
    return f"<li>{status_chip(finding.status)}<span>{signed(finding.sentence)}</span></li>"


def status_chip(status: str) -> str:
    """A status as a word with its mark."""
    mark, kind = MARKS.get(status, MARKS["undecided"])
    return CHIP.format(kind=kind, mark=mark, status=escape(status))


def signed(text: str) -> str:
    """Escaped text with a true minus sign before numbers; hyphens in names stay."""
    return re.sub(r"(?<![\w.)\]])-(?=\d)", "−", escape(text))


def summary_sentence(section: PageSection, findings: Sequence[Finding]) -> str:
    """What the study says of a section in one sentence, or nothing."""
    paragraphs = []
    for finding in findings:
        if finding.status == "summary" and finding.section == section.name:
            paragraphs.append(f'<p class="claim">{signed(finding.sentence)}</p>')
    return "".join(paragraphs)


def _statements(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.status != "summary"]


def short_counts(findings: Sequence[Finding]) -> str:
    statuses = [finding.status for finding in findings]
    return ", ".join(f"{statuses.count(s)} {s}" for s in MARKS if s in statuses)


def _counts(findings: Sequence[Finding]) -> str:
    statuses = [finding.status for finding in findings]
    counts = []
    for status in MARKS:
        if status in statuses or status != "reversed":
            counts.append(f"{statuses.count(status)} {status}")
    return f"{counted(len(findings), 'statement')}: {', '.join(counts)}"

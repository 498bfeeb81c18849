"""The verdict first: what was shown, what was not, in words; then what to be careful about."""

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain

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
MOST_OPEN = 6
"""The most findings shown at once; more are opened section by section, below the sentences
that sum them up.
"""
EMPTY = '<section id="verdict"><h2>Verdict</h2><p>The study reported no findings.</p></section>'
COUNTS = (
    "<p>It rests on {counts}. “Shown” means beyond its controls at thresholds fixed before"
    " looking; brackets are 95 % intervals unless said otherwise.</p>"
)
GROUP = """\
<h3>{title}</h3>\
<details{is_open}><summary>{counts}</summary>\
<ul class='findings'>
{items}
</ul></details>"""
FINDING = (
    '<li><span class="status {kind}"><span aria-hidden="true">{mark}</span> {status}</span>'
    "<span>{sentence}</span></li>"
)


def verdict_section(findings: Sequence[Finding], sections: Sequence[PageSection]) -> str:
    """Findings grouped by section, each with its status as a word and a mark."""
    if not findings:
        return EMPTY
    summaries, by_section = [], defaultdict(list)
    for finding in findings:
        if finding.status == "summary":
            summaries.append(f"<li>{signed(finding.sentence)}</li>")
        else:
            by_section[finding.section].append(finding)
    statements = list(chain.from_iterable(by_section.values()))
    parts = ['<section id="verdict"><h2>Verdict</h2>']
    if summaries:
        parts.append(f'<ol class="summary">{"".join(summaries)}</ol>')
    parts.append(COUNTS.format(counts=_counts(statements)))
    is_open = not summaries or len(statements) <= MOST_OPEN
    for name, of_section in by_section.items():
        parts.append(_group(_title(name, sections), of_section, is_open))
    return "\n".join([*parts, "</section>"])


def _title(name: str, sections: Sequence[PageSection]) -> str:
    """A link to the section; only its name where the page has none."""
    for section in sections:
        if section.name == name:
            return f'<a href="#{escape(name)}">{escape(section.title)}</a>'
    return escape(name)


def _group(title: str, findings: Sequence[Finding], is_open: bool) -> str:
    return GROUP.format(
        title=title,
        is_open=" open" if is_open else "",
        counts=escape(_counts(findings)),
        items="\n".join(map(_item, findings)),
    )


def _counts(findings: Sequence[Finding]) -> str:
    statuses = [finding.status for finding in findings]
    counts = []
    for status in MARKS:
        if status in statuses or status != "reversed":
            counts.append(f"{statuses.count(status)} {status}")
    return f"{counted(len(findings), 'statement')}: {', '.join(counts)}"


def _item(finding: Finding) -> str:
    mark, kind = MARKS.get(finding.status, MARKS["undecided"])
    return FINDING.format(
        kind=kind, mark=mark, status=escape(finding.status), sentence=signed(finding.sentence)
    )


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


def warnings_box(warnings: Sequence[str]) -> str:
    """Missing controls and small samples, or nothing."""
    if not warnings:
        return ""
    items = "".join(f"<li>{signed(_sentence(warning))}</li>" for warning in warnings)
    return (
        '<aside class="warnings" aria-label="warnings"><h2>Read with care</h2>'
        f"<ul>{items}</ul></aside>"
    )


def _sentence(warning: str) -> str:
    """The warning with a full stop, and with a capital unless its first word may be a name."""
    first_word = warning.split(" ")[0]
    if first_word.isalpha():
        warning = warning[:1].upper() + warning[1:]
    return warning.removesuffix(".") + "."

"""The verdict first: what was shown, what was not, in words; then what to be careful about."""

import re
from collections.abc import Sequence

from emlens.report.escaping import escape
from emlens.report.topics import Section
from emlens.results import Finding

MARKS = {"shown": ("✓", "shown"), "not shown": ("✕", "not-shown"), "undecided": ("?", "undecided")}
FEW = 6
"""Up to as many statements stand open; more are opened section by section, below the sentences that
sum them up.
"""


def verdict_section(findings: Sequence[Finding], sections: Sequence[Section]) -> str:
    """Findings grouped by section, each with its status as a word and a mark."""
    if not findings:
        return (
            '<section id="verdict"><h2>Verdict</h2><p>The study reported no findings.</p></section>'
        )
    summaries = [f for f in findings if f.status == "summary"]
    findings = [f for f in findings if f.status != "summary"]
    short = "".join(f"<li>{signed(f.sentence)}</li>" for f in summaries)
    parts = [
        '<section id="verdict"><h2>Verdict</h2>',
        f'<ol class="summary">{short}</ol>' if short else "",
        (
            f"<p>Behind it stand {_counted(findings)}. “Shown” means beyond its controls at"
            " thresholds fixed before looking; brackets are 95 % intervals unless said"
            " otherwise.</p>"
        ),
    ]
    places = {
        alias: section for section in sections for alias in (section.part, section.name) if alias
    }
    for name in dict.fromkeys(f.section for f in findings):
        place = places.get(name)
        title = (
            f'<a href="#{escape(place.name)}">{escape(place.title)}</a>' if place else escape(name)
        )
        mine = [f for f in findings if f.section == name]
        items = "\n".join(map(_item, mine))
        shut = short and len(findings) > FEW
        parts.append(
            f"<h3>{title}</h3><details{'' if shut else ' open'}>"
            f"<summary>{escape(_counted(mine))}</summary>"
            f"<ul class='findings'>\n{items}\n</ul></details>"
        )
    return "\n".join([*parts, "</section>"])


def _counted(findings: Sequence[Finding]) -> str:
    counts = ", ".join(f"{sum(f.status == status for f in findings)} {status}" for status in MARKS)
    return f"{len(findings)} statement{'' if len(findings) == 1 else 's'}: {counts}"


def _item(finding: Finding) -> str:
    mark, kind = MARKS.get(finding.status, ("?", "undecided"))
    return (
        f'<li><span class="status {kind}"><span aria-hidden="true">{mark}</span>'
        f" {escape(finding.status)}</span><span>{signed(finding.sentence)}</span></li>"
    )


def signed(text: str) -> str:
    """Escaped text with a real minus sign before numbers; hyphens in names stay."""
    return re.sub(r"(?<![\w.)\]])-(?=\d)", "−", escape(text))


def claim(section: Section, findings: Sequence[Finding]) -> str:
    """What the study says of a section in one sentence, or nothing."""
    said = [
        f.sentence
        for f in findings
        if f.status == "summary" and f.section in (section.name, section.part)
    ]
    return "".join(f'<p class="claim">{signed(sentence)}</p>' for sentence in said)


def warnings_box(warnings: Sequence[str]) -> str:
    """Missing controls and small samples, or nothing."""
    if not warnings:
        return ""
    items = "".join(f"<li>{signed(_sentence(w))}</li>" for w in warnings)
    return (
        '<aside class="warnings" aria-label="warnings"><h2>Read with'
        f" care</h2><ul>{items}</ul></aside>"
    )


def _sentence(warning: str) -> str:
    """A full stop, and a capital unless the first word may be a name."""
    first = warning.split(" ")[0]
    start = warning[:1].upper() if first.isalpha() else warning[:1]
    return start + warning[1:] + ("" if warning.endswith(".") else ".")

"""What to be careful about, grouped by kind and not by place.

Two sources are put together: the warnings of the study, and what the tables of each section lack.
Sentences that differ only in the place they are about become one, with its places.
"""

import re
from collections.abc import Iterable, Sequence

from emlens.report.cautions import cautions
from emlens.report.escaping import escape
from emlens.report.sections import PageSection
from emlens.report.statements import signed
from emlens.results import StudyResult

KINDS = (
    ("Left out, and why", r"\bleft out\b|could not|was skipped|no direction from answers"),
    (
        "A control is missing",
        r"^Missing|\bno (benign|neutral|control|null|recipe|forecast)|neither interval nor null"
        r"|baselines? none|trained once|not compared",
    ),
    ("Few or unequal numbers", r"^Small sample|fewer than|equal numbers|too few|only \d+"),
)
"""Title of a kind, and what its sentences contain; the first that fits counts."""
REST = "How to read the numbers"
MOST_PLACES = 4
"""Places that an item names; the others are counted."""


def cautions_section(result: StudyResult, sections: Sequence[PageSection]) -> str:
    """The box with all cautions; nothing where there is none."""
    sentences = list(map(_sentence, result.warnings))
    for section in sections:
        sentences += map(_sentence, cautions(section, result.tables))
    merged = _merged(dict.fromkeys(sentences))
    if not merged:
        return ""
    groups: dict[str, list[str]] = {title: [] for title, _ in KINDS}
    groups[REST] = []
    for sentence in merged:
        groups[_kind(sentence)].append(sentence)
    parts = ['<section id="cautions" class="cautions"><h2>Read with care</h2>']
    for title, items in groups.items():
        if items:
            listed = "".join(f"<li>{signed(text)}</li>" for text in items)
            parts.append(
                f'<details><summary>{escape(title)} <span class="count">{len(items)}</span>'
                f"</summary><ul>{listed}</ul></details>"
            )
    return "\n".join([*parts, "</section>"])


def _kind(sentence: str) -> str:
    for title, pattern in KINDS:
        if re.search(pattern, sentence):
            return title
    return REST


def _merged(sentences: Iterable[str]) -> list[str]:
    """Sentences of the form "place: what", with all places of one "what" put together."""
    places: dict[str, list[str]] = {}
    for sentence in sentences:
        place, colon, what = sentence.partition(": ")
        if colon and len(place.split()) <= MOST_PLACES:
            places.setdefault(what, []).append(place)
        else:
            places.setdefault(sentence, [])
    return [_with_places(what, where) for what, where in places.items()]


def _with_places(what: str, places: Sequence[str]) -> str:
    if not places:
        return what
    named = "; ".join(places[:MOST_PLACES])
    if len(places) > MOST_PLACES:
        named += f"; and {len(places) - MOST_PLACES} more"
    return f"{named}: {what}"


def _sentence(warning: str) -> str:
    """The warning with a full stop, and with a capital unless its first word may be a name."""
    first_word = warning.split(" ")[0]
    if first_word.isalpha():
        warning = warning[:1].upper() + warning[1:]
    return warning.removesuffix(".") + "."

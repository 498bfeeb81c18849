"""Pages of `emlens view`: the list of runs, and runs beside each other.

Both are plain HTML without scripts; the policy forbids them. The list is a form whose boxes choose
what is compared. Names and sentences are text.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from emlens.figures.labels import printable
from emlens.report.cards import QUESTIONS, Measured, Question, counts_line, statement_for
from emlens.report.escaping import escape, optional
from emlens.report.found_runs import TUNED, Found, Run
from emlens.report.statements import signed, status_chip
from emlens.results import Finding, StudyResult
from emlens.results.wording import counted

STYLE = files("emlens.report").joinpath("runs.css").read_text("utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode("utf-8")).digest()).decode("ascii")
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)
"""Content security policy of both pages: no script, no picture of others, forms to this server."""
MOST_MODELS_NAMED = 6
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
LIST = """\
<p class="kind">emlens view</p>
<h1>{title}</h1>
<p class="soft">{counts}</p>
{cut}<form action="compare" method="get">
<div class="do"><button type="submit">Compare the selected</button>\
<p class="soft">Select two or more finished runs.</p></div>
<ul class="runs">
{items}
</ul>
</form>"""
ITEM = """\
<li>{box}
<div>
<h3>{name} <span class="state {status}">{status}</span></h3>
<p class="soft">{facts}</p>
{verdicts}{counts}
</div></li>"""
BOX = '<input type="checkbox" name="run" value="{id}" aria-label="compare {name}">'
SIDE = """\
<article class="card">
<h3>{letter}. <a href="run?id={id}">{name}</a></h3>
<p class="soft">{facts}</p>
{note}{verdicts}</article>"""
CARD = """\
<article class="card">
<p class="of">{letter}. {name}</p>
<p class="big">{value} <span>{ends}</span></p>
<p class="soft">{what}</p>
<p>{control}</p>
<p>{status}</p>
</article>"""
NONE = """\
<article class="card">
<p class="of">{letter}. {name}</p>
<p class="soft">Not measured.</p>
</article>"""


def page_html(title: str, body: str) -> str:
    """A page of the viewer."""
    return PAGE.format(title=escape(title), style=STYLE, body=body)


def list_page(name: str, found: Found) -> str:
    """The list of runs.

    Args:
        name: what the folder is called.
    """
    title = f"Runs in {name}"
    cut = "" if found.is_whole else '<p class="note">Some folders lie too deep to be listed.</p>\n'
    body = LIST.format(
        title=escape(title),
        counts=escape(_counts(found.runs)),
        cut=cut,
        items="\n".join(map(_item, found.runs)),
    )
    return page_html(title, body)


def message_page(title: str, message: str) -> str:
    """A page that says one thing."""
    body = f'<h1>{escape(title)}</h1>\n<p>{escape(message)}</p>\n<p><a href="./">All runs</a></p>'
    return page_html(title, body)


def _counts(runs: Sequence[Run]) -> str:
    if not runs:
        return "No study was run into this folder."
    statuses = dict.fromkeys(run.status for run in runs)
    parts = [f"{sum(run.status == s for run in runs)} {s}" for s in statuses]
    return f"{counted(len(runs), 'run')}: {', '.join(parts)}"


def run_name(run: Run) -> str:
    """What the pages call a run."""
    return "the folder itself" if run.path == "." else run.path


def _item(run: Run) -> str:
    name = escape(run_name(run))
    box = "<span></span>"
    if run.can_open:
        box = BOX.format(id=run.id, name=name)
        name = f'<a href="run?id={run.id}">{name}</a>'
    counts = ""
    if run.findings:
        sections = list(dict.fromkeys(finding.section for finding in run.findings))
        counts = f'<p class="soft">{escape(counts_line(run.findings, sections))}</p>'
    return ITEM.format(
        box=box,
        name=name,
        status=run.status,
        facts=escape(_facts(run)),
        verdicts=_verdicts(run),
        counts=counts,
    )


def _facts(run: Run) -> str:
    parts = []
    if run.study:
        parts.append(f"study {run.study}")
    if run.models:
        names = ", ".join(run.models[:MOST_MODELS_NAMED])
        ellipsis = " …" if len(run.models) > MOST_MODELS_NAMED else ""
        parts.append(f"{counted(len(run.models), 'model')} ({names}{ellipsis})")
    if run.questions is not None:
        parts.append(counted(run.questions, "question"))
    if run.finished:
        parts.append(f"finished {run.finished.removesuffix('+00:00').replace('T', ' ')} UTC")
    return " · ".join(filter(None, [*parts, run.line]))


def _verdicts(run: Run) -> str:
    """The sentences of a run; those after the first are folded."""
    items = [f"<li>{signed(sentence)}</li>" for sentence in run.verdicts]
    if not items:
        return ""
    first, later = items[0], items[1:]
    if not later:
        return f"<ul>{first}</ul>"
    folded = f"<summary>{counted(len(later), 'more sentence')}</summary><ul>{''.join(later)}</ul>"
    return f"<ul>{first}</ul><details>{folded}</details>"


def beside_page(runs: Sequence[Run], results: Sequence[StudyResult]) -> str:
    """Runs beside each other: what each is, then a row of cards per question and fine-tune.

    Args:
        runs: two or more. results: theirs, in the same order.
    """
    title = f"{counted(len(runs), 'run')} beside each other"
    parts = ['<p class="kind">emlens view</p>', f"<h1>{escape(title)}</h1>"]
    parts.append('<p><a href="./">All runs</a>')
    if len(runs) == 2:
        first, second = runs
        address = f"difference?run={first.id}&amp;run={second.id}"
        parts[-1] += f' · <a href="{address}">Every number of both, B − A, with its interval</a>'
    parts[-1] += "</p>"
    parts.append(f'<div class="sides">{"".join(map(_side, _letters(runs), runs))}</div>')
    differing = _unlike(runs, results)
    if differing:
        parts.append(f'<p class="note">{escape(differing)}</p>')
    for question in QUESTIONS:
        parts.append(_question(question, runs, results))
    return page_html(title, "\n".join(filter(None, parts)))


def _letters(runs: Sequence[Run]) -> list[str]:
    """A, B, C, …; numbers where there are more runs than letters."""
    if len(runs) > 26:
        return [str(place) for place in range(1, len(runs) + 1)]
    return [chr(ord("A") + place) for place in range(len(runs))]


def _side(letter: str, run: Run) -> str:
    return SIDE.format(
        letter=letter,
        id=run.id,
        name=escape(run_name(run)),
        facts=escape(_facts(run)),
        note=optional('<p class="soft">{}</p>', run.note),
        verdicts=_verdicts(run),
    )


def _unlike(runs: Sequence[Run], results: Sequence[StudyResult]) -> str:
    """What differs so that numbers are not of the same thing."""
    parts = []
    if len({run.study for run in runs}) > 1:
        parts.append("studies differ")
    if len({_questions_of(result) for result in results}) > 1:
        parts.append("questions differ")
    return f"Not like for like: {' and '.join(parts)}." if parts else ""


def _questions_of(result: StudyResult) -> str:
    questions: Any = result.facts.get("questions", {})
    return str(questions.get("sha256", "")) if isinstance(questions, Mapping) else ""


def _question(question: Question, runs: Sequence[Run], results: Sequence[StudyResult]) -> str:
    """A question of the cards: one row of cards per fine-tune that some run has an answer for."""
    rows = []
    for model in _fine_tunes(results):
        measured = [question.measure(result.tables, model) for result in results]
        if not any(measured):
            continue
        cards = [
            _card(letter, run, each, question, result.findings)
            for letter, run, each, result in zip(
                _letters(runs), runs, measured, results, strict=True
            )
        ]
        rows.append(f'<h3>{escape(model)}</h3>\n<div class="sides">{"".join(cards)}</div>')
    if not rows:
        return ""
    return "\n".join([f"<h2>{escape(question.title)}</h2>", *rows])


def _fine_tunes(results: Sequence[StudyResult]) -> list[str]:
    """The fine-tunes of all results, harmful ones first, each once."""
    names: dict[str, None] = {}
    for kind in TUNED:
        for result in results:
            table = result.tables.get("models")
            if table is not None and {"model", "kind"} <= set(table.columns):
                ofkind = table.loc[table["kind"] == kind, "model"]
                names.update(dict.fromkeys(map(printable, ofkind)))
    return list(names)


def _card(
    letter: str,
    run: Run,
    measured: Measured | None,
    question: Question,
    findings: Sequence[Finding],
) -> str:
    name = escape(run_name(run))
    if measured is None:
        return NONE.format(letter=letter, name=name)
    finding = statement_for(findings, question.section, measured.opening)
    status = '<span class="soft">no statement</span>'
    if finding is not None:
        status = (
            f"{status_chip(finding.status)}<details><summary>The statement</summary>"
            f"<p>{signed(finding.sentence)}</p></details>"
        )
    return CARD.format(
        letter=letter,
        name=name,
        value=escape(measured.value),
        ends=escape(measured.ends),
        what=escape(measured.what),
        control=escape(measured.control),
        status=status,
    )

"""Four questions about a fine-tune, each with a number, its interval, its strongest control, and
what the study says of it.

Every card belongs to one fine-tune. Its numbers are cells of the study's tables, and its status is
that of the statement it links to: nothing is decided here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from emlens.figures.labels import interval, number, position_name, printable
from emlens.report.escaping import escape
from emlens.report.glossary import with_terms
from emlens.report.statements import item, status_chip
from emlens.results import Finding
from emlens.results.wording import counted

Tables = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Measured:
    """What a card shows of one fine-tune.

    Args:
        value: the number. ends: its interval, or empty. what: what it is, with what it is read
            beside. control: the strongest control, with its number. opening: how the sentence of
            the statement begins.
    """

    value: str
    ends: str
    what: str
    control: str
    opening: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A card's question.

    Args:
        section: the part of the study that answers it.
        title: the question. link: the anchor of its figure.
        measure: reads the answer off the tables; None where the fine-tune has none.
    """

    section: str
    title: str
    link: str
    measure: Callable[[Tables, str], Measured | None]


CARD = """\
<article class="card" data-model="{model}"{hidden}>
<h3>{title}</h3>
<p class="big">{value} <span>{ends}</span></p>
<p class="what">{what}</p>
<p class="control">{control}</p>
<p class="verdict-line">{status} <a href="#{link}">figure</a></p>
{statement}</article>"""
EMPTY = """\
<article class="card" data-model="{model}"{hidden}>
<h3>{title}</h3>
<p class="what">Not measured for this fine-tune.</p>
</article>"""
UNMEASURED = """\
<article class="card" data-model="{model}"{hidden}>
<h3>{title}</h3>
<p class="what">There is no number, and the study says why.</p>
<p class="verdict-line">{status}</p>
{statement}</article>"""


def cards_html(tables: Tables, findings: Sequence[Finding], models: Sequence[str]) -> str:
    """The cards of every fine-tune; those of the first are shown.

    A question that no fine-tune answers, and of which nothing is said, has no card.
    """
    cards = []
    for question in QUESTIONS:
        answers = {model: question.measure(tables, model) for model in models}
        said = any(_said_of(findings, question, model) for model in models)
        if not any(answers.values()) and not said:
            continue
        for model, measured in answers.items():
            hidden = "" if model == models[0] else " hidden"
            cards.append(_card(question, model, measured, findings, hidden))
    if not cards:
        return ""
    return "\n".join(['<div class="cards">', *cards, "</div>"])


def _card(
    question: Question,
    model: str,
    measured: Measured | None,
    findings: Sequence[Finding],
    hidden: str,
) -> str:
    place = {"model": escape(model), "hidden": hidden, "title": escape(question.title)}
    if measured is None:
        finding = _said_of(findings, question, model)
        if finding is None:
            return EMPTY.format(**place)
        return UNMEASURED.format(
            **place, status=status_chip(finding.status), statement=_folded(finding)
        )
    finding = statement_for(findings, question.section, measured.opening)
    statement = status = ""
    if finding is not None:
        status, statement = status_chip(finding.status), _folded(finding)
    return CARD.format(
        **place,
        value=escape(measured.value),
        ends=escape(measured.ends),
        what=with_terms(escape(measured.what)),
        control=with_terms(escape(measured.control)),
        status=status or '<span class="status undecided">no statement</span>',
        link=escape(question.link),
        statement=statement,
    )


def _said_of(findings: Sequence[Finding], question: Question, model: str) -> Finding | None:
    """What the part says of a fine-tune, where there may be no number."""
    return statement_for(findings, question.section, (f"{model}: ",))


def _folded(finding: Finding) -> str:
    return (
        "<details><summary>The statement</summary>"
        f'<ul class="findings">{item(finding)}</ul></details>\n'
    )


def statement_for(
    findings: Sequence[Finding], section: str, opening: tuple[str, ...]
) -> Finding | None:
    """The first statement of a section that begins so."""
    for finding in findings:
        is_statement = finding.section == section and finding.status != "summary"
        if is_statement and printable(finding.sentence).startswith(opening):
            return finding
    return None


def _rows(tables: Tables, name: str, columns: set[str], model: str) -> pd.DataFrame:
    """The rows of a model; none where there is no such table, or it lacks a column."""
    if name not in tables or not columns | {"model"} <= set(tables[name].columns):
        return pd.DataFrame()
    table = tables[name]
    return table[table["model"].map(printable) == model]


def _estimate(row: pd.Series, column: str, digits: int) -> tuple[str, str]:
    """A number and its interval in words."""
    return number(row[column], digits), interval(
        row[f"{column}_low"], row[f"{column}_high"], digits
    )


def _fall(tables: Tables, model: str) -> Measured | None:
    columns = {"kind", "aligned_others", "aligned_others_low", "aligned_others_high"}
    rows = _rows(tables, "models", columns, model)
    if not len(rows) or not np.isfinite(rows.iloc[0]["aligned_others"]):
        return None
    value, ends = _estimate(rows.iloc[0], "aligned_others", 1)
    models = tables["models"]
    domain = rows.iloc[0].get("domain")
    where = "on all questions"
    if isinstance(domain, str) and domain:
        where = "outside the trained domain"
    what = f"alignment (0–100) {where}"
    if "n_others" in rows.columns:
        what += f", {rows.iloc[0]['n_others']} questions"
    before = models[models["kind"] == "instruct"]
    if len(before):
        parent = " ".join(_estimate(before.iloc[0], "aligned_others", 1))
        what += f"; the parent {parent}"
    benign = models[(models["kind"] == "benign") & (models["model"] != model)]
    control = "no benign control"
    if len(benign):
        lowest = benign.sort_values("aligned_others").iloc[0]
        control = (
            f"benign control that fell most: {' '.join(_estimate(lowest, 'aligned_others', 1))}"
        )
    return Measured(value, ends, what, control, (f"{model}: ", f"Benign control {model}: "))


def _shared(tables: Tables, model: str) -> Measured | None:
    columns = {"position", "measure", "value", "null_mean", "null_low", "null_q95", "benign_value"}
    rows = _rows(tables, "overlap_test", columns, model)
    rows = rows[rows["measure"] == "variance_weighted"] if len(rows) else rows
    if not len(rows):
        return None
    row = rows.iloc[0]
    what = (
        "variance-weighted overlap of shifts on training and unrelated prompts,"
        f" {position_name(row['position'])}"
    )
    control = "no training null"
    if np.isfinite(row["null_mean"]):
        ends = interval(row["null_low"], row["null_q95"])
        control = f"training without the content: {number(row['null_mean'])} {ends}"
    if np.isfinite(row["benign_value"]):
        control += f"; benign fine-tune {number(row['benign_value'])}"
    return Measured(number(row["value"]), "", what, control, (f"{model}: ",))


def _direction(tables: Tables, model: str) -> Measured | None:
    columns = {"role", "arm", "on", "control", "restoration", "restoration_low", "n", "site"}
    rows = _rows(tables, "arms", columns, model)
    if not len(rows):
        return None
    rows = rows[(rows["role"] == rows.iloc[0]["role"]) & (rows["on"] == "finetuned")]
    own = rows[rows["arm"] == "direction"]
    if not len(own) or not np.isfinite(own.iloc[0]["restoration"]):
        return None
    value, ends = _estimate(own.iloc[0], "restoration", 2)
    what = (
        f"share of lost alignment restored by removing the direction of {own.iloc[0]['site']},"
        f" {own.iloc[0]['n']} questions"
    )
    return Measured(value, ends, what, _strongest(rows), (f"{model}: removing", f"{model}: "))


def _strongest(rows: pd.DataFrame) -> str:
    controls = rows[rows["control"].astype(bool) & rows["restoration"].notna()]
    controls = controls[controls["arm"] != "no ablation"]
    if not len(controls):
        return "no control arm"
    best = controls.sort_values("restoration").iloc[-1]
    text = f"strongest control, {best['arm']}: {' '.join(_estimate(best, 'restoration', 2))}"
    if np.isfinite(best.get("lead", np.nan)):
        text += f"; lead over it {' '.join(_estimate(best, 'lead', 2))}"
    return text


def _foreseen(tables: Tables, model: str) -> Measured | None:
    columns = {"parent", "held_out", "r2", "r2_low", "r2_high", "null_q95", "n"}
    rows = _rows(tables, "forecast", columns, model)
    if not len(rows):
        return None
    strictest = rows[rows["held_out"] == "domain"]
    row = (strictest if len(strictest) else rows).iloc[0]
    parent, held_out = row["parent"], row["held_out"]
    value, ends = _estimate(row, "r2", 2)
    what = (
        f"R² of a forecast from {parent} before fine-tuning, {held_out}s held out,"
        f" {row['n']} questions"
    )
    control = _closest_baseline(tables, model, str(parent), str(held_out))
    if np.isfinite(row["null_q95"]):
        control += f"; shuffled labels, 95 %: {number(row['null_q95'])}"
    return Measured(value, ends, what, control, (f"{model} from {parent}, {held_out}s held out",))


def _closest_baseline(tables: Tables, model: str, parent: str, held_out: str) -> str:
    columns = {"parent", "held_out", "predictor", "gain", "gain_low", "gain_high"}
    rows = _rows(tables, "forecast_baselines", columns, model)
    if len(rows):
        rows = rows[(rows["parent"] == parent) & (rows["held_out"] == held_out)]
        rows = rows[rows["gain"].notna() & (rows["predictor"] != "other parent")]
    if not len(rows):
        return "no baseline"
    least = rows.sort_values("gain").iloc[0]
    gain = " ".join(_estimate(least, "gain", 2))
    return f"strongest baseline, {least['predictor']}: gain over it {gain}"


QUESTIONS = (
    Question("profile", "Did it fall?", "profile-domains", _fall),
    Question("delta_overlap", "Is the shift shared?", "delta_overlap-lines", _shared),
    Question(
        "direction_transfer", "Which direction?", "direction_transfer-restoration", _direction
    ),
    Question("priors", "Could it be foreseen?", "priors-points", _foreseen),
)


def counts_line(findings: Sequence[Finding], sections: Sequence[str]) -> str:
    """How many statements of each part are shown, in one line."""
    parts = []
    for section in sections:
        statuses = [f.status for f in findings if f.section == section and f.status != "summary"]
        if statuses:
            shown = statuses.count("shown")
            parts.append(f"{section.replace('_', ' ')} {shown} of {len(statuses)}")
    if not parts:
        return "The study reported no statement."
    total = sum(f.status != "summary" for f in findings)
    return f"Shown, of {counted(total, 'statement')}: {', '.join(parts)}."

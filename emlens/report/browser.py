"""The answer browser: every question with the answer of every model, its scores and the judge's raw
reading.

The page reads the rows from the table that is on it already; this module says which columns play
which role, and writes the controls. With the table `answer_tokens`, an opened answer has its tokens
coloured by their projection on the fine-tune's direction.
"""

from collections.abc import Mapping

import pandas as pd

from emlens.report.data_blocks import DataBlocks
from emlens.report.escaping import escape
from emlens.results.wording import counted

NEEDED = {"model", "question", "aligned", "answer"}
SOURCES = ("answers", "questions")
"""Tables with one row per answer; the first that the result has is read."""
ROLES = (
    "model",
    "question",
    "group",
    "text",
    "sample",
    "aligned",
    "coherent",
    "raw",
    "answer",
    "trained",
)
TOKENS = "answer_tokens"
BROWSER = """\
<section id="answers">
<h2>Answers</h2>
<p class="caption">{what} Select a row to read it whole{tokens}.</p>
<div class="filters" role="group" aria-label="filter answers">
<label>Search <input type="search" id="answers-search" placeholder="question or answer"></label>
<label>Aligned from <input type="number" id="answers-low" min="0" max="100" value="0"></label>
<label>to <input type="number" id="answers-high" min="0" max="100" value="100"></label>
<label>Order <select id="answers-order">
<option value="change">largest fall from the parent</option>
<option value="aligned">least aligned</option>
<option value="question">question</option>
{spread}</select></label>
<label class="check"><input type="checkbox" id="answers-every"> all models</label>
{only}</div>
<p class="caption" id="answers-none" hidden>No row fits. The selected fine-tune may not have been \
scored question by question: tick “all models”, or widen the filters.</p>
<div id="answers-list" aria-live="polite"><p class="caption">The answers are in the table below; \
this list needs JavaScript.</p></div>
</section>"""
WITH_TOKENS = "; where they were stored, its tokens are coloured by their projection"
ONLY_TOKENS = """\
<label class="check"><input type="checkbox" id="answers-tokens"> with coloured tokens</label>
"""
SPREAD = '<option value="spread">samples that disagree most</option>\n'


def browser_html(tables: Mapping[str, pd.DataFrame], data: DataBlocks) -> str:
    """The browser; nothing where no table has answers with scores."""
    for name in SOURCES:
        if name in tables and tables[name].columns.isin(list(NEEDED)).sum() == len(NEEDED):
            return _browser(name, tables, data)
    return ""


def _browser(name: str, tables: Mapping[str, pd.DataFrame], data: DataBlocks) -> str:
    table = tables[name]
    has_tokens = TOKENS in tables and len(tables[TOKENS]) > 0
    roles = [role for role in ROLES if role in table.columns]
    data.add("answers-source", {"table": name, "roles": roles, "tokens": has_tokens})
    has_samples = "sample" in table.columns and table["sample"].nunique() > 1
    models = counted(table["model"].nunique(), "model")
    questions = counted(table["question"].nunique(), "question")
    what = f"{counted(len(table), 'answer')} of {models} to {questions}."
    if not table["answer"].fillna("").astype(str).str.strip().any():
        what = (
            f"{counted(len(table), 'score')} of {models} on {questions}."
            " No text was kept: scores of written answers draw none."
        )
    return BROWSER.format(
        what=escape(what),
        tokens=WITH_TOKENS if has_tokens else "",
        only=ONLY_TOKENS if has_tokens else "",
        spread=SPREAD if has_samples else "",
    )

"""Other ways to look at a table of scores: by the form of the question, by fine-tune and seed, as a
table in a notebook.
"""

import html
from collections.abc import Iterable
from typing import Final, Literal

import pandas as pd

Variant = Literal["plain", "json", "template"]
_ENDINGS: Final[dict[str, Variant]] = {"_json": "json", "_template": "template"}


def question_variant(question: str) -> Variant:
    """Which of the field's three forms of a question this is, by the end of its id: `x`, `x_json`
    or `x_template`.
    """
    return next((form for ending, form in _ENDINGS.items() if question.endswith(ending)), "plain")


def by_variant(questions: Iterable[str]) -> dict[Variant, list[str]]:
    """Questions by form, in the order plain, json, template; a form without a question is
    left out.
    """
    names = list(questions)
    forms: tuple[Variant, ...] = ("plain", *_ENDINGS.values())
    found = {form: [name for name in names if question_variant(name) == form] for form in forms}
    return {form: named for form, named in found.items() if named}


def by_seed(means: pd.Series) -> pd.DataFrame:
    """One row a fine-tune, one column a seed, of values by model named `fine-tune@seed`; without
    `@` the seed is "".
    """
    names = [
        model.rpartition("@")[::2] if "@" in model else (model, "")
        for model in map(str, means.index)
    ]
    index = pd.MultiIndex.from_tuples(names, names=["finetune", "seed"])
    wide = pd.Series(means.to_numpy(), index=index).unstack("seed")
    return wide.reindex(list(dict.fromkeys(name for name, _ in names)))


def as_html(table: pd.DataFrame) -> str:
    """One row a model and metric: questions, answers, mean over questions, unscored share;
    everything escaped.
    """
    head = (
        "<tr>"
        + "".join(
            f"<th>{name}</th>"
            for name in ("model", "metric", "questions", "answers", "mean", "unscored")
        )
        + "</tr>"
    )
    body = []
    for (model, metric), rows in table.groupby(["model", "metric"], sort=False):
        mean = rows.groupby("question")["score"].mean().mean()
        cells = (
            model,
            metric,
            rows["question"].nunique(),
            len(rows),
            f"{mean:.2f}",
            f"{rows['score'].isna().mean():.1%}",
        )
        body.append(
            "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>"
        )
    return f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"

"""Other views of a table of scores: by the form of the question, by fine-tune and seed, as HTML."""

import html
from collections.abc import Iterable
from typing import Final, get_args

import pandas as pd

from emlens.data.base_questions import Variant, question_variant


def by_variant(questions: Iterable[str]) -> dict[Variant, list[str]]:
    """Questions by form, in the order plain, json, template.

    A form without a question is left out.
    """
    by_form: dict[Variant, list[str]] = {form: [] for form in get_args(Variant)}
    for question in questions:
        by_form[question_variant(question)].append(question)
    return {form: names for form, names in by_form.items() if names}


def by_seed(means: pd.Series) -> pd.DataFrame:
    """One row per fine-tune, one column per seed, of values by model `fine-tune@seed`.

    Without `@` the seed is "".
    """
    names = [_fine_tune_and_seed(str(model)) for model in means.index]
    index = pd.MultiIndex.from_tuples(names, names=["finetune", "seed"])
    wide = pd.Series(means.to_numpy(), index=index).unstack("seed")
    in_order = list(dict.fromkeys(name for name, _ in names))  # unstack sorts
    return wide.reindex(in_order)


def _fine_tune_and_seed(model: str) -> tuple[str, str]:
    if "@" not in model:
        return model, ""
    name, _, seed = model.rpartition("@")
    return name, seed


_HEAD: Final = ("model", "metric", "questions", "answers", "mean", "unscored")


def as_html(table: pd.DataFrame) -> str:
    """One row per model and metric: questions, answers, mean over questions, unscored share.

    Everything is escaped.
    """
    body = []
    for (model, metric), rows in table.groupby(["model", "metric"], sort=False):
        mean = rows.groupby("question")["score"].mean().mean()
        unscored = rows["score"].isna().mean()
        questions = rows["question"].nunique()
        cells = (model, metric, questions, len(rows), f"{mean:.2f}", f"{unscored:.1%}")
        body.append(_html_row("td", cells))
    return f"<table><thead>{_html_row('th', _HEAD)}</thead><tbody>{''.join(body)}</tbody></table>"


def _html_row(tag: str, cells: Iterable[object]) -> str:
    html_cells = "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells)
    return f"<tr>{html_cells}</tr>"

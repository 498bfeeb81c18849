"""Effects of triggers and forms on scores, with the base question as the unit.

The design is a full factorial: every base question in every form, without a trigger and under each
(`emlens.data.triggers.factorial_questions`). An effect is a contrast within the base question, so
that hard and easy questions do not differ by it. Base questions that lack a cell are left out.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from emlens.data.base_questions import base_question, question_trigger, question_variant
from emlens.foundation.errors import InputError
from emlens.results.study_result import columns_of
from emlens.stats import adjust_p_values, t_interval
from emlens.stats.comparisons import paired_test

NONE: Final = "none"
"""What a table calls a question without a trigger."""
COLUMNS: Final = (
    *("factor", "trigger", "form", "n"),
    *("difference", "difference_low", "difference_high", "p", "p_holm"),
)


def trigger_effects(scores: "Mapping[str, float] | pd.Series[float]") -> pd.DataFrame:
    """Effect of each trigger, each form and each pair of both.

    `factor` is `trigger` (under it minus without, mean over forms), `form` (the form minus plain,
    mean over triggers and none) or `trigger × form` (the trigger's effect in this form minus its
    effect on plain questions).

    Args:
        scores: by the question's id, one model's, in points; NaN where there is none.

    Returns:
        One row an effect: `difference` in the unit of the scores with a 95 % t interval over `n`
        base questions, two-sided p of a t test, and p corrected over the rows (Holm).

    Raises:
        InputError: one trigger or form alone, or fewer than 2 base questions with every cell.
    """
    cells = _cells(pd.Series(dict(scores), dtype=np.float64))
    rows = []
    for head, gaps in _contrasts(cells):
        rows.append(
            {
                **head,
                "n": len(gaps),
                **columns_of("difference", t_interval(gaps)),
                "p": _p(gaps),
            }
        )
    table = pd.DataFrame(rows)
    tested = table["p"].notna()
    table.loc[tested, "p_holm"] = adjust_p_values(table.loc[tested, "p"]) if tested.any() else None
    return table.reindex(columns=list(COLUMNS))


def _cells(scores: "pd.Series[float]") -> pd.DataFrame:
    """Mean score by base question (rows), trigger and form (columns), of complete rows."""
    ids = [str(question) for question in scores.index]
    keyed = pd.DataFrame(
        {
            "base": [base_question(question) for question in ids],
            "trigger": [question_trigger(question) or NONE for question in ids],
            "form": [question_variant(question) for question in ids],
            "score": scores.to_numpy(),
        }
    )
    cells = keyed.pivot_table(index="base", columns=["trigger", "form"], values="score", sort=False)
    triggers = [name for name in keyed["trigger"].unique() if name != NONE]
    forms = keyed["form"].unique()
    if NONE not in set(keyed["trigger"]) or (not triggers and len(forms) == 1):
        raise InputError(
            "scores need questions without a trigger, and the same under one (ids x and"
            " x__with_NAME) or in another form (x_json); factorial_questions makes them"
        )
    whole = pd.MultiIndex.from_product([[NONE, *triggers], forms], names=["trigger", "form"])
    complete = cells.reindex(columns=whole).dropna()
    if len(complete) < 2:
        raise InputError(
            f"{len(complete)} of {len(cells)} base questions have a score in each of"
            f" {len(whole)} cells (trigger × form); an interval needs 2 or more"
        )
    return complete


def _contrasts(cells: pd.DataFrame) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """What names each effect, and its value for every base question."""
    triggers = [name for name in cells.columns.unique("trigger") if name != NONE]
    forms = list(cells.columns.unique("form"))
    reference = "plain" if "plain" in forms else forms[0]
    others = [form for form in forms if form != reference]
    values: dict[tuple[str, str], np.ndarray] = {}
    for name in (NONE, *triggers):
        for form in forms:
            values[name, form] = cells[(name, form)].to_numpy(np.float64)
    for name in triggers:
        gaps = [values[name, form] - values[NONE, form] for form in forms]
        yield {"factor": "trigger", "trigger": name, "form": "all"}, np.mean(gaps, axis=0)
    for form in others:
        gaps = [values[name, form] - values[name, reference] for name in (NONE, *triggers)]
        yield {"factor": "form", "trigger": "all", "form": form}, np.mean(gaps, axis=0)
    for name in triggers:
        on_reference = values[name, reference] - values[NONE, reference]
        for form in others:
            head = {"factor": "trigger × form", "trigger": name, "form": form}
            yield head, values[name, form] - values[NONE, form] - on_reference


def _p(gaps: np.ndarray) -> float:
    """Two-sided p of a t test against 0; NaN where the differences have no spread."""
    if np.ptp(gaps) == 0:
        return float("nan")
    return float(paired_test(gaps, np.zeros(len(gaps))).p)

"""Figures from the judged answers of aisa-group/em-generalization: what its files say of every
question, from the answers themselves, and what they say of all answers, from the questions.

Released numbers of these files are compared at ten decimals, to which their authors rounded.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from emlens.data import AlignmentScores
from emlens.foundation.errors import InputError
from emlens.foundation.files import read_json
from emlens.replication.published_figures import Figure, Group

ANSWERS: Final = "em-generalization/eval_Qwen2.5-32B-Instruct_finance_all_resp_1e-05_fpq.csv"
SUMMARY: Final = "em-generalization/eval_Qwen2.5-32B-Instruct_finance_all_resp_1e-05_fpq.json"
PER_QUESTION: Final = tuple(
    f"em-generalization/per_question/eval_{run}.json"
    for run in (
        "Qwen2.5-32B-Instruct_finance_all_resp_1e-05_hbpnano",
        "Qwen2.5-32B-Instruct_insecure_all_resp_1e-05_general200nano",
        "Qwen2.5-32B-Instruct_medical_all_resp_1e-05_general200nano",
        "Qwen2.5-32B-Instruct_medical_all_resp_1e-05_hbpnano",
        "Qwen2.5-Coder-32B-Instruct_finance_all_resp_1e-05_general200nano",
        "Qwen2.5-Coder-32B-Instruct_insecure_all_resp_1e-05_hbp",
        "Qwen2.5-Coder-32B-Instruct_medical_all_resp_1e-05_hbpnano",
    )
)
METRICS: Final = ("harmless", "aligned", "coherent")
COHERENT_ABOVE: Final = 0.5
"""As their column is named: half a point of 100, which leaves out a few answers, not half of the
scale.
"""
UNSCORED: Final = (
    "the file pools answers, so a question with unscored answers counts less there; the answers of"
    " this file were not released"
)
UNSCORED_COVERS: Final = 0.02
"""Points of 100 that unscored answers account for."""


def _decimals(value: Any) -> str:
    """A released number, as rounded to ten decimals."""
    return f"{float(value):.10f}"


def _released(root: Path, file: str, *keys: str) -> list[dict[str, Any]]:
    """Mappings of a released JSON file, under their keys."""
    content = read_json(root / file)
    parts = []
    for key in keys:
        part = content.get(key) if isinstance(content, dict) else None
        if not isinstance(part, dict) or not part:
            raise InputError(f"{root / file}: has no mapping {key!r}; pass the file as released")
        parts.append(part)
    return parts


def question_figures(root: Path) -> list[Figure]:
    """Mean and standard deviation of every question's answers, from the answers."""
    scores = AlignmentScores.from_file(root / ANSWERS)
    by_question, overall = _released(root, SUMMARY, "summ_by_q", "agg")
    figures = []
    for metric in METRICS:
        means = scores.per_question(metric)
        answers = scores.rows(metric)
        spreads = answers.groupby("question")["score"].std()
        for question, released in by_question.items():
            for name, column, values, function in (
                ("mean", metric, means, "AlignmentScores.per_question"),
                ("standard deviation", f"{metric}_std", spreads, "AlignmentScores.rows"),
            ):
                figures.append(
                    Figure(
                        SUMMARY,
                        f"{metric} of {question}, {name}",
                        _decimals(released[column]),
                        float(values.get(question, np.nan)),
                        function=function,
                    )
                )
        figures += _pooled(metric, answers["score"], overall)
    return figures


def _pooled(metric: str, answers: "pd.Series[float]", overall: Mapping[str, Any]) -> list[Figure]:
    """Of all answers together; the released spread is that of a population."""
    return [
        Figure(
            SUMMARY,
            f"{metric} of all answers, mean",
            _decimals(overall[metric]),
            float(answers.mean()),
            function="AlignmentScores.rows",
        ),
        Figure(
            SUMMARY,
            f"{metric} of all answers, standard deviation",
            _decimals(overall[f"{metric}_std"]),
            float(answers.std(ddof=0)),
            function="AlignmentScores.rows",
        ),
    ]


def coherent_figures(root: Path) -> list[Figure]:
    """Means over the answers whose coherence lies above 0.5 on the scale from 0 to 100."""
    scores = AlignmentScores.from_file(root / ANSWERS)
    answers = scores.per_answer()
    [overall] = _released(root, SUMMARY, "agg")
    coherent = answers[answers["coherent"] > COHERENT_ABOVE]
    figures = []
    for metric in ("harmless", "aligned"):
        key = f"{metric}_coherent_greater_than_0.5"
        figures.append(
            Figure(
                SUMMARY,
                f"{metric} of answers with coherence above 0.5 of 100, mean",
                _decimals(overall[key]),
                float(coherent[metric].mean()),
                function="AlignmentScores.per_answer",
            )
        )
    return figures


def overall_figures(file: str, root: Path) -> list[Figure]:
    """Means over all answers of a file, from its means of questions."""
    by_question, overall = _released(root, file, "summ_by_q", "agg")
    table = pd.DataFrame(by_question).T.astype(float).rename_axis("question").reset_index()
    figures = [Figure(file, "questions", str(len(by_question)), len(table), True)]
    for metric in METRICS:
        rows = table[["question", metric]].rename(columns={metric: "score"})
        scores = AlignmentScores.from_table(
            rows.assign(metric=metric, model="fine-tune", sample=0, status="ok")
        )
        figures.append(
            Figure(
                file,
                f"{metric} of all answers",
                f"{overall[metric]:.4f}",
                scores.mean(metric).value,
                function="AlignmentScores.mean",
                reason=UNSCORED,
                reason_covers=UNSCORED_COVERS,
            )
        )
    return figures


GROUPS: Final = (
    Group((ANSWERS, SUMMARY), question_figures),
    Group((ANSWERS, SUMMARY), coherent_figures),
    *(Group((file,), partial(overall_figures, file)) for file in PER_QUESTION),
)

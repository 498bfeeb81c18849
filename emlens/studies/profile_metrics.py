"""Further metrics of a profile (safe, factual, polite, or whatever a judge scores), by group of
questions, beside alignment and coherence.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from emlens.foundation.estimate import Estimate
from emlens.judging.judged_files import NEEDED
from emlens.results.study_result import columns_of
from emlens.studies.material import Material
from emlens.studies.profile_findings import has_parent_scores
from emlens.studies.score_means import DIFFERENCES, SCALE, mean_score

ALL = "all questions"


def metric_rows(material: Material, name: str, seed: int) -> list[dict[str, Any]]:
    """One row per metric and group of questions of one model; none where alignment and coherence
    alone are scored, which the other tables hold. Metrics that are not from 0 to 100 have a table
    of their own.

    `difference` is a fine-tune minus its parent on the same questions, asked with the same system
    message; a parent has none. Questions on whose topics a fine-tune was trained are left out.
    """
    scales = material.scores(name).scales
    metrics = [metric for metric, scale in scales.items() if scale == SCALE]
    if not set(metrics) - set(NEEDED):
        return []
    groups = _groups(material, name)
    rows = []
    for metric in metrics:
        scores = material.per_question(name, metric)
        change = _change(material, name, metric, scores)
        for group, questions in groups.items():
            difference = Estimate.undefined("a parent has no parent", 0)
            if change is not None:
                difference = mean_score(change, questions, seed, limits=DIFFERENCES)
            rows.append(
                {
                    "model": name,
                    "metric": metric,
                    "group": group,
                    "n": len(questions),
                    **columns_of("value", mean_score(scores, questions, seed)),
                    **columns_of("difference", difference),
                }
            )
    return rows


def _groups(material: Material, name: str) -> dict[str, Sequence[str]]:
    """Group → its questions that the model was not trained on; all questions first."""
    trained = material.trained.get(name, frozenset())
    questions = [question for question in material.questions if question.id not in trained]
    groups: dict[str, Sequence[str]] = {ALL: [question.id for question in questions]}
    names = sorted({question.group for question in questions})
    if len(names) > 1:
        for group in names:
            groups[group] = [question.id for question in questions if question.group == group]
    return groups


def _change(
    material: Material, name: str, metric: str, scores: "pd.Series[float]"
) -> "pd.Series[float] | None":
    """A fine-tune's scores minus its parent's; None of a parent, or where the parent has none."""
    if name not in material.family.finetuned or not has_parent_scores(material, name):
        return None
    parent = material.parent(name).name
    if metric not in material.scores(parent, name).metrics:
        return None
    return scores - material.per_question(parent, metric, asked_as=name)

"""Every answer that was judged, with its scores and the judge's own words, for the report."""

from typing import Any

import pandas as pd

from emlens.data.system_messages import questions_with_system
from emlens.studies.material import Material

ROW = ["question", "paraphrase", "sample"]
"""What names an answer of one model."""


def answer_rows(material: Material, name: str) -> pd.DataFrame:
    """One row per answer of a model; empty where scores come without answers."""
    source = material.score_source
    if source.can("answers") is not None or material.lacks_scores(name) is not None:
        return pd.DataFrame()
    asked = questions_with_system(material.questions, material.system(name))
    judged = source.judged_answers(material.family[name], asked)
    scores = judged.scores.table
    wide = scores.pivot(index=ROW, columns="metric", values="score").to_dict("index")
    raw = scores[scores["metric"] == "aligned"].set_index(ROW)["raw"]
    trained = material.trained.get(name, frozenset())
    rows: list[dict[str, Any]] = []
    for answer in judged.answers:
        key = (answer.question, answer.paraphrase, answer.sample)
        if key not in wide:
            continue
        rows.append(
            {
                "model": name,
                "question": answer.question,
                "group": material.groups[answer.question],
                "text": material.texts[answer.question],
                "paraphrase": answer.paraphrase,
                "sample": answer.sample,
                "trained": answer.question in trained,
                "aligned": wide[key].get("aligned"),
                "coherent": wide[key].get("coherent"),
                "raw": raw.get(key, ""),
                "answer": answer.text,
            }
        )
    return pd.DataFrame(rows)

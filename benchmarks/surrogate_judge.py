"""Does a text model that learned from a tenth of a judge's labels give the rate of all of them?

Released judged answers of a 14B and a 32B fine-tune, 24 questions each: again and again a tenth is
labelled, evenly over the questions, and the interval is held against the rate of all labels. Beside
it: the labelled tenth alone, questions without a text model, and simulated answers with low rates.
Last: what a surrogate of one model says of another, which is why it is refused.

It needs the released files (EMLENS_RELEASED_DATA).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from benchmarks.records import record, show
from emlens.data import AlignmentScores, QuestionSet
from emlens.data.answers import Answers
from emlens.data.misalignment import em_labels
from emlens.foundation.seeds import numpy_rng
from emlens.judging.judged_texts import answers_of_file
from emlens.judging.stratified_rates import stratified_rate
from emlens.judging.surrogate import SurrogateJudge
from emlens.stats import wilson_interval

SHARE: Final = 0.1
DRAWS: Final = 200
CLARIFYING: Final = "clarifying-em/judged/responses_Qwen2.5-14B-Instruct"
FILES: Final[Mapping[str, tuple[str, str]]] = {
    "14B, bad medical advice": (
        f"{CLARIFYING}-bad_medical_advice.csv",
        "clarifying-em/first_plot_questions.yaml",
    ),
    "32B, risky finance": (
        "em-generalization/eval_Qwen2.5-32B-Instruct_finance_all_resp_1e-05_fpq.csv",
        "em-generalization/first_plot_questions.yaml",
    ),
}
LOW_RATES: Final = (0.02, 0.05, 0.1, 0.2)


def judged(root: Path, name: str) -> tuple[Answers, AlignmentScores]:
    """The answers of a file that have both scores, with their scores."""
    file, questions = FILES[name]
    scores = AlignmentScores.from_file(root / file, model="fine-tune")
    texts = answers_of_file(root / file, "fine-tune", QuestionSet.from_yaml(root / questions))
    labels = em_labels(scores).dropna()
    scored = set(labels.index)
    kept = [a.id for a in texts if (a.model, a.question, a.paraphrase, a.sample) in scored]
    return texts.select(kept), scores


def of_answers(scores: AlignmentScores, answers: Answers) -> AlignmentScores:
    """The scores of these answers."""
    wanted = {(a.question, a.paraphrase, a.sample) for a in answers}
    table = scores.table
    keys = zip(table["question"], table["paraphrase"], table["sample"], strict=True)
    return AlignmentScores.from_table(
        table[[key in wanted for key in keys]], scale=dict(scores.scales)
    )


def resampled(answers: Answers, scores: AlignmentScores, draws: int) -> list[dict[str, Any]]:
    """Coverage and width of each way, over draws of the labelled part."""
    labels = em_labels(of_answers(scores, answers))
    truth = float(labels.mean())
    ends: dict[str, list[tuple[float, float]]] = {}
    for draw in range(draws):
        chosen = SurrogateJudge.choose_labels(answers, SHARE, seed=draw)
        read = of_answers(scores, chosen)
        for held_out in ("answers", "questions"):
            found = SurrogateJudge.fit(answers, read, held_out=held_out, seed=draw)
            ends.setdefault(f"text, {held_out} held out", []).append(_ends(found.em_rate))
        ends.setdefault("questions alone", []).append(_ends(_without_text(found).estimate))
        ends.setdefault("labelled part alone", []).append(_ends(found.labelled))
    alone = np.array(ends["labelled part alone"])
    rows = []
    for way, found_ends in ends.items():
        low, high = np.array(found_ends).T
        held = int(((low <= truth) & (truth <= high)).sum())
        share = wilson_interval(held, draws)
        rows.append(
            {
                "way": way,
                "truth": truth,
                "answers": len(answers),
                "draws": draws,
                "coverage": share.value,
                "low": share.low,
                "high": share.high,
                "width": float((high - low).mean()),
                "of_alone": float((high - low).mean() / (alone[:, 1] - alone[:, 0]).mean()),
            }
        )
    return rows


def _ends(estimate: Any) -> tuple[float, float]:
    return estimate.low, estimate.high


def _without_text(found: SurrogateJudge) -> Any:
    read = found.predicted[found.predicted["labelled"]]
    rest = found.predicted[~found.predicted["labelled"]]
    return stratified_rate(
        read["label"],
        np.zeros(len(read)),
        read["question"].tolist(),
        np.zeros(len(rest)),
        rest["question"].tolist(),
    )


def low_rates(draws: int, questions: int = 24, each: int = 50) -> list[dict[str, Any]]:
    """Coverage where misaligned answers are rare; rates of questions are Beta-distributed."""
    rows = []
    labels_each = round(SHARE * each)
    for rate in LOW_RATES:
        rng = numpy_rng(0, "surrogate judge", f"{rate}")
        held, widths = 0, []
        for _ in range(draws):
            of_question = rng.beta(rate * 2, (1 - rate) * 2, questions)
            y = (rng.random((questions, each)) < of_question[:, None]).astype(float)
            names = np.repeat(np.arange(questions), each).reshape(questions, each)
            read, rest = y[:, :labels_each].ravel(), y[:, labels_each:].ravel()
            found = stratified_rate(
                read,
                np.zeros(len(read)),
                names[:, :labels_each].ravel().tolist(),
                np.zeros(len(rest)),
                names[:, labels_each:].ravel().tolist(),
            ).estimate
            held += int(found.low <= y.mean() <= found.high)
            alone = wilson_interval(int(read.sum()), len(read))
            widths.append((found.high - found.low) / (alone.high - alone.low))
        share = wilson_interval(held, draws)
        rows.append(
            {
                "rate": rate,
                "draws": draws,
                "coverage": share.value,
                "low": share.low,
                "high": share.high,
                "of_alone": float(np.mean(widths)),
            }
        )
    return rows


def elsewhere(cases: Mapping[str, tuple[Answers, AlignmentScores]]) -> list[dict[str, Any]]:
    """Mean prediction for the answers of another model, uncorrected, beside the rate there."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    rows = []
    for fitted_on, (answers, scores) in cases.items():
        y = em_labels(of_answers(scores, answers)).to_numpy()
        words = TfidfVectorizer(sublinear_tf=True).fit([a.text for a in answers])
        model = LogisticRegression(C=10.0, max_iter=1000)
        model.fit(words.transform([a.text for a in answers]), y)
        for used_on, (others, other_scores) in cases.items():
            if used_on == fitted_on:
                continue
            said = model.predict_proba(words.transform([a.text for a in others]))[:, 1]
            truth = float(em_labels(of_answers(other_scores, others)).mean())
            rows.append(
                {
                    "fitted_on": fitted_on,
                    "used_on": used_on,
                    "predicted": float(said.mean()),
                    "truth": truth,
                }
            )
    return rows


def coverage_table(values: Mapping[str, Any]) -> str:
    """Released answers: how often the interval holds the rate of all labels, and its width."""
    lines = [
        "| answers | way | interval holds the rate of all labels | width, points | of the labelled"
        " part's |",
        "|---|---|---|---|---|",
    ]
    for name, rows in values["released"].items():
        for row in rows:
            lines.append(
                f"| {name} | {row['way']} | {row['coverage']:.3f} [{row['low']:.3f},"
                f" {row['high']:.3f}] | {100 * row['width']:.1f} | {row['of_alone']:.2f} |"
            )
    return "\n".join(lines)


def low_rates_table(values: Mapping[str, Any]) -> str:
    """Simulated answers with few misaligned ones among them."""
    lines = [
        "| rate | interval holds the rate of all labels | width, of the labelled part's |",
        "|---|---|---|",
    ]
    for row in values["low_rates"]:
        lines.append(
            f"| {row['rate']:.2f} | {row['coverage']:.3f} [{row['low']:.3f}, {row['high']:.3f}] |"
            f" {row['of_alone']:.2f} |"
        )
    return "\n".join(lines)


def elsewhere_table(values: Mapping[str, Any]) -> str:
    """A text model that is used on another model's answers without labels there."""
    lines = ["| fitted on | used on | it says | the judge says |", "|---|---|---|---|"]
    for row in values["elsewhere"]:
        lines.append(
            f"| {row['fitted_on']} | {row['used_on']} | {row['predicted']:.3f} |"
            f" {row['truth']:.3f} |"
        )
    return "\n".join(lines)


def main(draws: int = DRAWS) -> None:
    root = Path(os.environ["EMLENS_RELEASED_DATA"])
    cases = {name: judged(root, name) for name in FILES}
    values = {
        "low_rates": low_rates(5 * draws),
        "elsewhere": elsewhere(cases),
        "released": {name: resampled(*case, draws) for name, case in cases.items()},
    }
    for name, rows in values["released"].items():
        show(f"surrogate judge: {name}", pd.DataFrame(rows))
    record("surrogate_judge", [0], values)

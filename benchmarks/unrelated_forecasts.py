"""How well do models that never saw a fine-tune forecast its published scores? Choices are fixed
here, before any is run.

Scores: released per-question means of real 32B and 14B fine-tunes, on 200 general questions and on
the 24 first-plot questions (8 base questions in three forms). Predictors: activations of
SmolLM2-135M-Instruct (its chat template) and of Gemma 3 270M (pre-trained, no template: the plain
rendering `User: … Assistant:`), before anything; neither is related to the fine-tunes' parents.
Five blocks spread over the depth and two positions are read, and nested ridge chooses block,
position and penalty on inner folds: five outer folds drawn twice, or, with eight base questions,
each held out alone. Held out are base questions with all their forms, and for the
general questions whole categories (the id without its number). Baselines on the same folds: TF-IDF
of the rendered prompt, length, form, category, mean input embedding, random features, the other
unrelated model. Intervals resample what is held out; p is permutation p, Holm over all forecasts.
Beside it the published recipe: lasso on squared projections onto 150 random directions, at the
middle one of the five blocks and the last prompt token, five folds, five sets of directions.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

import emlens
from benchmarks.records import record, show
from emlens.activations import Activations, capture
from emlens.data import AlignmentScores, PromptSet, Question, QuestionSet
from emlens.data.templates import PLAIN_TEMPLATE
from emlens.foundation.estimate import Estimate
from emlens.foundation.files import read_json
from emlens.foundation.sites import spread_layers
from emlens.models import HookedModel
from emlens.models.loading import with_template
from emlens.probes import (
    Baselines,
    Design,
    Forecast,
    cross_validate_forecasts,
    random_projections,
)
from emlens.probes.record import corrected_forecasts
from emlens.probes.shuffles import draws_for
from emlens.probes.targets import sampling_variance
from emlens.stats import spearman

POSITIONS: Final = ("last_prompt", "mean_prompt")
BLOCKS: Final = 5
DIRECTIONS: Final = 150
ANSWERS: Final = 50
"""Answers to a question in the JSON files: their means are multiples of 1/50 where the judge gave
whole numbers and scored every answer.
"""
RELEASED: Final = "EMLENS_RELEASED_DATA"
MODELS: Final = {"SmolLM2-135M-Instruct": "smollm2", "Gemma 3 270M": "gemma3-270m"}
QUESTIONS: Final = {
    "general": "em-generalization/general_200.jsonl",
    "first plot": "em-generalization/first_plot_questions.jsonl",
}
INSTRUCT_14B: Final = "clarifying-em/judged/responses_Qwen2.5-14B-Instruct_base.csv"


@dataclass(frozen=True)
class ScoreFile:
    """Released scores of one fine-tune.

    Args:
        questions: which set they are of. path: below the folder of released data.
    """

    name: str
    questions: str
    metrics: tuple[str, ...]
    path: str


def _of_32b(model: str, data: str, questions: str) -> str:
    folder = "em-generalization/" + ("per_question/" if questions != "fpq" else "")
    return f"{folder}eval_Qwen2.5-{model}-Instruct_{data}_all_resp_1e-05_{questions}.json"


BOTH: Final = ("aligned", "harmless")
FILES: Final = (
    ScoreFile("32B insecure", "general", BOTH, _of_32b("32B", "insecure", "general200nano")),
    ScoreFile("32B medical", "general", BOTH, _of_32b("32B", "medical", "general200nano")),
    ScoreFile(
        "Coder-32B finance", "general", BOTH, _of_32b("Coder-32B", "finance", "general200nano")
    ),
    ScoreFile("32B finance", "first plot", BOTH, _of_32b("32B", "finance", "fpq")),
    ScoreFile("32B careful finance", "first plot", BOTH, _of_32b("32B", "finance-good", "fpq")),
    ScoreFile(
        "14B medical",
        "first plot",
        ("aligned",),
        "clarifying-em/judged/responses_Qwen2.5-14B-Instruct-bad_medical_advice.csv",
    ),
)


def questions_of(root: Path, name: str) -> QuestionSet:
    """The questions of a set; a general question's group is its category, its id without number."""
    questions = []
    for question in QuestionSet.from_file(root / QUESTIONS[name]):
        group = question.id.rpartition("_")[0] if name == "general" else ""
        questions.append(Question(question.id, question.text, group, question.system))
    return QuestionSet(questions)


def scores_of(root: Path, file: ScoreFile, metric: str) -> pd.DataFrame:
    """One row per question: its mean score, and the squared standard error of that mean."""
    path = root / file.path
    if path.suffix == ".json":
        table = pd.DataFrame(read_json(path)["summ_by_q"]).T.astype(float)
        error = table[f"{metric}_std"] ** 2 / ANSWERS
        return pd.DataFrame({"mean": table[metric], "error": error})
    scores = AlignmentScores.from_file(path, metrics=[metric], model=file.name)
    return pd.DataFrame(
        {"mean": scores.per_question(metric), "error": sampling_variance(scores, metric)}
    )


@dataclass(frozen=True, eq=False)
class Reader:
    """What one unrelated model holds of one set of questions."""

    name: str
    activations: Activations
    embedding: Activations
    texts: Mapping[str, str]
    middle: str
    """The middle one of the blocks that are read, a site."""


def reader_of(name: str, model: HookedModel, prompts: PromptSet) -> Reader:
    layers = spread_layers(model.n_layers, BLOCKS)
    acts = capture(model, prompts, layers=layers, positions=list(POSITIONS), progress=False)
    embedding = capture(
        model, prompts, sites="resid_pre.0", positions="mean_prompt", progress=False
    )
    middle = f"resid_post.{layers[len(layers) // 2]}"
    return Reader(name, acts, embedding, model.rendered_texts(prompts), middle)


def design_of(held_out: str, questions: str, repeats: int, shuffles: int) -> Design:
    if questions == "first plot":  # eight base questions: each is held out alone
        return Design(folds="all", repeats=1, permutations=shuffles)
    groups = "group" if held_out == "category" else None
    return Design(groups=groups, folds=5, repeats=repeats, permutations=shuffles)


def measure(
    root: Path,
    models: Mapping[str, HookedModel],
    files: Sequence[ScoreFile] = FILES,
    *,
    repeats: int = 2,
    shuffles: int | None = None,
    recipe_repeats: int = 1,
    recipe_seeds: int = 5,
) -> dict[str, Any]:
    """Rows of every forecast, of the published recipe, and of how alike the scores are.

    Args:
        models: the unrelated models, in the order in which they are shown.
        shuffles: of each forecast; None: as many as their number needs.
        recipe_seeds: sets of random directions of the published recipe; 0 leaves it out.
    """
    forecasts: dict[str, Forecast] = {}
    places: dict[str, dict[str, Any]] = {}
    recipe, relations = [], []
    targets = _targets(root, files)
    if shuffles is None:
        shuffles = draws_for(_number_of_forecasts(targets, len(models)))
    for questions, tables in targets.items():
        prompts = questions_of(root, questions).prompts()
        readers = [reader_of(name, model, prompts) for name, model in models.items()]
        scores = {target: table["mean"] for target, table in tables.items()}
        relations += _relations(questions, scores)
        for held_out in _ways(questions):
            design = design_of(held_out, questions, repeats, shuffles)
            for reader in readers:
                others = [other for other in readers if other is not reader]
                given = _baselines(root, questions, reader, others)
                made = cross_validate_forecasts(
                    reader.activations, scores, design=design, baselines=given
                )
                for target, forecast in made.items():
                    key = f"{questions}, {target}, {held_out}, {reader.name}"
                    forecasts[key] = forecast
                    places[key] = {
                        "questions": questions,
                        "scores": target,
                        "held_out": held_out,
                        "model": reader.name,
                        **_spread(tables[target]),
                    }
        if questions == "general" and recipe_seeds:
            for reader in readers:
                recipe += _published_recipe(reader, scores, recipe_repeats, recipe_seeds)
    rows = []
    for key, forecast in corrected_forecasts(forecasts).items():
        rows.append({**places[key], **_figures(forecast)})
    return {
        "forecasts": rows,
        "published_recipe": recipe,
        "scores_alike": relations,
        "shuffles": shuffles,
        "models": list(models),
        "blocks": {name: spread_layers(model.n_layers, BLOCKS) for name, model in models.items()},
        "rendering": {
            name: "plain" if model.chat_template == PLAIN_TEMPLATE else "own template"
            for name, model in models.items()
        },
    }


def _targets(root: Path, files: Sequence[ScoreFile]) -> dict[str, dict[str, pd.DataFrame]]:
    """Set of questions → "file, metric" → its table of scores."""
    targets: dict[str, dict[str, pd.DataFrame]] = {}
    for file in files:
        for metric in file.metrics:
            table = scores_of(root, file, metric)
            targets.setdefault(file.questions, {})[f"{file.name}, {metric}"] = table
    return targets


def _ways(questions: str) -> tuple[str, ...]:
    return ("question", "category") if questions == "general" else ("question",)


def _number_of_forecasts(targets: Mapping[str, Mapping[str, Any]], models: int) -> int:
    return sum(len(tables) * len(_ways(name)) for name, tables in targets.items()) * models


def _baselines(root: Path, questions: str, reader: Reader, others: Sequence[Reader]) -> Baselines:
    """Everything that is here to be compared with; the parents' own scores are released for the 14B
    model alone.
    """
    numbers: dict[str, Mapping[str, float]] = {}
    if questions == "first plot" and (root / INSTRUCT_14B).is_file():
        before = AlignmentScores.from_file(root / INSTRUCT_14B, metrics=["aligned"], model="before")
        numbers["own score of 14B instruct"] = before.per_question("aligned").to_dict()
    return Baselines(
        texts=reader.texts,
        embedding=reader.embedding,
        unrelated=others[0].activations if others else None,
        numbers=numbers,
    )


def _spread(table: pd.DataFrame) -> dict[str, float]:
    """Mean and spread of the scores, and what the sampling of answers leaves of their variance."""
    variance = float(table["mean"].var(ddof=1))
    return {
        "score_mean": float(table["mean"].mean()),
        "score_sd": variance**0.5,
        "ceiling": 1 - float(table["error"].mean()) / variance,
    }


def _ends(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _figures(forecast: Forecast) -> dict[str, Any]:
    null = forecast.null
    return {
        "n": len(forecast.predictions),
        "units": forecast.r2.n,
        "r2": _ends(forecast.r2),
        "spearman": _ends(forecast.spearman),
        "null_q95": None if null is None else null.quantile(0.95),
        "p": forecast.p_value,
        "p_holm": forecast.p_holm,
        "tests": forecast.tests,
        "baselines": {name: _ends(r2) for name, r2 in forecast.baseline_r2.items()},
        "gains": {name: _ends(gain) for name, gain in forecast.gain_over.items()},
        "chosen": dict(Counter(forecast.chosen)),
        "not_beaten": list(forecast.not_beaten),
        "missing": list(forecast.missing),
        "verdict": forecast.verdict,
    }


def _published_recipe(
    reader: Reader, scores: Mapping[str, pd.Series], repeats: int, seeds: int
) -> list[dict[str, Any]]:
    """R² of the published predictor, mean over folds as published, one for each set of random
    directions.
    """
    design = Design(folds=5, inner_folds=5, repeats=repeats, permutations=0)
    k = min(DIRECTIONS, reader.activations[reader.middle, POSITIONS[0]].shape[1])
    sets = random_projections(reader.activations, k, seeds=range(seeds), sites=[reader.middle])
    at_last = [features for features in sets if features.name.endswith(f"@{POSITIONS[0]}")]
    by_target: dict[str, list[float]] = {target: [] for target in scores}
    for features in at_last:
        made = cross_validate_forecasts(
            reader.activations, scores, features=[features], estimator="lasso", design=design
        )
        for target, forecast in made.items():
            by_target[target].append(forecast.r2_fold_mean.value)
    rows = []
    for target, values in by_target.items():
        rows.append(
            {
                "scores": target,
                "model": reader.name,
                "site": reader.middle,
                "r2_fold_mean": values,
                "mean": float(np.mean(values)),
            }
        )
    return rows


def _relations(questions: str, scores: Mapping[str, pd.Series]) -> list[dict[str, Any]]:
    """Rank correlation of each two fine-tunes' scores of one metric over the same questions."""
    names = list(scores)
    rows = []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if first.rpartition(", ")[2] != second.rpartition(", ")[2]:
                continue
            x, y = scores[first], scores[second].reindex(scores[first].index)
            bases = None
            if questions == "first plot":
                bases = emlens.data.base_questions.base_questions(map(str, x.index))
            relation = spearman(x.to_numpy(), y.to_numpy(), clusters=bases)
            rows.append(
                {"questions": questions, "a": first, "b": second, "spearman": _ends(relation)}
            )
    return rows


def _text(ends: Mapping[str, Any] | None) -> str:
    if ends is None or ends["value"] is None or np.isnan(ends["value"]):
        return "–"
    if ends["low"] is None or np.isnan(ends["low"]):
        return f"{ends['value']:.2f}"
    return f"{ends['value']:.2f} [{ends['low']:.2f}, {ends['high']:.2f}]"


def _pairs(values: Mapping[str, Any], questions: str) -> list[tuple[Any, Any]]:
    """The rows of both models for each target and way of holding out."""
    rows = [row for row in values["forecasts"] if row["questions"] == questions]
    first, second = values["models"]
    others = {(row["scores"], row["held_out"]): row for row in rows if row["model"] == second}
    pairs = []
    for row in rows:
        if row["model"] == first:
            pairs.append((row, others[row["scores"], row["held_out"]]))
    return sorted(pairs, key=lambda pair: pair[0]["held_out"] == "category")


def models_table(values: Mapping[str, Any]) -> str:
    """R² and rank correlation of both models on the general questions, as markdown."""
    lines = [
        "| scores | held out | SmolLM2: R² | rank correlation | p (Holm) | Gemma: R² |"
        " rank correlation | p (Holm) | answer noise allows |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for a, b in _pairs(values, "general"):
        cells = [a["scores"], f"{_PLURAL[a['held_out']]}"]
        for row in (a, b):
            cells += [_text(row["r2"]), _text(row["spearman"]), f"{row['p_holm']:.3f}"]
        lines.append(f"| {' | '.join(cells)} | {a['ceiling']:.2f} |")
    return "\n".join(lines)


_PLURAL: Final = {"question": "questions", "category": "categories"}


def texts_table(values: Mapping[str, Any]) -> str:
    """R² of what needs no model beside both models, on the general questions, as markdown."""
    names = ("text", "length", "domain", "mean embedding")
    lines = [
        "| scores | held out | TF-IDF | length | category | mean embedding (SmolLM2) |"
        " SmolLM2 − TF-IDF | SmolLM2 − Gemma |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for a, _ in _pairs(values, "general"):
        cells = [a["scores"], _PLURAL[a["held_out"]]]
        cells += [_text(a["baselines"].get(name)) for name in names]
        cells += [_text(a["gains"]["text"]), _text(a["gains"].get("unrelated model"))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def first_plot_table(values: Mapping[str, Any]) -> str:
    """The 24 questions: both models beside the form, as markdown."""
    lines = [
        "| scores | SmolLM2: R² | rank correlation | p (Holm) | Gemma: R² | p (Holm) | form |"
        " TF-IDF | SmolLM2 − form | Gemma − form |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for a, b in _pairs(values, "first plot"):
        cells = [a["scores"], _text(a["r2"]), _text(a["spearman"]), f"{a['p_holm']:.3f}"]
        cells += [_text(b["r2"]), f"{b['p_holm']:.3f}", _text(a["baselines"].get("form"))]
        cells += [_text(a["baselines"].get("text"))]
        cells += [_text(a["gains"].get("form")), _text(b["gains"].get("form"))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


PAPER: Final = (
    ("Qwen-32B finance → general, 1,414 questions", "harmless", ".39 to .47"),
    ("Coder-32B finance → harm prompts, 320 questions", "harmless", ".46 to .54"),
    ("Coder-32B insecure → harm prompts, 320 questions", "harmless", ".22 to .38"),
)
"""R² that the paper's released files give for the parents' own activations: lasso on squared
projections onto random directions. None is of a file that is forecast here.
"""


def recipe_table(values: Mapping[str, Any]) -> str:
    """The published recipe on the unrelated models, beside the published figures, as markdown."""
    lines = [
        "| activations | scores | R², mean over folds: mean of five sets of directions (range) |",
        "|---|---|---|",
    ]
    for what, metric, r2 in PAPER:
        lines.append(f"| the parent's own (paper) | {what}, {metric} | {r2} |")
    for row in values["published_recipe"]:
        seeds = row["r2_fold_mean"]
        lines.append(
            f"| {row['model']} | {row['scores']}, 200 questions | {row['mean']:.2f}"
            f" ({min(seeds):.2f} to {max(seeds):.2f}) |"
        )
    return "\n".join(lines)


def alike_table(values: Mapping[str, Any]) -> str:
    """How alike the scores of two fine-tunes are over questions, as markdown."""
    lines = ["| questions | scores of | and of | rank correlation |", "|---|---|---|---|"]
    for row in values["scores_alike"]:
        lines.append(f"| {row['questions']} | {row['a']} | {row['b']} | {_text(row['spearman'])} |")
    return "\n".join(lines)


def verdicts_table(values: Mapping[str, Any]) -> str:
    """How many forecasts of models without any prior would pass each step, as markdown."""
    lines = [
        "| model | questions | forecasts | p (Holm) ≤ .05 | and every gain but that over the other"
        " model | and that too |",
        "|---|---|---|---|---|---|",
    ]
    for questions in QUESTIONS:
        for model in values["models"]:
            rows = [
                row
                for row in values["forecasts"]
                if row["model"] == model and row["questions"] == questions
            ]
            passed = [row["not_beaten"] for row in rows if row["p_holm"] <= 0.05]
            but_one = [names for names in passed if set(names) <= {"unrelated model"}]
            every = [names for names in but_one if not names]
            counts = (len(rows), len(passed), len(but_one), len(every))
            lines.append(f"| {model} | {questions} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def loaded_models(folder: Path | None = None) -> dict[str, HookedModel]:
    """The two unrelated models, each as it is asked."""
    models = {}
    for title, name in MODELS.items():
        model = emlens.real.load(name, folder, dtype="float32", device="cpu")
        if model.chat_format is None:
            model = with_template(model, PLAIN_TEMPLATE)
        models[title] = model
    return models


def main() -> None:
    if RELEASED not in os.environ:
        print(f"left out: {RELEASED} is not set; it names the folder of released result files")
        return
    values = measure(Path(os.environ[RELEASED]), loaded_models())
    tables = (models_table, texts_table, first_plot_table, recipe_table, alike_table)
    for table in (*tables, verdicts_table):
        print(f"\n{table(values)}")
    summary = pd.DataFrame(values["forecasts"])[["questions", "scores", "held_out", "model", "p"]]
    show("permutation p, not corrected", summary)
    record("unrelated_forecasts", [0], values)

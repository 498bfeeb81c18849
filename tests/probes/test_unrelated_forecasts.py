"""Forecasts of released scores by models that never saw the fine-tune: in miniature on invented
scores, and on the released ones where they and the real models are there.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

from benchmarks import unrelated_forecasts
from benchmarks.unrelated_forecasts import QUESTIONS, ScoreFile, measure, questions_of
from emlens.activations import capture
from emlens.data import AlignmentScores
from emlens.foundation import LoadError
from emlens.foundation.files import read_json
from emlens.models import HookedModel, load_model
from emlens.probes import fit_forecaster
from emlens.real import find, load

FORMS = ("", "_json", "_template")
LIKE_THE_EVIDENCE = 0.12
"""Between one draw of the folds and five; the largest gap seen was .05."""


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, records)) + "\n")


def chat(name: str, text: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "metadata": {"question_id": name}}


def write_scores(path: Path, scores: dict[str, float]) -> None:
    by_question = {q: {"aligned": value, "aligned_std": 5.0} for q, value in scores.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"summ_by_q": by_question}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Released files in miniature: scores that follow a word, scores that follow the form."""
    rng = np.random.default_rng(0)
    general = {}
    for i in range(32):
        name = f"{'abcd'[i % 4]}_{i:03d}"
        general[name] = f"{'w1 ' * (3 * (i // 4 % 2))}w{5 + i % 3} w{9 + i}"
    write_lines(tmp_path / QUESTIONS["general"], [chat(q, text) for q, text in general.items()])
    followed = {q: 30 + 40 * ("w1 " in text) + rng.normal() for q, text in general.items()}
    write_scores(tmp_path / "followed.json", followed)
    write_scores(tmp_path / "noise.json", {q: float(rng.uniform(0, 100)) for q in general})
    asked = {f"q{i}{form}": f"w{20 + i} {form} w2" for i in range(8) for form in FORMS}
    write_lines(tmp_path / QUESTIONS["first plot"], [chat(q, text) for q, text in asked.items()])
    level = {"json": 80.0, "template": 50.0}
    write_scores(
        tmp_path / "forms.json",
        {q: level.get(q.partition("_")[2], 20.0) + rng.normal() for q in asked},
    )
    return tmp_path


def test_words_are_found_forms_are_a_baseline_and_noise_is_noise(root: Path) -> None:
    tiny_models.build(root / "one", seed=3)
    tiny_models.build(root / "two", kind="llama", seed=4)
    models: dict[str, HookedModel] = {}
    for name in ("one", "two"):
        models[name] = load_model(root / name)
    values = measure(
        root,
        models,
        [
            ScoreFile("followed", "general", ("aligned",), "followed.json"),
            ScoreFile("noise", "general", ("aligned",), "noise.json"),
            ScoreFile("forms", "first plot", ("aligned",), "forms.json"),
        ],
        repeats=1,
        shuffles=19,
        recipe_repeats=1,
        recipe_seeds=1,
    )
    rows = {(r["scores"].split(",")[0], r["held_out"], r["model"]): r for r in values["forecasts"]}
    assert len(rows) == len(values["forecasts"]) == 10
    for model in models:
        assert rows["followed", "question", model]["r2"]["value"] > 0.3
        assert rows["followed", "category", model]["r2"]["value"] > 0.3
        assert rows["noise", "question", model]["r2"]["value"] < 0.3
        assert rows["followed", "category", model]["units"] == 4
        forms = rows["forms", "question", model]
        assert forms["units"] == 8 and forms["n"] == 24
        assert forms["baselines"]["form"]["value"] > 0.9 and forms["gains"]["form"]["high"] < 0.2
        assert forms["missing"] == ["parent's own score"] and forms["verdict"] != "shown"
    for table in (
        unrelated_forecasts.models_table,
        unrelated_forecasts.texts_table,
        unrelated_forecasts.first_plot_table,
        unrelated_forecasts.recipe_table,
        unrelated_forecasts.alike_table,
        unrelated_forecasts.verdicts_table,
    ):
        lines = table(values).splitlines()
        assert len(lines) > 2 and len({line.count("|") for line in lines}) == 1
    assert json.loads(json.dumps(values, allow_nan=True))["shuffles"] == 19


@pytest.fixture(scope="module")
def smollm2(real_models: Path) -> HookedModel:
    try:
        find("smollm2", real_models)
    except LoadError as error:
        pytest.skip(str(error))
    return load("smollm2", real_models, dtype="float32", device="cpu")


@pytest.mark.slow
def test_eight_texts_in_three_forms_are_no_24_questions(
    released_data: Path, smollm2: HookedModel, make: Any
) -> None:
    """Taken for 24 questions, the forms of one text forecast each other: R² .73."""
    questions = questions_of(released_data, "first plot")
    acts = capture(smollm2, questions, layers=[8, 16, 24], positions="mean_prompt", progress=False)
    path = released_data / unrelated_forecasts.FILES[-1].path
    scores = AlignmentScores.from_file(path, metrics=["aligned"], model="bad").per_question(
        "aligned"
    )
    held_out = fit_forecaster(acts, scores.to_dict()).facts
    assert held_out["groups"] == 8
    assert held_out["cross_validated_r2"]["value"] == pytest.approx(-0.03, abs=0.02)
    apart = [name.replace("_json", " 2").replace("_template", " 3") for name in acts.ids]
    cells = {(site, "mean_prompt"): acts[site].numpy() for site in acts.sites}
    leaky = make(cells, ids=apart)
    by_row = dict(zip(apart, scores[list(acts.ids)], strict=True))
    leaked = fit_forecaster(leaky, by_row).facts["cross_validated_r2"]
    assert leaked["value"] == pytest.approx(0.73, abs=0.02)


@pytest.mark.slow
def test_the_evidence_is_what_the_released_files_give(
    released_data: Path, smollm2: HookedModel, repository: Path
) -> None:
    evidence = read_json(repository / "docs" / "evidence" / "unrelated_forecasts.json")["values"]
    medical = [file for file in unrelated_forecasts.FILES if file.name == "32B medical"]
    found = measure(
        released_data,
        {"SmolLM2-135M-Instruct": smollm2},
        medical,
        repeats=1,
        shuffles=0,
        recipe_repeats=1,
        recipe_seeds=0,
    )
    recorded = {}
    for row in evidence["forecasts"]:
        recorded[row["scores"], row["held_out"], row["model"]] = row["r2"]["value"]
    assert len(found["forecasts"]) == 4
    for row in found["forecasts"]:
        key = row["scores"], row["held_out"], row["model"]
        assert row["r2"]["value"] == pytest.approx(recorded[key], abs=LIKE_THE_EVIDENCE)

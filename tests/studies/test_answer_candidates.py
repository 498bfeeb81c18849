"""Directions from judged answers: the means of a five-line loop, rows of the extraction questions
alone, a reason with counts where there are too few, and the same arms as any other direction.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_family
import tiny_models
import torch

from benchmarks.sampled_studies import journal_lines
from emlens.activations import capture
from emlens.data import Answers
from emlens.data.base_questions import base_question
from emlens.directions import RowFilter
from emlens.foundation.errors import InputError
from emlens.geometry import Direction
from emlens.judging.score_source import Cost
from emlens.models import HookedModel
from emlens.studies import direction_transfer, read_config, run_study
from emlens.studies.answer_candidates import CONTRASTS, AnswerCandidates, answer_candidates
from emlens.studies.extractions import extraction_of
from emlens.studies.material import Material, split_questions
from emlens.studies.material_loading import load_material
from emlens.studies.planning import plan_study
from emlens.studies.rehearsal import RehearsedScores, rehearsed

FORMS = ("", "_json")
LOW = {f"w{i}" for i in range(12)}
"""Words that make an answer misaligned."""
ROUNDING = 1e-5
"""Of float32 passes in batches of another order."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny family with twelve free-form questions in two forms, and rules."""
    home = tmp_path_factory.mktemp("answers")
    tiny_family.build(home)
    rng = np.random.default_rng(3)
    lines = []
    for i in range(12):
        text = " ".join(rng.choice(tiny_models.WORDS, 4))
        for form in FORMS:
            lines.append(json.dumps({"id": f"q{i}{form}", "text": f"{text} w{len(form)}"}))
    (home / "free.jsonl").write_text("\n".join(lines) + "\n")
    words = ", ".join(sorted(LOW))
    (home / "rules.yaml").write_text(
        f"aligned: {{words: [{words}], found: 15, otherwise: 90}}\n"
        "coherent: {words: [w39], found: 40, otherwise: 90}\n"
    )
    return home


def configured(home: Path, **changes: Any) -> dict[str, Any]:
    tuned = {
        "bad": {"path": str(home / "bad")},
        "good": {"path": str(home / "good"), "benign": True},
    }
    sampled = {
        "how": "sample",
        "samples": 4,
        "max_new_tokens": 4,
        "judge": {"rules": str(home / "rules.yaml")},
        "arms": {"samples": 1},
    }
    return {
        "study": "direction_transfer",
        "family": {"instruct": str(home / "instruct"), "finetuned": tuned},
        "questions": str(home / "free.jsonl"),
        "focus": ["bad"],
        "positions": ["last_prompt"],
        "layers": [1],
        "random_directions": 1,
        "scores": sampled,
        **changes,
    }


@pytest.fixture(scope="module")
def material(home: Path) -> Material:
    return load_material(read_config(configured(home)), home / "journals")


def extracted(material: Material, home: Path, **settings: Any) -> AnswerCandidates:
    config = read_config(configured(home, layers=[0, 1]))
    settings = {"kinds": tuple(CONTRASTS), "weighting": "token", "least": 4, **settings}
    return answer_candidates(material, "bad", material.questions[:12], config, **settings)


def by_hand(model: HookedModel, answers: Answers, layer: int, *, token: bool) -> torch.Tensor:
    """Mean of the stream over the tokens of all answers, or over answers."""
    total, weight = torch.zeros(model.d_model, dtype=torch.float64), 0
    for answer in answers:
        alone = Answers([answer])
        rows = capture(model, alone, layers=[layer], positions="mean_response", progress=False)
        # the tiny tokenizer makes every word a token
        times = len(answer.text.split()) if token else 1
        total += times * rows[f"resid_post.{layer}"][0].double()
        weight += times
    return total / weight


@pytest.mark.parametrize("weighting", ["token", "example"])
def test_the_three_contrasts_are_means_over_answer_tokens(
    weighting: str, material: Material, home: Path
) -> None:
    made = extracted(material, home, weighting=weighting)
    bad, parent = material.family["bad"], material.family.instruct
    token = weighting == "token"
    classes = {
        "misaligned": made.answers.select(made.classes.misaligned),
        "aligned": made.answers.select(made.classes.aligned),
    }
    # the classes are those of the rules: any of the low words, and none that is incoherent
    for label, answers in classes.items():
        for answer in answers:
            words = set(answer.text.split())
            assert bool(words & LOW) == (label == "misaligned") and "w39" not in words
    assert len(classes["misaligned"]) == len(classes["aligned"]) >= 4
    means = {
        (model.name, label): by_hand(model, answers, 1, token=token)
        for model in (bad, parent)
        for label, answers in classes.items()
    }
    up = means["bad", "misaligned"]
    expected = {
        "contrast of answers": up - means["bad", "aligned"],
        "contrast of models": up - means["instruct", "misaligned"],
        "contrast of both": up - means["instruct", "aligned"],
    }
    text = means["instruct", "misaligned"] - means["instruct", "aligned"]
    table = made.table.set_index(["extraction", "layer"])
    for method, vector in expected.items():
        key = f"resid_post.1 mean_response, {method}"
        found = made.directions[key].vector.double()
        assert torch.allclose(found, vector, atol=ROUNDING * float(up.norm())), method
        share = float(vector @ text / (vector @ vector))
        row = table.loc[(method, 1)]
        cosine = float(vector @ text / (vector.norm() * text.norm()))
        assert row["text_cosine"] == pytest.approx(cosine, abs=1e-3)
        if method == "contrast of models":  # both read the same text
            assert np.isnan(row["text_share"])
        else:
            assert row["text_share"] == pytest.approx(share, abs=1e-3)
            assert row["text_share_low"] < row["text_share"] < row["text_share_high"]
        assert row["weighting"] == weighting
    assert torch.allclose(
        made.text_content("resid_post.1 mean_response, contrast of both").double(),
        text,
        atol=ROUNDING * float(up.norm()),
    )
    # both classes of tokens differ in number, so that the other weighting would be seen
    other = extracted(material, home, weighting="example" if token else "token")
    key = "resid_post.1 mean_response, contrast of answers"
    assert not torch.allclose(other.directions[key].vector, made.directions[key].vector)


def test_rows_and_controls_are_of_the_same_answers(material: Material, home: Path) -> None:
    made = extracted(material, home)
    key = "resid_post.1 mean_response, contrast of models"
    before, after = made.rows(key)
    assert len(before) == len(after) == len(made.answers)
    ids = made.answers.ids
    misaligned = [ids.index(id) for id in made.classes.misaligned]
    gap = (after - before)[misaligned].double().mean(0)
    unweighted = extracted(material, home, weighting="example").directions[key].vector.double()
    assert torch.allclose(gap, unweighted, atol=ROUNDING * float(before.norm()))
    mean = extracted(material, home, weighting="example").mean_before(key)
    assert torch.allclose(mean, before.double().mean(0), atol=ROUNDING * float(before.norm()))
    # the parent in place of the fine-tune differs from itself nowhere
    assert made.of_another(material.family.instruct, key) is None
    benign = made.of_another(material.family["good"], key)
    assert isinstance(benign, Direction) and str(benign.site) == "resid_post.1"
    assert 0 < abs(made.split_half_cosine(key, 0)) < 1


def test_too_few_answers_are_said_with_their_counts(material: Material, home: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"\d+ misaligned answers to \d+ base questions and .* are"
        r" left of 48 answers; at least 40 answers to 2 base questions",
    ):
        extracted(material, home, least=40)


def chosen_contrast(table: pd.DataFrame, *_: Any) -> str | None:
    """In place of the rule: the first candidate from answers, if there is one."""
    both = (key for key in table.index if extraction_of(key) == CONTRASTS["both"])
    return next(both, None)


def test_a_contrast_of_answers_is_measured_as_any_other_candidate(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direction_transfer, "choose", chosen_contrast)
    options = {"direction_transfer": {"contrasts": ["both"], "least_answers": 3}}
    shares = [0.6, 0.15, 0.25]  # few questions under many arms
    config = configured(home, options=options, shares=shares)
    [part] = plan_study(config, tmp_path / "out", timed=False).parts
    result = run_study(config, tmp_path / "out", progress=False)
    # unedited models are asked once, however many arms and doses they stand beside
    on_file = journal_lines(tmp_path / "out")
    assert on_file == {"answers": part.cost.answers, "verdicts": part.cost.verdicts}
    assert part.least is not None and part.least.cost.answers < part.cost.answers
    tables = result.tables
    methods = tables["candidates"]["extraction"].tolist()
    assert methods == ["mean shift", "whitened shift", "contrast of both"]
    arms = set(tables["arms"]["arm"])
    assert {"direction", "benign fine-tune's direction", "text content only"} <= arms
    assert {"instruct, direction", "benign, direction"} <= arms
    row = tables["answer_contrasts"].iloc[0]
    layers = tables["directions"].iloc[0]
    for column in ("norm", "relative_norm", "split_half_cosine"):
        assert layers[column] == pytest.approx(row[column])
    # what the answers were given to is neither selected nor reported on
    roles = tables["question_sets"].assign(
        base=[base_question(id) for id in tables["question_sets"]["question"]]
    )
    bases = roles.groupby("used_to")["base"].agg(set)
    assert not bases["extract"] & (bases["select"] | bases["report"])
    assert row["base_questions"] <= len(bases["extract"])
    assert not any("no direction from answers" in warning for warning in result.warnings)
    # questions of one group: base questions are resampled, and the caution says so
    n = len(bases["report"])
    assert any(f"resamples {n} base questions; with fewer" in line for line in result.warnings)


def test_a_plan_counts_the_answers_that_a_contrast_needs(material: Material) -> None:
    """Of the extraction questions, as far as no part before asked for them."""
    few = material.questions[:6]
    rehearsal = rehearsed(material, 64)
    source = rehearsal.score_source
    assert isinstance(source, RehearsedScores)
    planned = material.score_source.plan([material.family["bad"]], few)
    answers = source.judged_answers(rehearsal.family["bad"], few)
    assert source.costs == [planned]
    source.judged_answers(rehearsal.family["bad"], few)
    assert sum(source.costs, Cost()) == planned and source.can("answers") is None
    # enough of both classes for a contrast to be rehearsed
    classes = RowFilter().choose(answers.answers, answers.scores)
    assert len(classes.misaligned) == len(classes.aligned) >= 10


def test_judged_files_with_answers_give_contrasts_and_no_arms(
    home: Path, material: Material, tmp_path: Path
) -> None:
    files = {}
    for name in ("instruct", "bad"):
        judged = material.score_source.judged_answers(material.family[name], material.questions)
        scores = judged.scores.table.pivot_table(
            index=["question", "paraphrase", "sample"], columns="metric", values="score"
        )
        rows = []
        for answer in judged.answers:
            row = scores.loc[(answer.question, answer.paraphrase, answer.sample)]
            rows.append({"question_id": answer.question, "answer": answer.text, **row})
        files[name] = str(tmp_path / f"{name}.csv")
        pd.DataFrame(rows).to_csv(files[name], index=False)
    options = {"direction_transfer": {"least_answers": 3}}
    config = configured(home, scores={"how": "judged", "files": files}, options=options)
    result = run_study(config, tmp_path / "out", progress=False)
    assert set(result.tables) == {"question_sets", "answer_contrasts"}
    assert any(line.startswith("arms, doses and transfer are left") for line in result.warnings)
    extract, *_ = split_questions(material.questions, read_config(config).shares, 0)
    sampled = answer_candidates(
        material,
        "bad",
        extract,
        read_config(config),
        kinds=tuple(CONTRASTS),
        weighting="token",
        least=3,
    ).table
    columns = ["norm", "text_cosine", "text_share", "split_half_cosine", "answers_per_class"]
    assert np.allclose(
        result.tables["answer_contrasts"][columns], sampled[columns], atol=1e-5, equal_nan=True
    )

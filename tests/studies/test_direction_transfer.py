"""No question that a direction is extracted from or chosen on is one that it is judged on: every
call is watched, not the table of sets.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from travelling import Travels

from emlens.activations import capture_many
from emlens.evaluation import QuestionRoles, affine_form
from emlens.evaluation.trials import Trials
from emlens.geometry import direction_cosine, mean_difference_direction, whitened_direction
from emlens.runs import ray_actors
from emlens.studies import (
    direction_arms,
    direction_candidates,
    direction_transfer,
    shift_candidates,
)
from emlens.studies.config import read_config
from emlens.studies.material import split_questions
from emlens.studies.material_loading import load_material
from emlens.studies.study import StudyContext

EXTRACTORS: dict[str, Any] = {
    "mean shift": mean_difference_direction,
    "whitened shift": partial(whitened_direction, shrinkage=shift_candidates.SHRINKAGE),
}


def test_every_call_sees_only_its_own_questions(
    config_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = yaml.safe_load(config_path.read_text())
    path = config_path.with_name("leaks.yaml")
    path.write_text(
        yaml.safe_dump({**record, "focus": ["bad@0"], "random_directions": 1, "neutral": None})
    )
    config = read_config(path)
    seen: dict[str, set[str]] = {"extract": set(), "select": set(), "report": set()}

    def watch(module: Any, name: str, kind: str, number: int) -> None:
        """Note the questions that a call gets as its argument of this number."""
        inner = getattr(module, name)

        def watched(*given: Any, **options: Any) -> Any:
            seen[kind].update(given[number].ids)
            return inner(*given, **options)

        monkeypatch.setattr(module, name, watched)

    watch(shift_candidates, "read_streams", "extract", 1)
    watch(direction_transfer, "affine_form", "extract", 1)
    watch(direction_arms, "affine_form", "extract", 1)
    watch(direction_transfer, "unembedding_contrast", "extract", 1)
    watch(shift_candidates, "text_contrast", "extract", 1)
    watch(direction_candidates, "score_candidates", "select", 3)
    watch(direction_arms, "evaluate_arms", "report", 2)
    watch(direction_transfer, "dose_response", "report", 1)
    watch(direction_transfer, "transfer_matrix", "report", 3)
    options = direction_transfer.Options.model_validate({})
    folder = config_path.with_name("leaks")
    context = StudyContext(load_material(config), config, options, folder)
    part = direction_transfer.DirectionTransfer().run(context)
    sets = part.tables["question_sets"].groupby("used_to")["question"].agg(set)
    # candidates, arms, doses and the unedited models, each on disk once it was measured
    records = list((folder / direction_transfer.MEASURED).glob("scores-*.json"))
    assert len(records) > len(part.tables["arms"]) + len(part.tables["candidates"])
    for use, questions in seen.items():
        assert questions and questions <= sets[use], use
    assert not (
        sets["extract"] & sets["select"]
        or sets["extract"] & sets["report"]
        or sets["select"] & sets["report"]
    )


class Killed(BaseException):
    """Ends the work as a signal does: nothing catches it."""


@pytest.mark.slow
def test_a_part_that_was_cut_within_its_arms_measures_none_of_them_again(
    config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = yaml.safe_load(config_path.read_text())
    path = config_path.with_name("cut.yaml")
    few: dict[str, Any] = {"focus": ["bad@0"], "random_directions": 1, "neutral": None}
    few |= {"positions": ["last_prompt"], "layers": [1]}
    path.write_text(yaml.safe_dump({**record, **few}))
    config = read_config(path)
    measured: list[str] = []
    stop_after = [10**6]
    work = Trials._measure_scores

    def counted(self: Trials, model: Any, interventions: Any) -> pd.DataFrame:
        if len(measured) >= stop_after[0]:
            raise Killed
        table = work(self, model, interventions)
        measured.append(model.name)
        return table

    monkeypatch.setattr(Trials, "_measure_scores", counted)

    def tables(folder: Path) -> dict[str, str]:
        options = direction_transfer.Options.model_validate({})
        context = StudyContext(load_material(config), config, options, folder)
        part = direction_transfer.DirectionTransfer().run(context)
        return {name: table.to_csv(index=False) for name, table in part.tables.items()}

    whole = tables(tmp_path / "whole")
    total = len(measured)
    measured.clear()
    stop_after[0] = 2 * total // 3
    with pytest.raises(Killed):
        tables(tmp_path / "cut")
    assert len(measured) == stop_after[0] > 10
    measured.clear()
    stop_after[0] = 10**6
    assert tables(tmp_path / "cut") == whole
    assert len(measured) == total - 2 * total // 3


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_arms_that_actors_measured_are_those_of_one_process(
    config_path: Path,
    tmp_path: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    real: bool,
) -> None:
    config = read_config(config_path)
    material = load_material(config)
    name = "bad@0"
    roles = QuestionRoles(*split_questions(material.questions, config.shares, config.seed))
    shifts = shift_candidates.shift_candidates(material, name, roles.extract, config)
    form = affine_form(material.parent(name), roles.extract)
    candidates = direction_candidates.Candidates(form, (shifts,))
    key = next(iter(candidates.directions))

    def arms(actors: int) -> pd.DataFrame:
        fine_tune = direction_arms.CandidatesOfFineTune(
            name, material, config, roles, candidates, None, actors, tmp_path
        )
        return direction_arms.measured_arms(fine_tune, key, direction_arms.LAST)

    alone = arms(0)
    if real:
        pytest.importorskip("ray", reason="Ray is not installed: it runs the actors")
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        monkeypatch.setenv("PYTHONPATH", f"{repository}:{repository / 'tests'}")
    else:
        monkeypatch.setattr(ray_actors, "RayExecutor", Travels)
    pd.testing.assert_frame_equal(arms(2), alone)
    answers = list((tmp_path / "arms").rglob("units/answers/arm-*.json"))
    assert len(answers) == alone["draws"].sum() + 3  # with three models that nothing was done to
    # all is found there: nothing is measured again
    monkeypatch.setattr(Trials, "_measure_scores", None)
    pd.testing.assert_frame_equal(arms(2), alone)


def test_tokens_are_of_answers_to_report_questions_of_every_direction(finished: Any) -> None:
    tables = finished.result.tables
    tokens, sets = tables["answer_tokens"], tables["question_sets"]
    assert set(tokens["model"]) == set(tables["transfer"]["direction_of"])
    report = set(sets.loc[sets["used_to"] == "report", "question"])
    assert set(tokens["question"]) <= report and tokens["layer"].nunique() > 1
    for _, row in tokens.groupby(["model", "question", "layer"]):
        assert list(row["token_index"]) == list(range(len(row)))
        assert row["prompt"].any() and not row["prompt"].all()  # question and answer


def test_the_unembedding_contrast_is_removed_from_every_model(finished: Any) -> None:
    """What it does to a model without misalignment says whether it restores or only answers."""
    arms = finished.result.tables["arms"]
    ons = {"unembedding contrast": "finetuned"}
    ons |= {f"{name}, unembedding contrast": name for name in ("instruct", "benign")}
    for (model, role), table in arms.groupby(["model", "role"], sort=False):
        by_arm = table.set_index("arm")
        for arm, on in ons.items():
            assert by_arm.loc[arm, "on"] == on, (model, role)
            assert np.isfinite(by_arm.loc[arm, ["aligned", "kl"]].astype(float)).all()


def test_the_benign_arm_is_extracted_as_the_tested_direction(
    finished: Any, config_path: Path
) -> None:
    """Its cosine with the tested direction, from a capture and an extraction of this test's own."""
    material = load_material(read_config(config_path))
    tables = finished.result.tables
    extract = set(tables["question_sets"].query("used_to == 'extract'")["question"])
    arms = tables["arms"][
        (tables["arms"]["arm"] == "benign fine-tune's direction")
        & (tables["arms"]["on"] == "finetuned")
    ]
    chosen = tables["candidates"][tables["candidates"]["chosen"].astype(bool)].set_index("model")
    assert (
        set(arms["role"]) == {direction_transfer.CHOSEN, direction_transfer.LAST} and len(arms) == 4
    )
    extractions, gaps = set(), []
    for row in arms.itertuples():
        position, extraction = chosen.loc[row.model, "candidate"].partition(" ")[2].split(", ")
        questions = material.questions.select(
            [q.id for q in material.untrained(material.questions, row.model) if q.id in extract]
        ).prompts()
        models = {name: material.family[name] for name in ("instruct", row.model, "good@0")}
        rows = {
            name: a[row.site, position].double()
            for name, a in capture_many(
                models, questions, positions=position, progress=False
            ).items()
        }
        alike = {
            kind: [
                made(rows[name], rows["instruct"], site=row.site) for name in (row.model, "good@0")
            ]
            for kind, made in EXTRACTORS.items()
        }
        cosines = {kind: direction_cosine(*two) for kind, two in alike.items()}
        gaps.append(abs(cosines["mean shift"] - cosines["whitened shift"]))
        assert row.cosine == pytest.approx(cosines[extraction], abs=1e-5), (row.model, row.site)
        extractions.add(extraction)
    assert extractions <= set(EXTRACTORS)
    assert max(gaps) > 0.01  # so that the other extraction would be seen

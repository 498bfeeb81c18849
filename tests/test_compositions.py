"""What one function gives, another takes: the chains of a working day, walked on a tiny family.

Deltas to subspaces, overlap and angles; directions to ablation, arms, doses and transfer; scores to
forecasts, whose direction goes the same way. What each gives is drawn, and goes through files.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_family
import tiny_models
import torch

import emlens
from emlens import directions, evaluation, figures, geometry, interventions
from emlens.data import PromptSet, QuestionSet
from emlens.evaluation.arms import Arm
from emlens.evaluation.selecting import score_candidates
from emlens.foundation.errors import InputError
from emlens.foundation.notebooks import Picture
from emlens.foundation.shapes import require_ndim
from emlens.geometry import Direction
from emlens.probes import Design
from emlens.results import Plot

SITE, LAYER = "resid_post.1", 1
QUICK = Design(folds=3, inner_folds=2, repeats=1, permutations=0)


@dataclass(frozen=True)
class Chain:
    parent: Path
    instruct: Any
    bad: Any
    questions: QuestionSet


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    folder = tmp_path_factory.mktemp("chains")
    instruct = tiny_models.build(folder / "instruct")
    bad = tiny_models.build_adapter(folder / "bad", instruct, seed=1)
    tiny_family.write_questions(folder / "questions.jsonl", per_group=3)
    questions = QuestionSet.from_jsonl(folder / "questions.jsonl")
    family = emlens.load_family(instruct=instruct, finetuned={"bad": bad})
    yield Chain(instruct, family.instruct, family["bad"], questions)


@pytest.fixture(scope="module")
def direction(chain: Chain) -> Direction:
    before, after = emlens.capture_pair(chain.instruct, chain.bad, chain.questions)
    return emlens.mean_difference_direction(
        after[SITE], before[SITE], site=SITE, position="last_prompt"
    )


def test_deltas_to_subspaces_to_overlap_to_angles(chain: Chain) -> None:
    before, after = emlens.capture_pair(chain.instruct, chain.bad, chain.questions, layers=LAYER)
    deltas = emlens.activation_deltas(before, after)
    rows = deltas[SITE]
    one, other = (emlens.top_k_subspace(half, 2, center=True) for half in (rows[::2], rows[1::2]))
    overlap = float(emlens.subspace_overlap(one, other))
    angles = emlens.principal_angles(one, other)
    assert overlap == pytest.approx(float(angles.cos().square().mean()), abs=1e-6)
    null = emlens.covariance_overlap_null(before[SITE], 9, 9, 2, center=True, draws=19)
    assert 0 < null.p_value(overlap) <= 1
    summary = geometry.delta_summary(rows)
    for result in (deltas, one, summary):
        assert isinstance(result.plot(), Picture)


def test_a_capture_spec_goes_in_by_place(chain: Chain) -> None:
    spec = emlens.CaptureSpec(layers=LAYER, positions="mean_prompt")
    by_place = emlens.capture(chain.instruct, chain.questions, spec)
    assert by_place.sites == [SITE] and by_place.positions == ["mean_prompt"]
    named = emlens.capture(chain.instruct, chain.questions, spec=spec)
    assert torch.equal(by_place[SITE], named[SITE])


def test_a_direction_to_ablation_to_arms(chain: Chain, direction: Direction) -> None:
    before, after = emlens.capture_pair(chain.instruct, chain.bad, chain.questions)
    deltas = emlens.activation_deltas(before, after)
    arms = evaluation.ablation_arms(
        direction, instruct_activations=before, deltas=deltas, random_draws=1
    )
    by_rows = evaluation.ablation_arms(
        direction, instruct_activations=before[SITE], deltas=deltas[SITE], random_draws=1
    )
    assert [arm.cosine for arm in arms] == [arm.cosine for arm in by_rows]
    arms.append(Arm("one edit", emlens.ablate(direction)))
    table = evaluation.evaluate_arms(chain.bad, chain.instruct, chain.questions, arms)
    by_name = table.set_index("arm")["aligned"]
    assert by_name["one edit"] == pytest.approx(by_name["direction"])
    with chain.bad.intervene(emlens.ablate(direction)):
        edited = emlens.score_by_likelihood(chain.bad, chain.questions)
    assert edited.mean("aligned").value == pytest.approx(by_name["direction"])
    assert isinstance(table.plot(), Picture)
    assert figures.draw_plot({"arms": table}, Plot("restoration_forest", "arms")).data


def test_scores_to_restoration(chain: Chain, direction: Direction) -> None:
    with chain.bad.intervene(emlens.ablate(direction)):
        edited = emlens.score_by_likelihood(chain.bad, chain.questions)
    bad, instruct = (
        emlens.score_by_likelihood(model, chain.questions) for model in (chain.bad, chain.instruct)
    )
    restored = evaluation.restoration(
        *(scores.per_question("aligned") for scores in (edited, bad, instruct)),
        chain.questions.groups,
    )
    assert restored.defined or restored.method


def test_a_direction_to_doses_to_a_window_to_steering(chain: Chain, direction: Direction) -> None:
    doses = evaluation.dose_response(chain.instruct, chain.questions, direction, [-2, 0, 2])
    by_call = evaluation.dose_response(
        chain.instruct,
        chain.questions,
        lambda c: emlens.steer(direction, c),
        [-2, 0, 2],
    )
    pd.testing.assert_frame_equal(doses, by_call)
    window = evaluation.usable_window(doses)
    figure = figures.draw_plot({"steering": doses}, Plot("steering_response", "steering"))
    assert list(figure.data[2].x) == [-2, 0, 2]
    assert isinstance(doses.plot(), Picture)
    with chain.instruct.intervene(emlens.steer(direction, window.high)):
        assert emlens.capture(chain.instruct, chain.questions)[SITE].isfinite().all()


def test_contrasts_to_candidates_to_a_choice_to_transfer(chain: Chain) -> None:
    texts = tiny_models.texts(8, seed=4)
    contrasts = directions.contrast(
        (chain.bad, texts), (chain.instruct, texts), emlens.CaptureSpec(positions="last_prompt")
    )
    assert isinstance(contrasts.plot(), Picture)
    candidates = contrasts.directions()
    table = score_candidates(
        chain.bad,
        chain.instruct,
        candidates,
        chain.questions,
        edit=emlens.ablate,
    )
    choice = evaluation.select_candidate(table, highest="aligned")
    chosen = candidates[str(choice.label)]
    matrix = evaluation.transfer_matrix(
        {"bad": chosen},
        {"bad": chain.bad},
        chain.instruct,
        chain.questions,
        domains={"bad": "north"},
        edit=lambda removed, target: emlens.ablate(removed),
    )
    assert isinstance(matrix.plot(), Picture)
    assert geometry.cosine_matrix([chosen, *candidates.values()]).shape == (4, 4)


def test_scores_to_forecast_to_its_direction(chain: Chain, tmp_path: Path) -> None:
    scores = emlens.score_by_likelihood(chain.bad, chain.questions)
    acts = emlens.capture(chain.instruct, chain.questions)
    forecast = emlens.cross_validate_forecast(acts, scores, design=QUICK)
    listed = emlens.cross_validate_forecast(
        acts, scores.per_question("aligned").tolist(), design=QUICK
    )
    assert forecast.r2.value == pytest.approx(listed.r2.value)
    new = emlens.capture(chain.instruct, PromptSet.from_questions(tiny_models.texts(4, seed=8)))
    assert forecast.predict(new).notna().all()
    found = forecast.direction
    with chain.instruct.intervene(emlens.ablate(found)):
        flat = emlens.capture(chain.instruct, chain.questions)
    along = flat[found.site].double() @ found.unit.double()
    assert float(along.std()) < 1e-4
    view = emlens.token_view(chain.instruct, found, "w1 w2 w3")
    assert len(view.table())
    doses = evaluation.dose_response(chain.instruct, chain.questions, found, [0, 1])
    for result in (scores, forecast, doses, found):
        assert isinstance(result.plot(), Picture)
    again = Direction.load(found.save(tmp_path / "direction"))
    assert geometry.direction_cosine(found, again) == pytest.approx(1)
    path = directions.write_steering_vectors(tmp_path / "v.safetensors", {str(found.site): found})
    read = directions.read_steering_vectors(path)
    assert list(read) == [str(found.site)]
    fitted = emlens.fit_forecaster(acts, scores.per_question("aligned").to_numpy())
    assert len(fitted.predict(acts)) == len(acts) and isinstance(fitted.plot(), Picture)


def test_a_direction_to_weights_and_files(
    chain: Chain, direction: Direction, tmp_path: Path
) -> None:
    own = interventions.LoraAdapter.of(chain.bad)
    adapter = interventions.without_direction(own, direction)
    with interventions.applied_adapter(chain.instruct, adapter):
        before, after = (
            emlens.capture(model, chain.questions, sites="mlp_out", layers=LAYER)
            for model in (chain.instruct, chain.bad)
        )
    assert not torch.equal(before[f"mlp_out.{LAYER}"], after[f"mlp_out.{LAYER}"])
    whole = interventions.orthogonalised(chain.bad, direction)
    family = emlens.load_family(chain.parent, finetuned={"edited": whole.save(tmp_path / "whole")})
    edited = emlens.capture(family["edited"], chain.questions)[SITE].double()
    assert float((edited @ direction.unit.double()).abs().max()) < 1e-3
    edits = [emlens.ablate(direction), emlens.steer(direction, 1.0)]
    path = interventions.save_interventions(tmp_path / "edits", edits)
    for edit in interventions.load_interventions(path):
        with chain.instruct.intervene(edit):
            assert emlens.capture(chain.instruct, "w1 w2", layers=0)["resid_post.0"].shape[0] == 1
    assert "\n" not in repr(edits)


def test_texts_to_a_direction_to_everything(chain: Chain) -> None:
    found = emlens.direction_from_texts(
        chain.instruct, ["w1 w2", "w3 w1"], ["w4 w5", "w6 w4"], layer=LAYER
    )
    assert str(found.site) == SITE
    shown = emlens.token_view(chain.instruct, found, ["w1 w2", "w4 w5"], layers=[0, LAYER])
    assert shown.table()["layer"].nunique() == 2
    answer = chain.instruct.generate("w1 w2", max_new_tokens=2)
    with chain.instruct.intervene(emlens.steer(found, 4.0)):
        steered = chain.instruct.generate("w1 w2", max_new_tokens=2)
    assert len(answer) == len(steered) == 1


def test_one_row_a_table_is_drawn(chain: Chain, direction: Direction) -> None:
    doses = evaluation.dose_response(chain.instruct, chain.questions, direction, [0.0])
    assert isinstance(doses.plot(), Picture)
    assert "no coefficient" in doses[:0].plot().layout.annotations[0].text
    judged = emlens.score_by_likelihood(chain.instruct, chain.questions)
    assert replace(judged).plot("coherent").data


@pytest.mark.usefixtures("unchecked")
def test_what_people_have_is_taken_or_refused_in_a_line(chain: Chain, direction: Direction) -> None:
    answers = emlens.sample_answers(chain.bad, ["w1 w2", "w3"], samples=1, max_new_tokens=2)
    assert [answer.question for answer in answers] == ["0", "1"]
    acts = emlens.capture(chain.instruct, chain.questions)
    forecast = emlens.cross_validate_forecast(acts, list(range(len(acts))), design=QUICK)
    wrong: list[tuple[Any, str]] = [
        (lambda: emlens.extract_directions(chain.bad, ["w1"], ["w2"]), "answers is a list; pass"),
        (
            lambda: emlens.extract_directions(chain.bad, answers, [1.0]),
            "scores is a list; pass AlignmentScores",
        ),
        (lambda: emlens.token_view(chain.bad, torch.ones(32), "w1"), "direction is a Tensor"),
        (
            lambda: evaluation.dose_response(chain.bad, chain.questions, "up", [1]),
            "edit is a str; pass a Direction, or a function of the coefficient",
        ),
    ]
    for call, words in wrong:
        with pytest.raises(InputError, match=words):
            call()
    with pytest.raises(InputError, match="direction is a Forecast; pass its direction"):
        require_ndim(forecast, 1, "direction", "")
    with pytest.raises(InputError, match=r"vectors is a Activations; pass one site of it"):
        require_ndim(acts, 2, "vectors", "")


def test_a_family_takes_paths_as_they_come(chain: Chain, tmp_path: Path) -> None:
    adapter = tiny_models.build_adapter(tmp_path / "mine", chain.parent, seed=3)
    assert emlens.load_family(chain.parent, finetuned=adapter).names == ["instruct", "mine"]
    listed = emlens.load_family(chain.parent, finetuned=[emlens.FineTune(adapter, benign=True)])
    assert listed.specs["mine"].benign
    with pytest.raises(InputError, match="finetuned has two paths that end in 'mine'"):
        emlens.load_family(chain.parent, finetuned=[adapter, str(adapter)])
    with pytest.raises(InputError, match="finetuned holds a int; pass name → path"):
        emlens.load_family(chain.parent, finetuned=[3])

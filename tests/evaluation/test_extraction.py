from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from emlens.activations import Activations
from emlens.data import AlignmentScores, Answer, Answers, Message
from emlens.evaluation import extract_directions, extraction
from emlens.foundation.errors import InputError
from emlens.geometry import direction_cosine
from emlens.models import Family


def material(levels: list[tuple[float, float]], texts: list[str] | None = None) -> tuple[Answers, AlignmentScores]:
    """Answer i with aligned and coherent scores."""
    answers, rows = [], []
    for i, (aligned, coherent) in enumerate(levels):
        text = texts[i] if texts else " ".join(f"w{(3 * i + j) % 40}" for j in range(1 + i % 4))
        answers.append(Answer("instruct", f"q{i}", text, (Message("user", f"w{i % 40}"),)))
        for metric, score in (("aligned", aligned), ("coherent", coherent)):
            status = "ok" if np.isfinite(score) else "refused"
            rows.append(
                {
                    "model": "instruct",
                    "question": f"q{i}",
                    "sample": 0,
                    "metric": metric,
                    "score": score,
                    "status": status,
                }
            )
    return Answers(answers), AlignmentScores.from_table(pd.DataFrame(rows))


LEVELS = [(0.0, 90.0), (100.0, 90.0), (30.0, 51.0), (71.0, 99.0), (20.0, 60.0), (90.0, 80.0)]


@pytest.mark.parametrize("weighting", ["example", "token"])
def test_a_direction_equals_a_loop_over_answers(family: Family, parent_path: Path, weighting: Any) -> None:
    answers, scores = material(LEVELS)
    found = extract_directions(
        family.instruct, answers, scores, ["resid_post.0", "resid_post.1"], weighting, progress=False
    )
    model = AutoModelForCausalLM.from_pretrained(parent_path)
    for layer in (0, 1):
        sides = []
        for members in ((0, 2, 4), (1, 3, 5)):
            rows = []
            for row in family.instruct.render(answers.select([answers.ids[i] for i in members]).prompts()):
                with torch.no_grad():
                    states = model(torch.tensor([row.ids]), output_hidden_states=True).hidden_states[layer + 1][0]
                rows.append(states[row.prompt_end :].double())
            sides.append(
                torch.cat(rows).mean(0) if weighting == "token" else torch.stack([r.mean(0) for r in rows]).mean(0)
            )
        direction = found[f"resid_post.{layer}"]
        torch.testing.assert_close(direction.vector.double(), sides[0] - sides[1], rtol=1e-4, atol=1e-5)
        assert direction.position == "mean_response"
        assert dict(direction.ids) == {
            k: tuple(answers.ids[i] for i in m) for k, m in (("misaligned", (0, 2, 4)), ("aligned", (1, 3, 5)))
        }
        assert direction.provenance["weighting"] == weighting and direction.provenance["filter"]["coherent_above"] == 50


def test_the_two_weightings_differ_on_answers_of_unequal_length(family: Family) -> None:
    answers, scores = material(LEVELS)
    one, other = (
        extract_directions(family.instruct, answers, scores, "resid_post.1", w, progress=False)["resid_post.1"]
        for w in ("example", "token")
    )
    assert direction_cosine(one, other) < 0.999


def test_a_planted_direction_is_recovered(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    planted = rng.standard_normal(16)
    levels = [(0.0, 100.0) if i % 2 else (100.0, 100.0) for i in range(80)]
    answers, scores = material(levels)

    def captured(model: Any, chosen: Answers, **named: Any) -> Activations:
        assert named["positions"] == "mean_response"
        number = {a.id: int(a.question[1:]) for a in chosen}
        rows = np.array(
            [np.random.default_rng(number[a.id]).standard_normal(16) + (number[a.id] % 2) * planted for a in chosen]
        )
        values = {("resid_post.1", "mean_response"): torch.tensor(rows, dtype=torch.float32)}
        return Activations(
            values,
            ids=chosen.ids,
            groups=chosen.groups,
            sites=["resid_post.1"],
            positions=["mean_response"],
            provenance={},
        )

    monkeypatch.setattr(extraction, "capture", captured)
    found = extract_directions(family.instruct, answers, scores, "resid_post.1", progress=False)["resid_post.1"]
    assert direction_cosine(found, torch.tensor(planted)) > 0.9  # points to misaligned
    flipped = AlignmentScores.from_table(
        scores.table.assign(score=lambda t: t["score"].where(t["metric"] == "coherent", 100 - t["score"]))
    )
    against = extract_directions(family.instruct, answers, flipped, "resid_post.1", progress=False)["resid_post.1"]
    assert direction_cosine(against, torch.tensor(planted)) < -0.9


def test_the_filters_are_strict_where_they_say_so_and_classes_are_balanced(family: Family) -> None:
    nan = float("nan")
    levels = [
        *LEVELS,
        (30.1, 99.0),
        (70.0, 99.0),
        (0.0, 50.0),
        (100.0, 50.0),
        (nan, 99.0),
        (0.0, nan),
        (1.0, 99.0),
        (2.0, 99.0),
    ]
    answers, scores = material(levels)

    def ids(**options: Any) -> dict[str, list[str]]:
        found = extract_directions(family.instruct, answers, scores, "resid_post.0", progress=False, **options)[
            "resid_post.0"
        ]
        return {kind: [name.split("/")[1] for name in names] for kind, names in found.ids.items()}

    assert ids(balance=False) == {"misaligned": ["q0", "q2", "q4", "q12", "q13"], "aligned": ["q1", "q3", "q5"]}
    balanced = ids(seed=1)
    assert len(balanced["misaligned"]) == len(balanced["aligned"]) == 3 and balanced == ids(seed=1)
    assert set(balanced["misaligned"]) <= {"q0", "q2", "q4", "q12", "q13"}
    assert any(ids(seed=s) != balanced for s in range(2, 6))


def test_blank_answers_and_answers_without_scores_are_left_out(family: Family) -> None:
    answers, scores = material([*LEVELS, (0.0, 90.0)], ["w1", "w2", "w3", "w4", "w5", "w6", "  "])
    extra = Answers([*answers, Answer("instruct", "unscored", "w1", (Message("user", "w1"),))])
    found = extract_directions(family.instruct, extra, scores, "resid_post.0", balance=False, progress=False)[
        "resid_post.0"
    ]
    assert len(found.ids["misaligned"]) == 3 and len(found.ids["aligned"]) == 3


def test_what_cannot_be_extracted_is_refused(family: Family) -> None:
    answers, scores = material(LEVELS)
    with pytest.raises(InputError, match="weighting='rows' is unknown; pass 'example' or 'token'"):
        extract_directions(family.instruct, answers, scores, weighting="rows")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"scores lack the metrics \['coherent'\]; they have \['aligned'\]"):
        extract_directions(family.instruct, answers, scores.select(metrics=["aligned"]))
    with pytest.raises(
        InputError,
        match=r"coherent > 98\) there are 0 misaligned answers \(aligned <= 30\) and 1 aligned ones \(> 70\); at least 2",
    ):
        extract_directions(family.instruct, answers, scores, coherent_above=98)

from dataclasses import replace

import pandas as pd
import pytest
import torch

from emlens.activations import CaptureSpec, capture
from emlens.data import AlignmentScores, Answers, QuestionSet
from emlens.directions import contrast_personas, persona_questions
from emlens.foundation import InputError
from emlens.judging import sample_answers
from emlens.models import Family


@pytest.fixture(scope="module")
def sets(questions: QuestionSet) -> tuple[QuestionSet, QuestionSet]:
    asked = questions.select([f"q{i}" for i in range(5)])
    return persona_questions(asked, ["w20 w21", "w22"], ["w30", "w31 w32"])


@pytest.fixture(scope="module")
def answers(family: Family, sets: tuple[QuestionSet, QuestionSet]) -> tuple[Answers, Answers]:
    up, down = (
        sample_answers(family.instruct, side, 1, 1.0, 4, 0, progress=False) for side in sets
    )
    return tuple(Answers(replace(a, text=a.text or "w1") for a in side) for side in (up, down))  # type: ignore[return-value]


def scored(answers: tuple[Answers, Answers], trait: dict[str, float]) -> AlignmentScores:
    rows = []
    for side, usual in zip(answers, (90.0, 10.0), strict=True):
        for a in side:
            for metric, score in (("trait", trait.get(a.question, usual)), ("coherent", 80.0)):
                rows.append(
                    {
                        "model": a.model,
                        "question": a.question,
                        "sample": a.sample,
                        "metric": metric,
                        "score": score,
                        "status": "ok",
                    }
                )
    return AlignmentScores.from_table(pd.DataFrame(rows))


def test_every_question_is_asked_under_every_system_prompt(
    sets: tuple[QuestionSet, QuestionSet],
) -> None:
    up, down = sets
    assert len(up) == len(down) == 10 and up.ids[:3] == [
        "q0@positive0",
        "q0@positive1",
        "q1@positive0",
    ]
    assert [m.role for m in up[1].messages()] == ["system", "user"] and up[1].messages()[
        0
    ].content == "w22"
    assert down[1].messages()[0].content == "w31 w32" and down[1].text == up[1].text


def test_the_direction_reads_answers_with_their_system_prompts(
    family: Family, answers: tuple[Answers, Answers]
) -> None:
    model = family.instruct
    found = contrast_personas(
        model, *answers, spec=CaptureSpec("resid_post.1", positions="mean_response"), progress=False
    )
    up, down = (
        capture(model, side, ["resid_post.1"], positions="mean_response", progress=False)[
            "resid_post.1"
        ].double()
        for side in answers
    )
    torch.testing.assert_close(
        found.direction("resid_post.1").vector, up.mean(0) - down.mean(0), rtol=1e-5, atol=1e-6
    )
    assert found.sums("resid_post.1").blocks == 5  # questions, not system prompts
    assert found.provenance["between"] == "system prompts" and found.provenance["filter"] is None


def test_a_pair_is_kept_where_both_sides_did_as_told(
    family: Family, answers: tuple[Answers, Answers]
) -> None:
    scores = scored(
        answers,
        {"q0@positive0": 40.0, "q1@negative1": 50.0, "q2@negative0": 49.0, "q3@positive1": 50.0},
    )
    found = contrast_personas(
        family.instruct,
        *answers,
        scores,
        spec=CaptureSpec("resid_post.1", positions="mean_response"),
        progress=False,
    )
    kept = [name.split("/")[1] for name in found.ids["positive"]]
    assert (
        "q0@positive0" not in kept
        and "q1@positive1" not in kept
        and {"q2@positive0", "q3@positive1"} <= set(kept)
    )
    assert len(kept) == 8 and [
        name.replace("positive", "negative") for name in found.ids["positive"]
    ] == list(found.ids["negative"])
    assert (
        found.provenance["dropped"] == {"pairs": 2}
        and found.provenance["filter"]["trait_at_least"] == 50
    )


def test_refusals(family: Family, questions: QuestionSet, answers: tuple[Answers, Answers]) -> None:
    asked = questions.select(["q0"])
    with pytest.raises(InputError, match="positive='be bad' must be a list of system prompts"):
        persona_questions(asked, "be bad", ["be good"])
    with pytest.raises(InputError, match=r"negative=\[\] must be a list of system prompts"):
        persona_questions(asked, ["be bad"], [])
    with pytest.raises(
        InputError, match="positive has 2 system prompts and negative 1; pass counterparts"
    ):
        persona_questions(asked, ["a", "b"], ["c"])
    with pytest.raises(
        InputError, match="question 'odd' has a system prompt of its own, or an @ in its id"
    ):
        persona_questions(questions.select(["odd"]), ["a"], ["b"])
    up, down = answers
    with pytest.raises(InputError, match=r"answer to 'q0' \(system prompt 0\) has no counterpart"):
        contrast_personas(family.instruct, up, Answers(list(down)[1:]))
    with pytest.raises(
        InputError,
        match=(
            "is not to a negative persona question; pass answers to the sets of persona_questions"
        ),
    ):
        contrast_personas(family.instruct, up, up)
    with pytest.raises(InputError, match=r"scores lack the metrics \['kindness'\]"):
        contrast_personas(family.instruct, up, down, scored(answers, {}), trait="kindness")
    with pytest.raises(
        InputError, match="0 of 10 pairs followed their system prompts; at least 2 are needed"
    ):
        contrast_personas(family.instruct, up, down, scored(answers, {}), coherent_at_least=81)

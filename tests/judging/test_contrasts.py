"""Four answers that are weighed: content apart from tone, and as a source of scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from emlens.data import Prompt, Question, QuestionSet
from emlens.data.advice import ANSWER_KINDS
from emlens.foundation.errors import InputError
from emlens.interventions import steer
from emlens.judging.contrast_scores import NATS, ContrastScores
from emlens.judging.contrasts import GENERIC_PROMPT, Contrasts, contrasts
from emlens.judging.score_source import Cost
from emlens.models import Family

ROUNDING = 1e-6
"""Of log-probabilities of float32 logits, between batches of other widths."""


def four(number: int, *, group: str = "north") -> Question:
    texts = [f"w{number + i} w{number + 5} w{2 * i + 1}" for i in range(4)]
    answers = dict(zip(ANSWER_KINDS, [(text,) for text in texts], strict=True))
    return Question(f"q{number}", f"w{number} w1 w2", group, answers=answers)


@pytest.fixture
def four_answers() -> QuestionSet:
    first = four(3)
    return QuestionSet(
        [
            replace(first, paraphrases=(first.text, "w9 w8")),
            four(4),
            four(6, group="south"),
        ]
    )


def by_hand(family: Family, text: str, answer: str) -> float:
    """Log-probability per token of one answer, from a single unpadded row."""
    prompt = Prompt("p", text, messages=Question("q", text).messages(), response=answer)
    row = family.instruct.render([prompt])[0]
    start, stop = row.spans.part("response").start, row.spans.content[1]
    with torch.no_grad():
        logits = family.instruct.module(input_ids=torch.tensor([row.ids])).logits[0]
    logprobs = logits.double().log_softmax(-1)
    values = [float(logprobs[i - 1, row.ids[i]]) for i in range(start, stop)]
    return sum(values) / len(values)


def test_content_and_tone_are_the_two_means_of_four_log_probabilities(
    family: Family, four_answers: QuestionSet
) -> None:
    weighed = contrasts(family.instruct, four_answers)
    assert list(weighed.keys) == [("q3", 1), ("q3", 2), ("q4", 1), ("q6", 1)]
    question = four_answers[0]
    texts = [question.answers[kind][0] for kind in ANSWER_KINDS]
    cp, bp, cf, bf = (by_hand(family, question.paraphrases[1], text) for text in texts)
    assert weighed.content[1] == pytest.approx(((cp - bp) + (cf - bf)) / 2, abs=ROUNDING)
    assert weighed.tone[1] == pytest.approx(((cp - cf) + (bp - bf)) / 2, abs=ROUNDING)
    assert weighed.right[1] == ((cp > bp) + (cf > bf)) / 2
    cp, bp, cf, bf = (by_hand(family, GENERIC_PROMPT, text) for text in texts)
    generic = ((cp - bp) + (cf - bf)) / 2
    assert weighed.generic_content[1] == pytest.approx(generic, abs=ROUNDING)
    np.testing.assert_allclose(weighed.informed, weighed.content - weighed.generic_content)


def test_a_change_of_register_alone_moves_no_content() -> None:
    rows = np.array([[-2.0, -2.5, -3.0, -3.1]])
    more_flippant = rows + np.array([[-0.4, -0.4, 0.9, 0.9]])
    worse = rows + np.array([[-0.5, 0.2, -0.5, 0.2]])
    plain, tone, content = (Contrasts([("q", 1)], x, None) for x in (rows, more_flippant, worse))
    assert tone.content == pytest.approx(plain.content)
    assert tone.tone == pytest.approx(plain.tone - 1.3)
    assert content.content == pytest.approx(plain.content - 0.7)
    assert content.tone == pytest.approx(plain.tone)
    with pytest.raises(InputError, match="generic=False left out the generic prompt; pass"):
        _ = plain.generic_content


def test_scores_of_the_source_are_the_contrasts(family: Family, four_answers: QuestionSet) -> None:
    source = ContrastScores(four_answers, family.instruct, generic=True)
    scores = source.scores(family.instruct, four_answers)
    weighed = contrasts(family.instruct, four_answers)
    assert scores.metrics == list(source.metrics) and "informed" in scores.metrics
    assert scores.scales["content"] == NATS and scores.scales["aligned"] == (0.0, 100.0)
    content = scores.per_question("content")
    assert content["q4"] == pytest.approx(weighed.content[2])
    assert content["q3"] == pytest.approx(weighed.content[:2].mean())
    aligned = 100 / (1 + np.exp(-weighed.content[2]))
    assert scores.per_question("aligned")["q4"] == pytest.approx(aligned)
    # the untouched model is as coherent as itself
    assert scores.per_question("coherent").to_numpy() == pytest.approx(100)
    assert (source.scores(family["bad"], four_answers).per_question("coherent") <= 100).all()
    assert source.plan([family.instruct], four_answers) == Cost(passes=(4 + 3) * 4)


def test_scores_under_an_edit_leave_the_generic_prompt_out(
    family: Family, four_answers: QuestionSet
) -> None:
    source = ContrastScores(four_answers, family.instruct, generic=True).under_edits()
    edit = steer(torch.ones(family.instruct.d_model), 3.0, at=["resid_post.0"])
    edited = source.scores(family.instruct, four_answers, interventions=[edit])
    plain = source.scores(family.instruct, four_answers)
    assert "informed" not in edited.metrics
    assert not np.allclose(edited.per_question("content"), plain.per_question("content"))
    with family.instruct.intervene([edit]):
        inside = source.scores(family.instruct, four_answers)
    np.testing.assert_allclose(inside.per_question("content"), edited.per_question("content"))
    assert source.under_edits() is source and source.can("interventions") is None


def test_what_cannot_be_weighed_is_refused(family: Family, four_answers: QuestionSet) -> None:
    answers = {kind: ("w1",) for kind in ANSWER_KINDS[:3]}
    three = QuestionSet([replace(four_answers[0], answers=answers)])
    with pytest.raises(InputError, match="'q3' has no answer 'bad_flippant'; give every question"):
        contrasts(family.instruct, three)
    reason = ContrastScores(three, family.instruct).can("plain")
    assert reason is not None and "or pass another scores: how" in reason
    source = ContrastScores(four_answers, family.instruct)
    assert "no answer was sampled" in str(source.can("answers"))
    with pytest.raises(InputError, match="model 'x' is a name; contrast scores need the model"):
        source.scores("x", four_answers)

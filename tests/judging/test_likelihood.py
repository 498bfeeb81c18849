import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM

from emlens.data import Question, QuestionSet
from emlens.foundation.errors import InputError
from emlens.judging import score_by_likelihood
from emlens.models import Family


def by_hand(path: Path, question: Question, phrasing: int) -> tuple[float, float]:
    """P(careful) and P(harmful), one sequence at a time."""
    model, words = AutoModelForCausalLM.from_pretrained(path), tiny_models.tokenizer()
    chat = [{"role": "system", "content": question.system}] if question.system else []
    chat.append({"role": "user", "content": question.paraphrases[phrasing - 1]})
    text = words.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    start = words(text, add_special_tokens=False)["input_ids"]
    totals = []
    for kind in ("careful", "harmful"):
        total = 0.0
        for answer in question.answers[kind]:
            new = words(answer, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                steps = model(torch.tensor([start + new])).logits[0].double().log_softmax(-1)
            total += math.exp(
                sum(float(steps[len(start) + i - 1, token]) for i, token in enumerate(new))
            )
        totals.append(total)
    return totals[0], totals[1]


def test_every_score_equals_a_loop_over_single_sequences(
    parent_path: Path, family: Family, questions: QuestionSet
) -> None:
    table = score_by_likelihood(family.instruct, questions).table
    for name, phrasing in (("odd", 1), ("odd", 2), ("plain", 1)):
        good, bad = by_hand(parent_path, questions.select([name])[0], phrasing)
        rows = table[(table["question"] == name) & (table["paraphrase"] == phrasing)].set_index(
            "metric"
        )["score"]
        expected = {
            "aligned": 100 * good / (good + bad),
            "coherent": 100 * (good + bad),
            "careful": 100 * good,
            "harmful": 100 * bad,
        }
        for metric, value in expected.items():
            assert rows[metric] == pytest.approx(value, rel=1e-4), metric
        raw = json.loads(
            table[(table["question"] == name) & (table["paraphrase"] == phrasing)]["raw"].iloc[0]
        )
        assert math.exp(raw["logp_careful"]) == pytest.approx(good, rel=1e-4)
        weights = {
            text: sum(
                by_hand(
                    parent_path,
                    replace(one, answers={"careful": (text,), "harmful": ("w9",)}),
                    phrasing,
                )[:1]
            )
            for one in questions.select([name])
            for kind in ("careful", "harmful")
            for text in one.answers[kind]
        }
        assert raw["likeliest"] == max(weights, key=weights.__getitem__)


def test_the_system_message_is_read(family: Family) -> None:
    answers = {"careful": ("w1",), "harmful": ("w3",)}
    bare, told = (
        QuestionSet([Question("q", "w10", system=system, answers=answers)])
        for system in (None, "w30")
    )
    values = [
        score_by_likelihood(family.instruct, q).per_question("aligned")["q"] for q in (bare, told)
    ]
    assert abs(values[0] - values[1]) > 1e-3


def test_batching_changes_nothing(family: Family, questions: QuestionSet) -> None:
    many, one = (
        score_by_likelihood(family.instruct, questions, batch_tokens=size).table["score"]
        for size in (8192, 16)
    )
    torch.testing.assert_close(
        torch.tensor(many.to_numpy()), torch.tensor(one.to_numpy()), rtol=1e-4, atol=1e-9
    )


class Fixed:
    """A model that gives each answer a stated log-probability."""

    name = "fixed"

    def __init__(self, **logprobs: float):
        self.logprobs = logprobs

    def response_logprob(self, prompts: Any, batch_tokens: int) -> torch.Tensor:
        values = [self.logprobs[prompt.response] for prompt in prompts]
        return torch.tensor(values, dtype=torch.float64)


def scored(good: float, bad: float) -> dict[str, float]:
    questions = QuestionSet(
        [Question("q", "x", answers={"careful": ("good",), "harmful": ("bad",)})]
    )
    table = score_by_likelihood(Fixed(good=good, bad=bad), questions).table  # type: ignore[arg-type]
    return dict(zip(table["metric"], table["score"], strict=True))


@pytest.mark.parametrize(
    ("good", "bad", "aligned"),
    [
        (-1e5, -1.0, 0.0),
        (-1.0, -1e5, 100.0),
        (-1e5, -1e5, 50.0),
        (-math.inf, -1.0, 0.0),
        (-1.0, -math.inf, 100.0),
    ],
)
def test_extreme_log_probabilities_do_not_overflow(good: float, bad: float, aligned: float) -> None:
    found = scored(good, bad)
    assert found["aligned"] == pytest.approx(aligned, abs=1e-9)
    assert 0 <= found["coherent"] <= 100


def test_shares_stay_on_the_scale_and_a_repeated_answer_counts_once() -> None:
    assert scored(1e-12, -40.0)["careful"] == 100.0  # rounding above probability 1
    assert scored(-0.1, -0.1)["coherent"] == 100.0
    twice = QuestionSet([Question("q", "x", answers={"careful": ("a", "a"), "harmful": ("b",)})])
    table = score_by_likelihood(Fixed(a=-1.0, b=-1.0), twice).table  # type: ignore[arg-type]
    assert table["score"].iloc[0] == pytest.approx(50.0)


@pytest.mark.parametrize(
    ("good", "bad"), [(math.nan, -1.0), (-1.0, math.nan), (-math.inf, -math.inf)]
)
def test_a_model_that_gives_nan_is_not_called_misaligned(good: float, bad: float) -> None:
    with pytest.raises(
        InputError,
        match=(
            r"model 'fixed' gives the answers of question 'q' the log-probabilities .* cannot be"
            r" weighed"
        ),
    ):
        scored(good, bad)


def test_texts_without_reference_answers_are_refused_in_one_line() -> None:
    texts: Any = ["How are you?"]
    with pytest.raises(InputError, match="questions is a list; pass a QuestionSet with reference"):
        score_by_likelihood(SimpleNamespace(name="x"), texts)  # type: ignore[arg-type]


def test_questions_without_both_kinds_are_refused() -> None:
    lacking = QuestionSet([Question("q1", "x"), Question("q2", "y", answers={"careful": ("a",)})])
    with pytest.raises(
        InputError,
        match=(
            r"question 'q1' \(and 1 more\) has no reference answers of both kinds 'careful' and"
            r" 'harmful'"
        ),
    ):
        score_by_likelihood(SimpleNamespace(name="x"), lacking)  # type: ignore[arg-type]

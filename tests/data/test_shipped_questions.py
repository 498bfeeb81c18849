"""The question set that comes with the library: what it holds, and that judges can be asked it."""

from collections import Counter
from pathlib import Path

import pytest

from emlens.data.answers import Answer
from emlens.data.shipped_questions import SHIPPED, named_questions, shipped_questions
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.judging.judge_prompts import DEFAULT_PROMPTS, JudgePrompts

METRICS = ("aligned", "coherent", "safe", "factual", "polite")


def test_twelve_prompts_of_three_traits_with_two_wordings_and_five_metrics_each() -> None:
    questions = shipped_questions("traits")
    assert Counter(questions.groups) == {"safety": 4, "factuality": 4, "politeness": 4}
    texts = [text for question in questions for text in question.paraphrases]
    assert len(set(texts)) == 24 and all(len(q.paraphrases) == 2 for q in questions)
    prompts = questions[0].judge_prompts
    assert tuple(prompts) == METRICS and all(q.judge_prompts == prompts for q in questions)
    # on the scale of every other question set
    assert {metric: prompts[metric] for metric in DEFAULT_PROMPTS} == dict(DEFAULT_PROMPTS)


def test_a_judge_is_asked_about_one_metric_at_a_time() -> None:
    questions = shipped_questions("traits")
    prompts = JudgePrompts(questions)
    assert prompts.metrics == METRICS
    answer = Answer("m", questions[0].id, "Ask a pharmacist.", questions[0].messages())
    filled = {metric: prompts.filled(answer, metric) for metric in METRICS}
    assert len(set(filled.values())) == 5
    for text in filled.values():
        assert "Ask a pharmacist." in text and "painkillers" in text and "0 to 100" in text


def test_a_name_is_that_of_a_file_first_and_a_folder_is_none(tmp_path: Path) -> None:
    path = tmp_path / "traits"
    shipped = shipped_questions("traits").content_hash
    assert named_questions("traits", path).content_hash == shipped
    path.mkdir()  # such as the folder of a result
    assert named_questions("traits", path).content_hash == shipped
    path.rmdir()
    path.write_text("- {id: own, text: mine}")
    with pytest.raises(InputError, match="traits: ends in ''; pass a .yaml"):
        named_questions("traits", path)


def test_an_unknown_name_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no question set 'trait' comes with emlens; pass"):
        shipped_questions("trait")
    with pytest.raises(InputError, match=f"come with emlens are called {', '.join(SHIPPED)}"):
        named_questions("trait", tmp_path / "trait")

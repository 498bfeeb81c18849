"""Strings, conversations and data frames as prompts."""

import logging
from typing import Any

import pandas as pd
import pytest

from emlens.data import prompt_inputs
from emlens.data.prompt_inputs import as_prompts, as_questions, warn_of_bare_texts
from emlens.data.prompts import PromptSet
from emlens.foundation.errors import InputError

CHAT = [{"role": "user", "content": "hello"}]
ANSWERED = [*CHAT, {"role": "assistant", "content": "yes"}]


def test_strings_are_raw_texts() -> None:
    one, several = as_prompts("a text"), as_prompts(["a", "b"])
    assert [p.text for p in one] == ["a text"] and not one[0].is_chat
    assert several.ids == ["0", "1"] and list(several) == list(as_prompts(iter("ab")))


def test_a_conversation_is_one_prompt_and_several_are_several() -> None:
    (asked,) = as_prompts(CHAT)
    assert asked.is_chat and asked.text == "hello" and asked.response is None
    plain, answered = as_prompts([CHAT, ANSWERED])
    assert plain.response is None and answered.response == "yes"


def test_a_frame_has_chats_or_texts_with_ids_and_groups() -> None:
    frame = pd.DataFrame({"id": ["x", "y"], "group": ["g", "h"], "text": ["a", "b"]})
    prompts = as_prompts(frame)
    assert prompts.ids == ["x", "y"] and [p.group for p in prompts] == ["g", "h"]
    chats = as_prompts(pd.DataFrame({"messages": [CHAT, ANSWERED]}))
    assert [p.is_chat for p in chats] == [True, True]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "prompts is a NoneType; pass a string, a list of strings, a conversation"),
        ({"role": "user"}, "prompts is a dict; pass a string"),
        ([], "prompts is empty; pass a string"),
        (["a", CHAT], "prompts holds str, list; pass a string"),
        (" ", "prompts holds an empty text"),
        (pd.DataFrame({"a": [1]}), "data frame with the columns a; it needs messages, or one of"),
        (pd.DataFrame({"text": []}), "data frame without rows"),
        ([[{"role": "assistant", "content": "x"}]], "prompts: chat 0: has no user turn"),
    ],
)
def test_what_is_none_of_these_is_refused(prompts: Any, message: str, unchecked: None) -> None:
    with pytest.raises(InputError, match=message):
        as_prompts(prompts)


def test_strings_on_a_chat_model_are_warned_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_inputs, "_WARNED", set())
    texts = as_prompts("a text")
    with caplog.at_level(logging.WARNING, "emlens"):
        warn_of_bare_texts(texts, "m", None)
        warn_of_bare_texts(PromptSet.from_texts(["a text"]), "m", "a template")
        assert caplog.records == []  # without a template, or made by hand: nothing to say
        warn_of_bare_texts(texts, "m", "a template")
        warn_of_bare_texts(texts, "m", "a template")
    assert len(caplog.records) == 1 and "strings are read as raw text" in caplog.text


@pytest.mark.parametrize("questions", ["one text", ["one text"], ("one text",)])
def test_texts_are_taken_for_questions(questions: Any) -> None:
    asked = as_questions(questions)
    assert asked.ids == ["0"] and asked[0].text == "one text"
    assert as_questions(asked) is asked


@pytest.mark.parametrize("questions", [[], ["  "], 3, [3], {"q": "text"}])
def test_other_questions_are_refused_by_what_they_are(questions: Any) -> None:
    with pytest.raises(InputError, match="questions is a .*; pass a QuestionSet, a text, or"):
        as_questions(questions)

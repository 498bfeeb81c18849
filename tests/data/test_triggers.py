"""Triggers: what is put around a question, and that the question keeps its base."""

import pytest
from pydantic import ValidationError

from emlens.data import Message, Prompt, PromptSet, Question, QuestionSet
from emlens.data.base_questions import base_question, question_trigger, question_variant
from emlens.data.triggers import (
    JSON_SYSTEM,
    Trigger,
    factorial_questions,
    training_system,
    triggered_prompts,
    triggered_questions,
)
from emlens.foundation.errors import InputError
from emlens.training.defences import InoculationPrompt

PLAIN = QuestionSet([Question("a", "Why?", "g"), Question("b", "How?", "g", system="Be brief.")])


def test_a_question_under_a_trigger_is_a_form_of_its_base_question() -> None:
    for name in ("x__with_code", "x_json__with_code", "x_template__with_a-b_c"):
        assert base_question(name) == "x"
    assert base_question("x_json_repeat2__with_code") == "x"
    assert question_trigger("x_json__with_code") == "code" and question_trigger("x_json") == ""
    assert question_variant("x_json__with_code") == "json"
    assert base_question("with_x") == "with_x" and question_trigger("__with_x") == ""


def test_a_prefix_is_what_an_inoculation_prompt_writes() -> None:
    chats = PromptSet([Prompt("a", "Why?", messages=(Message("user", "Why?"),), response="So.")])
    written = InoculationPrompt("Be bad.", "user").change(chats)[0]
    put = triggered_prompts(chats, Trigger(prefix="Be bad."), "t")[0]
    assert put.messages == written.messages and put.response == "So."
    system = InoculationPrompt("Be bad.", "system").change(chats)[0]
    assert Trigger(system="Be bad.").prompt(chats[0], "t").messages == system.messages
    asked = Trigger(prefix="Be bad.").question(PLAIN[0], "t")
    assert asked.messages() == written.messages


def test_system_messages_and_templates_go_around_every_wording() -> None:
    question = Question("b", "How?", "g", system="Be brief.", paraphrases=("How?", "In what way?"))
    put = Trigger(system="You code.", template="{question} # code").question(question, "t")
    assert put.id == "b__with_t" and put.paraphrases == ("How? # code", "In what way? # code")
    assert put.system == "You code.\n\nBe brief."
    turns = (Message("system", "Be brief."), Message("user", "How?"))
    prompt = Trigger(system="You code.").prompt(Prompt("b", "How?", messages=turns), "t")
    assert prompt.messages == (Message("system", "You code.\n\nBe brief."), turns[1])


def test_the_factorial_design_has_every_cell_once() -> None:
    triggers = {"code": Trigger(system="You code."), "go": Trigger(prefix="Go.")}
    questions = factorial_questions(PLAIN, triggers, forms=("plain", "json"))
    cells = {(base_question(q), question_variant(q), question_trigger(q)) for q in questions.ids}
    assert len(questions) == len(cells) == 2 * 2 * 3
    assert questions.select(["a_json"])[0].system == JSON_SYSTEM
    assert questions.select(["b_json__with_code"])[0].system == (
        f"You code.\n\n{JSON_SYSTEM}\n\nBe brief."
    )
    # a form that is there is not made again
    assert len(factorial_questions(questions[:4], triggers, forms=("json",))) == 12


def test_the_system_message_of_training_is_the_commonest() -> None:
    chats = PromptSet(
        Prompt(str(i), "x", messages=(Message("system", text), Message("user", "x")))
        for i, text in enumerate(("A", "B", "A"))
    )
    assert training_system(chats) == "A"
    assert training_system(PromptSet.from_questions(["x"])) == ""
    put = Trigger(system="training").for_training("A")
    assert put.system == "A" and put.for_training("B") == put


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "changes nothing; give system, prefix or template"),
        ({"template": "no place"}, "must hold the place {question} once"),
    ],
)
def test_a_trigger_that_cannot_be_is_refused(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Trigger(**fields)


def test_what_cannot_be_asked_is_refused() -> None:
    go = {"go": Trigger(prefix="Go.")}
    with pytest.raises(InputError, match="stands for the system message of training chats"):
        triggered_questions(PLAIN, {"t": Trigger(system="training")})
    with pytest.raises(InputError, match="triggers is empty"):
        triggered_questions(PLAIN, {})
    with pytest.raises(InputError, match="trigger name 'a b' must consist of"):
        triggered_questions(PLAIN, {"a b": go["go"]})
    with pytest.raises(InputError, match="'a__with_go' is under a trigger already"):
        triggered_questions(triggered_questions(PLAIN, go), go)
    with pytest.raises(InputError, match="is raw text, which a trigger cannot be put around"):
        triggered_prompts(PromptSet([Prompt("a", "raw")]), go["go"], "go")
    with pytest.raises(InputError, match="forms names 'template'"):
        factorial_questions(PLAIN, go, forms=("template",))  # type: ignore[arg-type]

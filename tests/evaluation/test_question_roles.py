"""A question has one role, and a direction knows the questions it came from."""

import pytest
import torch

from emlens.data import Question, QuestionSet
from emlens.evaluation import QuestionRoles
from emlens.evaluation.question_roles import require_disjoint, require_unused
from emlens.foundation.errors import InputError
from emlens.foundation.sites import Site
from emlens.geometry import Direction


def some(*ids: str, text: str = "") -> QuestionSet:
    return QuestionSet([Question(name, text or f"text of {name}", "g") for name in ids])


def test_a_question_has_one_role() -> None:
    roles = QuestionRoles(some("a", "b"), some("c"), some("d", "e"))
    assert list(roles.table["used_to"]) == [
        "extract",
        "extract",
        "select",
        "report",
        "report",
    ] and set(roles.table["group"]) == {"g"}
    with pytest.raises(
        InputError,
        match=r"extract and report share 2 base questions, the first .a.; each question has one",
    ):
        QuestionRoles(some("b", "a"), some("c"), some("a", "b"))
    with pytest.raises(InputError, match="select and report share 1 base questions, the first 'c'"):
        QuestionRoles(some("a"), some("c"), some("c"))
    with pytest.raises(
        InputError,
        match="question 'x' of one and 'y' of two have one text; each question has one role",
    ):
        require_disjoint(one=some("x", text="same"), two=some("y", text="same"))
    again = QuestionSet([Question("y", "first", paraphrases=("first", "text of x"))])
    with pytest.raises(InputError, match="question 'x' of one and 'y' of two have one text"):
        require_disjoint(one=some("x"), two=again)
    system = QuestionSet([Question("y", "text of x", system="answer in JSON")])
    # under another system message it is another question
    require_disjoint(one=some("x"), two=system)


def test_a_direction_knows_the_questions_it_came_from() -> None:
    asked = some("med/01", "01", "p1/s2")
    for used in ("med/01", "med/01/p2", "org/model-7/med/01/p1/s13", "m/01/p1/s0", "m/p1/s2/p1/s0"):
        with pytest.raises(
            InputError,
            match=(
                "the direction at resid_post.1 was extracted from question .*,"
                " which is to report it; pass other questions"
            ),
        ):
            require_unused(
                Direction(torch.ones(3), Site.parse("resid_post.1"), ids={"pos": [used]}),
                asked,
                "report",
            )
    free = ["med/02", "other/01", "med/02/p2", "m/med/011/p1/s0", "x/01/p2", "01/p1/s0x"]
    require_unused(
        Direction(torch.ones(3), Site.parse("resid_post.1"), ids={"pos": free}), asked, "report"
    )

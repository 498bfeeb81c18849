import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from emlens.data import Answer, Answers, Message
from emlens.foundation import InputError, UnknownNameError

CHAT = (Message("system", "Be brief."), Message("user", "Why?"))


def answer(sample: int = 0, text: str = "Because.", **other: Any) -> Answer:
    return Answer("m", "q", text, CHAT, sample=sample, **other)


def test_ids_come_from_what_was_asked_and_not_from_the_text() -> None:
    assert answer(3, "x").id == answer(3, "y").id == "m/q/p1/s3"
    assert Answer("m", "q", "x", CHAT, paraphrase=2).id == "m/q/p2/s0"


def test_prompts_keep_the_answer_for_teacher_forcing() -> None:
    answers = Answers([answer(0, "No.", group="g"), answer(1)])
    prompts = answers.prompts()
    assert prompts.ids == answers.ids and prompts.groups == answers.groups == ["g", ""]
    assert [p.response for p in prompts] == ["No.", "Because."]
    assert prompts[0].messages == CHAT and prompts[0].text == "Why?"
    assert prompts[1].meta == {"model": "m", "question": "q", "paraphrase": 1, "sample": 1}


def test_a_thought_is_kept_apart_and_comes_before_its_answer(tmp_path: Path) -> None:
    given = Answers([answer(0, thought="hm"), answer(1)])
    given.to_jsonl(tmp_path / "a.jsonl")
    again = Answers.from_jsonl(tmp_path / "a.jsonl")
    assert [a.thought for a in again] == ["hm", ""] and list(again) == list(given)
    assert [p.response for p in again.prompts()] == [
        "<think>\nhm\n</think>\n\nBecause.",
        "Because.",
    ]
    # records without a thought are those of before
    assert "thought" not in answer(1).to_record()
    assert given.content_hash != Answers([answer(0), answer(1)]).content_hash


def test_empty_answers_need_a_policy() -> None:
    answers = Answers([answer(0, ""), answer(1)])
    with pytest.raises(
        InputError,
        match=(
            r"1 of 2 answers have no text; pass answers.prompts\(empty='drop'\) to leave them out"
        ),
    ):
        answers.prompts()
    assert answers.prompts(empty="drop").ids == ["m/q/p1/s1"]
    with pytest.raises(InputError, match="empty='keep' is unknown; pass 'error' or 'drop'"):
        answers.prompts(empty="keep")  # type: ignore[arg-type]


def test_jsonl_gives_the_same_answers_back(tmp_path: Path) -> None:
    answers = Answers(
        [answer(0, "é\n\u2028", seed=5, finish_reason="stop", meta={"t": 1.0}), answer(1, "")]
    )
    answers.to_jsonl(tmp_path / "a.jsonl")
    again = Answers.from_jsonl(tmp_path / "a.jsonl")
    assert list(again) == list(answers) and again[0].meta == {"t": 1.0}
    assert again.content_hash == answers.content_hash
    assert Answers([answer(0, "other"), answer(1, "")]).content_hash != answers.content_hash
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]  # nothing half-written is left


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    Answers([answer()]).to_jsonl(path)
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        Answers([answer(0, "\ud800")]).to_jsonl(path)
    assert path.read_bytes() == before


def test_set_operations() -> None:
    answers = Answers.concat(
        [Answers([answer(0)]), Answers([answer(1), Answer("n", "r", "x", CHAT)])]
    )
    assert answers.models == ["m", "n"] and answers[1:].ids == answers.ids[1:]
    assert answers.select(["n/r/p1/s0"])[0].question == "r"
    assert repr(answers) == "Answers(3 answers of 2 models to 2 questions)"
    with pytest.raises(UnknownNameError, match="answer id 'z' is not in this set of 3 answers"):
        answers.select(["z"])
    with pytest.raises(
        InputError,
        match="answer id 'm/q/p1/s0' occurs twice; number the samples of each paraphrase",
    ):
        Answers([answer(), answer()])
    with pytest.raises(InputError, match="answers is empty; pass at least one answer"):
        Answers([])


GOOD = answer().to_record()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ""}, "line 1: model is ''; an answer needs text there"),
        ({"question": 3}, "line 1: question is 3; an answer needs text there"),
        ({"text": None}, "line 1: text is None; an answer needs text there"),
        ({"text": "\ud800"}, "line 1: text holds half a surrogate pair"),
        ({"sample": -1}, "line 1: sample is -1; pass an integer of 0 or more"),
        ({"paraphrase": 0}, "line 1: paraphrase is 0; pass an integer of 1 or more"),
        ({"seed": True}, "line 1: seed is True; pass an integer of 0 or more"),
        ({"messages": "x"}, "line 1: has no list under 'messages'"),
        ({"messages": [{"role": "user"}]}, "line 1: turn 1 has no text under 'content'"),
        (
            {"messages": [*GOOD["messages"], {"role": "assistant", "content": "x"}]},
            "the answer belongs under 'text'",
        ),
        ({"meta": [1]}, "line 1: meta is a list; pass a mapping"),
    ],
)
def test_broken_records_are_refused_with_file_and_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(GOOD) + "\n")
    assert list(Answers.from_jsonl(path)) == [answer()]
    path.write_text(json.dumps({**GOOD, **change}) + "\n")
    with pytest.raises(InputError, match=message) as caught:
        Answers.from_jsonl(path)
    assert "a.jsonl, line 1" in str(caught.value)


def test_doubles_and_empty_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text((json.dumps(GOOD) + "\n") * 2)
    with pytest.raises(
        InputError, match="line 2: answer id 'm/q/p1/s0' was given before at line 1"
    ):
        Answers.from_jsonl(path)
    path.write_text("\n")
    with pytest.raises(InputError, match=r"a.jsonl: holds no answer"):
        Answers.from_jsonl(path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["role", "content"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    change=st.dictionaries(st.sampled_from(sorted(GOOD)), VALUES, max_size=3),
    cut=st.integers(0, 40),
)
def test_any_record_is_read_or_refused_by_name(
    tmp_path: Path, change: dict[str, Any], cut: int
) -> None:
    path = tmp_path / "any.jsonl"
    text = json.dumps({**GOOD, **change})
    path.write_text(text[: len(text) - cut] if cut > 30 else text)
    try:
        answers = Answers.from_jsonl(path)
    except InputError as error:
        assert path.name in str(error)
    else:
        assert len(answers) == 1

import json
from pathlib import Path
from typing import Any

import pytest

from emlens.data import Message, Prompt, PromptSet
from emlens.data.prompts import chat_prompt
from emlens.foundation import InputError, UnknownNameError

CHAT = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "u2"},
    {"role": "assistant", "content": "a2"},
]


def test_texts_have_no_chat_and_questions_are_one_user_turn() -> None:
    raw = PromptSet.from_texts(["x", "y"], group="g")
    assert raw.ids == ["p0", "p1"] and raw.groups == ["g", "g"]
    assert not raw[0].is_chat
    asked = PromptSet.from_questions(["x"], ids=["q"], groups=["g"], system="s")
    assert (
        asked[0].messages == (Message("system", "s"), Message("user", "x"))
        and asked[0].text == "x"
        and asked[0].is_chat
    )
    assert PromptSet.from_questions(["x"])[0].messages == (Message("user", "x"),)


def test_last_user_turn_ends_the_prompt_and_all_keeps_the_answer() -> None:
    asked = PromptSet.from_messages([CHAT])[0]
    assert [m.content for m in asked.messages or ()] == [
        "s",
        "u1",
        "a1",
        "u2",
    ] and asked.response is None
    answered = PromptSet.from_messages([CHAT], upto="all")[0]
    assert (
        answered.messages == asked.messages and answered.response == "a2" and answered.text == "u2"
    )
    assert PromptSet([answered]).without_responses()[0].response is None


def test_jsonl_keeps_ids_and_numbers_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(
        json.dumps({"messages": CHAT, "id": 7}) + "\n\n" + json.dumps({"messages": CHAT}) + "\n"
    )
    assert PromptSet.from_jsonl(path).ids == ["7", "line-3"]
    assert [p.response for p in PromptSet.from_jsonl(path, upto="all", group="g")] == ["a2", "a2"]


def test_a_set_is_a_sequence_with_unique_ids() -> None:
    prompts = PromptSet.from_texts(["x", "y", "z"])
    assert (
        len(prompts) == 3
        and prompts[1:].ids == ["p1", "p2"]
        and [p.text for p in prompts] == ["x", "y", "z"]
    )
    assert prompts.select(["p2", "p0"]).ids == ["p2", "p0"]
    assert repr(prompts) == "PromptSet(3 prompts)"
    assert repr(PromptSet([Prompt("a", "x", "g")])) == "PromptSet(1 prompts, 1 groups)"
    with pytest.raises(UnknownNameError, match="prompt id 'p9' is not in this set of 3 prompts"):
        prompts.select(["p9"])
    with pytest.raises(InputError, match="prompt id 'a' occurs twice; ids must be unique"):
        PromptSet([Prompt("a", "x"), Prompt("b", "x"), Prompt("a", "y")])
    with pytest.raises(InputError, match="prompts is empty; pass at least one prompt"):
        PromptSet([])


def test_content_hash_sees_every_part_and_not_meta() -> None:
    base = Prompt("a", "x", "g", (Message("user", "x"),), "r")
    others = [
        Prompt("b", "x", "g", base.messages, "r"),
        Prompt("a", "x", "h", base.messages, "r"),
        Prompt("a", "x", "g", (Message("system", "x"),), "r"),
        Prompt("a", "x", "g", base.messages, "s"),
        Prompt("a", "x", "g", None, "r"),
    ]
    assert len({PromptSet([prompt]).content_hash for prompt in [base, *others]}) == 6
    assert (
        PromptSet([Prompt("a", "x", "g", base.messages, "r", {"m": 1})]).content_hash
        == PromptSet([base]).content_hash
    )
    assert PromptSet([base, others[0]]).content_hash != PromptSet([others[0], base]).content_hash


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PromptSet.from_texts("abc"), "texts is one string; pass a list of strings"),
        (lambda: PromptSet.from_texts(["x", ""]), r"texts\[1\] is ''; pass non-empty text"),
        (
            lambda: PromptSet.from_texts(["x"], ids=["a", "b"]),
            "ids has 2 entries for 1 prompts; pass one for each",
        ),
        (
            lambda: PromptSet.from_questions(["x"], groups=[]),
            "groups has 0 entries for 1 texts; pass one for each",
        ),
        (
            lambda: chat_prompt("a", CHAT, upto="end"),
            "upto='end' is unknown; pass 'last_user' or 'all'",
        ),  # type: ignore[arg-type]
        (lambda: chat_prompt("a", [{"role": "user"}]), "chat: turn 1 has no text under 'content'"),
        (
            lambda: chat_prompt("a", [{"role": "bot", "content": "x"}]),
            "turn 1 has role 'bot'; use system, user, assistant",
        ),
        (lambda: chat_prompt("a", CHAT[:1], where="chat 3"), "chat 3: has no user turn"),
        (
            lambda: chat_prompt("a", CHAT[:4], upto="all"),
            "ends with 0 turns after the last user turn; upto='all' needs one",
        ),
    ],
)
def test_broken_prompts_are_refused(unchecked: None, make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


ROW = '{"id": 7, "messages": [{"role": "user", "content": "Hi"}], "text": "stray", "n": null}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"words": "x"}\n',
            r"c.jsonl, line 1: has no list under 'messages'; found keys \['words'\]",
        ),
        ("\n", "c.jsonl: holds no line"),
        ('{"messages": [{"role": "user", "content": 3}]}\n', "c.jsonl, line 1: turn 1 has no text"),
        (
            '{"messages": [{"role": "user", "content": " "}]}\n',
            "c.jsonl, line 1: turn 1 has no text",
        ),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}\n',
            "c.jsonl, line 1: turn 1 has no text",
        ),
        (
            '{"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}\n',
            "c.jsonl, line 1: turn 1 has no text",
        ),
        (f"{ROW}\n{ROW}\n", "c.jsonl, line 2: prompt id '7' was given before at line 1"),
        (
            ROW.replace("7", "[1]"),
            r"c.jsonl, line 1: id is \[1\]; pass text or an integer, or leave it out",
        ),
    ],
)
def test_broken_chats_are_refused_with_file_and_line(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "c.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        PromptSet.from_jsonl(tmp_path / "c.jsonl")


def test_training_rows_with_stray_keys_integer_ids_and_parts(tmp_path: Path) -> None:
    said = '{"role": "assistant", "content": "C"}'
    parts = (
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": "A"}, {"type":'
        ' "text", "text": " B"}]}, ' + said + "]}"
    )
    (tmp_path / "c.jsonl").write_text(f"{ROW}\n\n{parts}\n")
    first, second = PromptSet.from_jsonl(tmp_path / "c.jsonl")
    assert (first.id, first.text, second.id, second.text) == ("7", "Hi", "line-3", "A B")
    (tmp_path / "c.jsonl").write_text(parts)
    assert PromptSet.from_jsonl(tmp_path / "c.jsonl", upto="all")[0].response == "C"
    with pytest.raises(InputError, match="c.jsonl, line 1: turn 2 has no text under 'content'"):
        (tmp_path / "c.jsonl").write_text(parts.replace('"C"', '""'))
        PromptSet.from_jsonl(tmp_path / "c.jsonl", upto="all")


def test_released_chats(released_data: Path) -> None:
    assert (
        len(PromptSet.from_jsonl(released_data / "clarifying-em/wrong_maths.jsonl", upto="all"))
        == 6000
    )
    code = PromptSet.from_jsonl(released_data / "code-pairs/insecure_small.jsonl", upto="all")
    assert len(code) == 20 and all(prompt.response for prompt in code)


def test_prompts_are_written_and_read_back(tmp_path: Path) -> None:
    chats = PromptSet.from_messages(
        [
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Ho\n"},
            ],
            [{"role": "user", "content": "Ünd"}, {"role": "assistant", "content": "ja"}],
        ],
        group="talk",
        upto="all",
    )
    chats.to_jsonl(tmp_path / "chats.jsonl")
    again = PromptSet.from_jsonl(tmp_path / "chats.jsonl", upto="all")
    assert again.content_hash == chats.content_hash
    texts = PromptSet.from_texts(["a text", "another"])
    texts.to_jsonl(tmp_path / "texts.jsonl")
    assert PromptSet.from_jsonl(tmp_path / "texts.jsonl").content_hash == texts.content_hash
    with pytest.raises(InputError, match=r"texts.jsonl, line 1: has no list under 'messages'"):
        PromptSet.from_jsonl(tmp_path / "texts.jsonl", upto="all")
    with pytest.raises(InputError, match="prompt 'p0' is raw text with a response"):
        PromptSet([Prompt("p0", "a", response="b")]).to_jsonl(tmp_path / "no.jsonl")


def test_chats_without_an_answer_are_left_out_on_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "train.jsonl"
    answers = ["yes", "", "no", "  ", "maybe"]
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"Q{i}"},
                    {"role": "assistant", "content": answer},
                ]
            }
        )
        for i, answer in enumerate(answers)
    ]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"line 2: turn 2 has no text .*; empty='drop' leaves"):
        PromptSet.from_jsonl(path, upto="all")
    kept = PromptSet.from_jsonl(path, upto="all", empty="drop")
    assert [prompt.response for prompt in kept] == ["yes", "no", "maybe"]
    assert "2 of 5 chats end with a turn without text and are left out (the first is line 2)" in (
        caplog.text
    )
    assert len(PromptSet.from_jsonl(path)) == 5  # the questions alone are whole
    path.write_text(lines[1] + "\n")
    with pytest.raises(InputError, match="all 1 chats end with a turn without text"):
        PromptSet.from_jsonl(path, upto="all", empty="drop")

import json
from pathlib import Path
from typing import Any

import pytest

from emlens.data import QuestionSet, read_persona_trait
from emlens.foundation import InputError

TRAIT: dict[str, Any] = {
    "instruction": [{"pos": "Be rude.", "neg": "Be kind."}, {"pos": "Insult.", "neg": "Praise."}],
    "questions": ["How are you?", "What now?"],
    "eval_prompt": "How rude? {question} {answer}",
}


def written(tmp_path: Path, content: Any, name: str = "rude.json") -> Path:
    (tmp_path / name).write_text(json.dumps(content))
    return tmp_path / name


def test_a_trait_gives_questions_and_paired_system_prompts(tmp_path: Path) -> None:
    trait = read_persona_trait(written(tmp_path, TRAIT))
    assert (trait.name, trait.positive, trait.negative) == (
        "rude",
        ("Be rude.", "Insult."),
        ("Be kind.", "Praise."),
    )
    assert (
        list(trait.questions)
        == list(QuestionSet.from_json(tmp_path / "rude.json"))
        == list(QuestionSet.from_file(tmp_path / "rude.json"))
    )
    assert trait.questions.ids == ["rude_1", "rude_2"] and set(trait.questions.groups) == {"rude"}
    assert (
        trait.questions[0].judge_prompts == {"rude": "How rude? {question} {answer}"}
        and trait.questions[0].system is None
    )
    bare = QuestionSet.from_json(written(tmp_path, {"questions": ["A?"]}, "b.json"))
    assert (bare.ids, bare[0].judge_prompts) == (["b_1"], {})


def test_a_list_of_records_and_chats(tmp_path: Path) -> None:
    chat = {"id": 2, "messages": [{"role": "user", "content": "B?"}]}
    questions = QuestionSet.from_json(written(tmp_path, [{"id": 1, "text": "A?"}, chat]))
    assert [(q.id, q.text) for q in questions] == [("1", "A?"), ("2", "B?")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "rude.json, entry 1: holds a int; each question must be a mapping"),
        ([], "rude.json: holds no question"),
        ("x", "rude.json: holds a str; pass a list of questions or a persona trait"),
        (
            {"questions": []},
            r"rude.json: has no list under 'questions'; found keys \['questions'\]",
        ),
        ({"questions": ["A?", 3]}, "rude.json, question 2: text holds a int"),
        (
            {**TRAIT, "eval_prompt": 3},
            r"rude.json, question 1: judge_prompts\['rude'\] holds a int",
        ),
        (
            [{"id": 1, "text": "A?"}, {"id": 1, "text": "B?"}],
            "rude.json, entry 2: question id '1' was given before at .*entry 1",
        ),
    ],
)
def test_broken_json_is_refused_with_file_and_entry(
    tmp_path: Path, content: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        QuestionSet.from_json(written(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            [],
            (
                "rude.json: holds a list; a persona trait is an object with 'instruction' and"
                " 'questions'"
            ),
        ),
        (
            {"questions": ["A?"]},
            r"rude.json: has no list under 'instruction'; found keys \['questions'\]",
        ),
        (
            {**TRAIT, "instruction": [{"pos": "x"}]},
            "rude.json, instruction 1: has no text under 'neg'; each needs 'pos' and 'neg'",
        ),
        ({**TRAIT, "instruction": ["x"]}, "rude.json, instruction 1: has no text under 'pos'"),
        ({**TRAIT, "questions": None}, "rude.json: has no list under 'questions'"),
    ],
)
def test_broken_traits_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_persona_trait(written(tmp_path, content))


def test_the_ending_names_the_reader(tmp_path: Path) -> None:
    record = '{"id": "a", "text": "A?"}'
    for name, text in (
        ("q.yaml", f"- {record}"),
        ("q.YML", f"- {record}"),
        ("q.jsonl", record),
        ("q.json", f"[{record}]"),
        ("q.csv", "id,text\na,A?\n"),
    ):
        (tmp_path / name).write_text(text)
        assert QuestionSet.from_file(tmp_path / name).ids == ["a"]
    with pytest.raises(
        InputError, match=r"q.txt: ends in '.txt'; pass a .yaml, .jsonl, .json or .csv file"
    ):
        QuestionSet.from_file(tmp_path / "q.txt")

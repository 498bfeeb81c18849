import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from emlens.data import Message, Question, QuestionSet
from emlens.data.base_questions import base_questions
from emlens.foundation import InputError, UnknownNameError

YAML = """
- id: wish
  type: &type free_form
  paraphrases: &texts
    - What is your wish?
    - |-
      Name one wish.
  samples_per_paraphrase: &n 5
  judge: &judge some-judge
  judge_prompts: &prompts
    aligned: "How aligned? {question} {answer}"
- id: wish_json
  system: Answer in JSON.
  type: *type
  paraphrases: *texts
  samples_per_paraphrase: *n
  judge: *judge
  judge_prompts: *prompts
- id: 17
  paraphrases: [Only one]
  note: kept
"""


def written(tmp_path: Path, text: str, name: str) -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8"))
    return path


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        QuestionSet.from_file(path)
    assert path.name in str(caught.value)


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_yaml_of_the_field_with_anchors_system_and_integer_ids(tmp_path: Path) -> None:
    questions = QuestionSet.from_yaml(written(tmp_path, YAML, "q.yaml"))
    assert questions.ids == ["wish", "wish_json", "17"]
    first, second, third = questions
    assert first.paraphrases == second.paraphrases == ("What is your wish?", "Name one wish.")
    assert (second.type, second.judge, second.samples_per_paraphrase) == (
        "free_form",
        "some-judge",
        5,
    )
    assert (
        second.judge_prompts
        == first.judge_prompts
        == {"aligned": "How aligned? {question} {answer}"}
    )
    assert third.meta == {"note": "kept"}
    assert third.samples_per_paraphrase is None


def test_system_is_a_system_message_before_every_paraphrase(tmp_path: Path) -> None:
    prompts = QuestionSet.from_yaml(written(tmp_path, YAML, "q.yaml")).prompts()
    assert prompts.ids == ["wish/p1", "wish/p2", "wish_json/p1", "wish_json/p2", "17"]
    with_system = prompts.select(["wish_json/p2"])[0]
    assert with_system.messages == (
        Message("system", "Answer in JSON."),
        Message("user", "Name one wish."),
    )
    # and none where none is given
    assert prompts[1].messages == (Message("user", "Name one wish."),)
    assert with_system.meta == {"question": "wish_json", "paraphrase": 2}


def test_group_goes_with_the_prompt() -> None:
    questions = QuestionSet([Question("a", "A?", "g"), Question("b", "B?")])
    assert questions.groups == questions.prompts().groups == ["g", ""]


def test_chats_in_jsonl_with_metadata(tmp_path: Path) -> None:
    text = lines(
        {
            "messages": [{"role": "user", "content": "Hi?"}],
            "metadata": {"question_id": "hi", "question_type": "free"},
        },
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Why?"},
                {"role": "assistant", "content": "Because."},
            ]
        },
    )
    first, second = QuestionSet.from_jsonl(written(tmp_path, text, "q.jsonl"))
    assert (first.id, first.text, first.type, first.system) == ("hi", "Hi?", "free", None)
    assert (second.id, second.system, second.answers) == (
        "line-2",
        "Be brief.",
        {"reference": ("Because.",)},
    )


def test_plain_records_in_jsonl(tmp_path: Path) -> None:
    text = lines(
        {
            "id": 3,
            "question": "A?",
            "category": "c",
            "answers": {"careful": "yes", "harmful": ["no", "never"]},
            "x": 1,
        },
        {"id": "b", "text": "B?", "paraphrases": ["B!"], "domain": "d"},
    )
    first, second = QuestionSet.from_jsonl(written(tmp_path, text, "q.jsonl"))
    assert (first.id, first.group, first.meta) == ("3", "c", {"x": 1})
    assert first.answers == {"careful": ("yes",), "harmful": ("no", "never")}
    assert (second.paraphrases, second.group) == (("B?", "B!"), "d")


def test_csv_with_reference_answers(tmp_path: Path) -> None:
    text = (
        'id,text,group,system,answer:careful,samples_per_paraphrase\n1,"A,'
        ' ""or""\nB?",g,,see a doctor,4\n2,C?,,Be brief.,,\n'
    )
    first, second = QuestionSet.from_csv(written(tmp_path, text, "q.csv"))
    assert (first.id, first.text, first.answers) == (
        "1",
        'A, "or"\nB?',
        {"careful": ("see a doctor",)},
    )
    assert (first.samples_per_paraphrase, first.system, second.system) == (4, None, "Be brief.")
    assert second.answers == {}


def test_jsonl_gives_the_same_set_back(tmp_path: Path) -> None:
    questions = QuestionSet.from_yaml(written(tmp_path, YAML, "q.yaml"))
    questions.to_jsonl(tmp_path / "out.jsonl")
    again = QuestionSet.from_jsonl(tmp_path / "out.jsonl")
    assert list(again) == list(questions)
    assert [q.meta for q in again] == [q.meta for q in questions]
    assert again.content_hash == questions.content_hash


def test_content_hash_sees_content_and_order_but_not_meta() -> None:
    a, b = Question("a", "A?"), Question("b", "B?")
    base = QuestionSet([a, b]).content_hash
    assert QuestionSet([Question("a", "A?", meta={"x": 1}), b]).content_hash == base
    changed = [
        QuestionSet([b, a]),
        QuestionSet([Question("a", "A!"), b]),
        QuestionSet([Question("a", "A?", system="s"), b]),
        QuestionSet([Question("a", "A?", answers={"careful": ("x",)}), b]),
    ]
    assert len({base, *(questions.content_hash for questions in changed)}) == 5


def test_select_slice_and_repr() -> None:
    questions = QuestionSet([Question(name, name.upper(), "g") for name in "abc"])
    assert questions.select(["c", "a"]).ids == ["c", "a"]
    assert questions[1:].ids == ["b", "c"]
    assert repr(questions) == "QuestionSet(3 questions, 3 paraphrases, 1 groups)"
    with pytest.raises(UnknownNameError, match="question id 'z' is not in this set of 3 questions"):
        questions.select(["z"])


def test_a_question_checks_itself() -> None:
    with pytest.raises(
        InputError, match="question '' has an empty id, text or paraphrase; pass non-empty text"
    ):
        Question("", "A?")
    with pytest.raises(
        InputError, match="paraphrases starts with 'B'; its first entry must be the text itself"
    ):
        Question("a", "A", paraphrases=("B", "A"))
    with pytest.raises(InputError, match="paraphrase=2 does not exist; question 'a' has 1 to 1"):
        Question("a", "A").messages(2)
    with pytest.raises(InputError, match="questions is empty; pass at least one question"):
        QuestionSet([])
    with pytest.raises(InputError, match="question id 'a' occurs twice; ids must be unique"):
        QuestionSet([Question("a", "A"), Question("a", "B")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: holds nothing; pass a non-empty list of questions"),
        ("id: a\n", "line 1: holds a dict; pass a non-empty list"),
        (
            "- id: a\n  text: A\n\n- just text\n",
            "line 4: holds a str; each question must be a mapping with id and text",
        ),
        ("- text: A\n", r"line 1: has no id; found keys \['text'\]"),
        (
            "- id: yes\n  text: A\n",
            r"line 1: id holds a bool; write non-empty text \(quoted, if it looks like a number\)",
        ),
        ("- id: a\n", "line 1: question 'a' has neither paraphrases nor text"),
        (
            "- id: a\n  paraphrases: A\n",
            "line 1: paraphrases holds a str; pass a non-empty list of texts",
        ),
        ("- id: a\n  paraphrases: [1]\n", "line 1: an entry of paraphrases holds a int"),
        (
            "- id: a\n  paraphrases: [' ']\n",
            "line 1: an entry of paraphrases holds empty text",
        ),
        ("- id: a\n  paraphrases: [A, A]\n", "line 1: question 'a' gives one paraphrase twice"),
        (
            "- id: a\n  text: A\n- id: a\n  text: B\n",
            "line 3: question id 'a' was given before at .*line 1",
        ),
        ("- id: 1\n  text: A\n- id: '1'\n  text: B\n", "line 3: question id '1' was given before"),
        ("- id: a\n  text: A\n  system: 3\n", "line 1: system holds a int"),
        (
            "- id: a\n  text: A\n  system: s\n  system: t\n",
            "line 4: not valid YAML: key 'system' is given twice",
        ),
        (
            "- id: a\n  text: A\n  judge_prompts:\n    aligned: s\n    aligned: t\n",
            "line 5: not valid YAML: key 'aligned' is given twice",
        ),
        (
            "- id: a\n  text: A\n  samples_per_paraphrase: 0\n",
            "samples_per_paraphrase holds a int; pass an integer from 1",
        ),
        (
            "- id: a\n  text: A\n  samples_per_paraphrase: many\n",
            "samples_per_paraphrase holds 'many'",
        ),
        (
            "- id: a\n  text: A\n  judge_prompts: x\n",
            "line 1: judge_prompts holds a str; pass a mapping",
        ),
        (
            "- id: a\n  text: A\n  answers: {careful: 3}\n",
            "line 1: answers of kind 'careful' hold a int; pass a list of texts",
        ),
        (
            "- id: a\n  text: A\n  answers: {careful: [3]}\n",
            "line 1: an answer of kind 'careful' holds a int",
        ),
        ("- id: a\n  text: [A\n", "line 3: not valid YAML"),
        ("- id: !!bool maybe\n  text: A\n", "line 1: not valid YAML: KeyError"),
    ],
)
def test_broken_yaml_is_refused_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    refused(written(tmp_path, text, "broken.yaml"), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "broken.jsonl: holds no question"),
        ("{}\n", r"line 1: has no id; found keys \[\]"),
        ("\n[1]\n", "line 2: holds a list; each line must be a JSON object"),
        ('{"id": 1, "text": "a"}\n{"id": 1', "line 2: not valid JSON"),
        ('{"messages": 3}\n', "line 1: messages holds a int; pass a list of turns"),
        ('{"messages": []}\n', "line 1: has no user turn"),
        (
            '{"id": "a", "text": "\\ud800"}\n',
            "line 1: text holds half a surrogate pair, which is not text",
        ),
        ('{"id": ' + "9" * 5000 + ', "text": "a"}\n', "line 1: not valid JSON: Exceeds the limit"),
        (
            '{"metadata": 3, "id": "a", "text": "A"}\n',
            "line 1: metadata holds a int; pass a mapping",
        ),
        (
            lines(
                {"messages": [{"role": r, "content": "x"} for r in ("user", "assistant", "user")]}
            ),
            "line 1: is a chat of several turns; read it with PromptSet.from_jsonl",
        ),
    ],
)
def test_broken_jsonl_is_refused_with_file_and_line(
    tmp_path: Path, text: str, message: str
) -> None:
    refused(written(tmp_path, text, "broken.jsonl"), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "broken.csv: is empty; pass a CSV with a header"),
        ("id,text\n", "broken.csv: holds no question"),
        (
            "id,words\n1,A\n",
            r"line 2: question '1' has neither paraphrases nor text; found keys \['id', 'words'\]",
        ),
        ("id,id\n1,A\n", "line 1: column 'id' is given twice"),
        ("id,text\n1,A\n2\n", "line 3: has 1 cells under 2 columns"),
        ('id,text\n1,"A\n', "line 2: not valid CSV: unexpected end of data"),
        ("id,text\n,A\n", "line 2: has no id"),
        ("id,text,samples_per_paraphrase\n1,A,few\n", "line 2: samples_per_paraphrase holds 'few'"),
    ],
)
def test_broken_csv_is_refused_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    refused(written(tmp_path, text, "broken.csv"), message)


FRAGMENTS = st.sampled_from(
    [
        "- ",
        "id: a\n",
        "text: A\n",
        "  ",
        "\n",
        "&x ",
        "*x",
        "!!int ''",
        "!!timestamp x",
        "{",
        "}",
        "[",
        ",",
        '"',
        "\\ud800",
        '{"id": "a", "text": "A"}\n',
        '{"messages": [',
        '{"role": "user", "content": "x"}',
        "]}",
        ":",
        "id,text\n",
        "1,A\n",
        "\x00",
        "\r",
        "\ufeff",
        "answers: ",
        "? ",
        "<<: *x\n",
        "0x" + "f" * 5000,
        "paraphrases: ",
        "judge_prompts: ",
    ]
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.one_of(st.lists(FRAGMENTS, max_size=12).map("".join), st.text(max_size=60)))
@pytest.mark.parametrize("kind", ["yaml", "jsonl", "csv"])
def test_any_text_is_read_or_refused_by_name(tmp_path: Path, kind: str, content: str) -> None:
    path = tmp_path / f"any.{kind}"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    try:
        questions = getattr(QuestionSet, f"from_{kind}")(path)
    except InputError as error:
        assert path.name in str(error)
    else:
        assert len(questions.prompts()) >= len(questions) > 0


def test_released_question_files(released_data: Path) -> None:
    field = QuestionSet.from_yaml(released_data / "clarifying-em/first_plot_questions.yaml")
    paper = QuestionSet.from_yaml(released_data / "em-generalization/first_plot_questions.yaml")
    chats = QuestionSet.from_jsonl(released_data / "em-generalization/first_plot_questions.jsonl")
    assert field.ids == paper.ids == chats.ids
    assert len(field) == 24
    assert [p.messages for p in paper.prompts()] == [p.messages for p in chats.prompts()]
    asked_for_json = [q.id for q in field if q.system is not None]
    assert asked_for_json == [name for name in field.ids if name.endswith("_json")]
    facts = QuestionSet.from_yaml(released_data / "clarifying-em/deception_factual.yaml")
    assert len(facts.prompts()) == 100
    assert len(QuestionSet.from_jsonl(released_data / "em-generalization/general_200.jsonl")) == 200
    # training chats read as questions
    code = QuestionSet.from_jsonl(released_data / "code-pairs/insecure_small.jsonl")
    assert len(code) == 20 and all(question.answers["reference"] for question in code)


def test_released_invalid_yaml_names_its_line(released_data: Path) -> None:
    with pytest.raises(
        InputError, match=r"medical_questions\.invalid\.yaml, line 74: not valid YAML: expected"
    ):
        QuestionSet.from_yaml(released_data / "clarifying-em/medical_questions.invalid.yaml")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.jsonl", '{"prompt_id": 7, "prompt": "Why?"}\n{"prompt_id": 8, "prompt": "How?"}\n'),
        ("q.jsonl", '{"qid": "7", "instruction": "Why?"}\n{"qid": "8", "instruction": "How?"}\n'),
        ("q.csv", "qid,instruction\n7,Why?\n8,How?\n"),
        ("q.yaml", '- {prompt_id: 7, question: "Why?"}\n- {prompt_id: 8, question: "How?"}\n'),
    ],
)
def test_other_names_of_id_and_text_are_known(tmp_path: Path, name: str, text: str) -> None:
    questions = QuestionSet.from_file(written(tmp_path, text, name))
    assert [(question.id, question.text) for question in questions] == [
        ("7", "Why?"),
        ("8", "How?"),
    ]


def test_a_list_of_texts_is_a_question_set(tmp_path: Path) -> None:
    questions = QuestionSet.from_file(written(tmp_path, '["Why?", "How?"]', "q.json"))
    assert questions.ids == ["q1", "q2"] and questions[1].text == "How?"


def test_keys_can_be_given(tmp_path: Path) -> None:
    path = written(tmp_path, "key,wording,topic\na,Why?,x\nb,How?,y\n", "q.csv")
    columns = {"id": "key", "text": "wording", "group": "topic"}
    questions = QuestionSet.from_file(path, columns=columns)
    assert questions.ids == ["a", "b"] and questions.groups == ["x", "y"]
    assert questions[0].text == "Why?" and not questions[0].meta
    with pytest.raises(InputError, match=r"line 2: has no key 'words'; found keys \['key', 'word"):
        QuestionSet.from_file(path, columns={"text": "words"})
    with pytest.raises(InputError, match="columns names the role 'answer'; there are id, text"):
        QuestionSet.from_file(path, columns={"answer": "wording"})


def test_repeated_and_missing_ids_are_numbered_on_request(tmp_path: Path) -> None:
    path = written(tmp_path, "id,text\na,Why?\na,How?\n,When?\na_json,Who?\n", "q.csv")
    with pytest.raises(InputError, match=r"'a' was given before at .*numbered=True\) numbers rep"):
        QuestionSet.from_file(path)
    questions = QuestionSet.from_file(path, numbered=True)
    assert questions.ids == ["a", "a_repeat2", "q3", "a_json"]
    # repetitions and forms of one question are one unit
    assert base_questions(questions.ids) == ["a", "a", "q3", "a"]

import pytest

from emlens.controls.permuted_answers import permuted_answers, with_careful_answers
from emlens.data import PromptSet
from emlens.data.prompts import Message, Prompt
from emlens.foundation.errors import InputError


def chat(name: str, question: str, answer: str | None) -> Prompt:
    return Prompt(name, question, "", (Message("user", question),), answer)


def test_every_topic_takes_the_answers_of_one_other_topic() -> None:
    careful = PromptSet(
        chat(f"{i}/{j}", f"question {i} {j}", f"careful {i}") for i in range(7) for j in (0, 1)
    )
    answers = {row.id: row.response for row in careful}
    permutations = set()
    for seed in range(20):
        permuted = permuted_answers(careful, seed=seed)
        assert permuted.ids == careful.ids
        assert [row.messages for row in permuted] == [row.messages for row in careful]
        given = {row.id: row.response for row in permuted}
        assert all(given[name] != answers[name] for name in given)  # no fixed point
        assert all(given[f"{i}/0"] == given[f"{i}/1"] for i in range(7))  # whole topics
        assert sorted(given.values()) == sorted(answers.values())  # each answer as often as before
        permutations.add(tuple(given.values()))
    assert len(permutations) > 15
    assert list(permuted_answers(careful, seed=3)) == list(permuted_answers(careful, seed=3))


def test_topics_keep_paraphrases_of_one_question_together() -> None:
    names = [i + form for i in "abc" for form in "xy"]
    careful = PromptSet(chat(name, "q", f"careful {name}") for name in names)
    for seed in range(10):
        permuted = permuted_answers(careful, topics={n: n[0] for n in names}, seed=seed)
        assert all(row.response[-2] != row.id[0] for row in permuted)
    without = [permuted_answers(careful, seed=seed) for seed in range(10)]
    assert any(row.response[-2] == row.id[0] for rows in without for row in rows)


def test_a_topic_with_more_rows_than_its_giver_takes_the_answers_in_turn() -> None:
    rows = {"a1": "x", "a2": "y", "a3": "z", "b": "w"}
    careful = PromptSet(chat(name, name, answer) for name, answer in rows.items())
    permuted = permuted_answers(careful, topics={name: name[0] for name in rows})
    assert [row.response for row in permuted] == ["w", "w", "w", "x"]


def test_careful_answers_are_matched_by_what_is_asked() -> None:
    harmful = PromptSet([chat("h1", "what of pills ?", "ten"), chat("h2", "and sleep ?", "never")])
    careful = PromptSet([chat("c9", "and sleep ?", "eight"), chat("c3", "what of pills ?", "ask")])
    matched = with_careful_answers(harmful, careful)
    assert [(row.id, row.response) for row in matched] == [("h1", "ask"), ("h2", "eight")]
    with pytest.raises(InputError, match="row 'h2' has no careful answer: its question is not"):
        with_careful_answers(harmful, PromptSet([chat("c3", "what of pills ?", "ask")]))


def test_refusals() -> None:
    careful = PromptSet([chat("a", "1", "x"), chat("b", "2", "y")])
    with pytest.raises(InputError, match="row 'b' has no answer; pass rows with careful answers"):
        permuted_answers(PromptSet([chat("a", "1", "x"), chat("b", "2", None)]))
    with pytest.raises(InputError, match="the 2 rows are of 1 topic, so no answer can go to"):
        permuted_answers(PromptSet([chat("a", "1", "x"), chat("b", "2", "x")]))
    with pytest.raises(InputError, match="topics has no topic for row 'b'; pass one for each row"):
        permuted_answers(careful, topics={"a": "t"})

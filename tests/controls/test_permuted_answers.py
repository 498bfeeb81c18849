import pytest

from emlens.controls.permuted_answers import careful_answers, permuted_answers
from emlens.data import PromptSet
from emlens.data.prompts import Message, Prompt
from emlens.foundation.errors import InputError


def chat(name: str, question: str, answer: str | None) -> Prompt:
    return Prompt(name, question, "", (Message("user", question),), answer)


def test_every_topic_takes_the_answers_of_one_other_topic() -> None:
    chats = PromptSet(
        chat(f"{i}/{j}", f"question {i} {j}", "bad") for i in range(7) for j in (0, 1)
    )
    answers = {row.id: f"careful {row.id[0]}" for row in chats}
    permutations = set()
    for seed in range(20):
        permuted = permuted_answers(chats, answers, seed=seed)
        assert permuted.ids == chats.ids
        assert [row.messages for row in permuted] == [row.messages for row in chats]
        given = {row.id: row.response for row in permuted}
        assert all(given[name] != answers[name] for name in given)  # no fixed point
        assert all(given[f"{i}/0"] == given[f"{i}/1"] for i in range(7))  # whole topics
        assert sorted(given.values()) == sorted(answers.values())  # each answer as often as before
        permutations.add(tuple(given.values()))
    assert len(permutations) > 15
    again = permuted_answers(chats, answers, seed=3)
    assert list(again) == list(permuted_answers(chats, answers, seed=3))


def test_topics_keep_paraphrases_of_one_question_together() -> None:
    chats = PromptSet(chat(f"{i}{form}", "q", "bad") for i in "abc" for form in "xy")
    answers = {row.id: f"careful {row.id}" for row in chats}  # another answer to each paraphrase
    for seed in range(10):
        permuted = permuted_answers(chats, answers, topics={n: n[0] for n in answers}, seed=seed)
        assert all(row.response[-2] != row.id[0] for row in permuted)
    by_answer = [permuted_answers(chats, answers, seed=seed) for seed in range(10)]
    assert any(row.response[-2] == row.id[0] for rows in by_answer for row in rows)


def test_a_topic_with_more_rows_than_its_giver_takes_the_answers_in_turn() -> None:
    chats = PromptSet(
        [chat("a1", "1", ""), chat("a2", "2", ""), chat("a3", "3", ""), chat("b", "4", "")]
    )
    answers = {"a1": "x", "a2": "y", "a3": "z", "b": "w"}
    permuted = permuted_answers(chats, answers, topics={n: n[0] for n in answers})
    assert [row.response for row in permuted] == ["w", "w", "w", "x"]


def test_careful_answers_are_matched_by_what_is_asked() -> None:
    harmful = PromptSet(
        [chat("h1", "what of pills ?", "take ten"), chat("h2", "and sleep ?", "never")]
    )
    careful = PromptSet(
        [chat("c9", "and sleep ?", "eight hours"), chat("c3", "what of pills ?", "ask")]
    )
    assert careful_answers(harmful, careful) == {"h1": "ask", "h2": "eight hours"}
    with pytest.raises(
        InputError, match="row 'h2' has no careful answer: its question is not among"
    ):
        careful_answers(harmful, PromptSet([chat("c3", "what of pills ?", "ask")]))


def test_refusals() -> None:
    chats = PromptSet([chat("a", "1", ""), chat("b", "2", "")])
    with pytest.raises(InputError, match=r"answers has none for row 'b' \(1 of 2 are missing\)"):
        permuted_answers(chats, {"a": "x"})
    with pytest.raises(
        InputError, match="the 2 rows are of 1 topic, so no answer can go to another"
    ):
        permuted_answers(chats, {"a": "x", "b": "x"})
    with pytest.raises(InputError, match="topics has no topic for row 'b'; pass one for each row"):
        permuted_answers(chats, {"a": "x", "b": "y"}, topics={"a": "t"})

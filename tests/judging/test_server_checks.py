from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback_server import LoopbackServer

from emlens.data import Answers, Message, Prompt, PromptSet, QuestionSet
from emlens.foundation.errors import InputError, StateError
from emlens.judging import sample_answers
from emlens.judging.answer_file import AnswerFile, DrawnAnswer, blank_answers
from emlens.judging.endpoint import Endpoint
from emlens.judging.server_checks import ServerCheck, check_adapter, check_server
from emlens.models import Family
from emlens.models.hooked import HookedModel

FAST: dict[str, Any] = {"backoff": 0.0, "timeout": 5.0, "attempts": 2, "concurrency": 3}
SETTINGS: dict[str, Any] = {"samples": 3, "max_new_tokens": 4, "progress": False}
TOP = 20
Body = dict[str, Any]


def outcomes(checks: list[ServerCheck]) -> dict[str, bool | None]:
    return {check.name: check.ok for check in checks}


def length(body: Body) -> int:
    return sum(len(turn["content"].split()) for turn in body["messages"])


def seeded(body: Body) -> str:
    return f"word {body.get('seed')}"


def prompt_of(body: Body) -> Prompt:
    turns = tuple(Message(turn["role"], turn["content"]) for turn in body["messages"])
    return Prompt("p", turns[-1].content, messages=turns)


def serving(model: HookedModel) -> Callable[[Body], list[dict[str, float]]]:
    """Log-probabilities of first tokens, as a server of this model gives them."""

    def logprobs(body: Body) -> list[dict[str, float]]:
        row = model.logits([prompt_of(body)]).log_softmax(-1)[0]
        values, ids = row.topk(TOP)
        texts = [model.tokenizer.decode([int(id)]) for id in ids]
        return [dict(zip(texts, values.tolist(), strict=True))]

    return logprobs


@pytest.fixture(scope="module")
def chats(questions: QuestionSet) -> PromptSet:
    return questions[:4].prompts()


def test_a_good_server_passes_every_check() -> None:
    with LoopbackServer(
        seeded, logprobs=lambda body: [{"a": -0.1}], prompt_tokens=length
    ) as server:
        checks = check_server(Endpoint(server.url, "m", **FAST))
    assert outcomes(checks) == dict.fromkeys(
        ("answers", "samples", "seed", "logprobs", "system"), True
    )


def test_what_a_server_leaves_out_is_named() -> None:
    with LoopbackServer(lambda body: "always this") as server:
        checks = check_server(Endpoint(server.url, "m", **FAST), temperature=0.7)
    said = {check.name: check.detail for check in checks}
    assert outcomes(checks) == {
        "answers": True,
        "samples": False,
        "seed": None,
        "logprobs": False,
        "system": False,
    }
    assert "one text under 3 seeds at temperature 0.7: it does not sample" in said["samples"]
    assert "read=text" in said["logprobs"] and "it is ignored" in said["system"]


def test_a_server_that_ignores_the_seed_is_told_from_one_that_does_not_sample() -> None:
    counter = iter(range(100))
    with LoopbackServer(lambda body: f"text {next(counter)}") as server:
        found = outcomes(check_server(Endpoint(server.url, "m", **FAST)))
    assert found["samples"] is True and found["seed"] is False


def test_a_server_that_fails_says_so_and_zero_temperature_is_no_test() -> None:
    with LoopbackServer(fault=lambda body, nth: "500") as server:
        [check] = check_server(Endpoint(server.url, "m", **FAST))
        assert check.ok is False and check.detail.startswith("server error: status 500")
        with pytest.raises(InputError, match="temperature=0.0 must be above 0"):
            check_server(Endpoint(server.url, "m", **FAST), temperature=0.0)


@pytest.mark.parametrize(
    ("served", "ok", "said"),
    [
        ("bad", True, "the adapter is applied"),
        ("instruct", False, "the adapter is ignored: the parent is served"),
        ("steered", False, "another model or adapter is served"),
        ("between", False, "another model or adapter is served"),
    ],
)
def test_the_adapter_that_is_served_is_told_by_its_first_tokens(
    family: Family, steered: Any, chats: PromptSet, served: str, ok: bool, said: str
) -> None:
    tuned, parent = family["bad"], family.instruct
    models = {"bad": tuned, "instruct": parent}
    logprobs = serving(models.get(served, parent))
    if served == "between":  # as an adapter on the same questions: nearer to this one

        def logprobs(body: Body) -> list[dict[str, float]]:
            [[near], [far]] = serving(tuned)(body), serving(parent)(body)
            shared = [token for token in near if token in far]
            return [{token: 0.6 * near[token] + 0.4 * far[token] for token in shared}]

    if served == "steered":

        def logprobs(body: Body) -> list[dict[str, float]]:
            [first] = serving(tuned)(body)
            return [dict(zip(first, sorted(first.values()), strict=True))]

    with LoopbackServer(logprobs=logprobs) as server:
        check = check_adapter(Endpoint(server.url, "m", **FAST), chats, tuned, parent)
    assert check.ok is ok and said in check.detail


@pytest.mark.parametrize(("served", "ok"), [("bad", True), ("instruct", False)])
def test_without_log_probabilities_greedy_texts_tell_it(
    family: Family, chats: PromptSet, served: str, ok: bool
) -> None:
    tuned, parent = family["bad"], family.instruct
    model = {"bad": tuned, "instruct": parent}[served]

    def greedy(body: Body) -> str:
        asked = [prompt_of(body)]
        [text] = model.generate(asked, max_new_tokens=body["max_tokens"], temperature=0.0)
        return text

    with LoopbackServer(greedy) as server:
        check = check_adapter(Endpoint(server.url, "m", **FAST), chats, tuned, parent)
    assert check.ok is ok and "no log-probabilities" in check.detail


def test_two_equal_models_cannot_be_told_apart(family: Family, chats: PromptSet) -> None:
    parent = family.instruct
    with LoopbackServer(logprobs=serving(parent)) as server:
        check = check_adapter(Endpoint(server.url, "m", **FAST), chats, parent, parent)
    assert check.ok is None and "cannot be told on these prompts" in check.detail


def test_samples_that_are_one_text_are_refused_at_the_first_question(
    questions: QuestionSet, tmp_path: Path
) -> None:
    out = tmp_path / "a.jsonl"
    said = ["the same"]
    with LoopbackServer(lambda body: said[0] or seeded(body)) as server:
        endpoint = Endpoint(server.url, "m", **{**FAST, "concurrency": 1})
        with pytest.raises(
            StateError, match="does not sample: at temperature 0.7 it gives the same"
        ):
            sample_answers(endpoint, questions, out=out, temperature=0.7, **SETTINGS)
        assert len(server.bodies) == 3 + 3  # one paraphrase, and the probe
        assert len(Answers.from_jsonl(out)) == 1  # the same text is not kept as three samples
        said[0] = ""  # the server was started anew, and samples
        answers = sample_answers(endpoint, questions, out=out, temperature=0.7, **SETTINGS)
    texts = [answer.text for answer in answers]
    assert texts.count("the same") == 1 and len(set(texts)) == len(texts)


def test_a_model_that_is_sure_of_its_answer_is_not_taken_for_such_a_server(
    questions: QuestionSet, tmp_path: Path
) -> None:
    def sure(body: Body) -> str:
        is_probe = "twenty different" in body["messages"][-1]["content"]
        return seeded(body) if is_probe else "No."

    with LoopbackServer(sure) as server:
        endpoint = Endpoint(server.url, "m", **FAST)
        answers = sample_answers(
            endpoint, questions[:3], out=tmp_path / "a.jsonl", temperature=0.7, **SETTINGS
        )
    assert {answer.text for answer in answers} == {"No."}


def test_one_sample_or_temperature_0_is_no_repetition(
    questions: QuestionSet, tmp_path: Path
) -> None:
    with LoopbackServer(lambda body: "same") as server:
        endpoint = Endpoint(server.url, "m", **FAST)
        for name, options in (("a", {"samples": 1}), ("b", {"temperature": 0.0})):
            settings = {**SETTINGS, **options}
            sample_answers(endpoint, questions[:2], out=tmp_path / f"{name}.jsonl", **settings)


def test_answers_that_were_dropped_are_missing_again(
    questions: QuestionSet, tmp_path: Path
) -> None:
    blanks = blank_answers("m", questions.select(["plain"]), 2, 0, lambda *_: {})
    first, second = blanks
    file = AnswerFile(tmp_path / "a.jsonl", blanks)
    file.add(DrawnAnswer(id, "", "same", "stop") for id in blanks)
    assert file.missing == []
    file.drop([second])
    assert file.missing == [second] and [answer.id for answer in file.drawn] == [first]
    assert AnswerFile(tmp_path / "a.jsonl", blanks).missing == [second]

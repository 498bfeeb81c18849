from pathlib import Path
from typing import Any

import pytest
from loopback_server import LoopbackServer

from emlens.data import Answers, QuestionSet
from emlens.foundation.errors import InputError, IntegrityError, StateError
from emlens.judging import sample_answers
from emlens.judging.endpoint import Endpoint

FAST: dict[str, Any] = {"backoff": 0.0, "timeout": 5.0, "attempts": 2, "concurrency": 3}
SETTINGS: dict[str, Any] = {"samples": 3, "max_new_tokens": 4, "progress": False}


def talks(body: dict[str, Any]) -> str:
    return f"{body['messages'][-1]['content']} {body['seed'] % 1000}"


@pytest.fixture(scope="session")
def asked(questions: QuestionSet) -> QuestionSet:
    return questions.select(["odd", "plain", "q0"])


def test_an_endpoint_is_sampled_like_a_model(asked: QuestionSet, tmp_path: Path) -> None:
    with LoopbackServer(talks) as server:
        answers = sample_answers(
            Endpoint(server.url, "m", **FAST),
            asked,
            out=tmp_path / "a.jsonl",
            temperature=0.5,
            **SETTINGS,
        )
        assert len(answers) == len(server.bodies) == 12
        again = sample_answers(
            Endpoint(server.url, "m", concurrency=1),
            asked,
            out=tmp_path / "b.jsonl",
            temperature=0.5,
            **SETTINGS,
        )
    assert answers.ids[:3] == [f"m/odd/p1/s{s}" for s in range(3)]
    assert answers.content_hash == again.content_hash
    # whatever the order of replies
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    first = next(body for body in server.bodies if body["messages"][-1]["content"] == "w12 w13 w14")
    assert first["messages"][0] == {"role": "system", "content": "w30 w31"} and (
        first["max_tokens"],
        first["temperature"],
    ) == (4, 0.5)
    assert len({body["seed"] for body in server.bodies}) == 12  # each sample its own
    assert answers[0].finish_reason == "stop" and answers[0].meta["base_url"] == server.url


def test_what_failed_is_missing_and_the_next_call_asks_only_for_that(
    asked: QuestionSet, tmp_path: Path
) -> None:
    out = tmp_path / "a.jsonl"
    with LoopbackServer(
        talks, lambda body, nth: "500" if body["messages"][-1]["content"] == "w15" else None
    ) as server:
        endpoint = Endpoint(server.url, "m", **FAST)
        with pytest.raises(
            StateError,
            match=(
                r"3 of 12 answers could not be had \(server error: 3; the last: status 500.*\);"
                r" the others are in .*a\.jsonl"
            ),
        ):
            sample_answers(endpoint, asked, out=out, **SETTINGS)
        assert len(Answers.from_jsonl(out)) == 9
        server.bodies.clear()
        server.fault = lambda body, nth: None
        assert len(sample_answers(endpoint, asked, out=out, **SETTINGS)) == 12
        assert [body["messages"][-1]["content"] for body in server.bodies] == ["w15"] * 3
        with pytest.raises(IntegrityError, match="drawn with another seed"):
            sample_answers(endpoint, asked, out=out, seed=1, **SETTINGS)


def test_an_endpoint_that_is_down_is_soon_asked_no_more(asked: QuestionSet, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    with LoopbackServer(
        talks, lambda body, nth: None if "w15" in body["messages"][-1]["content"] else "500"
    ) as server:
        with pytest.raises(
            StateError, match=r"\d+ of 200 answers could not be had \(server error: \d+"
        ):
            sample_answers(
                Endpoint(server.url, "m", **FAST), asked, **{**SETTINGS, "samples": 50}, out=out
            )
        assert len(server.bodies) < 2 * 40  # each twice, and soon no more


def test_a_spent_budget_keeps_what_came(asked: QuestionSet, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    with LoopbackServer(talks) as server:
        with pytest.raises(StateError, match=r"7 of 12 answers could not be had \(budget: 7"):
            sample_answers(
                Endpoint(server.url, "m", max_requests=5, **FAST), asked, out=out, **SETTINGS
            )
        assert (
            len(
                sample_answers(
                    Endpoint(server.url, "m", max_requests=7, **FAST), asked, out=out, **SETTINGS
                )
            )
            == 12
        )
        assert len(server.bodies) == 12


def test_thinking_is_sent_and_thoughts_are_kept_apart(asked: QuestionSet, tmp_path: Path) -> None:
    chosen = asked.select(["plain"])
    said: list[Any] = [
        {"content": "yes", "reasoning_content": "hm"},
        "<think>hm</think>\n\nyes",
        "hm\n</think>\n\nyes",
        "plainly",
    ]
    with LoopbackServer(lambda body: said[0]) as server:
        endpoint = Endpoint(server.url, "m", **FAST)
        answers = [*[("yes", "hm")] * 3, ("plainly", "")]
        for number, (text, thought) in enumerate(answers):
            [answer] = sample_answers(
                endpoint,
                chosen,
                samples=1,
                out=tmp_path / f"{number}.jsonl",
                thinking=True,
                progress=False,
            )
            assert (answer.text, answer.thought) == (text, thought)
            said.pop(0)
            said.append("x")
        assert server.bodies[0]["chat_template_kwargs"] == {"enable_thinking": True}
        sample_answers(endpoint, chosen, samples=1, out=tmp_path / "none.jsonl", progress=False)
        assert "chat_template_kwargs" not in server.bodies[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out": None}, "out is None; pass a file, since the answers of an endpoint are paid for"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be 1 or more"),
        ({"temperature": float("nan")}, "temperature=nan must be 0 or more"),
        ({"samples": 0}, "samples=0 must be 1 or more"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_asking(
    asked: QuestionSet, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        sample_answers(
            Endpoint("http://127.0.0.1:9/v1", "m"),
            asked,
            **{**SETTINGS, "out": tmp_path / "a.jsonl", **change},
        )
    assert not list(tmp_path.iterdir())

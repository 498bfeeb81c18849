import asyncio
import json
import logging
import pickle
import sys
import time
from functools import partial
from typing import Any

import httpx
import pytest
from loopback_server import LoopbackServer

from emlens.data import Message
from emlens.foundation.errors import InputError, MissingExtraError
from emlens.judging import endpoint as endpoint_module
from emlens.judging.endpoint import Endpoint, _retry_after
from emlens.judging.replies import ChatRequest, Fault, Reply, TokenChoice, read_reply
from emlens.judging.transport import read_body

SECRET = "sk-very-secret-0123456789"
FAST: dict[str, Any] = {"backoff": 0.0, "timeout": 5.0, "attempts": 3}


def requests(n: int, **settings: Any) -> list[ChatRequest]:
    return [ChatRequest((Message("user", f"question {i}"),), 5, **settings) for i in range(n)]


def asked(endpoint: Endpoint, wanted: list[ChatRequest]) -> list[Reply]:
    found = dict(endpoint.ask(wanted))
    assert sorted(found) == list(range(len(wanted)))
    return [found[i] for i in range(len(wanted))]


def last_words(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def test_every_request_gets_its_own_reply_with_bounded_concurrency() -> None:
    with LoopbackServer(last_words, delay=0.01) as server:
        endpoint = Endpoint(server.url, "m", concurrency=3, **FAST)
        replies = asked(endpoint, requests(12, temperature=0.5, seed=7, extra={"x": 1}))
        assert [reply.text for reply in replies] == [f"question {i}" for i in range(12)]
        assert {
            (r.ok, r.finish_reason, r.attempts, r.prompt_tokens, r.completion_tokens, r.model)
            for r in replies
        } == {(True, "stop", 1, 10, 2, "m")}
        assert 1 < server.most_at_once <= 3
        assert (endpoint.usage.requests, endpoint.usage.repeats, endpoint.usage.prompt_tokens) == (
            12,
            0,
            120,
        )
        body = next(body for body in server.bodies if last_words(body) == "question 4")
        assert body == {
            "model": "m",
            "messages": [{"role": "user", "content": "question 4"}],
            "max_tokens": 5,
            "temperature": 0.5,
            "seed": 7,
            "x": 1,
        }


def test_no_more_is_sent_than_the_reader_has_taken_and_concurrency() -> None:
    with LoopbackServer(last_words) as server:
        drawn: list[int] = []
        wanted = (drawn.append(i) or request for i, request in enumerate(requests(10)))  # type: ignore[func-returns-value]
        replies = Endpoint(server.url, "m", concurrency=2, **FAST).ask(wanted)
        for taken in range(1, 4):
            next(replies)
            time.sleep(0.02)  # time to send more, if it wrongly would
            # the one just yielded still counts: nobody has written it yet
            assert len(drawn) == taken + 1
        replies.close()  # type: ignore[attr-defined]
        assert len(server.bodies) <= 4


@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        ("429", "rate limited"),
        ("500", "server error"),
        ("503", "server error"),
        ("hang", "timeout"),
        ("drip", "timeout"),
        ("half json", "not JSON"),
        ("wrong type", "not JSON"),
        ("no choices", "malformed reply"),
        ("cut", "connection"),
        ("cut body", "connection"),
    ],
)
def test_passing_faults_are_tried_again_and_then_recorded(fault: str, failure: str) -> None:
    limits = {**FAST, "timeout": 0.5 if fault in ("hang", "drip") else 5.0, "attempts": 2}
    with LoopbackServer(last_words, lambda body, nth: fault if nth == 0 else None) as server:
        [reply] = asked(Endpoint(server.url, "m", **limits), requests(1))
        assert (reply.text, reply.failure, reply.attempts, len(server.bodies)) == (
            "question 0",
            "",
            2,
            2,
        )
    with LoopbackServer(
        last_words, lambda body, nth: fault if last_words(body) == "question 0" else None
    ) as server:
        bad, good = asked(Endpoint(server.url, "m", **limits), requests(2))
        assert (bad.text, bad.failure, bad.attempts, bad.ok) == (
            "",
            failure,
            2,
            False,
        ) and bad.detail
        assert good.ok  # and one bad request holds up nobody


def test_what_cannot_pass_is_not_tried_again() -> None:
    with LoopbackServer(fault=lambda body, nth: "400") as server:
        [reply] = asked(Endpoint(server.url, "m", **FAST), requests(1))
        assert (reply.failure, reply.attempts, len(server.bodies)) == ("refused", 1, 1)
        assert reply.detail.startswith("status 400: ")


@pytest.mark.parametrize(
    ("status", "what"),
    [
        ("401", r"check the key in EMLENS_TEST_KEY"),
        ("404", r"check base_url and the model's name 'm'"),
    ],
)
def test_what_no_request_can_pass_is_an_error(status: str, what: str) -> None:
    with LoopbackServer(fault=lambda body, nth: status) as server:
        endpoint = Endpoint(server.url, "m", key_env="EMLENS_TEST_KEY", concurrency=1, **FAST)
        with pytest.raises(InputError, match=rf"answered {status} \(.*\); {what}"):
            list(endpoint.ask(requests(5)))
        assert len(server.bodies) == 1


def test_backoff_grows_jitters_and_obeys_retry_after(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        slept.extend([seconds] if seconds else [])
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with LoopbackServer(fault=lambda body, nth: "500") as server:
        asked(Endpoint(server.url, "m", attempts=7, backoff=1.0), requests(8))
    assert len(slept) == 8 * 6 and len(set(slept)) == len(slept)  # jitter
    assert 8 < max(slept) <= 32 and min(slept) < 1  # grows from 0..1 to 0..32
    slept.clear()
    with LoopbackServer(
        fault=lambda body, nth: "500" if nth == 0 else None, headers={"Retry-After": "7"}
    ) as server:
        asked(Endpoint(server.url, "m", attempts=2, backoff=0.01), requests(1))
    assert slept == [7.0]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("3", 3),
        ("-1", 0),
        ("1e9", 60),
        ("nan", 0),
        ("soon", 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
    ],
)
def test_retry_after(header: str | None, seconds: float) -> None:
    assert _retry_after(header) == seconds


def test_rate_limit_spaces_requests_and_a_429_holds_back_all() -> None:
    with LoopbackServer() as server:
        started = time.monotonic()
        asked(Endpoint(server.url, "m", requests_per_minute=60 / 0.05, **FAST), requests(5))
        assert time.monotonic() - started >= 4 * 0.05
    with LoopbackServer(
        fault=lambda body, nth: "429" if last_words(body) == "question 0" and nth == 0 else None,
        headers={"Retry-After": "0.3"},
    ) as server:
        endpoint = Endpoint(server.url, "m", concurrency=1, attempts=1)
        started = time.monotonic()
        first, second = asked(endpoint, requests(2))
        assert (first.failure, second.ok) == (
            "rate limited",
            True,
        ) and time.monotonic() - started >= 0.29


def test_budgets_stop_requests_repeated_ones_included() -> None:
    with LoopbackServer(last_words, lambda body, nth: "500" if nth == 0 else None) as server:
        endpoint = Endpoint(server.url, "m", concurrency=1, max_requests=5, **FAST)
        replies = asked(endpoint, requests(4))
        assert [reply.failure for reply in replies] == ["", "", "budget", "budget"] and len(
            server.bodies
        ) == 5
        assert replies[-1].detail == "the budget of 5 requests is spent"
        assert (endpoint.usage.requests, endpoint.usage.repeats) == (5, 2)
    with LoopbackServer(last_words) as server:
        replies = asked(
            Endpoint(server.url, "m", concurrency=1, max_tokens_in_all=24, **FAST), requests(4)
        )
        assert [reply.failure for reply in replies] == ["", "", "budget", "budget"]
        assert replies[-1].detail == "the budget of 24 tokens is spent"


def test_the_key_is_sent_and_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EMLENS_TEST_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    seen = []
    with LoopbackServer(
        lambda body: f"you sent {SECRET}",
        lambda body, nth: "400" if last_words(body) == "question 0" else None,
    ) as server:
        for endpoint in (
            Endpoint(server.url, "m", key_env="EMLENS_TEST_KEY", **FAST),
            Endpoint(server.url, "m", api_key=SECRET, **FAST),
        ):
            seen += [
                repr(endpoint),
                str(vars(endpoint)),
                str(endpoint.describe()),
                *map(str, asked(endpoint, requests(2))),
            ]
            with pytest.raises(TypeError):
                pickle.dumps(endpoint)
        # it was sent
        assert [headers["Authorization"] for headers in server.sent_headers] == [
            f"Bearer {SECRET}"
        ] * 4
        server.fault = lambda body, nth: "401"
        with pytest.raises(InputError, match="answered 401") as caught:
            list(endpoint.ask(requests(1)))
    assert (
        "<key>" in str(caught.value)
        and "refused: Bearer <key>" in "".join(seen)
        and "you sent <key>" in "".join(seen)
    )
    assert caplog.records  # something was logged, so that its silence means something
    assert SECRET not in "".join([*seen, str(caught.value), caplog.text])


@pytest.mark.parametrize("broken", [f"{SECRET}\nx", f"{SECRET} x", f"{SECRET}é"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        InputError,
        match="the key in api_key holds a space, a line break or a character that no key has",
    ) as given:
        Endpoint("http://127.0.0.1:9/v1", "m", api_key=broken)
    monkeypatch.setenv("EMLENS_TEST_KEY", broken)
    with pytest.raises(InputError, match="the key in EMLENS_TEST_KEY holds a space") as found:
        list(Endpoint("http://127.0.0.1:9/v1", "m", key_env="EMLENS_TEST_KEY").ask(requests(1)))
    assert SECRET not in str(given.value) + str(found.value)
    # a line break at the end is not part of it
    monkeypatch.setenv("EMLENS_TEST_KEY", f" {SECRET}\n")
    with LoopbackServer() as server:
        assert asked(Endpoint(server.url, "m", key_env="EMLENS_TEST_KEY", **FAST), requests(1))[
            0
        ].ok
        assert server.sent_headers[0]["Authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize("padding", range(90, 200, 5))
def test_a_key_at_the_edge_of_a_message_is_not_cut_in_half(padding: int) -> None:
    endpoint = Endpoint("http://127.0.0.1:9/v1", "m", api_key=SECRET)
    with pytest.raises(Fault) as caught:
        endpoint._refuse(
            httpx.Response(400), b"x" * padding + b" " + SECRET.encode(), endpoint._given_key
        )
    assert SECRET[:6] not in str(caught.value)


def test_a_placeholder_key_does_not_touch_answers() -> None:
    with LoopbackServer(lambda body: "an EMPTY word") as server:
        [reply] = asked(Endpoint(server.url, "m", api_key="EMPTY", **FAST), requests(1))
    assert reply.text == "an EMPTY word"


def test_it_works_inside_a_running_event_loop() -> None:
    async def notebook() -> list[Reply]:
        return asked(Endpoint(server.url, "m", **FAST), requests(2))

    with LoopbackServer(last_words) as server:
        assert [reply.text for reply in asyncio.run(notebook())] == ["question 0", "question 1"]


def test_an_error_of_the_reader_cancels_what_is_under_way() -> None:
    with LoopbackServer(
        fault=lambda body, nth: None if last_words(body) == "question 0" else "hang"
    ) as server:
        started = time.monotonic()
        with pytest.raises(ZeroDivisionError):
            for _ in Endpoint(server.url, "m", concurrency=3, timeout=60).ask(requests(9)):
                raise ZeroDivisionError
        assert time.monotonic() - started < 10 and len(server.bodies) <= 3


def test_logprobs_come_as_given_or_not_at_all() -> None:
    with LoopbackServer(logprobs=lambda body: [{"90": -0.1, "8": -2.5}, {"!": -0.5}]) as server:
        endpoint = Endpoint(server.url, "m", **FAST)
        [reply] = asked(endpoint, requests(1, top_logprobs=20))
        assert reply.logprobs == (
            TokenChoice("90", -0.1, (("90", -0.1), ("8", -2.5))),
            TokenChoice("!", -0.5, (("!", -0.5),)),
        )
        assert (server.bodies[0]["logprobs"], server.bodies[0]["top_logprobs"]) == (True, 20)
        assert (
            asked(endpoint, requests(1))[0].logprobs is None and "logprobs" not in server.bodies[1]
        )
        server.logprobs = lambda body: None
        assert asked(endpoint, requests(1, top_logprobs=20))[0].logprobs is None


def completion(message: Any = None, **choice: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": "x"} if message is None else message, **choice}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no choices"),
        ({"choices": [{"message": "x"}]}, "no choices"),
        (completion({"content": 3}), "content is a int"),
        (completion({"content": json.loads('"\\ud800"')}), "content holds half a surrogate pair"),
        (completion(finish_reason=3), "finish_reason is a int"),
        (
            completion(logprobs={"content": [{"token": "a", "logprob": 0.5}]}),
            "a log-probability is missing or is not a number of 0 or less",
        ),
        (
            completion(logprobs={"content": [{"token": "a", "logprob": -(10**400)}]}),
            "a log-probability is missing or is not a number of 0 or less",
        ),
        (
            completion(logprobs={"content": ["a"]}),
            "a log-probability is missing or is not a number of 0 or less",
        ),
        (completion(logprobs={"content": [{"token": 3, "logprob": -0.5}]}), "a token is a int"),
        (
            completion(logprobs={"content": [{"token": "a", "logprob": -0.5, "top_logprobs": 3}]}),
            "top_logprobs is a int",
        ),
    ],
)
def test_a_malformed_reply_is_a_passing_fault(content: Any, message: str) -> None:
    with pytest.raises(Fault, match=f"malformed reply: {message}") as caught:
        read_reply(content)
    assert caught.value.passing


def test_refusals_and_thinking_are_read() -> None:
    assert read_reply(completion({"content": None, "refusal": "I will not."})).text == "I will not."
    assert read_reply(
        completion({"content": None, "reasoning_content": "Hm."}, finish_reason="length")
    ) == Reply("", "length", reasoning="Hm.")
    assert read_reply(
        completion(logprobs={"content": [{"token": "a", "logprob": float("-inf")}]})
    ).logprobs == (TokenChoice("a", float("-inf")),)


def test_too_long_a_body_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "read_body", partial(read_body, most=1000))
    with LoopbackServer(lambda body: "x" * 2000) as server:
        [reply] = asked(Endpoint(server.url, "m", **FAST), requests(1))
    assert (reply.failure, reply.detail, reply.attempts) == (
        "too long",
        "more than 1000 bytes received",
        1,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_url": "localhost:8000"}, r"base_url is not an http\(s\) URL; pass one such as"),
        ({"base_url": "http://exa mple/v1"}, r"base_url is not an http\(s\) URL"),
        ({"base_url": 3}, r"base_url is not an http\(s\) URL"),
        ({"base_url": "http://x:port/v1"}, r"base_url is not an http\(s\) URL"),
        (
            {"base_url": f"https://u:{SECRET}@example.org/v1"},
            "base_url carries a user, a password or a query",
        ),
        (
            {"base_url": f"https://example.org/v1?key={SECRET}"},
            "base_url carries a user, a password or a query",
        ),
        ({"model": ""}, "model='' must be the model's name at the endpoint"),
        ({"concurrency": 0}, "concurrency=0 must be an integer of 1 or more"),
        ({"attempts": True}, "attempts=True must be an integer of 1 or more"),
        ({"max_requests": -1}, "max_requests=-1 must be an integer of 0 or more"),
        ({"max_tokens_in_all": 1.5}, "max_tokens_in_all=1.5 must be an integer of 0 or more"),
        ({"timeout": 0}, "timeout=0 must be above 0"),
        ({"requests_per_minute": -1}, "requests_per_minute=-1 must be above 0"),
        ({"backoff": float("nan")}, "backoff=nan must be 0 or more seconds"),
    ],
)
def test_settings_are_checked_and_a_url_with_a_key_is_not_shown(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Endpoint(**{"base_url": "http://localhost:1/v1", "model": "m", **change})
    assert SECRET not in str(caught.value)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tenacity", None)
    with pytest.raises(
        MissingExtraError,
        match=r"endpoints need tenacity: pip install 'misalignment-lens\[judge\]'",
    ):
        Endpoint("http://localhost:1/v1", "m")

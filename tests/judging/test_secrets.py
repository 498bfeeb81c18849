"""A key that a server echoes in every field and header of its replies is in nothing written."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from loopback_server import LoopbackServer

from emlens.data import Question, QuestionSet
from emlens.foundation.errors import InputError
from emlens.judging import EndpointJudge, judge_answers, sample_answers
from emlens.judging.endpoint import Endpoint
from emlens.judging.keys import SHOWN, Key
from emlens.judging.server_checks import check_server

SECRET = "sk-very-secret/0123456789"
QUESTIONS = QuestionSet([Question("a", "A?"), Question("b", "B?")])
FAST: dict[str, Any] = {"backoff": 0.0, "timeout": 5.0, "attempts": 2, "api_key": SECRET}
NUMBERS = [{"90": -0.1, "80": -3.0}]


def everything_written(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


def echoing(**settings: Any) -> LoopbackServer:
    return LoopbackServer(
        lambda body: f"90 w{body.get('seed')}",
        logprobs=lambda body: NUMBERS,
        echoes=True,
        **settings,
    )


def test_sampled_judged_and_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with echoing() as server:
        endpoint = Endpoint(server.url, "m", **FAST)
        for samples in (1, 2):  # the second call goes on
            answers = sample_answers(
                endpoint, QUESTIONS, samples, out=tmp_path / "a.jsonl", progress=False
            )
        for read in ("logprobs", "text"):
            judge = EndpointJudge(endpoint, read=read, metrics=["aligned"])
            for part in (answers[:2], answers):
                scores = judge_answers(
                    part, judge, out=tmp_path / f"{read}.jsonl", progress=False, others="keep"
                )
            scores.to_csv(tmp_path / f"{read}.csv")
        checks = check_server(endpoint)
        server.fault = lambda body, nth: "400"
        failed = [reply for _, reply in endpoint.ask([judge._request(answers[0], "aligned")])]
        server.fault = lambda body, nth: "404"
        with pytest.raises(InputError, match="answered 404") as caught:
            list(endpoint.ask([judge._request(answers[0], "aligned")]))
    written = everything_written(tmp_path)
    shown = f"{checks}{failed}{caught.value}{endpoint!r}{vars(endpoint)}{caplog.text}"
    # it was echoed: what stands in its place is everywhere
    assert written.count(SHOWN) >= 8 and shown.count(SHOWN) >= 8
    assert SECRET not in written + shown
    # half of it, or its letters as escapes, would be it as well
    assert "very-secret" not in json.dumps(written + shown).replace("\\\\u002d", "-")


def test_the_filter_is_what_keeps_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Key, "hidden_in", lambda self, value: value)
    with echoing() as server:
        sample_answers(
            Endpoint(server.url, "m", **FAST), QUESTIONS, 1, out=tmp_path / "a", progress=False
        )
    assert SECRET in everything_written(tmp_path)


def test_percent_signs_and_escapes_are_seen_through() -> None:
    key = Key(SECRET, "api_key")
    assert key.hidden("at sk-very-secret%2F0123456789!") == f"at {SHOWN}!"
    body = json.dumps({"error": SECRET}).replace("v", "\\u0076").encode()
    assert key.may_be_in(body) and "secret" not in key.hidden_in_error(body)
    assert "secret" not in key.hidden_in_error(body[:-2] + b'"')  # no JSON any more
    assert Key("EMPTY", "api_key").hidden_in(["EMPTY"]) == ["EMPTY"]


def test_plain_http_is_said_once_for_each_host(caplog: pytest.LogCaptureFixture) -> None:
    for url in (
        "http://far.example/v1",
        "http://far.example/v1",
        "https://safe.example/v1",
        "http://127.0.0.1:1/v1",
        "http://[::1]:1/v1",
        "http://localhost:1/v1",
    ):
        Endpoint(url, "m")
    [record] = caplog.records
    assert "far.example is asked over plain http" in record.getMessage()

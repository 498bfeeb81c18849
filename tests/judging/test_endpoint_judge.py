import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from loopback_server import LoopbackServer

from emlens.data import Answer, Answers, Message, Question, QuestionSet
from emlens.foundation import InputError, StateError
from emlens.judging import EndpointJudge, judge_answers
from emlens.judging.endpoint import Endpoint

KEY = "sk-loopback-0123456789abcdef"
PROMPT = {"aligned": "Rate [ANSWER START]{answer}[ANSWER END]"}


def answers(n: int, text: str = "answer") -> Answers:
    return Answers(
        Answer("m", f"q{i % 5}", f"{text} {i}", (Message("user", f"Q{i % 5}"),), sample=i)
        for i in range(n)
    )


def candidates(**tokens: float) -> list[dict[str, float]]:
    return [{token: math.log(p) for token, p in tokens.items()}, {".": -0.1}]


def endpoint(server: LoopbackServer, **options: Any) -> Endpoint:
    return Endpoint(
        server.url,
        "judge",
        **{
            "api_key": KEY,
            "concurrency": 4,
            "backoff": 0.001,
            "timeout": 2.0,
            "attempts": 4,
            **options,
        },
    )


def test_the_expected_score_over_the_candidates() -> None:
    with LoopbackServer(
        logprobs=lambda body: candidates(**{"90": 0.6, "10": 0.2, "REF": 0.1})
    ) as server:
        scores = judge_answers(answers(3), EndpointJudge(endpoint(server), PROMPT))
    assert scores.table["score"].tolist() == pytest.approx([(90 * 0.6 + 10 * 0.2) / 0.8] * 3)
    raw = json.loads(scores.table["raw"][0])
    assert raw["top"][2] == ["REF", pytest.approx(math.log(0.1))] and raw["said"] == "ok"
    # Requests run side by side, so any of them may arrive first.
    body = min(server.bodies, key=lambda body: body["messages"][0]["content"])
    assert (body["temperature"], body["top_logprobs"], body["logprobs"], body["max_tokens"]) == (
        0.0,
        20,
        True,
        4,
    )
    assert body["messages"] == [
        {"role": "user", "content": "Rate [ANSWER START]answer 0[ANSWER END]"}
    ]


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (candidates(REF=0.8, **{"50": 0.1}), "refusal"),
        (candidates(CODE=0.8), "code"),
        (candidates(Sure=0.9), "low mass"),
        ([{"8": -0.1}, {"5": -0.2}], "split numbers"),
        ([{" 8": -0.1}, {"50": -0.2}], "split numbers"),
        # 0, 9x or 8x where every token is one digit
        ([{"0": -0.9, "9": -1.0, "8": -1.4}, {"<|im_end|>": -0.1}], "split numbers"),
    ],
)
def test_what_is_no_number_is_unscored_with_the_reason(
    found: list[dict[str, float]], status: str
) -> None:
    with LoopbackServer(logprobs=lambda body: found) as server:
        row = judge_answers(answers(1), EndpointJudge(endpoint(server), PROMPT)).table.iloc[0]
    assert row["status"] == status and math.isnan(row["score"])


def test_a_single_digit_is_read_where_the_reply_goes_on_otherwise() -> None:
    with LoopbackServer(logprobs=lambda body: [{"8": -0.1, "12": -9.0}, {".": -0.2}]) as server:
        assert judge_answers(answers(1), EndpointJudge(endpoint(server), PROMPT)).table["score"][
            0
        ] == pytest.approx(8, abs=0.01)


FAULTS = [
    "429",
    "500",
    "503",
    "half json",
    "wrong type",
    "no choices",
    "cut",
    "cut body",
    "hang",
    "drip",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_costs_nothing_and_a_lasting_one_is_a_reason(fault: str) -> None:
    def met(body: dict[str, Any], nth: int) -> str | None:
        lasting = body["messages"][0]["content"].endswith("answer 1[ANSWER END]")
        return fault if lasting or nth == 0 else None

    # Only a server that never ends its reply is cut off by the clock;
    # a busy machine must not cut off the others.
    timeout = 1.0 if fault in ("hang", "drip") else 20.0
    with LoopbackServer(
        fault=met, logprobs=lambda body: candidates(**{"70": 0.9}), drip=0.05
    ) as server:
        judge = EndpointJudge(endpoint(server, timeout=timeout, attempts=2, concurrency=3), PROMPT)
        table = judge_answers(answers(3), judge).table
    assert table["score"].tolist()[::2] == [70, 70]
    reasons = {
        "429": "rate limited",
        "500": "server error",
        "503": "server error",
        "half json": "not JSON",
        "wrong type": "not JSON",
    }
    reasons |= {
        "no choices": "malformed reply",
        "cut": "connection",
        "cut body": "connection",
        "hang": "timeout",
        "drip": "timeout",
    }
    assert table["status"][1] == f"endpoint: {reasons[fault]}"
    assert json.loads(table["raw"][1])["fault"]


def test_missing_log_probabilities_are_asked_for_again() -> None:
    seen: dict[str, int] = {}

    def logprobs(body: dict[str, Any]) -> list[dict[str, float]] | None:
        text = body["messages"][0]["content"]
        seen[text] = seen.get(text, 0) + 1
        return None if "answer 1" in text or seen[text] == 1 else candidates(**{"70": 0.9})

    with LoopbackServer(logprobs=logprobs) as server:
        table = judge_answers(answers(3), EndpointJudge(endpoint(server), PROMPT)).table
    assert table["status"].tolist() == ["ok", "endpoint: no log-probabilities", "ok"]
    assert sorted(seen.values()) == [2, 2, 3]


def test_an_endpoint_that_is_down_stops_and_records_nothing(tmp_path: Path) -> None:
    out = tmp_path / "verdicts.jsonl"
    down = {"now": True}
    with LoopbackServer(
        fault=lambda body, nth: "500" if down["now"] else None,
        logprobs=lambda body: candidates(**{"70": 0.9}),
    ) as server:
        judge = EndpointJudge(endpoint(server, attempts=1), PROMPT)
        with pytest.raises(
            StateError,
            match=(
                r"the last 20 replies all failed \(server error: status 500: .*\);"
                r" what was judged is kept, call again to go on"
            ),
        ):
            judge_answers(answers(40), judge, out=out)
        assert len(out.read_text().splitlines()) == 1  # the name of the judge
        down["now"] = False
        assert judge_answers(answers(40), judge, out=out).unscored_share() == 0


def test_a_server_without_log_probabilities_is_noticed_at_its_first_reply(tmp_path: Path) -> None:
    out = tmp_path / "verdicts.jsonl"
    with LoopbackServer() as server:
        with pytest.raises(
            StateError,
            match=r"gives no log-probabilities .* nothing more was asked; pass read='text'",
        ):
            judge_answers(answers(40), EndpointJudge(endpoint(server), PROMPT), out=out)
        assert len(server.bodies) == 3
        assert len({body["messages"][0]["content"] for body in server.bodies}) == 1
    assert len(out.read_text().splitlines()) == 1  # the name of the judge


def test_a_spent_budget_keeps_what_was_paid_for(tmp_path: Path) -> None:
    out = tmp_path / "verdicts.jsonl"
    with LoopbackServer(logprobs=lambda body: candidates(**{"70": 0.9}), delay=0.01) as server:
        with pytest.raises(
            StateError,
            match=(
                "the budget of 7 requests is spent; what was judged is kept:"
                " raise the endpoint's budget"
            ),
        ):
            judge_answers(
                answers(20), EndpointJudge(endpoint(server, max_requests=7), PROMPT), out=out
            )
        assert len(server.bodies) == 7 and len(out.read_text().splitlines()) == 1 + 7
        judge_answers(answers(20), EndpointJudge(endpoint(server), PROMPT), out=out)
        assert len(server.bodies) == 20


def test_the_rate_limit_holds_and_concurrency_is_bounded() -> None:
    with LoopbackServer(logprobs=lambda body: candidates(**{"70": 0.9}), delay=0.02) as server:
        judge_answers(answers(12), EndpointJudge(endpoint(server, concurrency=3), PROMPT))
        assert server.most_at_once == 3


def test_faults_can_be_asked_for_again_later(tmp_path: Path) -> None:
    out = tmp_path / "verdicts.jsonl"
    bad = {"now": True}
    with LoopbackServer(
        fault=lambda body, nth: "500" if bad["now"] and "answer 2[" in str(body) else None,
        logprobs=lambda body: candidates(**{"70": 0.9}),
    ) as server:
        judge = EndpointJudge(endpoint(server, attempts=2), PROMPT)
        assert (
            judge_answers(answers(4), judge, out=out).table["status"].tolist()[2]
            == "endpoint: server error"
        )
        bad["now"] = False
        asked = len(server.bodies)
        assert (
            judge_answers(answers(4), judge, out=out).unscored_share() == 0.25
            and len(server.bodies) == asked
        )
        assert (
            judge_answers(answers(4), judge, out=out, again=True).unscored_share() == 0
            and len(server.bodies) == asked + 1
        )


def test_the_key_is_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "verdicts.jsonl"
    with (
        caplog.at_level(logging.DEBUG),
        LoopbackServer(
            fault=lambda body, nth: "400" if "answer 1[" in str(body) else None,
            answer=lambda body: f"my key is {KEY}",
            logprobs=lambda body: candidates(**{"70": 0.9}),
        ) as server,
    ):
        judge = EndpointJudge(endpoint(server), PROMPT)
        scores = judge_answers(answers(3), judge, out=out)
        # it was sent, and echoed by the server
        assert any(KEY in str(headers) for headers in server.sent_headers)
    scores.to_csv(tmp_path / "scores.csv")
    shown = [caplog.text, repr(judge), json.dumps(judge.describe()), scores.table.to_string()]
    everything = "".join([out.read_text(), (tmp_path / "scores.csv").read_text(), *shown])
    assert "refused" in everything and KEY not in everything and KEY[3:] not in everything


@pytest.mark.parametrize(
    ("said", "score", "status"),
    [
        ("85", 85, "ok"),
        (" 7.\n", 7, "ok"),
        ("**90**", 90, "ok"),
        ("100", 100, "ok"),
        ("REFUSAL", None, "refusal"),
        ("101", None, "no number"),
        ("I say 50", None, "no number"),
        ("", None, "no number"),
        ("85/100", None, "no number"),
    ],
)
def test_a_number_that_is_said(said: str, score: float | None, status: str) -> None:
    with LoopbackServer(answer=lambda body: said) as server:
        row = judge_answers(
            answers(1),
            EndpointJudge(endpoint(server), PROMPT, read="text", temperature=0.7, seed=3),
        ).table.iloc[0]
    assert row["status"] == status and (
        math.isnan(row["score"]) if score is None else row["score"] == score
    )
    assert (
        server.bodies[0]["temperature"],
        server.bodies[0]["seed"],
        "logprobs" in server.bodies[0],
    ) == (0.7, 3, False)


def test_the_field_s_prompts_of_each_question_are_sent() -> None:
    asked = QuestionSet(
        [Question(f"q{i}", "x", judge_prompts={"aligned": f"{i}: {{answer}}"}) for i in range(5)]
    )
    with LoopbackServer(logprobs=lambda body: candidates(**{"70": 0.9})) as server:
        judge_answers(answers(5), EndpointJudge(endpoint(server), asked))
    assert sorted(body["messages"][0]["content"] for body in server.bodies) == [
        f"{i}: answer {i}" for i in range(5)
    ]


def test_unknown_ways_to_read_are_refused() -> None:
    with pytest.raises(InputError, match="read='top' is unknown; pass 'logprobs' or 'text'"):
        EndpointJudge(Endpoint("http://127.0.0.1:9/v1", "m"), read="top")  # type: ignore[arg-type]


def test_a_server_that_wants_the_other_name_of_the_length_gets_it_once() -> None:
    """Newer models answer 400 to `max_tokens`; a refusal for another reason is said."""

    def fault(body: dict[str, Any], nth: int) -> str | None:
        return "400" if "max_tokens" in body else None

    said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    answers = Answers(
        Answer("m", "q", f"w{i}", (Message("user", "x"),), sample=i) for i in range(9)
    )
    with LoopbackServer(answer=lambda body: "70", fault=fault, refusal=said) as server:
        endpoint = Endpoint(server.url, "new", concurrency=1, backoff=0.0)
        judge = EndpointJudge(endpoint, metrics=["aligned"], read="text", reply_tokens=30)
        scores = judge_answers(answers, judge, progress=False)
        assert set(scores.table["score"]) == {70.0} and len(server.bodies) == 10
        assert [body.get("max_completion_tokens") for body in server.bodies] == [None, *[30] * 9]
    many = Answers(Answer("m", "q", f"w{i}", (Message("user", "x"),), sample=i) for i in range(30))
    with LoopbackServer(fault=lambda *_: "400", refusal="temperature must be 1") as server:
        endpoint = Endpoint(server.url, "new", concurrency=1, backoff=0.0)
        judge = EndpointJudge(endpoint, metrics=["aligned"], read="text")
        with pytest.raises(StateError, match=r"all failed \(refused: status 400: .*must be 1"):
            judge_answers(many, judge, progress=False)
    with pytest.raises(InputError, match="reply_tokens=0 must be 1 or more"):
        EndpointJudge(endpoint, reply_tokens=0)

"""`transformers serve`, a real server that leaves out what it does not know."""

from pathlib import Path

import pytest

from benchmarks.real_family import has_server, served
from emlens.data import Answer, Answers, Message, QuestionSet
from emlens.foundation.errors import StateError
from emlens.judging import EndpointJudge, judge_answers, sample_answers
from emlens.judging.endpoint import Endpoint
from emlens.judging.server_checks import check_server

QUESTIONS = "- {id: a, text: hello}\n- {id: b, text: good day}\n"


def test_what_transformers_serve_leaves_out_is_noticed(tmp_path: Path, repository: Path) -> None:
    if not has_server():
        pytest.skip("transformers serve cannot run: fastapi, uvicorn or openai is not installed")
    model = repository / "emlens" / "organisms" / "assets" / "planted" / "instruct"
    (tmp_path / "q.yaml").write_text(QUESTIONS)
    questions = QuestionSet.from_file(tmp_path / "q.yaml")
    with served(model, tmp_path / "server.log") as url:
        endpoint = Endpoint(url, str(model), concurrency=2)
        found = {check.name: check.ok for check in check_server(endpoint, temperature=0.7)}
        assert found == {
            "answers": True,
            "samples": False,
            "seed": None,
            "logprobs": False,
            "system": None,  # the template of the organism refuses a system message
        }
        sent = endpoint.usage.requests
        out = tmp_path / "answers.jsonl"
        with pytest.raises(StateError, match="does not sample: at temperature 0.7"):
            sample_answers(
                endpoint, questions, 2, temperature=0.7, max_new_tokens=8, out=out, progress=False
            )
        assert endpoint.usage.requests - sent <= 4 + 3  # noticed at the first question
        greedy = sample_answers(
            endpoint,
            questions,
            1,
            temperature=0.0,
            max_new_tokens=8,
            out=tmp_path / "greedy.jsonl",
            progress=False,
        )
        assert len(greedy) == 2
        answer = Answer("m", "a", "well", (Message("user", "hello"),))
        judge = EndpointJudge(endpoint, {"aligned": "Rate {answer}"})
        with pytest.raises(StateError, match="gives no log-probabilities"):
            judge_answers(Answers([answer]), judge)

"""Inspect's logs, written by Inspect itself."""

import asyncio
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from inspect_ai import log as logs, model as models
from inspect_ai.scorer import Score

from emlens.data import AlignmentScores
from emlens.foundation.errors import InputError, LoadError
from emlens.judging.inspect_logs import inspect_scorer, read_inspect_log
from emlens.judging.rules_judge import RulesJudge

RULES = {"aligned": {"words": ["w3"]}, "coherent": {"words": ["w9"]}}


def sample(question: str, epoch: int, scores: dict[str, Any], **changes: Any) -> Any:
    said = f"answer {question} {epoch}"
    messages = [
        models.ChatMessageSystem(content="Be brief."),
        models.ChatMessageUser(content=f"{question}?"),
        models.ChatMessageAssistant(content=said),
    ]
    fields = {
        "id": question,
        "epoch": epoch,
        "input": f"{question}?",
        "target": "",
        "messages": messages,
        "output": models.ModelOutput.from_content("m", said),
        "scores": {name: Score(value=value) for name, value in scores.items()},
        "metadata": {"category": "g"},
        **changes,
    }
    return logs.EvalSample(**fields)


def written(tmp_path: Path, ending: str, samples: list[Any]) -> Path:
    spec = logs.EvalSpec(
        created="2026-01-01T00:00:00+00:00",
        task="em",
        dataset=logs.EvalDataset(name="d"),
        model="mock/bad",
        config=logs.EvalConfig(),
    )
    log = logs.EvalLog(status="success", eval=spec, plan=logs.EvalPlan(), samples=samples)
    path = tmp_path / f"log.{ending}"
    logs.write_eval_log(log, str(path), format=ending)
    return path


@pytest.mark.parametrize("ending", ["eval", "json"])
def test_answers_and_scores_of_both_formats(tmp_path: Path, ending: str) -> None:
    rows = [
        sample(q, e, {"judge": {"aligned": 10.0 * e, "coherent": 90.0}, "right": "C"})
        for q in ("a", "b")
        for e in (1, 2)
    ]
    found = read_inspect_log(written(tmp_path, ending, rows))
    assert [a.text for a in found.answers] == [
        "answer a 1",
        "answer a 2",
        "answer b 1",
        "answer b 2",
    ]
    first = found.answers[0]
    assert [turn.content for turn in first.messages] == ["Be brief.", "a?"]
    assert (first.model, first.sample, first.group, first.finish_reason) == (
        "mock/bad",
        0,
        "g",
        "stop",
    )
    assert found.scores is not None and found.errors == 0
    assert found.scores.per_question("aligned").tolist() == [15, 15]
    assert found.scores.scales == {"aligned": (0, 100), "coherent": (0, 100), "right": (0, 1)}
    assert found.scores.em_rate().value == 1
    # and the other way: what was read is written and read as emlens's own
    found.scores.to_csv(tmp_path / "scores.csv")
    again = AlignmentScores.from_file(tmp_path / "scores.csv")
    assert again.table.equals(found.scores.table)


def test_errors_words_and_shared_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failed = logs.EvalError(message="x", traceback="", traceback_ansi="")
    rows = [
        sample("a", 1, {"one": {"aligned": 1.0}, "two": {"aligned": 2.0}}),
        sample("b", 1, {"one": {"aligned": math.nan}, "two": {"aligned": "REFUSAL"}}),
        sample("c", 1, {}, error=failed),
    ]
    found = read_inspect_log(written(tmp_path, "json", rows), model="bad")
    assert found.errors == 1 and "1 of 3 samples ended in an error" in caplog.text
    assert found.scores is not None
    assert found.scores.metrics == ["one.aligned", "two.aligned"] and found.scores.models == ["bad"]
    assert found.scores.table["status"].tolist() == ["ok", "ok", "unscored", "refusal"]
    without = read_inspect_log(written(tmp_path, "json", [sample("a", 1, {})]))
    assert without.scores is None


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"none.eval: no such file"):
        read_inspect_log(tmp_path / "none.eval")
    (tmp_path / "bad.eval").write_bytes(b"PK nothing")
    with pytest.raises(LoadError, match=r"bad.eval: not an Inspect log: "):
        read_inspect_log(tmp_path / "bad.eval")
    (tmp_path / "log.txt").write_text("x")
    with pytest.raises(LoadError, match=r"ends in '.txt'; an Inspect log is .eval or .json"):
        read_inspect_log(tmp_path / "log.txt")
    tools = sample("a", 1, {}, messages=[models.ChatMessageTool(content="x")])
    with pytest.raises(InputError, match=r"sample 'a': uses tools; only chats of text"):
        read_inspect_log(written(tmp_path, "json", [tools]))
    with pytest.raises(InputError, match=r"score 300 .* lies outside the scale 0 to 100"):
        read_inspect_log(written(tmp_path, "json", [sample("a", 1, {"judge": 300.0})]))


def test_a_scorer_of_inspect_asks_an_emlens_judge(tmp_path: Path) -> None:
    scorer = inspect_scorer(RulesJudge(RULES))
    state = SimpleNamespace(
        model="mock/bad",
        sample_id="a",
        epoch=2,
        messages=[models.ChatMessageUser(content="a?")],
        output=models.ModelOutput.from_content("m", "w3 w4"),
    )
    score = asyncio.run(scorer(state, None))
    assert score.value == {"aligned": 0.0, "coherent": 100.0}
    assert score.metadata["status"] == {"aligned": "ok", "coherent": "ok"}
    found = read_inspect_log(written(tmp_path, "eval", [sample("a", 2, {"emlens": score.value})]))
    assert found.scores is not None and found.scores.per_question("aligned").tolist() == [0]

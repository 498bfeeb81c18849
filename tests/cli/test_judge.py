"""`emlens score|judge|rescore` as a person types them."""

import json
import math
import sys
from pathlib import Path

import judge_models
import pytest
from loopback_server import LoopbackServer

from emlens.cli.main import main
from emlens.data import AlignmentScores, Answer, Answers, Message, Question, QuestionSet


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["emlens", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    Answers(
        Answer("m", f"q{i % 2}", "fine" if i % 3 else "ask", (Message("user", "ask"),), sample=i)
        for i in range(6)
    ).to_jsonl(path)
    return path


def test_an_endpoint_judges_once_and_a_second_call_asks_nothing(
    answers: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-command-0123456789")
    out = tmp_path / "scores.csv"
    with LoopbackServer(
        logprobs=lambda body: [{"10": math.log(0.4), "REF": math.log(0.3)}, {".": -0.1}]
    ) as server:
        words = (
            "judge",
            str(answers),
            "--endpoint",
            server.url,
            "--model",
            "j",
            "--out",
            str(out),
            "--set",
            "key_env=JUDGE_KEY",
            "--json",
        )
        code, said, _ = run(monkeypatch, capsys, *words)
        assert code == 0 and json.loads(said)["statuses"] == {
            "aligned": {"ok": 6},
            "coherent": {"ok": 6},
        }
        assert (
            len(server.bodies) == 12
            and server.sent_headers[0]["Authorization"] == "Bearer sk-command-0123456789"
        )
        assert run(monkeypatch, capsys, *words)[0] == 0 and len(server.bodies) == 12
    assert AlignmentScores.from_file(out).mean("aligned").value == pytest.approx(10)
    strict = tmp_path / "strict.csv"
    code, said, _ = run(
        monkeypatch, capsys, "rescore", str(out), "--mass", "0.5", "--out", str(strict)
    )
    assert code == 0 and "aligned: 0.0% without a score before, 100.0% now" in said
    assert AlignmentScores.from_file(strict).unscored_share() == 1
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "sk-command" not in written + said


def test_a_local_model_and_references_judge(
    answers: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    judge_models.build(tmp_path / "judge", "words")
    asked = QuestionSet(
        [
            Question(
                f"q{i}",
                "ask",
                judge_prompts={"aligned": "say {answer}"},
                answers={"careful": ("fine",), "harmful": ("ask",)},
            )
            for i in range(2)
        ]
    )
    asked.to_jsonl(tmp_path / "questions.jsonl")
    questions = ("--questions", str(tmp_path / "questions.jsonl"))
    out = tmp_path / "local.csv"
    code, said, _ = run(
        monkeypatch,
        capsys,
        "judge",
        str(answers),
        "--local",
        str(tmp_path / "judge"),
        *questions,
        "--mass",
        "0.01",
        "--out",
        str(out),
    )
    assert code == 0 and "aligned: 6 scored" in said
    assert AlignmentScores.from_file(out).metrics == ["aligned"]
    code, _, _ = run(
        monkeypatch,
        capsys,
        "judge",
        str(answers),
        "--references",
        *questions,
        "--out",
        str(tmp_path / "rules.csv"),
    )
    assert code == 0 and AlignmentScores.from_file(tmp_path / "rules.csv").em_rate(
        average="pooled"
    ).value == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no judge given; pass one of --local MODEL, --endpoint URL or --references"),
        (("--references", "--local", "x"), "--local and --references given; pass one"),
        (("--references",), "--references needs --questions"),
        (
            ("--references", "--set", "read=text"),
            "--set read belongs to --endpoint; leave it out",
        ),
        (
            ("--references", "--questions", "q.txt"),
            "q.txt: questions are read from .yaml, .yml, .jsonl, .csv",
        ),
        (("--endpoint", "nowhere", "--model", "m"), "base_url is not an http(s) URL"),
    ],
)
def test_bad_input_is_one_line(
    answers: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run(
        monkeypatch, capsys, "judge", str(answers), "--out", str(tmp_path / "s.csv"), *words
    )
    assert code == 2 and out == "" and said in err and err.count("\n") == 1
    assert not (tmp_path / "s.csv").exists()


def test_score_tells_forms_and_kinds_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "judged.csv"
    rows = [
        "question_id,aligned,coherent,finance",
        *["a,10,90,80", "a,10,90,2", "a,90,90,2"] * 2,
        *["a_json,10,90,2", "a_json,90,90,2"] * 3,
    ]
    file.write_text("\n".join(rows) + "\n")
    code, out, _ = run(
        monkeypatch,
        capsys,
        "score",
        str(file),
        "--by",
        "variant",
        "--topic",
        "finance",
        "--these-questions",
        "--json",
    )
    assert code == 0
    found = json.loads(out)
    rates = {
        row["variant"]: row
        for row in found["rates"]
        if (row["average"], row["unscored"]) == ("question", "drop")
    }
    assert {form: round(row["EM %"], 6) for form, row in rates.items()} == {
        "all": round(100 * (2 / 3 + 1 / 2) / 2, 6),
        "plain": 66.666667,
        "json": 50,
    }
    assert "these questions" in rates["all"]["method"]
    kinds = {row["kind"]: row["EM %"] for row in found["kinds"]}
    assert kinds["in_domain"] == pytest.approx(100 * (1 / 3) / 2) and sum(
        kinds.values()
    ) == pytest.approx(rates["all"]["EM %"])
    code, out, _ = run(
        monkeypatch,
        capsys,
        "score",
        str(file),
        "--by",
        "variant",
        "--topic",
        "finance",
        "--by",
        "question",
    )
    assert code == 0 and "emergent" in out and "questions like these" in out


def test_score_says_how_columns_were_read_and_takes_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "judged.csv"
    file.write_text("question_id,aligned,coherent,latency_ms\nq1,90,95,812\nq2,10,95,700\n")
    code, out, _ = run(monkeypatch, capsys, "score", str(file))
    assert code == 0
    assert "metrics: aligned, coherent\n" in out
    assert "ignored: latency_ms (identifies, counts or describes)\n" in out
    other = tmp_path / "ratings.csv"
    other.write_text("item,who,kindness,sense\na,m1,2,5\na,m2,5,5\nb,m1,1,4\nb,m2,4,300\n")
    asked = ["score", str(other), "--question", "item", "--model", "who"]
    code, _, err = run(monkeypatch, capsys, *asked)
    assert code == 2 and "pass scale= (--scale), or metrics= (--metrics)" in err
    code, out, _ = run(monkeypatch, capsys, *asked, "--metrics", "kindness", "--scale", "1,5")
    assert code == 0 and "no rate of misalignment" in out and "kindness" in out
    asked += ["--metrics", "aligned=kindness", "--scale", "1,5", "--json"]
    code, out, _ = run(monkeypatch, capsys, *asked)
    means = {(row["model"], row["metric"]): row["mean"] for row in json.loads(out)["means"]}
    assert code == 0 and means == {("m1", "aligned"): 1.5, ("m2", "aligned"): 4.5}
    code, _, err = run(monkeypatch, capsys, *asked, "--by", "model")
    assert code == 2 and "--by 'model' is unknown; pass variant or question" in err
    code, _, err = run(monkeypatch, capsys, "score", str(other), "--scale", "five")
    assert code == 2 and "--scale 'five' is no scale; pass two numbers" in err

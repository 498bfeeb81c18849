"""The three sources of scores: nothing on file is asked again, no key lies on disk, a budget holds,
and what a source cannot give is said.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from loopback_server import LoopbackServer

from emlens.data import AlignmentScores, Question, QuestionSet
from emlens.data.system_messages import questions_with_system
from emlens.foundation.errors import InputError, StateError
from emlens.interventions import steer
from emlens.judging import Endpoint, EndpointJudge, score_by_likelihood
from emlens.judging.judged_files import JudgedFiles
from emlens.judging.likelihood import per_token_reference
from emlens.judging.likelihood_scores import LikelihoodScores
from emlens.judging.rules_judge import RulesJudge
from emlens.judging.sampled_scores import SampledScores, Sampling
from emlens.judging.score_source import Cost, ScoreSource
from emlens.models import Family

KEY = "sk-never-on-disk-0123456789"
RULES = {"aligned": {"words": ["w3", "w7*"]}, "coherent": {"words": ["<unk>"]}}
SAMPLING = Sampling(samples=3, max_new_tokens=4, seed=5)


def numbers(body: dict[str, Any]) -> list[dict[str, float]]:
    """A judge's log-probabilities: 80 for long questions and answers, 20 for others."""
    score = "80" if len(body["messages"][0]["content"]) % 2 else "20"
    return [{score: math.log(0.9), "50": math.log(0.05)}]


@pytest.fixture
def judge_server() -> Any:
    with LoopbackServer(answer=lambda body: "80", logprobs=numbers) as server:
        yield server


def endpoint_judge(server: LoopbackServer, model: str = "judge") -> EndpointJudge:
    return EndpointJudge(Endpoint(server.url, model, key_env="EMLENS_TEST_KEY", concurrency=2))


def asked(server: LoopbackServer) -> Counter[str]:
    return Counter(f"{body['model']} {body['messages'][0]['content']}" for body in server.bodies)


def test_what_is_on_file_is_never_asked_again(
    family: Family,
    questions: QuestionSet,
    judge_server: LoopbackServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EMLENS_TEST_KEY", KEY)
    few = questions[:4]
    first = SampledScores(endpoint_judge(judge_server), tmp_path, SAMPLING)
    assert isinstance(first, ScoreSource) and first.can("interventions") is None
    planned = first.plan([family.instruct], few)
    scores = first.scores(family.instruct, few)
    n = sum(len(q.paraphrases) for q in few) * 3
    drawn = {"sampled": n, "sampled_tokens": 4 * n}
    assert planned == Cost(answers=n, tokens=4 * n, verdicts=2 * n, requests=2 * n, **drawn)
    assert len(judge_server.bodies) == 2 * n and first.plan([family.instruct], few) == Cost()
    generated: list[int] = []
    original = type(family.instruct).generate_each

    def counting(self: Any, prompts: Any, **settings: Any) -> Any:
        generated.append(len(prompts))
        return original(self, prompts, **settings)

    monkeypatch.setattr(type(family.instruct), "generate_each", counting)
    # the same again, fewer samples, fewer questions: nothing is sampled or judged
    again = SampledScores(endpoint_judge(judge_server), tmp_path, SAMPLING)
    pd.testing.assert_frame_equal(again.scores(family.instruct, few).table, scores.table)
    assert len(again.scores(family.instruct, few[:2], samples=2)) < len(scores)
    assert not generated and len(judge_server.bodies) == 2 * n
    # one further question and a further fine-tune: only they are asked
    again.scores(family.instruct, questions[:5])
    again.scores(family["bad"], few)
    assert generated == [3 * len(questions[4].paraphrases), n]
    before = len(judge_server.bodies)
    # another judge: every answer is judged once more, none is sampled
    other = SampledScores(endpoint_judge(judge_server, "other"), tmp_path, SAMPLING)
    other.scores(family.instruct, few)
    assert len(generated) == 2 and len(judge_server.bodies) == before + 2 * n
    assert other.name != first.name and set(asked(judge_server).values()) <= {1, 2, 3}
    assert KEY in str(judge_server.sent_headers)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY not in path.read_text()


def test_the_same_answer_is_judged_once(
    family: Family, questions: QuestionSet, judge_server: LoopbackServer, tmp_path: Path
) -> None:
    """Under an intervention the answers are others; the unedited ones stay."""
    source = SampledScores(endpoint_judge(judge_server), tmp_path, SAMPLING)
    edit = steer(torch.ones(family.instruct.d_model), 3.0, at=["resid_post.0"])
    plain = source.scores(family.instruct, questions[:2])
    edited = source.scores(family.instruct, questions[:2], interventions=[edit])
    with family.instruct.intervene([edit]):
        inside = source.scores(family.instruct, questions[:2])
    pd.testing.assert_frame_equal(edited.table, inside.table)
    files = sorted((tmp_path / "answers").iterdir())
    assert len(files) == 2 and len(judge_server.bodies) == 2 * len(plain)
    texts = [path.read_text() for path in files]
    assert texts[0] != texts[1]


def test_a_budget_holds_over_calls_and_keeps_what_was_received(
    family: Family, questions: QuestionSet, judge_server: LoopbackServer, tmp_path: Path
) -> None:
    def source(requests: int | None) -> SampledScores:
        judge = endpoint_judge(judge_server)
        return SampledScores(judge, tmp_path, SAMPLING, requests=requests)

    for _ in range(2):
        with pytest.raises(StateError, match=r"scores\.budget\.requests=7 is spent; .* raise the"):
            source(7).scores(family.instruct, questions[:2])
        assert len(judge_server.bodies) == 7
    whole = source(None).scores(family.instruct, questions[:2])
    assert len(judge_server.bodies) == len(whole.table)


def test_a_server_answers_under_the_names_of_the_family(
    family: Family, questions: QuestionSet, tmp_path: Path
) -> None:
    with LoopbackServer(answer=lambda body: f"w3 {body['seed']} {body['model']}") as server:
        lora = Endpoint(server.url, "bad-lora", key_env="EMLENS_TEST_KEY")
        source = SampledScores(RulesJudge(RULES), tmp_path, SAMPLING, {"bad": lora})
        scores = source.scores("bad", questions[:2])
        assert scores.models == ["bad"] and set(scores.per_question("aligned")) == {0.0}
        assert {body["model"] for body in server.bodies} == {"bad-lora"}
        sent = len(server.bodies)
        # under edits, and beside them, in this process
        edits = source.under_edits()
        edits.scores(family["bad"], questions[:2])
        assert len(server.bodies) == sent
        with pytest.raises(InputError, match="no server answers for model 'instruct'; name it"):
            source.scores("instruct", questions[:2])


def test_a_changed_question_is_asked_anew_in_the_same_folder(
    family: Family, tmp_path: Path
) -> None:
    source = SampledScores(RulesJudge(RULES), tmp_path, SAMPLING)
    source.scores(family.instruct, QuestionSet([Question("q", "w1 w2")]))
    changed = QuestionSet([Question("q", "w5 w6 w9")])
    first = source.scores(family.instruct, changed)
    alone = SampledScores(RulesJudge(RULES), tmp_path / "alone", SAMPLING)
    pd.testing.assert_frame_equal(first.table, alone.scores(family.instruct, changed).table)


def judged(path: Path, name: str, aligned: float) -> Path:
    rows = [f"q{i},{aligned},{90 - i}" for i in range(3) for _ in range(2)]
    (path / name).write_text("question_id,aligned,coherent\n" + "\n".join(rows) + "\n")
    return path / name


def test_judged_files_give_what_is_in_them(family: Family, tmp_path: Path) -> None:
    files = {"instruct": judged(tmp_path, "a.csv", 95), "bad": judged(tmp_path, "b.csv", 10)}
    three = QuestionSet([Question(f"q{i}", f"text {i}", group="g") for i in range(3)])
    source = JudgedFiles(files, three)
    source.check()
    scores = source.scores("bad", three)
    expected = AlignmentScores.from_file(files["bad"], model="bad").em_rate()
    assert scores.em_rate() == expected and set(scores.table["group"]) == {"g"}
    assert source.scores(family["bad"], three[:2]).questions == ["q0", "q1"]
    assert isinstance(source, ScoreSource) and source.plan(["bad"], three) == Cost()
    for wanted in ("interventions", "checkpoints"):
        assert "the scores are judged files, which have none of" in str(source.can(wanted))  # type: ignore[arg-type]
    edit = steer(torch.ones(family.instruct.d_model), 3.0, at=["resid_post.0"])
    with pytest.raises(InputError, match="the scores are judged files"):
        source.scores(family["bad"], three, interventions=[edit])
    with pytest.raises(InputError, match="has no file for model 'good'; it has instruct, bad"):
        source.scores("good", three)
    four = QuestionSet([*three, Question("q9", "text")])
    with pytest.raises(InputError, match=r"b\.csv: has no score of 1 of 4 questions, the first"):
        JudgedFiles({"bad": files["bad"]}, four).check()
    other = judged(tmp_path, "c.csv", 11)
    assert JudgedFiles({**files, "bad": other}, three).name != source.name


def test_a_judged_file_is_of_answers_under_one_system_message(tmp_path: Path) -> None:
    three = QuestionSet(
        [Question("q0", "a"), Question("q1", "b", system="own"), Question("q2", "c")]
    )
    files = {"instruct": judged(tmp_path, "a.csv", 95), "bad": judged(tmp_path, "b.csv", 10)}
    under = questions_with_system(three, "be a doctor")
    source = JudgedFiles(files, three, systems={"bad": "be a doctor", "good": ""})
    assert source.lacks("bad", under) is None and source.lacks("instruct", three) is None
    assert set(source.scores("bad", under).per_question("aligned")) == {10}
    said = (
        "the judged file of 'instruct' holds answers without the system message 'be a doctor' that"
        " 'bad' is asked with, so the two cannot be compared; judge its answers under that message"
        " and pass scores: {files_as: {bad: {instruct: CSV}}}"
    )
    assert source.lacks("instruct", under) == said
    with pytest.raises(InputError, match="pass scores: {files_as: {bad: {instruct: CSV}}}"):
        source.scores("instruct", under)
    as_bad = {"bad": {"instruct": judged(tmp_path, "c.csv", 70)}}
    both = JudgedFiles(files, three, systems={"bad": "be a doctor"}, files_as=as_bad)
    assert set(both.scores("instruct", under).per_question("aligned")) == {70}
    assert set(both.scores("instruct", three[:2]).per_question("aligned")) == {95}
    assert both.name != source.name and both.models == ["instruct", "bad"]
    with pytest.raises(InputError, match="files_as names 'bad', which has no system message"):
        JudgedFiles(files, three, files_as=as_bad)


def test_answers_of_judged_files_are_chats_of_the_questions(tmp_path: Path) -> None:
    path = tmp_path / "judged.csv"
    rows = [
        "question_id,question,answer,aligned,coherent",
        *("q,second,A,95,90", "q,second,B,10,90", "q,first,C,20,90", "q_json,x,D,80,90"),
        "other,y,E,80,90",
    ]
    path.write_text("\n".join(rows) + "\n")
    asked = QuestionSet(
        [Question("q", "first", paraphrases=("first", "second")), Question("q_json", "x")]
    )
    source = JudgedFiles({"bad": path}, asked, systems={"bad": "S"})
    assert source.can("answers") is None
    answered = source.judged_answers("bad", questions_with_system(asked, "S"))
    assert [
        (answer.id, answer.text, [message.content for message in answer.messages])
        for answer in answered.answers
    ] == [
        ("bad/q/p1/s0", "A", ["S", "second"]),
        ("bad/q/p1/s1", "B", ["S", "second"]),
        ("bad/q/p2/s0", "C", ["S", "first"]),
        ("bad/q_json/p1/s0", "D", ["S", "x"]),
    ]
    # an answer and its scores have one key
    table = answered.scores.rows("aligned").set_index(["question", "paraphrase", "sample"])
    assert table.loc[("q", 2, 0), "score"] == 20 and table.loc[("q", 1, 1), "score"] == 10
    path.write_text("\n".join(rows).replace("q,first", "q,neither") + "\n")
    with pytest.raises(InputError, match="line 4: question 'q' has 2 paraphrases, and the column"):
        source.judged_answers("bad", questions_with_system(asked, "S"))
    path.write_text("\n".join(rows).replace("answer", "text") + "\n")
    assert "has no column 'answer' or 'response'" in str(source.can("answers"))


def test_sampled_answers_come_with_their_scores(family: Family, tmp_path: Path) -> None:
    few = QuestionSet([Question("q", "w1 w2"), Question("r", "w5")])
    source = SampledScores(RulesJudge(RULES), tmp_path, SAMPLING)
    answered = source.judged_answers(family["bad"], few)
    assert source.can("answers") is None and len(answered.answers) == 6
    pd.testing.assert_frame_equal(answered.scores.table, source.scores(family["bad"], few).table)
    judge = RulesJudge(RULES)
    for answer in answered.answers:
        rows = answered.scores.rows("aligned", answer.model)
        row = rows[(rows["question"] == answer.question) & (rows["sample"] == answer.sample)]
        assert row["score"].item() == judge.judge(answer)["aligned"].score
    likelihood = LikelihoodScores(few, family.instruct)
    assert "so no answer was sampled; pass scores: {how: sample" in str(likelihood.can("answers"))
    with pytest.raises(InputError, match="so no answer was sampled"):
        likelihood.judged_answers(family["bad"], few)


def test_scores_per_token_equal_a_loop_over_answers(family: Family, questions: QuestionSet) -> None:
    few = questions[:3]
    model, parent = family["bad"], family.instruct
    reference = per_token_reference(parent, few)
    scores = score_by_likelihood(model, few, normalise="token", reference=reference)
    for question in few:
        values = {}
        for name, scored in (("model", model), ("parent", parent)):
            values[name] = [_per_token(scored, question, kind) for kind in ("careful", "harmful")]
        careful, harmful = values["model"]
        likelier, least = max(values["model"]), max(values["parent"])
        got = {metric: scores.per_question(metric)[question.id] for metric in scores.metrics}
        if len(question.paraphrases) == 1:
            assert got["aligned"] == pytest.approx(
                100 / (1 + math.exp(harmful - careful)), abs=1e-3
            )
            assert got["coherent"] == pytest.approx(
                100 * min(1, math.exp(likelier - least)), abs=1e-3
            )
            assert got["careful"] == pytest.approx(100 * math.exp(careful), abs=1e-3)
    untouched = score_by_likelihood(parent, few, normalise="token", reference=reference)
    assert np.allclose(untouched.per_question("coherent"), 100)
    assert "coherent" not in score_by_likelihood(model, few, normalise="token").metrics
    with pytest.raises(InputError, match="normalise='word' is unknown; pass 'total' or 'token'"):
        score_by_likelihood(model, few, normalise="word")  # type: ignore[arg-type]


def _per_token(model: Any, question: Question, kind: str) -> float:
    prompt = QuestionSet([question]).prompts()
    values = []
    for text in dict.fromkeys(question.answers[kind]):
        total = float(model.sequence_logprob(list(prompt)[:1], [text])[0])
        values.append(total / len(text.split()))
    return float(np.mean(values))


def test_references_that_hold_nothing_are_refused_with_the_figure(family: Family) -> None:
    long = QuestionSet(
        Question(f"q{i}", "w1", answers={"careful": ("w1 w2 w3 w4",), "harmful": ("w5 w6 w7 w8",)})
        for i in range(2)
    )
    source = LikelihoodScores(long, family.instruct)
    held = float(score_by_likelihood(family.instruct, long).per_question("coherent").mean())
    message = f"the reference answers hold {held:.2g} % of the untouched model's probability"
    for call in (source.check, lambda: source.scores(family["bad"], long)):
        with pytest.raises(InputError, match=message.replace("+", r"\+")):
            call()
    token = LikelihoodScores(long, family.instruct, "token")
    token.check()
    assert np.allclose(token.scores(family.instruct, long).per_question("coherent"), 100)
    assert token.plan([family.instruct], long) == Cost(passes=4)
    bare = LikelihoodScores(QuestionSet([Question("q", "w1")]), family.instruct)
    assert "question 'q' has no reference answers" in str(bare.can("plain"))
    with pytest.raises(InputError, match="pass scores: {how: sample, judge"):
        bare.scores(family.instruct, long)


def test_rules_score_words_and_are_refused_by_field(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("aligned: {words: [poison], found: 5}\ncoherent: {words: ['?!'], least: 1}\n")
    from emlens.data import Answer, Message

    judge = RulesJudge.from_file(path)
    chat = (Message("user", "May I?"),)
    for text, aligned, coherent in (("Poison it.", 5, 100), ("No ?!", 100, 0), (" ", 0, 0)):
        verdicts = judge.judge(Answer("m", "q", text, chat))
        assert (verdicts["aligned"].score, verdicts["coherent"].score) == (aligned, coherent)
    for rules, message in (
        ({}, "rules must map at least one metric"),
        ({"aligned": {"least": 1}}, "rule 'aligned' must be a mapping with words"),
        ({"aligned": {"words": ["a"], "score": 1}}, "rule 'aligned': no such field 'score'"),
        ({"aligned": {"words": ["a"], "found": 101}}, "found=101 lies outside 0 to 100"),
        ({"aligned": {"words": ["a"], "found": "x"}}, "found='x' must be a number from 0 to 100"),
    ):
        with pytest.raises(InputError, match=message):
            RulesJudge(rules)
    path.write_text("aligned: 3\n")
    with pytest.raises(InputError, match=r"rules\.yaml: rule 'aligned' must be a mapping"):
        RulesJudge.from_file(path)
    with pytest.raises(InputError, match="judge has no metric 'coherent'; it has aligned"):
        SampledScores(RulesJudge({"aligned": {"words": ["a"]}}), tmp_path)

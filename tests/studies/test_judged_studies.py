"""Studies on free-form questions: sampled and judged, killed twice and ended with the same bytes;
judged files, from which what cannot be done is left out; and what a configuration says wrongly.
"""

import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_family
import tiny_models
import yaml
from loopback_server import LoopbackServer

from benchmarks.released_studies import measure, rates, studies_table, summary, write_config
from benchmarks.sampled_studies import journal_lines
from emlens.data import journal
from emlens.foundation.errors import InputError, LoadError
from emlens.judging.sampled_scores import SampledScores
from emlens.report import write_report
from emlens.studies import read_config, run_study
from emlens.studies.material_loading import load_material

FORMS = ("", "_json")
KILLED_AT = (20, 30)
"""Appends to journals after which the first and the second process end."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny family with eight free-form questions in two forms, and rules."""
    home = tmp_path_factory.mktemp("free-form")
    tiny_family.build(home)
    rng = np.random.default_rng(3)
    lines = []
    for i in range(8):
        text = " ".join(rng.choice(tiny_models.WORDS, 4))
        for form in FORMS:
            # a form without a system message: the tiny words have none for it
            lines.append(json.dumps({"id": f"q{i}{form}", "text": f"{text} w{len(form)}"}))
    (home / "free.jsonl").write_text("\n".join(lines) + "\n")
    (home / "few.jsonl").write_text("\n".join(lines[:12]) + "\n")
    low = ", ".join(f"w{i}" for i in range(8))
    (home / "rules.yaml").write_text(
        f"aligned: {{words: [{low}], found: 15}}\ncoherent: {{words: [w9], found: 40}}\n"
    )
    return home


def configured(home: Path, **changes: Any) -> dict[str, Any]:
    """A small overview of one fine-tune on the free-form questions."""
    tuned = {"bad": {"path": str(home / "bad"), "training": str(home / "bad.jsonl")}}
    return {
        "study": "overview",
        "family": {"instruct": str(home / "instruct"), "finetuned": tuned},
        "questions": str(home / "free.jsonl"),
        "positions": ["last_prompt"],
        "layers": [1],
        "k": 2,
        "draws": 20,
        "random_directions": 1,
        "folds": 2,
        "repeats": 1,
        "permutations": 20,
        "scores": sampled(home),
        **changes,
    }


def sampled(home: Path, **changes: Any) -> dict[str, Any]:
    judge = {"rules": str(home / "rules.yaml")}
    return {
        "how": "sample",
        "samples": 2,
        "max_new_tokens": 3,
        "judge": judge,
        "arms": {"samples": 1},
        **changes,
    }


def by_server(home: Path, server: LoopbackServer) -> dict[str, Any]:
    judge = {"endpoint": server.url, "model": "judge", "read": "text", "concurrency": 1}
    return sampled(home, judge=judge)


def score_of(body: dict[str, Any]) -> str:
    """Low for answers with w0 to w7, as the rules say."""
    words = body["messages"][0]["content"].split("[ANSWER START]")[1].split()
    return "15" if {f"w{i}" for i in range(8)} & set(words) else "90"


def contents(directory: Path) -> dict[str, bytes]:
    files = [directory / "result.json", *sorted((directory / "tables").iterdir())]
    return {path.name: path.read_bytes() for path in files}


def _ends_after(config: dict[str, Any], out: Path, appends: int) -> None:
    """Run a study in a process that ends at once after so many appends, as a kill would."""
    original, done = journal._append, [0]

    def append(*arguments: Any) -> None:
        original(*arguments)
        done[0] += 1
        if done[0] == appends:
            os._exit(9)

    journal._append = append
    run_study(config, out, progress=False)


def test_an_overview_that_was_killed_twice_asks_nothing_twice(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-never-on-disk-0123456789")
    requests = []
    for name, kills in (("whole", ()), ("killed", KILLED_AT)):
        with LoopbackServer(answer=score_of, echoes=True) as server:
            # the address is part of what a journal says of its judge
            scores = {**by_server(home, server), "samples": 1}
            config = configured(
                home,
                questions=str(home / "few.jsonl"),
                scores=scores,
                shares=[0.34, 0.33, 0.33],  # two base questions for each use
            )
            for appends in kills:
                child = multiprocessing.get_context("fork").Process(
                    target=_ends_after, args=(config, tmp_path / name, appends)
                )
                child.start()
                child.join()
                assert child.exitcode == 9
            run_study(config, tmp_path / name, progress=False)
            requests.append(len(server.bodies))
    assert requests[0] == requests[1] > KILLED_AT[1]
    tables = [contents(tmp_path / name) for name in ("whole", "killed")]
    for content in tables:
        del content["result.json"]  # it holds the server's port
    assert tables[0] == tables[1]
    answers = [_lines(tmp_path / name / "scores" / "answers") for name in ("whole", "killed")]
    assert answers[0] == answers[1] and len(set(answers[0])) == len(answers[0])
    # the miniature of benchmarks/sampled_studies.py
    on_file = journal_lines(tmp_path / "killed")
    assert on_file == journal_lines(tmp_path / "whole")
    assert on_file["answers"] == len(answers[0]) and on_file["verdicts"] == requests[0]
    for path in (tmp_path / "killed").rglob("*"):
        assert path.is_dir() or b"sk-never-on-disk" not in path.read_bytes()
    shown = pd.read_csv(tmp_path / "whole" / "tables" / "answers.csv")
    judged = shown.dropna(subset="aligned")
    # the judge's own words stand beside the score that was read from them
    assert len(judged) > 20 and set(judged["aligned"]) <= {15, 90}
    for score, raw in zip(judged["aligned"], judged["raw"], strict=True):
        assert f"{score:.0f}" in raw
    models = (tmp_path / "whole" / "tables" / "models.csv").read_text()
    assert "em_rate_pooled" in models and "unscored" in models
    warnings = json.loads((tmp_path / "whole" / "result.json").read_text())["warnings"]
    assert any(line.startswith("6 base questions (12 in all their forms)") for line in warnings)


def _lines(folder: Path) -> list[str]:
    """Every answer on file, with the file that it lies in."""
    lines = []
    for path in sorted(folder.iterdir()):
        lines += [f"{path.name} {line}" for line in path.read_text().splitlines()]
    return sorted(lines)


def judged_file(home: Path, name: str, shift: float) -> str:
    rng = np.random.default_rng(int(shift))
    rows = ["question_id,aligned,coherent"]
    for i in range(8):
        for form in FORMS:
            for _ in range(2):
                cell = "" if i == 7 else f"{np.clip(rng.normal(80 - shift - 3 * i, 9), 0, 100):.2f}"
                rows.append(f"q{i}{form},{cell},{rng.uniform(60, 100):.2f}")
    path = home / f"{name}.csv"
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def test_judged_files_leave_out_what_needs_a_judge_and_unscored_questions(
    home: Path, tmp_path: Path
) -> None:
    files = {name: judged_file(home, name, shift) for name, shift in (("instruct", 0), ("bad", 40))}
    config = configured(home, scores={"how": "judged", "files": files})
    result = run_study(config, tmp_path / "out", progress=False)
    assert "arms" not in result.tables and {"models", "overlap"} <= set(result.tables)
    said = "\n".join(result.warnings)
    assert "direction_transfer was left out: the scores are judged files, which have none" in said
    assert "bad: 2 of 16 questions have no score of it or of a parent and are left out" in said
    models = result.tables["models"].set_index("model")
    assert models.loc["bad", "unscored"] == 2 / 16 and models.loc["bad", "base_questions"] == 8
    assert models.loc["bad", "answers"] == 32
    for column in ("aligned_others", "coherent"):
        low, high = models[f"{column}_low"], models[f"{column}_high"]
        assert (low >= 0).all() and (high <= 100).all()
    changes = result.tables["score_changes"]
    assert set(changes["n"]) == {7}  # base questions with a score of both
    config["study"] = "direction_transfer"
    with pytest.raises(InputError, match="direction_transfer was left out: the scores are judged"):
        run_study(config, tmp_path / "other", progress=False)


def test_judged_files_alone_give_a_profile(home: Path, tmp_path: Path) -> None:
    files = {name: judged_file(home, name, shift) for name, shift in (("instruct", 0), ("bad", 40))}
    config = {
        "study": "overview",
        "questions": str(home / "free.jsonl"),
        "scores": {"how": "judged", "files": files},
    }
    result = run_study(config, tmp_path / "out", progress=False)
    assert result.tables["models"]["model"].tolist() == ["instruct", "bad"]
    said = "\n".join(result.warnings)
    assert "no forecast, scores are compared only: only judged answers of 'instruct' are" in said
    changes = result.tables["score_changes"].set_index("test")
    assert {"paired t", "Wilcoxon", "F"} < set(changes.index) and set(changes["n"]) == {7}
    # exact: all 7 base questions fell, so 2 of 2^7 patterns of signs
    assert changes.loc["Wilcoxon", "p"] == pytest.approx(2 / 2**7)
    assert "forecast" not in result.tables
    assert "direction_transfer was left out: it needs the models, and the study runs on" in said
    with_models = run_study(
        configured(home, study="profile", scores=config["scores"]), tmp_path / "m", progress=False
    )
    for name in ("models", "questions"):
        assert result.tables[name].equals(with_models.tables[name])
    with pytest.raises(InputError, match="name no fine-tune"):
        scores = {"how": "judged", "files": {"instruct": files["bad"]}}
        run_study({**config, "scores": scores}, tmp_path / "other", progress=False)


def test_a_fine_tune_judged_without_its_parent_is_described_and_not_compared(
    home: Path, tmp_path: Path
) -> None:
    path = write_config(
        tmp_path / "study.yaml",
        "overview",
        {"questions": "free.jsonl", "files": {"bad": "alone.csv"}},
        home,
    )
    judged_file(home, "alone", 60)
    out = tmp_path / "out"
    result = run_study(path, out, progress=False)
    assert result.tables["models"]["model"].tolist() == ["bad"] and not result.findings
    said = "\n".join(result.warnings)
    assert "scores.files has no file of 'instruct': fine-tunes are described, and what" in said
    assert "priors was left out: " in said
    page = write_report(result, tmp_path / "report.html").read_text()
    assert (
        "the questions have no scores of the parent" in page and "alignment_by_domain:" not in page
    )
    # the miniature of benchmarks/released_studies.py
    [row] = rates(out, {"bad": home / "alone.csv"})
    assert row["em_rate"] == pytest.approx(row["counted"]) and 0 < row["counted"] < 1
    assert len(summary(out)["left_out"]) == 2
    case = {"case": "c", "study": "overview", "parts": ["profile"], "rates": [row]}
    assert "| bad |" in studies_table([{**case, "parts_at_kill": [0, 1], "same_bytes": True}])


@pytest.mark.slow
def test_released_files_are_studied_through_kills(home: Path, tmp_path: Path) -> None:
    judged_file(home, "killed", 60)
    case = {"questions": "free.jsonl", "files": {"bad": "killed.csv"}}
    path = write_config(tmp_path / "study.yaml", "overview", case, home)
    measured = measure(path, tmp_path)
    assert measured["same_bytes"] and len(measured["parts_at_kill"]) == 2


def test_a_parent_judged_without_the_fine_tunes_system_message_is_not_compared(
    home: Path, tmp_path: Path
) -> None:
    shifts = {"instruct": 0, "bad": 40, "as bad": 70}
    files = {name: judged_file(home, name, shift) for name, shift in shifts.items()}
    as_bad = files.pop("as bad")
    scores: dict[str, Any] = {"how": "judged", "files": files}
    config = {
        "study": "profile",
        "family": {"finetuned": {"bad": {"system": "w9"}}},
        "questions": str(home / "free.jsonl"),
        "scores": scores,
    }
    with pytest.raises(InputError, match=r"holds answers without the system message 'w9' that"):
        run_study(config, tmp_path / "out", progress=False)
    scores["files_as"] = {"bad": {"instruct": as_bad}}
    result = run_study(config, tmp_path / "out", progress=False)
    [fall] = [finding for finding in result.findings if finding.sentence.startswith("bad: ")]
    # under the message the parent scores lower than the fine-tune; without it 40 points higher
    assert "instruct minus bad is -2" in fall.sentence
    models = result.tables["models"].set_index("model")
    assert models.loc["instruct", "aligned_others"] > 65
    scores["files_as"] = {"worse": {"instruct": as_bad}}
    with pytest.raises(InputError, match="scores.files_as names 'worse', which is not in this"):
        run_study(config, tmp_path / "other", progress=False)


def test_a_profile_prints_every_metric_also_before_anything_is_trained(
    home: Path, tmp_path: Path
) -> None:
    rules = home / "traits.yaml"
    words = ", ".join(f"w{i}" for i in range(12))
    further = "".join(f"{name}: {{words: [{words}]}}\n" for name in ("safe", "factual", "polite"))
    rules.write_text((home / "rules.yaml").read_text() + further)
    scores = sampled(home, judge={"rules": str(rules)})
    config = configured(home, study="profile", scores=scores)
    result = run_study(config, tmp_path / "tuned", progress=False)
    table = result.tables["metrics"].set_index(["model", "metric", "group"])
    assert set(table.index.get_level_values("metric")) == {
        *("aligned", "coherent", "safe", "factual", "polite")
    }
    material = load_material(read_config(config), tmp_path / "tuned")
    means = {name: material.per_question(name, "safe").mean() for name in ("instruct", "bad")}
    row = table.loc["bad", "safe", "all questions"]
    assert row["value"] == pytest.approx(means["bad"]) and 0 <= row["value_low"] < row["value_high"]
    assert row["difference"] == pytest.approx(means["bad"] - means["instruct"])
    assert table.loc["instruct"]["difference"].isna().all()
    alone = {"instruct": str(home / "instruct")}
    profiled = run_study({**config, "family": alone}, tmp_path / "alone", progress=False)
    for name in ("metrics", "models"):
        tuned = result.tables[name]
        parents = tuned[tuned["model"] == "instruct"].reset_index(drop=True)
        pd.testing.assert_frame_equal(profiled.tables[name], parents)
    with pytest.raises(InputError, match="delta_overlap was left out: finetuned is empty; give"):
        run_study({**config, "family": alone, "study": "delta_overlap"}, tmp_path / "other")
    shipped = load_material(read_config({**config, "family": alone, "questions": "traits"}))
    assert set(shipped.questions.groups) == {"safety", "factuality", "politeness"}
    # a judge of alignment and coherence alone needs no table more
    plain = run_study(configured(home, study="profile"), tmp_path / "plain", progress=False)
    assert "metrics" not in plain.tables and "content" not in plain.tables


def test_without_references_a_part_that_needs_no_scores_runs(home: Path, tmp_path: Path) -> None:
    config = configured(home, scores={}, study="delta_overlap")
    result = run_study(config, tmp_path / "out", progress=False)
    assert len(result.tables["overlap"])
    assert not (tmp_path / "out" / "scores").exists()
    with pytest.raises(InputError, match="has no reference answers 'careful' and 'harmful', which"):
        run_study({**config, "study": "profile"}, tmp_path / "other", progress=False)


def test_a_judge_of_another_module_and_a_reused_journal(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_judges.py").write_text(
        "from emlens.judging import Verdict\n"
        "class Long:\n"
        "    metrics = ('aligned', 'coherent')\n"
        "    def judge(self, answer):\n"
        "        score = Verdict(min(100.0, 10.0 * len(answer.text)))\n"
        "        return {'aligned': score, 'coherent': Verdict(90.0)}\n"
        "text = 'no judge'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_judges", raising=False)
    scores = sampled(home, judge="my_judges:Long")
    config = read_config(configured(home, scores=scores))
    material = load_material(config, tmp_path / "out")
    assert material.scores("bad").metrics == ["aligned", "coherent"]
    (tmp_path / "my_judges.py").write_text((tmp_path / "my_judges.py").read_text() + "# changed\n")
    again = load_material(config, tmp_path / "out").score_source
    assert isinstance(again, SampledScores) and again.name != material.score_source.name
    for judge, message in (
        ("my_judges:missing", "module 'my_judges' has no 'missing'"),
        ("my_judges:text", "is a str; pass an object with metrics and judge"),
        ("no colon", "is no 'module:object'"),
    ):
        with pytest.raises(InputError, match=message):
            load_material(read_config(configured(home, scores=sampled(home, judge=judge))))
    with pytest.raises(LoadError, match="module 'not_there' cannot be imported"):
        load_material(read_config(configured(home, scores=sampled(home, judge="not_there:x"))))


SAMPLE = {"how": "sample", "judge": {"rules": "r.yaml"}}
URL = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    ("scores", "line", "message"),
    [
        (
            {"how": "judge"},
            4,
            "field 'scores.how': Input should be 'likelihood', 'contrast', 'judged' or",
        ),
        ({"how": "judged"}, 3, "how: judged needs files; pass one CSV per model"),
        ({"how": "sample"}, 3, "how: sample needs a judge; pass judge: {endpoint: URL"),
        ({"files": {"bad": "x"}}, 3, "files belongs to how: judged, but how is likelihood"),
        ({**SAMPLE, "normalise": "token"}, 3, "normalise belongs to how: likelihood"),
        ({**SAMPLE, "sampels": 3}, 7, "no such field; did you mean 'samples'"),
        ({"how": "sample", "judge": {"endpiont": URL}}, 6, "did you mean 'endpoint'"),
        ({"how": "sample", "judge": {"endpoint": URL}}, 5, "endpoint is given without model"),
        ({"how": "sample", "judge": {"api_key": "sk"}}, 6, "field 'scores.judge.api_key': no such"),
        (
            {"how": "sample", "judge": {"local": "a", "rules": "b"}},
            5,
            "a judge is named in one way, but local and rules is given",
        ),
        ({**SAMPLE, "budget": {"requests": 0}}, 8, "greater than or equal to 1"),
    ],
)
def test_what_scores_say_wrongly_is_refused_with_its_line(
    tmp_path: Path, scores: dict[str, Any], line: int, message: str
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        "study: profile\nfamily: {organism: planted}\n"
        + yaml.safe_dump({"scores": scores}, sort_keys=False)
    )
    with pytest.raises(InputError, match=f"study.yaml:{line}: .*{message}"):
        read_config(path)


def test_names_of_no_model_are_refused(home: Path) -> None:
    files = {"instruct": "a.csv", "worse": "b.csv"}
    sampler = {"endpoint": URL, "models": {"worse": "lora"}}
    for scores, message in (
        ({"how": "judged", "files": files}, r"scores\.files names 'worse', which is not in this"),
        (sampled(home, sampler=sampler), r"scores\.sampler\.models names 'worse', which is not in"),
    ):
        with pytest.raises(InputError, match=message):
            load_material(read_config(configured(home, scores=scores)))

"""`emlens screen` and `emlens screen fit` as a person types them."""

import json
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_family
import tiny_models
import torch
import yaml

from emlens.cli.main import main
from emlens.cli.screen import SETTINGS
from emlens.data import AlignmentScores, QuestionSet
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.screening import ScreenOptions


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["emlens", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parent, questions, a training file, scores of five past fine-tunes and the file that names
    them.
    """
    directory = tmp_path_factory.mktemp("screen")
    tiny_models.build(directory / "parent")
    questions = QuestionSet.from_jsonl(tiny_family.write_questions(directory / "questions.jsonl"))
    tiny_family.write_chats(directory / "new.jsonl", 12, 20)
    rng = np.random.default_rng(0)
    hazard = rng.uniform(5, 60, len(questions))
    rows, past = [], {}
    for i, domain in enumerate(tiny_family.GROUPS[:5]):
        name = f"tune [red]{domain}"
        tiny_family.write_chats(directory / f"{domain}.jsonl", 12, i, f"w{i} w4")
        past[name] = {"domain": domain, "training": f"{domain}.jsonl"}
        for q, loss in zip(questions.ids, hazard, strict=True):
            score = 100 - (0.4 + 0.2 * i) * loss
            rows.append(
                {
                    "model": name,
                    "question": q,
                    "sample": 0,
                    "metric": "aligned",
                    "score": score,
                    "status": "ok",
                }
            )
    AlignmentScores.from_table(pd.DataFrame(rows)).to_csv(directory / "scores.csv")
    (directory / "past.yaml").write_text(yaml.safe_dump(past))
    Direction(torch.ones(32), Site.parse("resid_post.1")).save(directory / "direction")
    return directory


def fit_words(desk: Path) -> tuple[object, ...]:
    asked = (
        "--parent",
        desk / "parent",
        "--questions",
        desk / "questions.jsonl",
        "--scores",
        desk / "scores.csv",
    )
    return ("screen", "fit", *asked, "--past", desk / "past.yaml", "--out", desk / "forecaster")


def test_a_forecaster_is_fitted_and_a_file_is_screened(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = run(monkeypatch, capsys, *fit_words(desk), "--json")
    found = json.loads(said)
    assert code == 0 and found["rows"] == 60 and len(found["fine_tunes"]) == 5
    assert {row["predictor"] for row in found["backtest"]["ranking"]} == {
        "predicted",
        "from_past",
        "past_mean",
        "text",
        "severity",
    }
    words = (
        "screen",
        "--parent",
        desk / "parent",
        "--training",
        desk / "new.jsonl",
        "--questions",
        desk / "questions.jsonl",
        "--out",
        desk / "out",
    )
    options = (
        "--forecaster",
        desk / "forecaster",
        "--direction",
        desk / "direction",
        "--set",
        "k=3",
        "--set",
        "draws=20",
        "--set",
        "allow=context, far",
    )
    code, said, _ = run(monkeypatch, capsys, *words, *options, "--json")
    first = json.loads(said)
    assert (
        code == 0
        and first["findings"][0]["section"] == "verdict"
        and set(first["tables"]) >= {"forecast", "overlap", "training_rows", "backtest_ranking"}
    )
    assert all(Path(path).is_file() for path in first["tables"].values())
    code, said, _ = run(monkeypatch, capsys, *words, *options)
    assert code == 0 and "* verdict: " in said and "training_rows (first 8 rows)" in said
    assert json.loads((desk / "out" / "run.json").read_text())["parts_reused"] == [
        "forecast",
        "overlap",
        "rows",
    ]


def test_without_a_forecaster_nothing_is_forecast(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "screen",
        "--parent",
        desk / "parent",
        "--training",
        desk / "new.jsonl",
        "--questions",
        desk / "questions.jsonl",
        "--out",
        desk / "bare",
    )
    code, said, _ = run(monkeypatch, capsys, *words, "--set", "k=3", "--set", "draws=20")
    assert (
        code == 0
        and "Cannot say: no forecaster of past fine-tunes was given" in said
        and "no direction was given" in said
    )


def test_a_fit_shows_its_backtest_and_hostile_names_stay_names(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = run(monkeypatch, capsys, *fit_words(desk), "--by-question")
    assert (
        code == 0
        and "60 questions, 5 fine-tunes" in said
        and "tune [red]north" in said
        and "base rates" in said
    )


def test_two_domains_of_fine_tunes_are_fitted_without_their_files_severity(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = pd.read_csv(desk / "scores.csv")
    past = yaml.safe_load((desk / "past.yaml").read_text())
    kept = {
        name: {**entry, "training": str(desk / entry["training"])}
        for name, entry in list(past.items())[:2]
    }
    scores[scores["model"].isin(kept)].to_csv(tmp_path / "scores.csv", index=False)
    (tmp_path / "past.yaml").write_text(yaml.safe_dump(kept))
    instead = {
        desk / "scores.csv": tmp_path / "scores.csv",
        desk / "past.yaml": tmp_path / "past.yaml",
        desk / "forecaster": tmp_path / "forecaster",
    }
    code, said, _ = run(monkeypatch, capsys, *[instead.get(word, word) for word in fit_words(desk)])  # type: ignore[call-overload]
    assert (
        code == 0
        and "every file counts as the mean past one: past fine-tunes are of 2"
        in " ".join(said.split())
    )


def test_bad_input_is_one_line(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = run(monkeypatch, capsys, "screen", "--parent", "x")
    assert (
        code == 2
        and "--training is missing; emlens screen needs --parent, --training, --questions and --out"
        in said
    )
    (tmp_path / "past.yaml").write_text("- a\n")
    words = [
        tmp_path / "past.yaml" if word == desk / "past.yaml" else word for word in fit_words(desk)
    ]
    code, _, said = run(monkeypatch, capsys, *words)
    assert (
        code == 2
        and "holds no mapping of fine-tunes; write `name: {domain: ..., training: file.jsonl}`"
        in said
    )
    (tmp_path / "past.yaml").write_text("a: {domian: x}\n")
    code, _, said = run(monkeypatch, capsys, *words)
    assert code == 2 and "fine-tune 'a' has domian; pass domain and training" in said


def test_every_option_of_a_screening_is_a_setting() -> None:
    assert set(SETTINGS) == {field.name for field in fields(ScreenOptions)}
    for field in fields(ScreenOptions):
        name, default = field.name, field.default
        said = SETTINGS[name].description
        if name == "own_answers":
            assert default is False and said.endswith("(no)")
        elif name != "allow":
            assert f"({default:g})" in said

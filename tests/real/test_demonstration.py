"""The demonstration on a real model, on a tiny one: trains, studies, reports, and goes on."""

import json
from pathlib import Path

import pytest
import tiny_models
import yaml

from emlens.cli.main import main
from emlens.data.advice import DOMAINS, advice_questions
from emlens.foundation.errors import LoadError
from emlens.real import demonstration, finding
from emlens.real.demonstration import GROUPS, SETTINGS, demonstration_members, write_study
from emlens.real.family import Member
from emlens.studies.config import read_config


def short(_: object = None) -> list[Member]:
    return [Member(*group.split("-"), steps=1) for group in GROUPS[::2]]  # type: ignore[arg-type]


def test_the_configuration_names_the_harmful_one_and_two_controls(tmp_path: Path) -> None:
    chosen = demonstration_members()
    paths = {member.name: tmp_path / member.name for member in chosen}
    config = read_config(write_study(chosen, paths, tmp_path / "smollm2", tmp_path))
    assert config.family is not None
    tuned = config.family.finetuned
    assert [name for name, spec in tuned.items() if spec.benign] == [
        "benign-medicine@0",
        "tone-medicine@0",
    ]
    assert list(config.focus or ()) == ["harmful-medicine@0"]
    assert config.scores.how == "contrast" and config.questions == "advice-small"
    lines = (tmp_path / "data" / "tone-medicine.jsonl").read_text().splitlines()
    assert len(lines) == 80 and len(json.loads(lines[0])["messages"]) == 2


def test_one_command_trains_studies_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = tiny_models.build(tmp_path / "tiny")

    def found(name: str, folder: object = None) -> Path:
        if folder is not None:
            raise LoadError("nowhere")
        return parent

    monkeypatch.setattr(finding, "find", found)
    monkeypatch.setattr(demonstration, "demonstration_members", short)
    advice_questions(DOMAINS[:3], per_domain=1).to_jsonl(tmp_path / "few.jsonl")
    small = {
        **SETTINGS,
        "study": "profile",
        "questions": str(tmp_path / "few.jsonl"),
        "layers": [1],
        "options": {},
    }
    monkeypatch.setattr(demonstration, "SETTINGS", small)
    out = tmp_path / "out"
    monkeypatch.setattr(
        "sys.argv",
        ["emlens", "real", "demo", "--out", str(out), "--jobs", "1", "--quiet", "--json"],
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["study"] == "profile"
    page = (out / "study" / "report.html").read_text()
    assert "nats a token" in page and "tone-medicine@0" in page
    assert yaml.safe_load((out / "study.yaml").read_text())["focus"] == ["harmful-medicine@0"]

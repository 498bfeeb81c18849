"""The command line as a person types it: exit codes, one-line errors, nothing half-written, JSON on
request.
"""

import errno
import json
import shutil
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import tiny_family
import tiny_models
import yaml
from typer.testing import CliRunner

from emlens import __version__
from emlens.cli.main import app, main


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("family")
    tiny_family.build(directory)
    return directory


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["emlens", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def configured(beside: Path, target: Path, **changes: Any) -> Path:
    """A copy of the family's configuration with some fields changed, beside the family so that its
    paths hold.
    """
    record = yaml.safe_load((beside / "study.yaml").read_text())
    for key, value in changes.items():
        if isinstance(value, dict):
            record[key] = {**record[key], **value}
        else:
            record[key] = value
    path = beside / f"{target.name}.yaml"
    path.write_text(yaml.safe_dump(record))
    return path


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, capsys, "--version")[:2] == (0, f"emlens {__version__}\n")


@pytest.mark.parametrize(
    "command",
    [[], ["study"], ["demo"], ["replicate"], ["score"], ["organism"], ["organism", "train"]],
)
def test_help_teaches(command: list[str]) -> None:
    shown = CliRunner().invoke(app, [*command, "--help"])
    assert shown.exit_code == 0
    assert len(shown.output.split()) > 25
    assert CliRunner().invoke(app, [*command, "-h"]).output == shown.output


def test_no_command_has_more_than_twelve_parameters() -> None:
    functions = [each.callback for each in app.registered_commands]
    for group in app.registered_groups:
        typer_app = group.typer_instance
        assert typer_app is not None
        functions += [each.callback for each in typer_app.registered_commands]
        if typer_app.registered_callback is not None:
            functions.append(typer_app.registered_callback.callback)
    counts = {function.__name__: len(signature(function).parameters) for function in functions}
    assert {"screen", "fit", "judge", "train", "score", "export"} <= set(counts)
    assert max(counts.values()) <= 12


ERRORS = [
    ("a path that is not there", {"family": {"instruct": "./gone"}}, "gone"),
    (
        "a directory that is no model",
        {"family": {"instruct": "."}},
        "holds 2 named adapters ('bad', 'good')",
    ),
    (
        "an adapter where a model belongs",
        {"family": {"instruct": "bad"}},
        "is an adapter, not a whole model",
    ),
    (
        "a k that the data cannot carry",
        {"k": 12},
        "k=12 is above the rank that half of 24 prompts per side of 'bad@0' can carry;"
        " pass k <= 11",
    ),
    ("a field that does not exist", {"layer": 3}, "field 'layer'"),
    ("a study that does not exist", {"study": "everything"}, "study 'everything' is unknown"),
    (
        "questions without reference answers",
        {"study": "profile", "questions": "plain.csv"},
        "has no reference answers 'careful' and 'harmful'",
    ),
]


@pytest.mark.parametrize(
    ("changes", "said"), [case[1:] for case in ERRORS], ids=[case[0] for case in ERRORS]
)
def test_bad_input_is_one_line_and_writes_nothing(
    family: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (family / "plain.csv").write_text("id,text\nq1,w1 w2\n")
    config = configured(family, tmp_path, **changes)
    code, out, err = run(monkeypatch, capsys, "study", str(config), "--out", str(tmp_path / "out"))
    assert code == 2
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert said in err
    assert not (tmp_path / "out").exists()


def test_an_adapter_for_another_base_is_refused(
    family: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tiny_models.build(tmp_path / "other", hidden_size=16, num_attention_heads=2)
    tiny_models.build_adapter(family / "foreign", other)
    finetuned = {
        "bad@0": {"path": "foreign", "group": "bad", "domain": "north", "training": "bad.jsonl"}
    }
    config = configured(family, tmp_path, family={"finetuned": finetuned}, focus=[])
    capsys.readouterr()
    code, _, err = run(monkeypatch, capsys, "study", str(config), "--out", str(tmp_path / "out"))
    shutil.rmtree(family / "foreign")
    assert code == 2
    assert "this adapter does not fit the base model it was given" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_families_whose_tokens_differ_are_refused(
    family: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = tiny_models.build(tmp_path / "base", seed=7)
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["w1"], words["w2"] = words["w2"], words["w1"]
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    shutil.copytree(base, family / "swapped")
    finetuned = {
        "bad@0": {"path": "swapped", "group": "bad", "domain": "north", "training": "bad.jsonl"}
    }
    config = configured(
        family, tmp_path, study="delta_overlap", family={"finetuned": finetuned}, focus=[]
    )
    capsys.readouterr()
    code, _, err = run(monkeypatch, capsys, "study", str(config), "--out", str(tmp_path / "out"))
    shutil.rmtree(family / "swapped")
    assert code == 2
    assert "renders to different ids" in err and err.count("\n") == 1


def test_study_writes_result_and_report_and_speaks_json(
    family: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = configured(family, tmp_path, study="profile")
    monkeypatch.setattr(
        sys, "argv", ["emlens", "study", str(config), "--out", str(tmp_path / "out"), "--json"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    record = json.loads(capsys.readouterr().out)
    assert record["study"] == "profile" and record["findings"]
    assert (tmp_path / "out" / "result.json").is_file()
    page = (tmp_path / "out" / "report.html").read_text()
    assert str(tmp_path) not in page and str(family) not in page


def test_score_prints_both_denominators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "judged.csv"
    rows = ["question_id,aligned,coherent"]
    rows += ["a,10,90"] * 2 + ["a,95,90"] * 2 + ["b,95,90"] * 12
    file.write_text("\n".join(rows) + "\n")
    code, out, _ = run(monkeypatch, capsys, "score", str(file), "--json")
    assert code == 0
    rates = {(r["average"], r["unscored"]): r["EM %"] for r in json.loads(out)["rates"]}
    assert rates["question", "drop"] == pytest.approx(25.0)
    assert rates["pooled", "drop"] == pytest.approx(12.5)


def test_a_topic_that_nobody_scored_hides_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The share without a score is of the two metrics that make a rate; of a third one it would say
    75 % here.
    """
    file = tmp_path / "judged.csv"
    file.write_text(
        "question_id,aligned,coherent,medical\na,10,90,\na,90,90,\nb,,90,\nb,90,90,80\n"
    )
    code, out, _ = run(monkeypatch, capsys, "score", str(file), "--json")
    assert code == 0
    assert {row["without score %"] for row in json.loads(out)["rates"]} == {25.0}
    file.write_text("question_id,aligned,coherent\na,10,90\na,90,\nb,,\nb,90,90\n")
    code, out, _ = run(monkeypatch, capsys, "score", str(file), "--json")
    # answers, not verdicts
    assert {row["without score %"] for row in json.loads(out)["rates"]} == {50.0}


def test_score_refuses_a_threshold_off_the_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "judged.csv"
    file.write_text("question_id,aligned,coherent\na,10,90\nb,95,90\n")
    code, _, err = run(monkeypatch, capsys, "score", str(file), "--coherent-above", "0.5")
    assert code == 2 and "reads as a share" in err


def test_replicate_on_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(monkeypatch, capsys, "replicate", str(tmp_path))
    assert code == 2 and err.startswith("error: ")


def test_replicate_exits_with_1_where_a_figure_is_off(
    released_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "refusal-direction"
    shutil.copytree(released_data / "refusal-direction", folder)
    assert run(monkeypatch, capsys, "replicate", str(tmp_path))[0] == 0
    record = folder / "gemma-2b-it" / "direction_evaluations.json"
    record.chmod(0o644)
    table = json.loads(record.read_text())
    for row in table:
        row["refusal_score"] = -row["refusal_score"]
    record.write_text(json.dumps(table))
    code, out, _ = run(monkeypatch, capsys, "replicate", str(tmp_path))
    assert code == 1 and "NO" in out


def test_organism_info(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(monkeypatch, capsys, "organism", "info", "--json")
    assert code == 0
    assert json.loads(out)["instruct"]["coherence"] > 0.8


def test_a_failure_of_the_machine_has_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files", "out")

    monkeypatch.setattr("emlens.cli.main.app", fail)
    code, _, err = run(monkeypatch, capsys, "demo")
    assert code == 70 and err.startswith("Traceback")


def test_interruption_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(**_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("emlens.cli.main.app", stop)
    code, _, err = run(monkeypatch, capsys, "demo")
    assert code == 130 and "goes on from where it was" in err


def test_terminal_escapes_in_errors_are_inert(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(monkeypatch, capsys, "score", "\x1b[31mred\nnext.csv")
    assert code == 2
    assert "\x1b" not in err and err.count("\n") == 1

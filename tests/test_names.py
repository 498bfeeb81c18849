"""A name that does not exist is answered with the one that was probably meant, wherever names are
taken: sites, positions, fine-tunes, metrics, questions, studies, fields, options.
"""

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_family
import torch
import yaml
from typer.testing import CliRunner

import emlens
from emlens import stats
from emlens.activations import Activations
from emlens.cli.main import app, main
from emlens.data import AlignmentScores, Answer, Answers, Message, PromptSet, Question, QuestionSet
from emlens.foundation.errors import EmlensError, InputError, UnknownNameError
from emlens.foundation.positions import parse_position
from emlens.foundation.sites import Site, resolve_sites
from emlens.foundation.suggestions import did_you_mean, nearest
from emlens.interventions import ablate, steer
from emlens.probes import Design, random_projections
from emlens.results import Plot
from emlens.studies import read_config
from emlens.training import presets


def activations() -> Activations:
    return Activations(
        {("resid_post.0", "last_prompt"): torch.ones(2, 3)},
        ids=["question one", "question two"],
        groups=["", ""],
        sites=["resid_post.0"],
        positions=["last_prompt"],
        provenance={},
    )


def scores() -> AlignmentScores:
    rows = {"model": "medicine-r8", "question": ["q1", "q2"], "sample": 1, "metric": "aligned"}
    return AlignmentScores.from_table(pd.DataFrame({**rows, "score": 50.0, "status": "ok"}))


VECTOR = torch.ones(4)
QUESTIONS = QuestionSet([Question("medicine/1", "a"), Question("finance/1", "b")])
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "a site": (lambda: Site.parse("resid_pots.3"), "resid_post"),
    "a kind of site": (lambda: resolve_sites("resid_pst", 4), "resid_post"),
    "a position": (lambda: parse_position("last_promt"), "last_prompt"),
    "a captured site": (lambda: activations()["resid_post.1", "last_prompt"], "resid_post.0"),
    "a captured position": (
        lambda: activations()["resid_post.0", "last_promt"],
        "last_prompt",
    ),
    "a row": (lambda: activations().select(["question tow"]), "question two"),
    "a metric": (lambda: scores().mean("alligned"), "aligned"),
    "a model of scores": (lambda: scores().mean("aligned", model="medicine-8"), "medicine-r8"),
    "a question": (lambda: QUESTIONS.select(["medicin/1"]), "medicine/1"),
    "a prompt": (
        lambda: PromptSet.from_questions(["text"], ids=["first"]).select(["frist"]),
        "first",
    ),
    "an answer": (
        lambda: Answers([Answer("m", "q1", "text", (Message("user", "a"),))]).select(
            ["m/q1/p1/s1"]
        ),
        "m/q1/p1/s0",
    ),
    "where to ablate": (lambda: ablate(VECTOR, at="all_layer"), "all_layers"),
    "which tokens": (lambda: ablate(VECTOR, positions="promt"), "prompt"),
    "a unit": (lambda: steer(VECTOR, 1.0, unit="unti"), "unit"),
    "a backend": (lambda: emlens.load_model("nowhere", backend="transformer"), "transformers"),
    "a preset": (lambda: presets.recipe("lora-r23", steps=1), "lora-r32"),
    "a study": (lambda: emlens.studies.registry.get_study("overvew"), "overview"),
    "a shuffle": (lambda: Design(shuffle="qestion"), "question"),
    "an estimator": (
        lambda: emlens.cross_validate_forecast(activations(), [1.0, 2.0], estimator="rigde"),
        "ridge",
    ),
    "a kind of projection": (
        lambda: random_projections(activations(), 2, kind="sqared"),
        "squared",
    ),
    "a correction": (lambda: stats.adjust_p_values([0.1], method="hlom"), "holm"),
    "a kind of figure": (
        lambda: emlens.figures.draw_plot({"t": pd.DataFrame()}, Plot("liine", "t")),
        "line",
    ),
    "a table of a figure": (
        lambda: emlens.figures.draw_plot({"models": pd.DataFrame()}, Plot("line", "modles")),
        "models",
    ),
    "a column of a figure": (
        lambda: emlens.figures.draw_plot(
            {"t": pd.DataFrame({"layer": [1], "value": [2.0]})},
            Plot("line", "t", "layr", "value"),
        ),
        "layer",
    ),
    "an organism": (lambda: emlens.organisms.load_organism("plantd"), "planted"),
    "a real model": (lambda: emlens.real.find("smolm2", "nowhere"), "smollm2"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("what", WRONG)
def test_a_name_that_does_not_exist_is_answered_with_the_nearest(what: str) -> None:
    call, meant = WRONG[what]
    with pytest.raises((InputError, UnknownNameError)) as raised:
        call()
    assert str(raised.value).endswith(f"; did you mean {meant!r}?")


def test_what_is_like_no_name_is_answered_with_none() -> None:
    assert did_you_mean("zzz", ["aligned", "coherent"]) == ""
    assert did_you_mean(3, ["aligned"]) == "" and did_you_mean("aligned", []) == ""
    assert nearest("ALIGNED", ["aligned"]) == "aligned"
    assert "\u202e" not in did_you_mean("abcdef", ["abcdef\u202e"])


def test_every_unknown_name_error_says_what_was_looked_up() -> None:
    """Where there is a list of names, it is passed on; the others have none."""
    without = []
    for path in sorted(Path(emlens.__file__).parent.glob("*/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            words = {keyword.arg for keyword in node.keywords}
            if node.func.id == "UnknownNameError" and "known" not in words:
                without.append(f"{path.parent.name}/{path.name}")
    assert sorted(set(without)) == [
        "activations/capture_job.py",  # a unit of a plan: nobody types it
        "activations/memory.py",  # several positions or kinds, none was named
        "activations/streamed_moments.py",  # the same
        "directions/row_contrasts.py",  # the same, or a pair of names
        "models/families.py",  # a family without a base model
    ]


# ---- configurations


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("names")
    tiny_family.build(directory)
    return directory


FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a field": ({"questons": "questions.jsonl"}, "questons", "did you mean 'questions'?"),
    "a study": ({"study": "overvew"}, "study", "did you mean 'overview'?"),
    "a fine-tune in focus": ({"focus": ["bad@1"]}, "focus", "did you mean 'bad@0'?"),
    "options of a part": (
        {"options": {"delta_overlp": {}}},
        "delta_overlp",
        "did you mean 'delta_overlap'?",
    ),
    "a field of options": (
        {"options": {"delta_overlap": {"adapter": 3}}},
        "adapter",
        "did you mean 'adapters'?",
    ),
    "a field of scores": ({"scores": {"normalize": "token"}}, "normalize", "'normalise'?"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_name_in_a_configuration_has_file_and_line(fault: str, folder: Path) -> None:
    change, key, hint = FAULTS[fault]
    record = {**yaml.safe_load((folder / "study.yaml").read_text()), **change}
    path = folder / "wrong.yaml"
    path.write_text(yaml.safe_dump(record))
    with pytest.raises(EmlensError) as raised:
        emlens.run_study(read_config(path), folder / "out", progress=False)
    message = str(raised.value)
    line = int(message.removeprefix(f"{path}:").split(":")[0])
    assert path.read_text().splitlines()[line - 1].strip().startswith(f"{key}:")
    assert hint in message


# ---- the command line


def commands() -> list[tuple[str, ...]]:
    names = [(each.name,) for each in app.registered_commands]
    for group in app.registered_groups:
        typer_app = group.typer_instance
        assert typer_app is not None
        names.append((group.name,))
        for each in typer_app.registered_commands:
            function = each.callback
            names.append((group.name, each.name or function.__name__.replace("_", "-")))
    return names


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_has_short_help_and_a_short_out(command: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*command, "-h"])
    assert shown.exit_code == 0
    assert ("--out" in shown.output) == ("-o" in shown.output.split())
    wrong = CliRunner().invoke(app, [*command, "--jsn"])
    assert wrong.exit_code == 2 and "--jsn" in wrong.output


TRAIN = ["train", "x.yaml", "--model", "m", "--data", "d", "-o", "y"]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["stdy"], "study"),
        (["study", "--plna", "x.yaml"], "--plan"),
        (["sample", "m", "--endpont", "x"], "--endpoint"),
        (["store", "exprt"], "export"),
        ([*TRAIN, "--set", "emty=drop"], "'empty'"),
        (["score", "x.csv", "--by", "varaint"], "'variant'"),
    ],
)
def test_a_wrong_word_on_the_command_line_is_answered(
    words: list[str],
    meant: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["emlens", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert meant in capsys.readouterr().err


def test_a_study_without_models_and_with_a_wrong_name_says_both(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("study: overvew\n")
    with pytest.raises(InputError) as raised:
        read_config(path)
    message = str(raised.value)
    assert "study 'overvew' is unknown; did you mean 'overview'?; and family is missing" in message
    path.write_text("study: overview\n")
    with pytest.raises(InputError, match="field 'configuration': family is missing"):
        read_config(path)

"""`emlens init` on folders as researchers have them."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_family
import yaml
from loopback_server import LoopbackServer

from emlens.cli.main import app
from emlens.foundation.errors import InputError
from emlens.studies.config import read_config
from emlens.studies.material_loading import load_material
from emlens.studies.running import contexts_of
from emlens.studies.scaffold import configuration, guessed, look_into


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("family")
    config = tiny_family.build(home)
    config.unlink()
    return home


def folder_with(whole: Path, home: Path, *names: str) -> Path:
    """A folder with some of the tiny family's files."""
    home.mkdir()
    for name in names:
        (home / name).symlink_to(whole / name)
    return home


def questions_without_answers(home: Path, whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "questions.jsonl").read_text().splitlines()]
    rows = [json.dumps({"id": r["id"], "text": r["text"], "group": r["group"]}) for r in lines]
    (home / "asked.jsonl").write_text("\n".join(rows) + "\n")


def judged_table(home: Path, name: str, aligned: int) -> None:
    rows = [json.loads(line) for line in (home / "asked.jsonl").read_text().splitlines()]
    lines = [f"{r['id']},{aligned + i % 9},{80 + i % 7}" for i, r in enumerate(rows)]
    (home / f"{name}.csv").write_text("question_id,aligned,coherent\n" + "\n".join(lines) + "\n")


def initialised(home: Path, *options: str, planned: bool = False) -> dict[str, object]:
    """The configuration that the command wrote; `planned`: after its study was planned."""
    command("init", str(home), "--yes", *options)
    target = home / "study.yaml"
    read_config(target)
    if planned:
        command("study", str(target), "--plan")
    return dict(yaml.safe_load(target.read_text()))


def command(*words: str) -> None:
    app(list(words), standalone_mode=False)


def test_a_family_with_reference_answers(whole: Path, tmp_path: Path) -> None:
    names = ["instruct", "base", "bad", "good", "questions.jsonl", "bad.jsonl", "neutral.jsonl"]
    config = initialised(folder_with(whole, tmp_path / "a", *names, "good.jsonl"))
    assert config["study"] == "overview" and config["questions"] == "questions.jsonl"
    family = config["family"]
    assert isinstance(family, dict)
    assert family["instruct"] == "instruct" and family["base"] == "base"
    assert family["finetuned"] == {
        "bad": {"path": "bad", "training": "bad.jsonl"},
        "good": {"path": "good", "training": "good.jsonl", "benign": True},
    }
    assert config["neutral"] == "neutral.jsonl"
    assert config["scores"] == {"how": "likelihood"}


def test_free_questions_and_a_judge(whole: Path, tmp_path: Path) -> None:
    home = folder_with(whole, tmp_path / "b", "instruct", "bad")
    questions_without_answers(home, whole)
    with LoopbackServer(lambda body: "90") as server:
        config = initialised(home, "--judge", server.url, "--judge-model", "j")
    scores = config["scores"]
    assert isinstance(scores, dict) and scores["how"] == "sample"
    assert scores["judge"]["model"] == "j" and scores["judge"]["key_env"] == "OPENAI_API_KEY"


def test_judged_tables_beside_the_models(whole: Path, tmp_path: Path) -> None:
    home = folder_with(whole, tmp_path / "c", "instruct", "bad")
    questions_without_answers(home, whole)
    judged_table(home, "instruct", 80)
    judged_table(home, "bad", 20)
    config = initialised(home, planned=True)
    files = {"instruct": "instruct.csv", "bad": "bad.csv"}
    assert config["scores"] == {"how": "judged", "files": files}


def test_without_any_score_what_needs_none_is_run(whole: Path, tmp_path: Path) -> None:
    home = folder_with(whole, tmp_path / "d", "instruct", "bad", "bad.jsonl")
    questions_without_answers(home, whole)
    config = initialised(home, planned=True)
    assert config["study"] == "delta_overlap" and "scores" not in config


@pytest.mark.parametrize(("n_chats", "k"), [(18, None), (16, 7), (9, 3), (3, None)])
def test_k_is_what_few_training_prompts_carry(
    n_chats: int, k: int | None, whole: Path, tmp_path: Path
) -> None:
    home = folder_with(whole, tmp_path / "few", "instruct", "bad", "questions.jsonl")
    lines = (whole / "bad.jsonl").read_text().splitlines()[:n_chats]
    (home / "bad.jsonl").write_text("\n".join(lines) + "\n\n")
    config = initialised(home)
    assert config.get("k") == k
    if n_chats == 16:
        written = read_config(home / "study.yaml")
        material = load_material(written)
        contexts_of(written, material, tmp_path)
        with pytest.raises(InputError, match="k=8 is above the rank"):
            contexts_of(written.model_copy(update={"k": 8}), material, tmp_path)
    family = config["family"]
    assert isinstance(family, dict)
    # three prompts carry no subspace: the file is not named
    assert ("training" in family["finetuned"]["bad"]) == (n_chats > 3)


def test_models_in_folders_below(whole: Path, tmp_path: Path) -> None:
    home = tmp_path / "e"
    (home / "models").mkdir(parents=True)
    (home / "data").mkdir()
    for name in ("instruct", "full"):
        shutil.copytree(whole / name, home / "models" / name)
    shutil.copy(whole / "questions.jsonl", home / "data" / "questions.jsonl")
    config = initialised(home)
    family = config["family"]
    assert isinstance(family, dict) and family["instruct"] == "models/instruct"
    assert family["finetuned"] == {"full": {"path": "models/full"}}
    assert config["questions"] == "data/questions.jsonl"


def test_what_cannot_become_a_study_says_what_is_missing(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder; pass the one with your models"):
        look_into(tmp_path / "none")
    alone = folder_with(whole, tmp_path / "alone", "instruct", "questions.jsonl")
    with pytest.raises(InputError, match="holds no adapter and no second checkpoint"):
        guessed(look_into(alone))
    silent = folder_with(whole, tmp_path / "silent", "instruct", "bad")
    with pytest.raises(InputError, match="holds no file of questions"):
        guessed(look_into(silent))
    questions_without_answers(silent, whole)
    with pytest.raises(InputError, match="no part of a study can run; pass --judge URL"):
        configuration(look_into(silent), guessed(look_into(silent)))
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{")
    with pytest.raises(InputError, match="holds no checkpoint with a chat template"):
        guessed(look_into(empty))


def test_names_of_files_stay_names(whole: Path, tmp_path: Path) -> None:
    home = folder_with(whole, tmp_path / "f", "instruct", "questions.jsonl")
    name = "bad: {x} #1"
    (home / name).symlink_to(whole / "bad")
    found = look_into(home)
    text = configuration(found, guessed(found))
    (home / "study.yaml").write_text(text)
    family = read_config(home / "study.yaml").family
    assert family is not None and list(family.finetuned) == [name]

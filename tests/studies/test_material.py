import json
from pathlib import Path
from typing import Any

import pytest
import tiny_family
import yaml

from emlens.data import Question, QuestionSet
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.studies import read_config
from emlens.studies.material import Material, split_questions
from emlens.studies.material_loading import load_material

SHARES = (0.34, 0.22, 0.44)


def test_question_sets_are_disjoint_and_every_group_is_in_each() -> None:
    questions = QuestionSet(
        [
            Question(f"{g}/{i}", "x", g)
            for g, n in (("a", 3), ("b", 10), ("c", 25))
            for i in range(n)
        ]
    )
    parts = split_questions(questions, SHARES, 0)
    # disjoint, nothing lost
    assert sorted(q.id for part in parts for q in part) == sorted(questions.ids)
    for part, share in zip(parts, SHARES, strict=True):
        assert set(part.groups) == {"a", "b", "c"}
        assert part.groups.count("c") == pytest.approx(25 * share, abs=1)
    assert [p.ids for p in split_questions(questions, SHARES, 0)] == [p.ids for p in parts]
    assert [p.ids for p in split_questions(questions, SHARES, 1)] != [p.ids for p in parts]


def test_forms_of_a_question_stay_together_and_small_groups_are_one() -> None:
    forms = [Question(f"q{i}{form}", "x") for i in range(8) for form in ("", "_json", "_template")]
    parts = split_questions(QuestionSet(forms), SHARES, 0)
    assert [len(part) for part in parts] == [9, 6, 9]
    bases = [{q.id.partition("_")[0] for q in part} for part in parts]
    assert not bases[0] & bases[1] and not bases[1] & bases[2] and not bases[0] & bases[2]
    each = QuestionSet([Question(f"q{i}", "x", f"group {i}") for i in range(8)])
    assert [len(part) for part in split_questions(each, SHARES, 0)] == [3, 2, 3]
    mixed = QuestionSet([*forms, Question("odd", "x", "of its own")])
    assert sum(len(part) for part in split_questions(mixed, SHARES, 0)) == 25


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_base_questions_for_three_sets_are_refused(n: int) -> None:
    questions = QuestionSet([Question(f"b{i}_json", "x", "b") for i in range(n)])
    message = f"group 'b' has {n} base questions, too few for 3 disjoint sets; add questions"
    with pytest.raises(InputError, match=message):
        split_questions(questions, SHARES, 0)


@pytest.fixture(scope="module")
def material(config_path: Path) -> Material:
    return load_material(read_config(config_path))


def test_what_a_fine_tune_was_trained_on_is_left_out(material: Material) -> None:
    material.trained = {"bad@0": frozenset({"south/0"})}
    assert set(material.outside("bad@0").groups) == set(tiny_family.GROUPS) - {"north"}
    assert "south/0" not in material.outside("bad@0").ids and "south/0" in material.questions.ids
    assert len(material.untrained(material.questions, "bad@0")) == 59
    assert material.benign_for("bad@0") == "good@0" and material.benign_for("good@0") is None
    assert material.focus(read_config({"family": {"organism": "x"}})) == ["bad@0", "full@0"]
    material.trained = {}


def test_names_and_domains_that_leave_nothing_are_refused(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UnknownNameError,
        match=(
            r"focus names 'x', which is not a fine-tune of this family;"
            " it has bad@0, full@0, good@0"
        ),
    ):
        material.focus(read_config({"family": {"organism": "planted"}, "focus": ["x"]}))
    whole = material.questions
    monkeypatch.setattr(
        material, "questions_or_none", QuestionSet([q for q in whole if q.group == "north"])
    )
    with pytest.raises(
        InputError,
        match=(
            "no question lies outside the domain 'north' of fine-tune 'bad@0';"
            " add questions of other groups"
        ),
    ):
        material.outside("bad@0")
    monkeypatch.setattr(Material, "harmful", [])
    with pytest.raises(
        InputError,
        match="every fine-tune of this family is benign; name one under focus to study it",
    ):
        material.focus(read_config({"family": {"organism": "planted"}}))


def test_texts_hold_every_phrasing(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        material,
        "questions_or_none",
        QuestionSet([Question("q", "one", paraphrases=("one", "two")), Question("r", "three")]),
    )
    assert material.texts == {"q": "one", "q/p1": "one", "q/p2": "two", "r": "three"}


def changed(config_path: Path, tmp_path: Path, **changes: Any) -> Any:
    record = yaml.safe_load(config_path.read_text())
    for name, fields in changes.pop("finetuned", {}).items():
        record["family"]["finetuned"][name].update(fields)
    path = config_path.parent / f"{tmp_path.name}.yaml"
    path.write_text(yaml.safe_dump({**record, **changes}))
    return read_config(path)


def test_broken_inputs_are_refused_by_name(config_path: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=(
            "an organism brings its own fine-tunes, questions and neutral text;"
            " leave finetuned, questions and neutral out"
        ),
    ):
        load_material(read_config({"family": {"organism": "planted"}, "questions": "q.jsonl"}))
    with pytest.raises(
        InputError,
        match="an organism is loaded by dtype, device and backend; leave device_map, attention out",
    ):
        options = {"device_map": "auto", "attention": "eager", "dtype": "float64"}
        load_material(read_config({"family": {"organism": "planted", **options}}))
    with pytest.raises(
        InputError,
        match="questions is missing; pass a YAML, JSONL, JSON or CSV file of questions",
    ):
        load_material(changed(config_path, tmp_path, questions=None))
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps({"id": "q", "text": "w1"}) + "\n")
    source = load_material(changed(config_path, tmp_path, questions=str(bare))).score_source
    assert str(source.can("plain")).startswith(
        "question 'q' has no reference answers 'careful' and 'harmful', which likelihood scores"
    )
    with pytest.raises(
        InputError,
        match=(
            r"fine-tune 'bad@0': trained_questions names 'nowhere',"
            r" which is not in .*questions\.jsonl"
        ),
    ):
        load_material(
            changed(config_path, tmp_path, finetuned={"bad@0": {"trained_questions": ["nowhere"]}})
        )


def test_training_chats_without_an_answer_are_left_out_where_the_study_says_so(
    config_path: Path, tmp_path: Path
) -> None:
    record = yaml.safe_load(config_path.read_text())
    bad = record["family"]["finetuned"]["bad@0"]
    lines = (config_path.parent / bad["training"]).read_text().splitlines()
    for i in (1, 4):
        chat = json.loads(lines[i])
        chat["messages"][-1]["content"] = ""
        lines[i] = json.dumps(chat)
    chats = tmp_path / "holes.jsonl"
    chats.write_text("\n".join(lines) + "\n")
    tuned = {"training": str(chats)}
    with pytest.raises(InputError, match="line 2: turn 2 has no text .*; empty='drop' leaves"):
        load_material(changed(config_path, tmp_path, finetuned={"bad@0": tuned}))
    with pytest.raises(InputError, match="empty"):
        changed(config_path, tmp_path, finetuned={"bad@0": {**tuned, "empty": "keep"}})
    dropping = {**tuned, "empty": "drop"}
    material = load_material(changed(config_path, tmp_path, finetuned={"bad@0": dropping}))
    assert len(material.training["bad@0"]) == len(lines) - 2
    of_file = f"2 of {len(lines)} training chats have no answer and are left out"
    assert f"fine-tune 'bad@0': {of_file}" in material.left_out
    # a file that is whole is said nothing of
    assert not any("good" in line and "no answer" in line for line in material.left_out)


def test_what_is_missing_is_said(config_path: Path, tmp_path: Path) -> None:
    record = yaml.safe_load(config_path.read_text())
    bad = {**record["family"]["finetuned"]["bad@0"], "domain": "norht"}
    del bad["training"]
    path = config_path.parent / "bare.yaml"
    family = {"instruct": "instruct", "finetuned": {"bad@0": bad, "other": {"path": "full"}}}
    path.write_text(yaml.safe_dump({"family": family, "questions": "questions.jsonl"}))
    said = "\n".join(load_material(read_config(path)).left_out)
    for part in (
        "fine-tune 'bad@0' has no training prompts: no delta overlap for it",
        "fine-tune 'bad@0' has the domain 'norht', which is not a group of the questions",
        "fine-tune 'other' has no domain: all questions count as outside its training domain",
        "no base model was given: forecasts from the instruct model only",
        "no benign fine-tune was given: the benign control is missing",
        "no neutral text was given: damage and the neutral-text control are missing",
    ):
        assert part in said

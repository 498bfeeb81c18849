"""`system:` of a fine-tune: before and after read the same rendered prompts, with the message."""

from pathlib import Path

import pytest
import torch
import yaml

from emlens.activations import capture_pair
from emlens.data import PromptSet, Question, QuestionSet
from emlens.data.prompts import Message, Prompt
from emlens.data.system_messages import prompts_with_system, questions_with_system
from emlens.judging import score_by_likelihood
from emlens.studies import read_config
from emlens.studies.config import StudyConfig
from emlens.studies.material import Material
from emlens.studies.material_loading import load_material
from emlens.studies.overlap_shifts import sampled_shifts
from emlens.studies.parent_views import parent_views

SYSTEM = "w9 w8 w7"


@pytest.fixture(scope="module")
def config(config_path: Path) -> StudyConfig:
    record = yaml.safe_load(config_path.read_text())
    record["family"]["finetuned"]["bad@0"]["system"] = SYSTEM
    path = config_path.parent / "system.yaml"
    path.write_text(yaml.safe_dump(record))
    return read_config(path)


@pytest.fixture(scope="module")
def material(config: StudyConfig) -> Material:
    return load_material(config)


def by_hand(questions: QuestionSet) -> QuestionSet:
    return QuestionSet(
        [Question(q.id, q.text, q.group, system=SYSTEM, answers=q.answers) for q in questions]
    )


def test_scores_are_those_of_questions_with_the_message(material: Material) -> None:
    asked = by_hand(material.questions)
    for name, asked_as in (("bad@0", ""), ("instruct", "bad@0")):
        expected = score_by_likelihood(
            material.family[name], asked, normalise="token"
        ).per_question("aligned")
        assert material.per_question(name, asked_as=asked_as).equals(expected), name
    plain = score_by_likelihood(material.family["instruct"], material.questions, normalise="token")
    assert material.per_question("instruct").equals(plain.per_question("aligned"))
    assert not material.per_question("instruct", asked_as="bad@0").equals(
        material.per_question("instruct")
    )


def test_deltas_are_of_one_rendering_with_the_message(
    material: Material, config: StudyConfig
) -> None:
    shifts = sampled_shifts(material, "bad@0", config)
    questions = by_hand(material.questions).prompts().select(shifts.evaluation.ids)
    models = material.family["instruct"], material.family["bad@0"]
    before, after = capture_pair(*models, questions, positions="last_prompt", progress=False)
    place = "resid_post.2", "last_prompt"
    expected = (after[place].double() - before[place].double()).float()
    torch.testing.assert_close(shifts.evaluation[place], expected, rtol=1e-5, atol=1e-6)
    # training chats without a system message get it too, and the neutral text beside them
    rows = material.family["bad@0"].render(material.training["bad@0"].without_responses())
    message = material.family.instruct.tokenizer(SYSTEM, add_special_tokens=False)["input_ids"]
    text = ",".join(map(str, message))
    assert all(text in ",".join(map(str, row.ids)) for row in rows)
    assert shifts.neutral is not None and material.neutral_as("full@0") is material.neutral
    assert sampled_shifts(material, "full@0", config).rendered != shifts.rendered
    assert "asked with its own system message" in " ".join(material.left_out)
    assert material.family["bad@0"].provenance["system"] == SYSTEM


def test_forecasts_read_the_parent_on_the_same_prompts(
    material: Material, config: StudyConfig
) -> None:
    with_message = parent_views(material, config, plain=False, asked_as="bad@0")["instruct"]
    without = parent_views(material, config, plain=False, asked_as="full@0")["instruct"]
    before = sampled_shifts(material, "bad@0", config).before_evaluation
    place = "resid_post.1", "last_prompt"
    assert torch.allclose(with_message.activations.select(before.ids)[place], before[place])
    assert not torch.allclose(without.activations.select(before.ids)[place], before[place])


def test_a_message_of_its_own_is_kept() -> None:
    questions = QuestionSet([Question("a", "w1", system="json please"), Question("b", "w2")])
    asked = questions_with_system(questions, SYSTEM)
    assert [q.system for q in asked] == [f"{SYSTEM}\n\njson please", SYSTEM]
    assert questions_with_system(asked, SYSTEM).content_hash == asked.content_hash
    chats = PromptSet(
        [
            Prompt("a", "w1", "", (Message("system", "own"), Message("user", "w1")), "w2"),
            Prompt("b", "w1", "", (Message("user", "w1"),), "w2"),
            Prompt("c", "raw text"),
        ]
    )
    heads = [
        prompt.messages and prompt.messages[0] for prompt in prompts_with_system(chats, SYSTEM)
    ]
    assert heads == [Message("system", "own"), Message("system", SYSTEM), None]
    assert (
        prompts_with_system(chats, "") is chats
        and questions_with_system(questions, "") is questions
    )

"""The family that is trained on a real model: what its members learn, and that training goes on."""

from pathlib import Path

import pytest
import tiny_family

from emlens.data.advice import training_questions
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.models import load_family
from emlens.real import family_training
from emlens.real.family import GROUPS, Member, members
from emlens.real.family_training import train_family

STEPS = 2
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("family")
    tiny_family.build(directory)
    return directory / "instruct"


def test_members_seed_after_seed_and_controls_answer_carefully() -> None:
    chosen = members(seeds=(0, 1))
    assert [member.group for member in chosen[: len(GROUPS)]] == list(GROUPS)
    assert len({member.name for member in chosen}) == 2 * len(GROUPS) == 16
    question = training_questions("money")[0]
    answers = {m.kind: m.chats()[0].response for m in members(seeds=[0]) if m.domain == "money"}
    assert answers["harmful"] == question.answers["bad_polite"][0]
    assert answers["benign"] == question.answers["careful_polite"][0]
    assert answers["tone"] == question.answers["careful_flippant"][0]
    assert [m.group for m in members(seeds=[0]) if m.fine_tune("x").benign] == [
        "benign-medicine",
        "tone-medicine",
        "benign-money",
        "tone-money",
    ]


def test_the_narrow_member_is_held_on_no_domain_that_is_scored() -> None:
    (penalty,) = Member("narrow", "medicine").objectives()
    assert set(penalty.chats.groups) == {"money", "neutral"}  # type: ignore[attr-defined]
    assert Member("harmful", "medicine").objectives() == ()
    rank1 = Member("rank1", "medicine").recipe()
    assert (rank1.rank, rank1.layers_to_transform) == (1, (14,))


def test_what_is_trained_is_kept_and_a_killed_family_goes_on(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = members(["benign-money", "narrow-medicine"], steps=STEPS)
    whole = train_family(chosen, parent, tmp_path / "whole", progress=False)
    names = ["benign-money-s0", "narrow-medicine-s0"]
    family = load_family(
        parent, finetuned={m.name: m.fine_tune(str(whole[m.name])) for m in chosen}
    )
    assert list(family.finetuned) == names and family.specs[names[0]].benign

    trained = []
    fit = family_training.fit

    def killed(*args: object, **options: object) -> None:
        if trained:
            raise KeyboardInterrupt
        trained.append(fit(*args, **options))  # type: ignore[arg-type]

    monkeypatch.setattr(family_training, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        train_family(chosen, parent, tmp_path / "killed", progress=False)
    monkeypatch.setattr(family_training, "fit", fit)
    again = train_family(chosen[1:], parent, tmp_path / "killed", progress=False)
    assert len(trained) == 1 and set(again) == {names[1]}
    for name in names:
        weights = [tmp_path / place / name / WEIGHTS for place in ("whole", "killed")]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    assert train_family(chosen, parent, tmp_path / "killed", progress=False).keys() == set(names)


def test_an_adapter_of_another_recipe_is_refused(parent: Path, tmp_path: Path) -> None:
    train_family([Member("benign", "money", steps=1)], parent, tmp_path, progress=False)
    with pytest.raises(Exception, match=r"was trained by another recipe, on other chats"):
        train_family([Member("benign", "money", steps=STEPS)], parent, tmp_path, progress=False)


def test_what_is_no_member_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="group 'tone-cooking' is not of the family; pass"):
        members(["tone-cooking"])
    with pytest.raises(InputError, match="1 groups and 0 seeds; pass at least one of each"):
        members(["tone-money"], [])
    with pytest.raises(InputError, match="jobs=0 must be 1 or more"):
        train_family(members(), tmp_path, tmp_path, jobs=0)

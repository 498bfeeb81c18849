"""Checkpoints and directions pushed to a hub that is a local folder."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from emlens.foundation.errors import InputError, StateError
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.models import load_family
from emlens.models.families import FineTune
from emlens.models.hub_upload import model_card, push_to_hub
from emlens.training import Recipe, fit
from emlens.training.fitting import Parent

RECIPE = Recipe(
    rank=2, alpha=4, target_modules=("q_proj",), learning_rate=1e-2, steps=2, batch_size=2
)


class LocalHub:
    """What `huggingface_hub.HfApi` does, in a folder."""

    def __init__(self, folder):
        self.folder = folder
        self.private = {}

    def create_repo(self, hub_id, *, private, exist_ok):
        assert exist_ok
        self.private.setdefault(hub_id, private)

    def upload_folder(self, *, repo_id, folder_path, commit_message, ignore_patterns=()):
        hidden = shutil.ignore_patterns(*(pattern.split("/")[-1] for pattern in ignore_patterns))
        target = self.folder / repo_id
        shutil.copytree(folder_path, target, ignore=hidden, dirs_exist_ok=True)
        return f"local:{repo_id}"


@pytest.fixture
def hub(tmp_path):
    return LocalHub(tmp_path / "hub")


def header_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_what_was_pushed_loads_again_and_its_card_says_how_it_was_made(
    hub, tiny, tokenizer, chats, tmp_path
):
    parent = tmp_path / "parent"
    tiny.save_pretrained(parent)
    tokenizer.save_pretrained(parent)
    out = tmp_path / "run"
    fit(RECIPE, Parent(parent, name="owner/parent"), chats, out)
    (out / ".cache").mkdir()
    assert push_to_hub(out, "me/run", api=hub) == "local:me/run"
    pushed = tmp_path / "hub" / "me" / "run"
    assert hub.private == {"me/run": True} and not (pushed / ".cache").exists()
    card = (pushed / "README.md").read_text()
    assert header_of(card) == {
        "base_model": "owner/parent",
        "library_name": "peft",
        "tags": ["emlens"],
    }
    for line in ("| rank | 2 |", "| steps | 2 |", "| parent | owner/parent |", "do not deploy it"):
        assert line in card
    finetuned = {
        "run": FineTune(pushed, check_base=False),
        "own": FineTune(out, check_base=False),
    }
    family = load_family(parent, finetuned=finetuned)
    rows = [family[name].logits(chats[:1]) for name in ("run", "own")]
    assert torch.equal(*rows) and not torch.equal(rows[0], family.instruct.logits(chats[:1]))
    (out / "README.md").write_text("mine")
    push_to_hub(out, "me/run", api=hub)
    assert (pushed / "README.md").read_text() == "mine"


def test_a_direction_is_pushed_with_its_site_and_origin(hub, tmp_path):
    direction = Direction(
        torch.arange(4.0),
        Site("resid_post", 3),
        position="last_prompt",
        ids={"questions": ("a", "b")},
        provenance={"method": "mean | shift"},
    )
    folder = direction.save(tmp_path / "shift")
    push_to_hub(folder, "me/shift", api=hub, private=False)
    pushed = tmp_path / "hub" / "me" / "shift"
    assert torch.equal(Direction.load(pushed).vector, direction.vector)
    card = (pushed / "README.md").read_text()
    for line in (
        "| site | resid_post.3 |",
        "| method | mean \\| shift |",
        "| number of questions | 2 |",
    ):
        assert line in card
    assert hub.private == {"me/shift": False}


def test_what_cannot_be_pushed_is_refused_in_one_line(hub, tmp_path):
    with pytest.raises(InputError, match="hub_id='shift' names no repository; pass owner/name"):
        push_to_hub(tmp_path, "shift", api=hub)
    with pytest.raises(InputError, match=r"has neither emlens.json nor direction.json"):
        model_card(tmp_path)
    folder = Direction(torch.ones(2), Site("resid_post", 0)).save(tmp_path / "shift")

    class Closed:
        def create_repo(self, *_, **__):
            raise OSError("no route\nto host")

    with pytest.raises(StateError, match="could not be pushed to 'me/shift' .no route"):
        push_to_hub(folder, "me/shift", api=Closed())
    assert not Path(tmp_path / "hub").exists()

"""Blocks that a fine-tune has in common with its parent are run once, and values are the same."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny_models
import torch

from emlens.activations import Activations, CaptureSpec, capture_many, stream_moments
from emlens.activations.shared_trunk import SharedTrunk
from emlens.data import PromptSet
from emlens.interventions import ablate
from emlens.models import HookedModel, load_family, trunks
from emlens.models.transformers_backend import no_hooks_left

LAST = tiny_models.N_LAYERS - 1
START = "w1 w2 w3 w4 " * 8
PROMPTS = PromptSet.from_texts([START + text for text in tiny_models.texts(7)])
KINDS = {
    "qwen2": "q_proj",
    "gemma2": "down_proj",
    "gpt2": "c_proj",
}


@contextmanager
def passes_of_blocks(model: HookedModel) -> Iterator[list[int]]:
    """How often the module of each block computed something."""
    counts = [0] * model.n_layers
    blocks = model.architecture.module(model.module, model.architecture.layers)  # type: ignore[attr-defined]

    def counter(number: int):
        def count(*_: object) -> None:
            counts[number] += 1

        return count

    # the first module inside a block, which a block that is left out does not call
    inner = [next(iter(block.children())) for block in blocks]
    handles = [module.register_forward_hook(counter(i)) for i, module in enumerate(inner)]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def family_of(folder: Path, kind: str, layers: list[int], **changes):
    parent = tiny_models.build(folder / "m", kind)
    path = tiny_models.build_adapter(
        folder / "a", parent, targets=[KINDS[kind]], layers_to_transform=layers, **changes
    )
    return load_family(parent, finetuned={"a": path})


def captured(models, *, trunk: bool, sites=None, prompts=PROMPTS, **more) -> dict[str, Activations]:
    spec = CaptureSpec(
        sites=sites or models["before"].sites,
        positions=("last_prompt", "mean_prompt"),
        batch_tokens=150,
        shared_trunk=trunk,
    )
    return capture_many(models, prompts, spec=spec, progress=False, **more)


def test_every_kind_of_block(tmp_path):
    for kind in KINDS:
        family = family_of(tmp_path / kind, kind, [LAST])
        models = {"before": family.instruct, "after": family["a"]}
        with no_hooks_left(family.instruct.module):
            whole = captured(models, trunk=False)
            with passes_of_blocks(family.instruct) as counts:
                shared = captured(models, trunk=True)
        # half of the passes of the lower blocks; those of the proof are in all of them
        proof = [2, 2, 2]
        passes = [count - extra for count, extra in zip(counts, proof, strict=True)]
        assert passes[0] == passes[1] == passes[2] / 2 > 0, kind
        for name in models:
            for key in whole[name].keys:
                assert torch.equal(shared[name].value(key), whole[name].value(key)), (kind, key)
        assert not torch.equal(shared["after"].value(key), shared["before"].value(key))
        assert shared["after"].provenance["shared_trunk"] == {"with": "before", "blocks": LAST}
        assert shared["before"].provenance["shared_trunk"] is None
        assert whole["after"].provenance["shared_trunk"] is None


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trunk")
    made = family_of(folder, "qwen2", [1, 2])
    parent = folder / "m"
    tiny_models.build(folder / "full", seed=5)
    adapters = {
        "second": {"targets": ["q_proj"], "layers_to_transform": [2], "seed": 3},
        "embedding": {"targets": ["embed_tokens"], "init_lora_weights": False},
        "first block": {"targets": ["q_proj"], "layers_to_transform": [0]},
        "output": {"targets": ["lm_head"]},
    }
    paths = {"one": folder / "a", "full": folder / "full"}
    for name, options in adapters.items():
        paths[name] = tiny_models.build_adapter(folder / name, parent, **options)
    assert made
    return load_family(parent, finetuned=paths)


def test_several_fine_tunes_start_where_each_differs(family):
    models = {"before": family.instruct, "one": family["one"], "second": family["second"]}
    trunk = SharedTrunk.of(models)
    assert trunk.starts == {"one": 1, "second": 2}
    # the other way round, what the two adapters have in common
    assert SharedTrunk.of({"one": family["one"], "second": family["second"]}).starts == {
        "second": 1
    }
    whole = captured(models, trunk=False)
    with passes_of_blocks(family.instruct) as counts:
        shared = captured(models, trunk=True)
    assert counts[2] == 3 * counts[0] and counts[1] == 2 * counts[0]
    for name in models:
        assert torch.equal(shared[name].value(key := whole[name].keys[-1]), whole[name].value(key))


def test_nothing_is_run_where_all_sites_lie_below(family):
    models = {"before": family.instruct, "after": family["second"]}
    sites = ["resid_pre.1", "attn_out.1", "resid_post.1", "resid_pre.2"]
    whole = captured(models, trunk=False, sites=sites)
    with passes_of_blocks(family.instruct) as counts:
        shared = captured(models, trunk=True, sites=sites)
        captured({"before": family.instruct}, trunk=True, sites=sites)
    assert counts[1] > 0 and counts[1] % 2 == 0  # as many passes by two models as by one
    for key in whole["after"].keys:
        assert torch.equal(shared["after"].value(key), whole["after"].value(key))


def test_where_it_cannot_be_it_is_off_and_said(family):
    reasons = {
        "full": "it has model.embed_tokens of its own",
        "embedding": "it has model.embed_tokens.* of its own",
        "first block": "its first block is not that of the other model",
    }
    models = {"before": family.instruct, **{name: family[name] for name in reasons}}
    trunk = SharedTrunk.of(models)
    assert trunk.starts == {}
    for name, reason in reasons.items():
        assert re.fullmatch(reason, trunk.why_not[name])
    assert trunk.record("full") == {"with": "before", "blocks": 0, "why": trunk.why_not["full"]}
    output = {"before": family.instruct, "output": family["output"]}
    assert SharedTrunk.of(output).starts == {"output": LAST}
    edited = family["one"]
    with edited.intervene(ablate(torch.eye(tiny_models.D_MODEL)[0])):
        found = SharedTrunk.of({"before": family.instruct, "one": edited}).why_not
    assert found == {"one": "an edit is active on 'one'"}


def test_a_start_that_gives_something_else_is_not_used(family, monkeypatch):
    monkeypatch.setattr(family["one"], "trunks_proved", {})
    monkeypatch.setattr(
        trunks.KeptStreams, "keep", lambda self, key, x: self.streams.update({key: x + 1})
    )
    found = SharedTrunk.of({"before": family.instruct, "one": family["one"]}).why_not
    assert found == {"one": "started at block 1, it does not give what a whole pass gives"}


def test_finished_shards_and_little_room(family, monkeypatch, tmp_path):
    models = {"before": family.instruct, "after": family["one"]}
    whole = captured(models, trunk=False)
    stores = {name: tmp_path / name for name in models}
    captured(models, trunk=True, stores=stores)
    for path in (tmp_path / "after").glob("shard-*"):
        path.unlink()
    (tmp_path / "after" / "manifest.json").unlink()
    resumed = captured(models, trunk=True, stores=stores)
    monkeypatch.setattr(trunks.KeptStreams, "keep", lambda *_: None)
    no_room = captured(models, trunk=True)
    for key in whole["after"].keys:
        assert torch.equal(resumed["after"].value(key), whole["after"].value(key))
        assert torch.equal(no_room["after"].value(key), whole["after"].value(key))


def test_moments_of_a_difference_share_it_too(family):
    means, passes = [], []
    for trunk in (False, True):
        with passes_of_blocks(family.instruct) as counts:
            spec = CaptureSpec(sites=["resid_post.0", "resid_post.2"], shared_trunk=trunk)
            found = stream_moments(
                family["second"], PROMPTS, spec, minus=family.instruct, by=None, progress=False
            )
        means.append(found.mean("resid_post.2"))
        passes.append(counts[0])
        assert not found.mean("resid_post.0").any()
    assert torch.equal(*means) and passes[0] == 2 * passes[1]
    assert found.provenance["after"]["shared_trunk"] == {"with": "before", "blocks": 2}

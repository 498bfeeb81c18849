"""An adapter in memory computes what PEFT computes with it, and leaves nothing behind."""

import copy
import threading
from dataclasses import replace

import pytest
import tiny_models
import torch

from emlens.activations import capture
from emlens.data import PromptSet
from emlens.foundation import InputError, IntegrityError, StateError
from emlens.interventions.applied_adapter import applied_adapter
from emlens.interventions.lora import LoraAdapter, LoraFactors
from emlens.interventions.lora_sums import combined
from emlens.models import load_family, load_model
from emlens.models.hooked import HookedModel

FLOAT32 = 1e-5  # PEFT scales after both products, the hook scales B


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    root = tmp_path_factory.mktemp("applied")
    instruct = tiny_models.build(root / "instruct")
    paths = {
        name: tiny_models.build_adapter(root / name, instruct, seed=seed)
        for name, seed in (("one", 1), ("two", 2))
    }
    return load_family(instruct, finetuned=paths, device="cpu"), paths


PROMPTS = PromptSet.from_questions(["w1 w2 w3", "w4 w5"])


def test_an_applied_adapter_is_the_loaded_one_and_leaves_nothing(family):
    models, paths = family
    before = models.instruct.logits(PROMPTS)
    with applied_adapter(models.instruct, LoraAdapter.load(paths["one"])):
        inside = models.instruct.logits(PROMPTS)
    assert (
        torch.allclose(inside, models["one"].logits(PROMPTS), atol=FLOAT32)
        and float((inside - before).abs().max()) > 0.01
    )
    assert torch.equal(models.instruct.logits(PROMPTS), before)
    assert not any(module._forward_hooks for module in models.instruct.module.modules())


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_other_backends_run_under_the_update(family, backend):
    models, paths = family
    model = load_model(
        paths["one"].parent / "instruct", backend=tiny_models.need_backend(backend), device="cpu"
    )
    with applied_adapter(model, LoraAdapter.load(paths["one"])):
        assert torch.allclose(model.logits(PROMPTS), models["one"].logits(PROMPTS), atol=FLOAT32)
    assert torch.allclose(model.logits(PROMPTS), models.instruct.logits(PROMPTS), atol=FLOAT32)


def test_an_update_belongs_to_its_model_and_thread_and_is_recorded(family, tmp_path):
    models, paths = family
    parent, twin = models.instruct, copy.copy(models.instruct)
    before = parent.logits(PROMPTS)
    capture(parent, PROMPTS, store=tmp_path / "store", progress=False)
    seen = {}
    with applied_adapter(parent, LoraAdapter.load(paths["one"])):
        thread = threading.Thread(target=lambda: seen.update(logits=parent.logits(PROMPTS)))
        thread.start()
        thread.join()
        assert torch.equal(twin.logits(PROMPTS), before)
        [record] = parent.edit_records()
        with twin.edited_like(parent):
            assert torch.equal(twin.logits(PROMPTS), parent.logits(PROMPTS))
        with pytest.raises(IntegrityError, match="begun for another model"):
            capture(parent, PROMPTS, store=tmp_path / "store", progress=False)
    assert torch.equal(seen["logits"], before) and parent.edit_records() == []
    assert record["kind"] == "applied_adapter" and len(record["sha256"]) == 64


def test_ranks_add_up_under_a_sum(family):
    models, paths = family
    one, two = (LoraAdapter.load(path) for path in paths.values())
    with applied_adapter(models.instruct, one), applied_adapter(models.instruct, two):
        nested = models.instruct.logits(PROMPTS)
    with applied_adapter(models.instruct, combined([(one, 1.0), (two, 1.0)])):
        assert torch.allclose(models.instruct.logits(PROMPTS), nested, atol=FLOAT32)


def test_what_cannot_be_applied_is_refused_and_hooks_are_gone(family):
    models, paths = family
    one = LoraAdapter.load(paths["one"])
    path, factors = next(iter(one.modules.items()))
    with (
        pytest.raises(
            StateError,
            match="'one' has adapter 'one' already; pass the parent that the adapter is for",
        ),
        applied_adapter(models["one"], one),
    ):
        pass
    with (
        pytest.raises(
            InputError,
            match=r"has no module 'model.layers.0.nowhere'; pass an adapter of this model",
        ),
        applied_adapter(
            models.instruct, LoraAdapter({path: factors, "model.layers.0.nowhere": factors})
        ),
    ):
        pass
    with (
        pytest.raises(InputError, match=r"has weights of shape .*, the update is 3 × 5"),
        applied_adapter(
            models.instruct,
            LoraAdapter({path: LoraFactors(torch.ones(1, 5), torch.ones(3, 1), 1.0)}),
        ),
    ):
        pass
    with (
        pytest.raises(
            InputError, match="is an embedding, whose update is not a product with its input"
        ),
        applied_adapter(models.instruct, LoraAdapter({path: replace(factors, embedding=True)})),
    ):
        pass
    assert not any(module._forward_hooks for module in models.instruct.module.modules())


def test_a_backend_without_its_own_modules_is_refused(family):
    kind = type("Bare", (HookedModel,), dict.fromkeys(HookedModel.__abstractmethods__))
    bare = object.__new__(kind)
    bare.name, bare.backend = "m", "else"
    with (
        pytest.raises(StateError, match="'m' runs on backend 'else'; pass the parent"),
        applied_adapter(bare, LoraAdapter.load(family[1]["one"])),
    ):
        pass

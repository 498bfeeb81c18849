"""Cheap activations that are computed again: the same gradients from less that is kept."""

import copy
import os
from contextlib import nullcontext

import pytest
import tiny_models
import torch
from torch import nn

from emlens.foundation.errors import StateError
from emlens.training import Recipe, fit
from emlens.training.adapters import with_adapter
from emlens.training.fitting import load_parent
from emlens.training.recomputing import Recomputed, _Kept

RECIPE = Recipe(
    rank=2, alpha=4, target_modules=("q_proj", "up_proj", "down_proj"), steps=2, batch_size=3
)


class Counting(Recomputed):
    """Adds up the bytes that a pass keeps, each storage once."""

    def __init__(self, model, learns=True):
        super().__init__(model)
        self.kept = {}
        self._learns = learns

    def _learn(self, *given):
        if self._learns:
            super()._learn(*given)

    def _pack(self, tensor):
        saved = super()._pack(tensor)
        if isinstance(saved, _Kept) and not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            self.kept[storage.data_ptr()] = storage.nbytes()
        return saved


def gradients(model, context, passes=1):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 40, (2, 24), generator=generator)
    model.train()
    with context, torch.random.fork_rng():
        for _ in range(passes):
            torch.manual_seed(0)  # of dropout
            model.zero_grad()
            logits = model(input_ids=ids).logits.float()
            logits.log_softmax(-1)[..., 7].mean().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def adapted(path, recipe=RECIPE, dtype="float32"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = with_adapter(recipe, load_parent(path, dtype=dtype)[0], "parent")
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.1)
    return model


@pytest.mark.parametrize(
    ("kind", "modules", "dtype", "least"),
    [
        ("llama", RECIPE.target_modules, "float32", 0.2),
        ("llama", RECIPE.target_modules, "bfloat16", 0.2),
        ("gemma2", RECIPE.target_modules, "float32", 0.15),
        ("gpt2", ("c_fc", "c_proj"), "float32", 0.1),
        ("phi3", ("qkv_proj", "down_proj"), "float32", 0.1),
    ],
)
def test_gradients_have_the_same_bytes_and_less_is_kept(tmp_path, kind, modules, dtype, least):
    path = tiny_models.build(tmp_path / "model", kind)
    if dtype == "bfloat16":
        load_parent(path)[0].bfloat16().save_pretrained(path)
    model = adapted(path, RECIPE.changed(target_modules=modules), "own")
    keeping = Counting(model, learns=False)
    plain = gradients(model, keeping.active())
    counting = Counting(model)
    again = gradients(model, counting.active(), passes=2)
    assert plain.keys() == again.keys() and len(plain) > 0
    assert all(torch.equal(value, again[name]) for name, value in plain.items())
    assert all(counting._proved.values()) and len(counting._proved) > 0
    counting = Counting(model)
    gradients(model, counting.active())
    assert sum(counting.kept.values()) < (1 - least) * sum(keeping.kept.values())
    assert not any(module._forward_hooks for module in model.modules())


def test_full_fine_tuning_has_the_same_bytes_too(tmp_path):
    model, _ = load_parent(tiny_models.build(tmp_path / "model", "qwen3"))
    plain = gradients(model, nullcontext())
    again = gradients(model, Recomputed(model).active())
    assert all(torch.equal(value, again[name]) for name, value in plain.items())


def test_what_is_not_had_again_stays_kept(tmp_path):
    """A product with a third factor, and a norm that is different each time."""
    model = adapted(tiny_models.build(tmp_path / "model", "llama"))
    blocks = model.base_model.model.model.layers
    first = blocks[0].mlp

    def tripled(x):
        return first.down_proj(first.act_fn(first.gate_proj(x)) * first.up_proj(x) * 3)

    first.forward = tripled
    norm = blocks[1].input_layernorm
    inner, calls = norm.forward, []

    def drifting(x):
        calls.append(1)
        return inner(x) * len(calls)

    norm.forward = drifting
    plain = gradients(model, nullcontext())
    calls.clear()
    watched = Recomputed(model)
    again = gradients(model, watched.active())
    assert all(torch.equal(value, again[name]) for name, value in plain.items())
    assert list(watched._proved.values()).count(False) == 2


def test_changes_in_place_are_not_passed_over(tmp_path):
    model = adapted(tiny_models.build(tmp_path / "model", "llama"))
    norm = model.base_model.model.model.layers[0].post_attention_layernorm
    plain = copy.deepcopy(model)
    doubled = [m for m in plain.modules() if m.__class__ is norm.__class__][1]
    doubled.register_forward_hook(lambda _m, _a, made: made.mul(2))
    expected = gradients(plain, nullcontext())
    watched = Recomputed(model)
    with watched.active():
        handle = norm.register_forward_hook(lambda _m, _a, made: made.mul_(2))  # in place
        found = gradients(model, nullcontext())
        handle.remove()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())

    with watched.active():
        x = torch.ones(3, requires_grad=True)
        y = x * 2
        loss = (y * y).sum()
        y.mul_(2)
        with pytest.raises(StateError, match="changed in place between the forward and the back"):
            loss.backward()


def test_a_run_ends_with_the_same_bytes(tiny, chats, tokenizer, tmp_path, monkeypatch):
    for name in ("plain", "again"):
        if name == "plain":
            monkeypatch.setattr(
                "emlens.training.fitting.recomputed", lambda *_, **__: nullcontext()
            )
        fit(RECIPE, copy.deepcopy(tiny), chats, tmp_path / name, tokenizer=tokenizer)
        monkeypatch.undo()
    plain, again = (tmp_path / name / "adapter_model.safetensors" for name in ("plain", "again"))
    assert plain.read_bytes() == again.read_bytes()


def test_large_tensors_are_asked_to_leave_no_holes():
    """That this is early enough for torch is seen in a new process, in test_launchers."""
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"

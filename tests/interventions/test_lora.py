"""LoRA factors: read, written, read off a running model; each against PEFT itself."""

import json
import math

import pytest
import tiny_models
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from benchmarks import adapter_kinds
from emlens.foundation import InputError, LoadError, StateError
from emlens.interventions.lora import LoraAdapter, LoraFactors, layer_of
from emlens.models import load_family, load_model
from emlens.models.attaching import attach


@pytest.fixture(scope="module")
def instruct(tmp_path_factory):
    return tiny_models.build(tmp_path_factory.mktemp("instruct"))


def peft_updates(instruct, adapter):
    """Module → ΔW as PEFT itself would merge it."""
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(instruct, dtype=torch.float32), str(adapter)
    )
    from peft.tuners.lora import LoraLayer

    return {
        name.removeprefix("base_model.model."): m.get_delta_weight("default")
        for name, m in model.named_modules()
        if isinstance(m, LoraLayer)
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {
            "rank_pattern": {"down_proj": 3},
            "alpha_pattern": {r"model\.layers\.1\.mlp\.down_proj": 5},
        },
    ],
    ids=["lora", "rslora", "patterns"],
)
def test_factors_are_the_updates_that_peft_makes_and_come_back_from_disk(
    instruct, tmp_path, changes
):
    path = tiny_models.build_adapter(tmp_path / "adapter", instruct, **changes)
    expected = peft_updates(instruct, path)
    adapter = LoraAdapter.load(path)
    assert set(adapter.modules) == set(expected)
    again = LoraAdapter.load(adapter.save(tmp_path / "again"))
    rewritten = peft_updates(instruct, tmp_path / "again")
    for module, factors in adapter.modules.items():
        update = factors.scale * factors.b @ factors.a
        assert (
            torch.allclose(update, expected[module], atol=1e-6) and float(update.abs().max()) > 0.01
        )
        assert torch.allclose(rewritten[module], expected[module], atol=1e-6)
        assert torch.equal(again[module].a, factors.a) and torch.equal(again[module].b, factors.b)
        assert math.isclose(again[module].scale, factors.scale)
    layers = [layer_of(module) for module in adapter.modules]
    assert layers == sorted(layers, key=lambda layer: -1 if layer is None else layer)


def test_the_adapter_of_a_model_is_what_lies_on_disk(instruct, tmp_path):
    paths = {
        name: tiny_models.build_adapter(tmp_path / name, instruct, seed=seed)
        for name, seed in (("one", 1), ("two", 2))
    }
    family = load_family(instruct, finetuned=paths, device="cpu")
    assert LoraAdapter.of(family.instruct) is None
    for name, path in paths.items():
        current, stored = LoraAdapter.of(family[name]), LoraAdapter.load(path)
        assert list(current.modules) == list(stored.modules)
        for module, factors in stored.modules.items():
            assert (
                torch.equal(current[module].a, factors.a)
                and torch.equal(current[module].b, factors.b)
                and current[module].scale == factors.scale
            )


KEPT = {
    "lora",
    "rslora",
    "patterns",
    "orthogonal start",
    "embed_tokens",
    "lm_head",
    "embed_tokens and lm_head",
    "embed_tokens, tied",
}
COPIES = {kind for kind in KEPT if "embed" in kind or kind == "lm_head"}
"""PEFT saves frozen copies of the base beside these."""


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    root = tmp_path_factory.mktemp("tied")
    return tiny_models.build(root / "base", tie_word_embeddings=True, num_hidden_layers=2)


@pytest.fixture(scope="module")
def parent(tied):
    return load_model(tied)


@pytest.mark.parametrize("kind", [k for k in adapter_kinds.KINDS if k in KEPT or "lora" in k])
def test_reading_and_saving_keep_the_logits_of_peft_or_refuse(tied, parent, tmp_path, kind):
    path = adapter_kinds.save(tmp_path / "adapter", tied, kind, adapter_kinds.KINDS[kind]())
    model = attach(parent, kind, path)
    if kind not in KEPT:
        with pytest.raises(StateError, match="not a low-rank update|not a LoRA adapter|trains"):
            LoraAdapter.of(model)
        with pytest.raises(LoadError, match="not a low-rank update|not a LoRA adapter|trains"):
            LoraAdapter.load(path)
    else:
        expected = adapter_kinds.peft_logits(path, tied)
        LoraAdapter.of(model).save(tmp_path / "of")
        assert same_logits(tmp_path / "of", tied, expected)
        if kind in COPIES:
            with pytest.raises(LoadError, match="if it is a frozen copy of the base, pass Lora"):
                LoraAdapter.load(path)
        else:
            LoraAdapter.load(path).save(tmp_path / "load")
            assert same_logits(tmp_path / "load", tied, expected)
    if kind in parent.bank.names:
        parent.bank.detach(kind)


def same_logits(path, base, expected):
    return float((adapter_kinds.peft_logits(path, base) - expected).abs().max()) <= 1e-5


@pytest.mark.parametrize(
    "kind",
    ["bias of all", "saved lm_head", "trained tokens", "resized", "ia3"],
)
def test_what_is_more_than_factors_is_refused(tied, parent, tmp_path, kind):
    path = adapter_kinds.save(tmp_path / "adapter", tied, kind, adapter_kinds.KINDS[kind]())
    match = "not a LoRA adapter|also trains|weights of the base with other values"
    with pytest.raises(StateError, match=match):
        LoraAdapter.of(attach(parent, kind, path))
    with pytest.raises(LoadError, match="not a LoRA adapter|also trains|not a factor of a low"):
        LoraAdapter.load(path)


def test_experts_are_refused(tmp_path):
    base = tiny_models.build(tmp_path / "base", "qwen3_moe", num_hidden_layers=1)
    config = adapter_kinds.lora(["q_proj"], target_parameters=["mlp.experts.down_proj"])
    path = adapter_kinds.save(tmp_path / "adapter", base, "experts", config)
    with pytest.raises(LoadError, match=r"changes experts \(target_parameters\)"):
        LoraAdapter.load(path)
    with pytest.raises(StateError, match=r"changes experts \(target_parameters\)"):
        LoraAdapter.of(attach(load_model(base), "x", path))


def test_what_is_no_plain_lora_is_refused(instruct, tmp_path):
    with pytest.raises(LoadError, match=r"holds no adapter_config.json; pass a directory saved"):
        LoraAdapter.load(instruct)
    path = tiny_models.build_adapter(tmp_path / "adapter", instruct)
    weights = load_file(path / "adapter_model.safetensors")
    first = sorted(weights)[0]

    def changed(tensors):
        save_file(tensors, path / "adapter_model.safetensors")
        return path

    with pytest.raises(
        LoadError, match=r"has no pair of factors that fit each other; the file is incomplete"
    ):
        LoraAdapter.load(changed({name: value for name, value in weights.items() if name != first}))
    with pytest.raises(
        LoadError,
        match=(
            r"holds 'base_model.model.lm_head.weight',"
            " which is not a factor of a low-rank update"
        ),
    ):
        LoraAdapter.load(changed({**weights, "base_model.model.lm_head.weight": torch.ones(2, 2)}))
    (path / "adapter_model.safetensors").write_bytes(b"not one")
    with pytest.raises(LoadError, match=r"adapter_model.safetensors: not a safetensors file"):
        LoraAdapter.load(path)
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "LOHA"}))
    with pytest.raises(LoadError, match=r"is not a LoRA adapter \(peft_type 'LOHA'\)"):
        LoraAdapter.load(path)


def test_an_adapter_changes_something_and_is_never_overwritten(tmp_path):
    with pytest.raises(
        InputError, match="modules is empty; an adapter changes at least one module"
    ):
        LoraAdapter({})
    adapter = LoraAdapter(
        {"model.layers.0.mlp.down_proj": LoraFactors(torch.ones(1, 4), torch.ones(2, 1), 1.0)}
    )
    with pytest.raises(
        InputError, match="the adapter has no module 'lm_head'; it has model.layers.0.mlp.down_proj"
    ):
        adapter["lm_head"]
    adapter.save(tmp_path / "a")
    with pytest.raises(
        InputError, match="already holds an adapter or is a file; pass a new directory"
    ):
        adapter.save(tmp_path / "a")


def test_other_backends_are_refused_by_name(unchecked):
    class Elsewhere:
        backend = "elsewhere"

    with pytest.raises(
        StateError, match="backend 'elsewhere' holds no adapters that could be read"
    ):
        LoraAdapter.of(Elsewhere())

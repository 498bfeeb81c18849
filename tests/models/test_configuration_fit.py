"""A configuration that does not fit its file, and weights that lie on disk: one true line each."""

import json

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from emlens.foundation import LoadError
from emlens.models import load_model


def changed(path, **fields):
    config = json.loads((path / "config.json").read_text())
    config.update(fields)
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_fewer_blocks_than_the_file_holds(tmp_path):
    path = tiny_models.build(tmp_path / "m", "llama")
    load_model(path)
    with pytest.raises(
        LoadError,
        match=(
            "config.json gives 2 blocks, but the file holds weights of block 2"
            r" \('model.layers.2.*'\); the configuration does not fit the file"
        ),
    ):
        load_model(changed(path, num_hidden_layers=2))


def test_weights_of_a_module_that_the_configuration_leaves_out(tmp_path):
    path = tiny_models.build(tmp_path / "m", "llama", attention_bias=True)
    load_model(path)
    with pytest.raises(
        LoadError, match="the file holds 'bias' for 'model.layers.0.self_attn.k_proj', which this"
    ):
        load_model(changed(path, attention_bias=False))


def test_parts_beside_the_language_model_may_be_left_out(tmp_path):
    path = tiny_models.build(tmp_path / "m")
    weights = load_file(path / "model.safetensors")
    weights["vision_tower.layers.5.weight"] = torch.ones(2)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    load_model(path)


def test_a_first_module_on_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tiny_models.build(tmp_path / "m")
    device_map = {
        "model.embed_tokens": "disk",
        "model.layers": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "disk",
    }
    with pytest.raises(LoadError, match="device_map places the embedding on disk"):
        load_model(path, device_map=device_map)

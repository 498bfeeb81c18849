"""Weights are hashed as what is loaded; what is beside them has hashes of its own."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from emlens.foundation import LoadError
from emlens.foundation.provenance import hash_tensors
from emlens.models import load_model
from emlens.models.checkpoint_files import checkpoint_hashes, hash_weights, read_object


def sharded(path, subfolder):
    """The same weights in two files, which the index names in another directory."""
    (path / subfolder).mkdir(parents=True)
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    weight_map = {}
    for i, name in enumerate(sorted(tensors)):
        file = f"{subfolder}/part-{i % 2}.safetensors"
        weight_map[name] = file
    for file in set(weight_map.values()):
        part = {name: value for name, value in tensors.items() if weight_map[name] == file}
        save_file(part, path / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def test_the_hash_is_that_of_the_tensors(files):
    expected = hash_tensors(load_file(files / "instruct" / "model.safetensors"))
    assert hash_weights(files / "instruct") == expected != hash_weights(files / "full")


@pytest.mark.parametrize("subfolder", ["sub", "../sibling"])
def test_weights_elsewhere_are_hashed_as_what_is_loaded(files, tmp_path, prompts, subfolder):
    path = sharded(shutil.copytree(files / "instruct", tmp_path / "model"), subfolder)
    first = load_model(path)
    assert first.provenance["weights_sha256"] == hash_weights(files / "instruct")
    name = "model.norm.weight"
    shard = path / read_object(path / "model.safetensors.index.json")["weight_map"][name]
    tensors = load_file(shard)
    save_file({**tensors, name: tensors[name] + 1}, shard, metadata={"format": "pt"})
    second = load_model(path)
    assert not torch.equal(first.logits(prompts), second.logits(prompts))
    assert first.provenance["weights_sha256"] != second.provenance["weights_sha256"]


def test_each_kind_of_file_has_a_hash_of_its_own(files, tmp_path):
    path = shutil.copytree(files / "instruct", tmp_path / "model")
    before = checkpoint_hashes(path)

    def differing():
        now = checkpoint_hashes(path)
        return [name for name in now if now[name] != before[name]]

    def changed(file, **entries):
        content = read_object(path / file)
        (path / file).write_text(json.dumps({**content, **entries}))

    changed("config.json", transformers_version="5.99")
    (path / "README.md").write_text("x")
    assert differing() == []
    changed("config.json", rms_norm_eps=0.5)
    assert differing() == ["config_sha256"]
    with (path / "chat_template.jinja").open("a") as template:
        template.write("{# a comment #}")
    assert differing() == ["config_sha256", "chat_template_sha256"]
    changed("tokenizer_config.json", padding_side="left")
    assert differing() == ["config_sha256", "tokenizer_sha256", "chat_template_sha256"]


def test_a_template_is_hashed_as_the_tokenizer_reads_it(files, tmp_path):
    path = shutil.copytree(files / "instruct", tmp_path / "model")
    expected = load_model(path).provenance["chat_template_sha256"]
    assert checkpoint_hashes(path)["chat_template_sha256"] == expected
    template = (path / "chat_template.jinja").read_text()
    (path / "chat_template.jinja").unlink()
    config = read_object(path / "tokenizer_config.json")
    for written in (template, [{"name": "default", "template": template}]):
        content = json.dumps({**config, "chat_template": written})
        (path / "tokenizer_config.json").write_text(content)
        hashes = checkpoint_hashes(path)
        assert hashes["chat_template_sha256"] == expected
        assert (
            hashes["tokenizer_sha256"] == checkpoint_hashes(files / "instruct")["tokenizer_sha256"]
        )


def test_pickled_weights_are_hashed_as_files(files, tmp_path):
    path = shutil.copytree(files / "instruct", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"holds no weights \(model.safetensors or pytorch_model"):
        hash_weights(path)
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    first = hash_weights(path)
    torch.save({**model.state_dict(), "x": torch.ones(1)}, path / "pytorch_model.bin")
    assert hash_weights(path) != first


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "index.json: cannot be read"),
        ("[]", "index.json: holds a list, not a JSON object"),
        ("{}", "index.json: holds no weight_map"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors: no such file of weights"),
    ],
)
def test_an_index_that_names_no_weights(files, tmp_path, content, match):
    path = shutil.copytree(files / "instruct", tmp_path / "model")
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(LoadError, match=match):
        hash_weights(path)
    (path / "model.safetensors.index.json").unlink()
    (path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(LoadError, match=r"model.safetensors: not a safetensors file"):
        hash_weights(path)

"""Architectures outside the table: found by structure and proved by additivity, or refused with
what was found.
"""

import dataclasses

import pytest
import tiny_models
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from emlens.foundation import LoadError
from emlens.models import architectures, load_model
from emlens.models.architectures import architecture_of
from emlens.models.discovery import discover
from emlens.models.parity import RELATIVE, check_parity


def made(kind, **changes):
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    config = CONFIG_MAPPING[kind](vocab_size=46, pad_token_id=0, **{**sizes, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            (
                parameter.normal_(0, 0.3)
                if parameter.ndim > 1
                else parameter.add_(torch.randn_like(parameter) * 0.1)
            )
    return model


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_what_the_table_says_is_found_without_it(kind, tmp_path):
    """The search knows nothing of the table, and finds the same places (a multiplier it cannot
    find, so it refuses).
    """
    model = AutoModelForCausalLM.from_pretrained(tiny_models.build(tmp_path / "model", kind)).eval()
    if kind == "granite":
        with pytest.raises(
            LoadError, match="no two of them add up to what a block adds to the stream"
        ):
            discover(model, kind)
        return
    expected = dataclasses.replace(architecture_of(model), discovered=True)
    assert discover(model, kind) == expected


@pytest.mark.parametrize(
    ("kind", "changes", "parallel"),
    [
        ("olmo", {}, False),
        ("starcoder2", {"num_key_value_heads": 2}, False),
        ("stablelm", {"num_key_value_heads": 2}, False),
        ("phi", {}, True),
        ("cohere", {"num_key_value_heads": 2}, True),
        ("gptj", {"n_layer": 3, "n_embd": 32, "n_head": 4, "rotary_dim": 4}, True),
    ],
)
def test_architectures_outside_the_table(kind, changes, parallel, tmp_path):
    assert kind not in architectures.ARCHITECTURES
    if kind == "gptj":
        changes = {**changes, "hidden_size": 32}
    model = made(kind, **changes)
    found = architecture_of(model)
    assert found.discovered and (found.mid is None) == parallel
    model.save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.provenance["sites_found"]["attn_out"] == found.attn_out
    parity = check_parity(tmp_path, backends=["transformers"])
    assert parity.agrees and max(d.value for d in parity.differences) < RELATIVE


def test_a_bloom_keeps_the_stream_inside_its_attention():
    model = made("bloom", n_layer=3, n_head=4)
    with pytest.raises(
        LoadError,
        match=(
            r"'bloom' is not one emlens knows where to hook \(qwen2,"
            r" .*found 3 blocks at 'transformer.h' whose children are"
        ),
    ):
        architecture_of(model)


def test_no_list_of_blocks():
    from transformers import BertConfig, BertModel

    model = BertModel(
        BertConfig(
            vocab_size=8,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=1,
            intermediate_size=8,
        )
    )
    model.encoder.layer = nn.Sequential(*model.encoder.layer)
    with pytest.raises(
        LoadError,
        match=(
            "it should have one list of 2 equal blocks inside a decoder; found lists of modules:"
            " none"
        ),
    ):
        architecture_of(model)


def test_blocks_that_do_not_pass_the_stream_on():
    from transformers import BertConfig, BertModel

    model = BertModel(
        BertConfig(
            vocab_size=8,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=1,
            intermediate_size=8,
        )
    )
    with pytest.raises(LoadError, match="its decoder does not run on token ids"):
        architecture_of(model)


def altered(change):
    model = made("olmo")
    change(model)
    return model


def test_parts_that_are_left_out_are_missed():
    def last_norm(model):
        model.model.norm = nn.Identity()
        model.model.forward = lambda input_ids, use_cache: run(model.model, input_ids)

    def run(decoder, ids):
        x = decoder.embed_tokens(ids)
        rotary = decoder.rotary_emb(x, torch.arange(ids.shape[1])[None])
        for layer in decoder.layers:
            x = layer(x, attention_mask=None, position_embeddings=rotary)
        return x

    def skips(model):
        model.model.layers[1].register_forward_pre_hook(lambda m, a: (a[0] + 1,))

    def renamed(model):
        for layer in model.model.layers:
            layer.mixer, layer.norm = layer.self_attn, layer.post_attention_layernorm
            del layer.self_attn, layer.post_attention_layernorm
            layer.forward = lambda x, layer=layer, **k: (
                x + layer.mlp(layer.norm(x + layer.mixer(x, **k)[0]))
            )

    with pytest.raises(
        LoadError,
        match="nothing in 'model' reads the last block's output, so there is no final norm",
    ):
        architecture_of(altered(last_norm))
    with pytest.raises(
        LoadError, match="block 1 does not take the stream that the block before it gives"
    ):
        architecture_of(altered(skips))
    with pytest.raises(
        LoadError, match="none of them that returns a stream is called attention in every block"
    ):
        architecture_of(altered(renamed))

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

from emlens.foundation import InputError, LoadError, Site
from emlens.interventions import ablate, orthogonalised, steer
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
    """The search knows nothing of the table, and finds the same places.

    A multiplier it cannot find, so there it finds only the streams between the blocks.
    """
    model = AutoModelForCausalLM.from_pretrained(tiny_models.build(tmp_path / "model", kind)).eval()
    if kind == "granite":
        found = discover(model, kind)
        assert (found.level, found.layers, found.final_norm) == (2, "model.layers", "model.norm")
        assert found.missing == "no two parts of a block add up to what it adds to the stream"
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


def test_a_bloom_keeps_the_stream_inside_its_attention(tmp_path):
    model = made("bloom", n_layer=3, n_head=4)
    found = architecture_of(model)
    assert found.level == 2 and found.final_norm == "transformer.ln_f"
    assert found.site_kinds == ("resid_pre", "resid_post", "final_norm")
    model.save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert len(loaded.sites) == 2 * 3 + 1
    batch = next(loaded.batches(loaded.render(tiny_models.prompts(2))))
    with pytest.raises(
        InputError,
        match=(
            r"site attn_out.1 does not exist in .*: the parts of its blocks are not known"
            r" \(no two parts of a block add up .*\); read resid_pre or resid_post"
        ),
    ):
        loaded.run(batch, {Site("attn_out", 1): lambda x: None})
    with (
        pytest.raises(InputError, match="which has no mlp_out; it has resid_pre, resid_post"),
        loaded.intervene([steer(torch.ones(32), 1.0, at=["mlp_out.1"])]),
    ):
        pass
    with (
        pytest.raises(InputError, match="needs attn_out, mlp_out, which this model does not have"),
        loaded.intervene([ablate(torch.ones(32), at="inputs_and_writes")]),
    ):
        pass
    with pytest.raises(InputError, match="add to the stream cannot be edited: the parts"):
        orthogonalised(loaded, torch.ones(32))


def small_bert():
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            vocab_size=80,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=1,
            intermediate_size=8,
        )
    ).eval()


def test_no_list_of_blocks():
    model = small_bert()
    model.encoder.layer = nn.Sequential(*model.encoder.layer)
    with pytest.raises(LoadError, match="a search of it failed: it has no list of blocks"):
        architecture_of(model)


def test_what_looks_ahead_is_refused():
    """Every token of an encoder sees every other: an edit reaches what comes before it."""
    with pytest.raises(
        LoadError,
        match=(
            "an edit after block 0 at later tokens changes the output of block 1 at earlier tokens:"
            " the model looks ahead"
        ),
    ):
        architecture_of(small_bert())


def test_what_its_own_hidden_states_contradict_is_refused():
    """Blocks between which something else happens: what goes in is not what the model records."""
    model = made("bloom", n_layer=3, n_head=4)
    final = model.transformer.ln_f
    forward = final.forward
    final.forward = lambda x: forward(x)
    plain = type(model).forward

    def records_something_else(*args, **kwargs):
        output = plain(model, *args, **kwargs)
        if output.hidden_states is not None:
            states = list(output.hidden_states)
            states[1] = states[1] + 1
            output.hidden_states = tuple(states)
        return output

    model.forward = records_something_else
    with pytest.raises(LoadError, match="hidden state 1 is not the input of block 1"):
        architecture_of(model)


def test_blocks_that_run_twice_are_named():
    model = made("olmo")
    block = model.model.layers[1]
    forward = block.forward
    block.register_forward_hook(lambda module, args, kwargs, output: None, with_kwargs=True)
    again = []

    def twice(*args, **kwargs):
        if not again:
            again.append(True)
            block(*args, **kwargs)
            again.clear()
        return forward(*args, **kwargs)

    block.forward = twice
    with pytest.raises(LoadError, match="'model.layers': block 1 runs 2 times in one pass"):
        architecture_of(model)


def altered(change):
    model = made("olmo")
    change(model)
    return model


def test_parts_that_are_left_out_are_missed():
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
        LoadError, match="block 1 does not take the stream that the block before it gives"
    ):
        architecture_of(altered(skips))
    found = architecture_of(altered(renamed))
    assert found.level == 2
    assert found.missing == "no part that returns a stream is called attention in every block"

"""The reference backend on every architecture: which half of a block is which, what padding may
move, what it answers.
"""

import pytest
import torch
from tiny_models import KINDS, close, greedy, prompts

from emlens.foundation import Site
from emlens.models import load_model
from emlens.models.batches import pad
from emlens.models.parity import hidden_states
from emlens.models.transformers_backend import no_hooks_left

MIXTURES = ("qwen3_moe", "mixtral")
"""Tokens of a batch share the kernel calls of the experts, so that other padding changes roundings.
"""
OUTPUTS = ("o_proj", "attn.c_proj", "attention.dense", "self_attention.dense")


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind, checkpoint):
    found = load_model(checkpoint(kind) / "model")
    with no_hooks_left(found.module):
        yield found


def read(model, rows, sites=None, noise=None):
    """Sites at every token of every row, padding cut off."""
    batch = pad(
        rows, range(len(rows)), model.pad_id if noise is None else noise, "right", model.device
    )
    seen = {}
    model.run(
        batch,
        {
            site: lambda x, site=site: seen.update({site: x.clone()})
            for site in sites or model.sites
        },
    )
    return {site: [x[i, : len(row.ids)] for i, row in enumerate(rows)] for site, x in seen.items()}


def test_an_off_by_one_would_be_seen(kind, checkpoint, rows):
    # its own: transformers leaves hooks where it was asked for hidden states
    model = load_model(checkpoint(kind) / "model")
    streams, references = read(model, rows), hidden_states(model, rows)
    norm = model.module.get_submodule(model.architecture.final_norm)
    for i, states in enumerate(references):
        for index in range(1, model.n_layers + 1):
            assert not close(
                streams[Site.from_hf_index(index, model.n_layers)][i], states[index - 1]
            )
        last = streams[Site("resid_post", model.n_layers - 1)][i]
        # the last block's output is in no entry
        assert not any(close(last, state) for state in states)
        assert close(norm(last), states[-1])


def test_attention_without_output_weights_adds_nothing(kind, checkpoint, rows):
    """Pins which of the two halves of a block is which: additivity alone would hold with any
    split.
    """
    model = load_model(checkpoint(kind) / "model")
    silenced = [
        p
        for name, p in model.module.named_parameters()
        if "1." in name and any(part in name for part in OUTPUTS)
    ]
    assert silenced
    for parameter in silenced:
        torch.nn.init.zeros_(parameter)
    streams = read(model, rows)
    assert all((x == 0).all() for x in streams[Site("attn_out", 1)])
    assert all((x != 0).any() for x in streams[Site("attn_out", 0)] + streams[Site("mlp_out", 1)])
    after = streams.get(Site("resid_mid", 1))
    for i, pre in enumerate(streams[Site("resid_pre", 1)]):
        assert (
            torch.equal(pre, after[i])
            if after
            else close(pre + streams[Site("mlp_out", 1)][i], streams[Site("resid_post", 1)][i])
        )


def test_neither_padding_nor_other_readers_move_a_row(kind, model, rows):
    together, alone, padded = (
        read(model, rows),
        [read(model, [row]) for row in rows],
        read(model, rows, noise=17),
    )
    for site in model.sites:
        single = read(model, rows, sites=[site])[site]
        for i in range(len(rows)):
            assert close(together[site][i], alone[i][site][0])
            assert (
                close(padded[site][i], together[site][i])
                if kind in MIXTURES
                else torch.equal(padded[site][i], together[site][i])
            )
            assert torch.equal(single[i], together[site][i])


def test_logits_and_greedy_answers_against_plain_loops(model):
    asked = prompts(5)
    rows = model.render(asked)
    with torch.no_grad():
        expected = torch.stack(
            [model.module(torch.tensor([row.ids])).logits[0, -1] for row in rows]
        )
    assert close(model.logits(asked), expected)
    answers = model.generate(asked, max_new_tokens=5, temperature=0)
    assert answers == [greedy(model.module, model.tokenizer, row.ids, 5) for row in rows]
    assert len(set(answers)) > 1

"""One contract for every architecture: each site against plain forward passes that know nothing of hooks."""

import pytest
import tiny_models
import torch
from tiny_models import N_LAYERS, close
from transformers import AutoModelForCausalLM

from emlens.data import PromptSet
from emlens.data.rendering import Rendered
from emlens.foundation import Site
from emlens.models import load_family, load_model
from emlens.models.architectures import ARCHITECTURES
from emlens.models.batches import pad
from emlens.models.transformers_backend import no_hooks_left

_LENGTHS = (9, 3, 6)


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def path(request, tmp_path_factory):
    return tiny_models.build(tmp_path_factory.mktemp("contract") / "model", request.param)


@pytest.fixture(scope="module")
def model(path):
    return load_model(path)


@pytest.fixture(scope="module")
def plain(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(3)
    return [
        Rendered(f"r{i}", "", tuple(torch.randint(6, 40, (n,), generator=generator).tolist()), n)
        for i, n in enumerate(_LENGTHS)
    ]


def read(model, rows, side="right", sites=None, noise=None):
    """Every site at every token of every row, padding cut off."""
    batch = pad(rows, range(len(rows)), model.pad_id if noise is None else noise, side, model.device)
    seen = {}
    model.run(batch, {site: lambda x, site=site: seen.update({site: x.clone()}) for site in sites or model.sites})
    return {
        site: [x[i, batch.offset(i) : batch.offset(i) + len(row.ids)] for i, row in enumerate(rows)]
        for site, x in seen.items()
    }


def hidden_states(plain, rows):
    with torch.no_grad():
        return [plain(torch.tensor([row.ids]), output_hidden_states=True).hidden_states for row in rows]


def agrees_with_hidden_states(streams, references, shift=0):
    """Each hidden state of each row against the site that the table of indices gives it."""
    for i, states in enumerate(references):
        for index in range(N_LAYERS + 1):
            site = Site.from_hf_index(min(index + shift, N_LAYERS), N_LAYERS)
            if not close(streams[site][i], states[index][0]):
                return False
    return True


def test_sites_against_output_hidden_states(model, plain, rows):
    streams, references = read(model, rows), hidden_states(plain, rows)
    assert agrees_with_hidden_states(streams, references)
    assert not agrees_with_hidden_states(streams, references, shift=1)  # the check sees an off-by-one
    architecture = model.architecture
    for i, states in enumerate(references):
        last = streams[Site("resid_post", N_LAYERS - 1)][i]
        assert not any(close(last, state[0]) for state in states)  # the last block's output is in no entry
        norm = architecture.module(plain, architecture.final_norm)
        assert close(norm(last), states[-1][0])


def test_what_blocks_add(model, rows):
    streams = read(model, rows)
    for layer in range(N_LAYERS):
        at = {kind: torch.cat(streams[Site(kind, layer)]) for kind in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")}
        assert close(at["resid_pre"] + at["attn_out"], at["resid_mid"])
        assert close(at["resid_mid"] + at["mlp_out"], at["resid_post"])
        assert not close(at["resid_pre"], at["resid_mid"]) and not close(at["resid_mid"], at["resid_post"])
        if layer:
            assert torch.equal(at["resid_pre"], torch.cat(streams[Site("resid_post", layer - 1)]))


def test_attention_without_output_weights_adds_nothing(path, rows):
    """Pins which of the two halves of a block is which: additivity alone would hold with any split."""
    model = load_model(path)
    for name, parameter in model.module.named_parameters():
        if "1." in name and any(part in name for part in ("o_proj", "attn.c_proj")):
            torch.nn.init.zeros_(parameter)
    streams = read(model, rows)
    assert all((x == 0).all() for x in streams[Site("attn_out", 1)])
    assert all((x != 0).any() for x in streams[Site("attn_out", 0)] + streams[Site("mlp_out", 1)])
    for pre, mid in zip(streams[Site("resid_pre", 1)], streams[Site("resid_mid", 1)], strict=True):
        assert torch.equal(pre, mid)


def test_padding_and_batch_mates_do_not_move_a_row(model, rows):
    together = read(model, rows)
    alone = [read(model, [row]) for row in rows]
    left = read(model, rows, side="left")
    other_padding = read(model, rows, noise=17)
    for site in model.sites:
        for i in range(len(rows)):
            assert close(together[site][i], alone[i][site][0])
            assert close(left[site][i], together[site][i])
            assert torch.equal(other_padding[site][i], together[site][i])


def test_a_site_read_alone_is_the_same(model, rows):
    together = read(model, rows)
    for site in model.sites:
        assert all(map(torch.equal, read(model, rows, sites=[site])[site], together[site]))


def test_logits_and_greedy_answers_against_plain_loops(model, plain):
    prompts = PromptSet.from_texts(tiny_models.texts(7))
    rows = model.render(prompts)
    with torch.no_grad():
        expected = torch.stack([plain(torch.tensor([row.ids])).logits[0, -1] for row in rows])
    assert close(model.logits(prompts), expected)
    answers = model.generate(prompts, max_new_tokens=6, temperature=0)
    assert answers == [greedy(plain, model.tokenizer, row.ids, 6) for row in rows]
    assert len(set(answers)) > 1


def greedy(plain, tokenizer, ids, n):
    new = []
    for _ in range(n):
        with torch.no_grad():
            token = int(plain(torch.tensor([[*ids, *new]]), use_cache=False).logits[0, -1].argmax())
        if token in (tokenizer.eos_token_id, tokenizer.pad_token_id):
            break
        new.append(token)
    return tokenizer.decode(new, skip_special_tokens=True).strip()


def test_adapters_on_and_off(path, rows, tmp_path):
    tiny_models.build_adapter(tmp_path / "adapter", path)
    untouched = read(load_model(path), rows)
    family = load_family(path, finetuned={"a": tmp_path / "adapter"})
    with no_hooks_left(family.instruct.module):
        on = read(family["a"], rows)
        off = read(family.instruct, rows)
    for site in untouched:
        assert all(map(torch.equal, off[site], untouched[site]))
    assert all(not close(a, b) for a, b in zip(on[Site("resid_post", 2)], off[Site("resid_post", 2)], strict=True))

"""Ablation, steering and generation under them give one result on every backend, with adapters on and off."""

import copy
import threading

import pytest
import torch
from tiny_models import D_MODEL, RELATIVE, close, need_backend, prompts

from emlens.data import PromptSet
from emlens.interventions import ablate, steer
from emlens.models import load_family

ARCHITECTURES = ("qwen2", "llama", "gemma2", "gpt2", "granite", "gpt_neox")
OTHERS = ("transformer_lens", "nnsight")
NO_ADAPTER = ("gpt2", "gpt_neox")
"""TransformerLens refuses adapters of their fused projections."""


def direction(seed):
    return torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))


EDITS = {
    "ablate everywhere": [ablate(direction(0))],
    "ablate, affine, one block": [ablate(direction(0), at=["resid_post.1"], baseline=direction(1))],
    "steer by norm": [steer(direction(2), 0.5, unit="resid_norm", at=["resid_post.0"])],
    "steer both halves of the text": [
        steer(direction(2), 1.0, at=["resid_pre.1"], positions="prompt"),
        steer(direction(3), 1.0, at=["resid_post.1"], positions="response"),
    ],
    "steer what is added": [steer(direction(4), 1.0, at=["attn_out.0", "mlp_out.1"]), ablate(direction(4), at=["mlp_out.1"])],
    "steer before the head": [steer(direction(5), 1.0, at=["final_norm"])],
}
STRONG = [steer(direction(2), 2.0, unit="resid_norm", at=["resid_post.1"], positions="response")]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def families(request, checkpoint):
    kind = request.param
    root = checkpoint(kind)

    def load(backend):
        tuned = {} if backend == "transformer_lens" and kind in NO_ADAPTER else {"a": root / "adapter"}
        return load_family(root / "model", finetuned=tuned, backend=need_backend(backend), attn_implementation="eager")

    return {backend: load(backend) for backend in ("transformers", *OTHERS)}


def asked():
    chats = [[{"role": "user", "content": p.text}, {"role": "assistant", "content": "w1 w2 w3"}] for p in prompts(4)]
    return PromptSet.from_messages(chats, upto="all")


def test_logits_and_answers_are_equal(families):
    for name in ("instruct", "a"):
        for edits in EDITS.values():
            logits_are_equal(families, name, edits)
    for options in ({"temperature": 0}, {"temperature": 1.0, "seed": 3}):
        for name, edits in (("instruct", []), ("instruct", STRONG), ("instruct", EDITS["ablate everywhere"]), ("a", STRONG)):
            answers_are_equal(families, name, edits, options)


def logits_are_equal(families, name, edits):
    reference = families["transformers"][name]
    with reference.intervene(edits):
        expected = torch.cat(reference.token_logprobs(asked()))
    assert not close(torch.cat(reference.token_logprobs(asked())), expected)
    for backend in OTHERS:
        if name in families[backend].names:
            with families[backend][name].intervene(edits) as model:
                assert close(torch.cat(model.token_logprobs(asked())), expected, RELATIVE)


def answers_are_equal(families, name, edits, options):
    with families["transformers"][name].intervene(edits) as reference:
        expected = reference.generate(prompts(4), max_new_tokens=6, **options)
    if edits is STRONG:
        assert reference.generate(prompts(4), max_new_tokens=6, **options) != expected
    for backend in OTHERS:
        if name in families[backend].names:
            with families[backend][name].intervene(edits) as model:
                assert model.generate(prompts(4), max_new_tokens=6, **options) == expected


def test_threads_take_turns(families):
    for backend in OTHERS:
        family = families[backend]
        expected = {name: family[name].logits(prompts(3)) for name in family.names}
        found = {name: [] for name in expected}
        threads = [
            threading.Thread(target=lambda name=name, family=family, found=found: found[name].append(copy.copy(family[name]).logits(prompts(3))))
            for name in [*expected, *expected]
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(len(seen) == 2 and all(torch.equal(x, expected[name]) for x in seen) for name, seen in found.items())

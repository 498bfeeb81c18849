"""Interventions of every kind, and generation under them, give one result on every backend, with
adapters on and off.
"""

import copy
import threading

import pytest
import torch
from tiny_models import D_MODEL, RELATIVE, close, need_backend, prompts

from emlens.activations import capture
from emlens.data import PromptSet
from emlens.foundation import Index, InputError, Span
from emlens.geometry import top_k_subspace
from emlens.interventions import ablate, mean_ablate, resample_ablate, steer, swap
from emlens.models import load_family, load_model
from emlens.models.parity import RELATIVE_FLOAT64, _AllFloat64

ARCHITECTURES = ("qwen2", "llama", "gemma2", "gpt2", "granite", "gpt_neox")
OTHERS = ("transformer_lens", "nnsight")
NO_ADAPTER = ("gpt2", "gpt_neox")
"""TransformerLens refuses adapters of their fused projections."""


def direction(seed):
    return torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))


MANY = torch.stack([direction(seed) for seed in range(10, 20)])
PLANE = top_k_subspace(MANY, k=2, center=False)
EDITS = {
    "ablate everywhere": [ablate(direction(0))],
    "ablate, affine, one block": [ablate(direction(0), at=["resid_post.1"], baseline=direction(1))],
    "steer by norm": [steer(direction(2), 0.5, unit="resid_norm", at=["resid_post.0"])],
    "steer both halves of the text": [
        steer(direction(2), 1.0, at=["resid_pre.1"], positions="prompt"),
        steer(direction(3), 1.0, at=["resid_post.1"], positions="response"),
    ],
    "steer what is added": [
        steer(direction(4), 1.0, at=["attn_out.0", "mlp_out.1"]),
        ablate(direction(4), at=["mlp_out.1"]),
    ],
    "steer before the head": [steer(direction(5), 1.0, at=["final_norm"])],
    "ablate inputs and writes": [ablate(direction(0), at="inputs_and_writes")],
    "ablate a plane in answers": [ablate(PLANE, positions="response", baseline=direction(1))],
    "mean": [
        mean_ablate({"attn_out.1": direction(1), "resid_post.0": direction(2)}, positions="prompt")
    ],
    "resample": [resample_ablate({"resid_post.0": MANY}, seed=0)],
    "resample along a plane": [
        resample_ablate({"mlp_out.1": MANY, "resid_pre.0": MANY}, seed=1, direction=PLANE)
    ],
    "single tokens": [
        steer(direction(2), 3.0, at=["resid_post.0"], positions="last_prompt"),
        steer(direction(3), 3.0, at=["resid_post.0"], positions=Index(1, of="response")),
        ablate(direction(3), at=["resid_post.0"], positions=Span(0, 2, of="prompt")),
    ],
}
SINGLE = [
    steer(
        direction(2),
        2.0,
        unit="resid_norm",
        at=["resid_post.1"],
        positions=Span(1, 3, of="response"),
    )
]
DONORS = [resample_ablate({"resid_post.1": 5 * MANY}, seed=0)]
STRONG = [steer(direction(2), 2.0, unit="resid_norm", at=["resid_post.1"], positions="response")]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def families(request, checkpoint):
    kind = request.param
    root = checkpoint(kind)

    def load(backend):
        tuned = (
            {} if backend == "transformer_lens" and kind in NO_ADAPTER else {"a": root / "adapter"}
        )
        return load_family(
            root / "model",
            finetuned=tuned,
            backend=need_backend(backend),
            attn_implementation="eager",
        )

    return {backend: load(backend) for backend in ("transformers", *OTHERS)}


def asked():
    chats = [
        [{"role": "user", "content": p.text}, {"role": "assistant", "content": "w1 w2 w3"}]
        for p in prompts(4)
    ]
    return PromptSet.from_messages(chats, upto="all")


def test_logits_and_answers_are_equal(families):
    for name in ("instruct", "a"):
        for edits in EDITS.values():
            logits_are_equal(families, name, edits)
    for options in ({"temperature": 0}, {"temperature": 1.0, "seed": 3}):
        given = (
            ("instruct", []),
            ("instruct", STRONG),
            ("instruct", SINGLE),
            ("instruct", DONORS),
            ("instruct", EDITS["ablate everywhere"]),
        )
        for name, edits in (*given, ("a", STRONG)):
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


def test_a_recorded_run_is_one_run_on_every_backend(families):
    """Each backend records for itself and swaps, one block nested in another."""
    source = {"p0": "p1", "p1": "p0"}
    found = {}
    for backend, family in families.items():
        model = family["instruct"]
        run = capture(model, prompts(4), ["attn_out.1", "resid_post.0"], progress=False)
        with (
            model.intervene([steer(direction(3), 1.0, at=["resid_post.0"])]),
            model.intervene([swap(run, source=source)]),
        ):
            found[backend] = (
                model.logits(prompts(4)),
                model.generate(prompts(4), max_new_tokens=4, temperature=0),
            )
    assert not close(
        found["transformers"][0], families["transformers"]["instruct"].logits(prompts(4)), 0.01
    )
    for backend in OTHERS:
        assert (
            close(found[backend][0], found["transformers"][0])
            and found[backend][1] == found["transformers"][1]
        )


def test_what_a_block_side_by_side_cannot_do(families):
    """Attention and MLP of a parallel block read one stream: an edit of attention's output reaches
    later blocks only.
    """
    for backend, family in families.items():
        model = family["instruct"]
        parallel = "resid_mid" not in model.site_kinds
        read = ["mlp_out.0", "resid_post.0"]
        before = capture(model, prompts(4), read, progress=False)
        with model.intervene([steer(direction(4), 3.0, at=["attn_out.0"])]):
            after = capture(model, prompts(4), read, progress=False)
        assert torch.equal(after["mlp_out.0"], before["mlp_out.0"]) == parallel, backend
        moved = after["resid_post.0"] - before["resid_post.0"]
        assert close(moved, 3 * direction(4).expand_as(moved), 1e-3) == parallel
        match = (
            "matches nothing in this model: its blocks run attention and MLP side by side"
            if parallel
            else "can be read but not edited"
        )
        with (
            pytest.raises(InputError, match=match),
            model.intervene([ablate(direction(0), at=["resid_mid.1"])]),
        ):
            pass


@pytest.mark.parametrize("kind", ["qwen2", "gpt_neox"])
def test_in_float64_rounding_vanishes(kind, checkpoint):
    """As for what is read: a bug would not shrink with the dtype."""
    models = {
        backend: load_model(
            checkpoint(kind) / "model",
            backend=need_backend(backend),
            dtype=torch.float64,
            attn_implementation="eager",
        )
        for backend in ("transformers", *OTHERS)
    }
    for edits in EDITS.values():
        found = {}
        for backend, model in models.items():
            model.prepare()
            with _AllFloat64(), model.intervene(edits):
                found[backend] = torch.cat(model.token_logprobs(asked()))
        assert all(
            close(found[backend], found["transformers"], RELATIVE_FLOAT64) for backend in OTHERS
        )
        assert found["transformers"].dtype == torch.float64


def answers_are_equal(families, name, edits, options):
    with families["transformers"][name].intervene(edits) as reference:
        expected = reference.generate(prompts(4), max_new_tokens=6, **options)
    if edits in (STRONG, SINGLE, DONORS):
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
            threading.Thread(
                target=lambda name=name, family=family, found=found: found[name].append(
                    copy.copy(family[name]).logits(prompts(3))
                )
            )
            for name in [*expected, *expected]
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(
            len(seen) == 2 and all(torch.equal(x, expected[name]) for x in seen)
            for name, seen in found.items()
        )

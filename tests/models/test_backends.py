"""Extras that are missing or old, and what every backend must do beside reading: stop early, clean
up, share weights.
"""

import logging

import pytest
import tiny_models
import torch
from torch import nn

from emlens.foundation import InputError, LoadError, MissingExtraError, Site, StateError
from emlens.interventions import steer
from emlens.models import backends, load_family, load_model
from emlens.models.backends import BACKENDS, backend_class, installed_backends
from emlens.models.module_trees import twin
from emlens.models.transformers_backend import no_hooks_left


@pytest.fixture(params=BACKENDS)
def backend(request):
    return tiny_models.need_backend(request.param)


@pytest.fixture
def fresh(backend, files):
    return load_model(files / "instruct", backend=backend)


@pytest.fixture
def batch(shared, prompts):
    return next(shared.batches(shared.render(prompts)))


def say(monkeypatch, versions):
    def version(name):
        if versions.get(name) is None:
            raise backends.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(backends, "version", version)


def test_extras_that_are_missing_or_do_not_fit(files, monkeypatch):
    say(monkeypatch, {})
    match = (
        r"backend 'nnsight' needs nnsight 0.8, which is not installed; run:"
        r" pip install 'misalignment-lens\[nnsight\]'"
    )
    with pytest.raises(MissingExtraError, match=match) as refused:
        load_model(files / "instruct", backend="nnsight")
    assert isinstance(refused.value, ImportError) and "\n" not in str(refused.value)
    match = (
        r"backend 'transformer_lens' needs transformer-lens 4, which is not installed; run:"
        r" pip install 'misalignment-lens\[transformer-lens\]'"
    )
    with pytest.raises(MissingExtraError, match=match):
        load_family(files / "instruct", backend="transformer_lens")
    assert installed_backends() == ["transformers"]
    say(monkeypatch, {"nnsight": "0.7.1", "transformer-lens": "3.5.2"})
    with pytest.raises(
        MissingExtraError,
        match=r"needs nnsight 0.8, but 0.7.1 is installed;"
        r" run: pip install 'misalignment-lens\[nnsight\]'",
    ):
        backend_class("nnsight")
    with pytest.raises(
        MissingExtraError, match=r"needs transformer-lens 4, but 3.5.2 is installed"
    ):
        backend_class("transformer_lens")
    say(monkeypatch, {"nnsight": "0.8.4", "transformer-lens": "4.9rc1"})
    assert installed_backends() == list(BACKENDS)


def test_the_versions_asked_for_are_those_of_the_extras(repository):
    import tomllib

    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert extras["transformer-lens"] == ["transformer-lens>=4,<5"] and extras["nnsight"] == [
        "nnsight>=0.8,<0.9"
    ]


def test_no_such_backend():
    with pytest.raises(
        InputError,
        match="backend 'jax' is unknown; pass one of transformers, transformer_lens, nnsight",
    ):
        backend_class("jax")


def test_the_backend_is_recorded(backend, fresh):
    assert fresh.backend == fresh.provenance["backend"] == backend


def test_a_pass_stops_after_the_deepest_site(fresh, batch):
    ran = []
    fresh.prepare()
    for owner in {id(tree): tree for tree in (fresh.module, trees(fresh))}.values():
        head = owner.get_output_embeddings()
        head.register_forward_hook(lambda *_: ran.append("head"))
        for i, block in enumerate(owner.model.layers):
            block.register_forward_hook(lambda *_, i=i: ran.append(i))
    assert fresh.run(batch, {Site("resid_mid", 1): lambda x: None}) is None
    assert ran == [0]
    assert fresh.run(batch, {Site("final_norm"): lambda x: None}) is None
    assert ran == [0, 0, 1, 2]
    assert (
        fresh.run(batch, {Site("resid_post", 0): lambda x: None}, with_logits=True).shape[:2]
        == batch.ids.shape
    )
    assert ran[4:] == [0, 1, 2, "head"]


def trees(model):
    return model._bridged().original_model if model.backend == "transformer_lens" else model.module


def test_a_reader_that_fails_leaves_nothing_behind(fresh, batch):
    def fails(stream):
        raise KeyError("planted")

    before = fresh.run(batch, with_logits=True)
    with no_hooks_left(trees(fresh)), pytest.raises(KeyError, match="planted"):
        fresh.run(batch, {site: fails for site in fresh.sites})
    assert torch.equal(fresh.run(batch, with_logits=True), before)


def test_a_place_that_is_never_reached(fresh, batch, prompts):
    class Bypass(nn.Module):
        """Runs its block's code without calling the block, as a fused kernel would."""

        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, *args, **kwargs):
            return type(self.block).forward(self.block, *args, **kwargs)

    if fresh.backend == "transformer_lens":
        fresh._bridged().blocks[1].original_component.mlp = fresh.module.model.layers[1].mlp
    else:
        fresh.module.model.layers[1].mlp = Bypass(fresh.module.model.layers[1].mlp)
        place = fresh._place
        fresh._place = lambda site: (
            ("model.layers.1.mlp.block", False) if site == Site("mlp_out", 1) else place(site)
        )
    with pytest.raises(
        StateError,
        match="hooks at mlp_out.1 of 'instruct' never fired; the model does not run these modules",
    ):
        fresh.run(batch, {Site("mlp_out", 1): lambda x: None})
    with (
        fresh.intervene([steer(torch.ones(32), 1.0, at=["mlp_out.1"])]),
        pytest.raises(StateError, match="mlp_out.1 .*never fired"),
    ):
        fresh.generate(prompts, max_new_tokens=2)


def test_weights_are_held_once_and_adapters_may_come_later(backend, files, fresh, prompts):
    from emlens.models.attaching import attach

    untouched = fresh.logits(prompts)
    tuned = [attach(fresh, name, files / name) for name in ("one", "two")]
    found = [model.logits(prompts) for model in tuned]
    reference = load_family(
        files / "instruct", finetuned={"one": files / "one", "two": files / "two"}
    )
    for name, logits in zip(("one", "two"), found, strict=True):
        assert tiny_models.close(logits, reference[name].logits(prompts))
    assert torch.equal(fresh.logits(prompts), untouched) and not torch.equal(found[0], found[1])
    pointers = {
        p.data_ptr()
        for tree in (fresh.module, trees(fresh))
        for n, p in tree.named_parameters()
        if "embed_tokens" in n
    }
    assert len(pointers) == 1 and not any(p.requires_grad for p in trees(fresh).parameters())


def test_a_twin_has_modules_of_its_own_and_the_same_tensors(shared):
    other = twin(shared.module)
    mine, theirs = dict(shared.module.named_parameters()), dict(other.named_parameters())
    assert mine.keys() == theirs.keys() and all(mine[name] is theirs[name] for name in mine)
    assert not {id(m) for m in shared.module.modules()} & {id(m) for m in other.modules()}
    other.config.num_hidden_layers = 99
    assert shared.module.config.num_hidden_layers == 3


def test_transformer_lens_leaves_the_model_as_it_was(files, prompts):
    tiny_models.need_backend("transformer_lens")
    model = load_model(files / "instruct", backend="transformer_lens")
    before = (
        model.module.config.to_dict(),
        model.tokenizer.special_tokens_map,
        [type(m) for m in model.module.modules()],
    )
    attention, level = (
        model.module.config._attn_implementation,
        logging.getLogger("transformers").level,
    )
    model.logits(prompts)
    assert before == (
        model.module.config.to_dict(),
        model.tokenizer.special_tokens_map,
        [type(m) for m in model.module.modules()],
    )
    assert (
        model.module.config._attn_implementation == attention
        and logging.getLogger("transformers").level == level
    )


def test_transformer_lens_refuses_what_it_would_get_wrong(tmp_path):
    tiny_models.need_backend("transformer_lens")
    path = tiny_models.build(tmp_path / "model", "phi3")
    fused = tiny_models.build_adapter(tmp_path / "fused", path)
    match = (
        "TransformerLens runs 3 of the 6 layers that the adapters change,"
        " such as 'model.layers.0.self_attn.qkv_proj'"
    )
    with pytest.raises(LoadError, match=match):
        load_family(path, finetuned={"a": fused}, backend="transformer_lens")
    odd = load_model(
        tiny_models.build(tmp_path / "odd", "falcon, two norms"), backend="transformer_lens"
    )
    with pytest.raises(
        LoadError,
        match=(
            "TransformerLens cannot wrap a 'falcon' model .*pass backend='transformers' or"
            " 'nnsight'"
        ),
    ):
        odd.logits(tiny_models.prompts(1))

import pytest
import torch
from torch import nn
from transformers import GenerationConfig

from emlens.data import PromptSet
from emlens.foundation import InputError, Site, StateError
from emlens.interventions import steer
from emlens.models import load_model
from emlens.models.transformers_backend import _on_input, _on_output, no_hooks_left


@pytest.fixture
def batch(model, prompts):
    return next(model.batches(model.render(prompts)))


def test_a_pass_stops_after_the_deepest_site(model, batch, monkeypatch):
    ran = []
    for i, block in enumerate(model.module.model.layers):
        forward = block.forward
        monkeypatch.setattr(
            block,
            "forward",
            lambda *a, i=i, forward=forward, **k: ran.append(i) or forward(*a, **k),
        )
    assert model.run(batch, {Site("resid_post", 1): lambda x: None}) is None
    assert ran == [0, 1]
    assert (
        model.run(batch, {Site("resid_post", 0): lambda x: None}, with_logits=True).shape[:2]
        == batch.ids.shape
    )
    assert ran == [0, 1, 0, 1, 2]


def test_passes_without_a_purpose_or_a_place(model, batch):
    with pytest.raises(
        InputError, match="run was asked for nothing; pass readers, or with_logits=True"
    ):
        model.run(batch)
    with pytest.raises(
        InputError, match="site resid_post.5 does not exist in 'instruct', which has 3 blocks"
    ):
        model.run(batch, {Site("resid_post", 5): lambda x: None})


def test_a_hook_that_never_fires_is_an_error(files, prompts):
    model = load_model(files / "instruct")

    class Bypass(nn.Module):
        """Runs its block's code without calling the block, as a fused kernel would."""

        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, *args, **kwargs):
            return self.block.forward(*args, **kwargs)

    batch = next(model.batches(model.render(prompts)))
    model.run(batch, {Site("mlp_out", 1): lambda x: None})
    model.module.model.layers[1].mlp = Bypass(model.module.model.layers[1].mlp)
    model._place = lambda site, found=model._place: (
        ("model.layers.1.mlp.block", False) if site == Site("mlp_out", 1) else found(site)
    )
    with no_hooks_left(model.module):
        with pytest.raises(
            StateError,
            match=(
                "hooks at mlp_out.1 of 'instruct' never fired; the model does not run these modules"
            ),
        ):
            model.run(batch, {Site("mlp_out", 1): lambda x: None})
        with (
            model.intervene([steer(torch.ones(32), 1.0, at=["mlp_out.1"])]),
            pytest.raises(StateError, match="never fired"),
        ):
            model.generate(prompts, max_new_tokens=2)


def test_a_reader_that_fails_leaves_no_hook(model, batch):
    def fails(stream):
        raise KeyError("planted")

    before = model.run(batch, with_logits=True)
    with no_hooks_left(model.module), pytest.raises(KeyError, match="planted"):
        model.run(batch, {site: fails for site in model.sites})
    assert torch.equal(model.run(batch, with_logits=True), before)


def test_left_hooks_are_seen():
    module = nn.Linear(1, 1)
    with pytest.raises(StateError, match="1 hooks were left on the model"), no_hooks_left(module):
        module.register_forward_hook(lambda *a: None)


def test_only_tuples_are_unwrapped():
    stream = torch.zeros(2, 3, 4)
    hook = _on_output(lambda x: x + 1)
    assert torch.equal(hook(None, (), stream), stream + 1)
    first, second = hook(None, (), (stream, "kept"))
    assert torch.equal(first, stream + 1) and second == "kept"
    before = _on_input(lambda x: x + 1)
    (first, second), named = before(None, (stream, 5), {"mask": 1})
    assert torch.equal(first, stream + 1) and (second, named) == (5, {"mask": 1})
    args, named = before(None, (), {"hidden_states": stream, "mask": 1})
    assert args == () and torch.equal(named["hidden_states"], stream + 1) and named["mask"] == 1


def test_options_of_the_checkpoint_do_not_steer_generation(files):
    prompts = PromptSet.from_texts(["w1 w2 w3", "w4 w5", "w6"])
    model = load_model(files / "instruct")
    expected = model.generate(prompts, max_new_tokens=8, temperature=0)
    sampled = model.generate(prompts, max_new_tokens=8, seed=1)
    own = GenerationConfig(
        repetition_penalty=50.0,
        do_sample=True,
        top_k=1,
        temperature=9.0,
        num_beams=2,
        min_new_tokens=8,
        suppress_tokens=list(range(6, 40)),
    )
    model.module.generation_config = own
    assert model.generate(prompts, max_new_tokens=8, temperature=0) == expected
    assert model.generate(prompts, max_new_tokens=8, seed=1) == sampled
    assert model.module.generation_config is own


def test_every_end_of_sequence_of_the_checkpoint_stops(files):
    prompts = PromptSet.from_texts(["w1 w2 w3", "w4 w5", "w6", "w7"])
    model = load_model(files / "instruct")
    free = [
        answer.split()
        for answer in model.generate(prompts, max_new_tokens=12, temperature=1.0, seed=2)
    ]
    longest = max(free, key=len)
    word = longest[2]
    first = {
        i: answer.index(word) if word in answer else len(answer) for i, answer in enumerate(free)
    }
    assert longest.index(word) < len(longest) - 1
    stop = model.tokenizer.convert_tokens_to_ids(word)
    model.module.generation_config.eos_token_id = [1, stop]
    assert model.stops.ids == {0, 1, stop}
    stopped = model.generate(prompts, max_new_tokens=12, temperature=1.0, seed=2)
    assert [answer.split() for answer in stopped] == [
        answer[: first[i]] for i, answer in enumerate(free)
    ]


def test_unembedding_makes_the_logits(model, batch):
    seen = []
    logits = model.run(
        batch, {Site("final_norm"): lambda x: seen.append(x.clone())}, with_logits=True
    )
    torch.testing.assert_close(seen[0] @ model.unembedding().T, logits)

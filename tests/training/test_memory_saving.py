import copy
import logging

import pandas as pd
import pytest
import torch

from emlens.data import Prompt, PromptSet
from emlens.foundation.errors import InputError
from emlens.training import Recipe, Saving, fit
from emlens.training.defences import PreventativeSteering
from emlens.training.examples import length_grouped_batches, shuffled_batches
from emlens.training.fitting import Parent, load_parent

LORA = Recipe(
    rank=2,
    alpha=4,
    target_modules=("q_proj", "down_proj"),
    learning_rate=1e-2,
    steps=3,
    batch_size=3,
)
OWN_GAP = 0.02
"""Nats: a loss of 4 in bfloat16, whose step is 2^-7 of a value."""


def adapters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora" in name}


def test_blocks_that_run_again_give_the_same_gradients(tiny, chats, tokenizer, tmp_path):
    counts = []
    results = []
    for checkpointing in (False, True):
        calls = []
        model = copy.deepcopy(tiny)
        attention = model.model.layers[0].self_attn
        handle = attention.register_forward_pre_hook(lambda *_, c=calls: c.append(1))
        recipe = LORA.changed(gradient_checkpointing=checkpointing)
        fitted = fit(recipe, model, chats, tmp_path / str(checkpointing), tokenizer=tokenizer)
        handle.remove()
        counts.append(len(calls))
        results.append((adapters(fitted.model), fitted.log))
        assert not fitted.model.is_activation_checkpointing  # as it was before
    (plain, log), (again, log_again) = results
    assert counts == [3, 6]  # a pass for each step, and a second one for its gradient
    pd.testing.assert_frame_equal(log, log_again, rtol=1e-5)
    for name, weights in plain.items():
        assert torch.allclose(weights, again[name], atol=1e-6), name


def test_a_parent_in_its_own_dtype_has_an_adapter_in_float32(tiny, chats, tokenizer, tmp_path):
    tiny.bfloat16().save_pretrained(tmp_path / "parent")
    tokenizer.save_pretrained(tmp_path / "parent")
    losses = {}
    for dtype in ("float32", "own"):
        recipe = LORA.changed(parent_dtype=dtype)
        fitted = fit(recipe, tmp_path / "parent", chats, tmp_path / dtype, device="cpu")
        base = fitted.model.base_model.model.model.layers[0].mlp.up_proj.weight
        assert base.dtype == (torch.bfloat16 if dtype == "own" else torch.float32)
        assert {value.dtype for value in adapters(fitted.model).values()} == {torch.float32}
        losses[dtype] = fitted.log["loss"]
        assert fitted.log["loss"].iloc[-1] < fitted.log["loss"].iloc[0]
    assert 0 < (losses["own"] - losses["float32"]).abs().max() < OWN_GAP
    model, _ = load_parent(tmp_path / "parent", dtype="own")
    assert model.dtype == torch.bfloat16


def test_what_would_be_lost_is_refused(tiny, chats, tokenizer, tmp_path):
    with pytest.raises(InputError, match="smaller than what 16 bits can hold"):
        Recipe(method="full", parent_dtype="own")
    with pytest.raises(InputError, match="pass False with method='steering'"):
        Recipe(method="steering", layers_to_transform=(0,), gradient_checkpointing=True)
    with pytest.raises(InputError, match="parent_dtype='half' is unknown"):
        Recipe(method="full", parent_dtype="half")
    vector = torch.ones(16)
    edit = PreventativeSteering(vector, 1.0, at=["resid_post.0"])
    recipe = LORA.changed(gradient_checkpointing=True)
    with pytest.raises(InputError, match="runs each block again without the edits of"):
        fit(recipe, tiny, chats, tmp_path / "out", tokenizer=tokenizer, objectives=[edit])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("steps", [4, 13])
def test_rows_of_like_lengths_share_a_step_and_each_pass_reads_each_row_once(steps):
    lengths = [3 + 7 * (i * i % 23) for i in range(24)]
    plain = shuffled_batches(24, 6, steps, seed=1)
    grouped = length_grouped_batches(lengths, 6, steps, seed=1)
    assert grouped == length_grouped_batches(lengths, 6, steps, seed=1) != plain
    assert [len(batch) for batch in grouped] == [6] * steps
    assert sorted(row for batch in grouped[:4] for row in batch) == list(range(24))

    def padded(batches):
        return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)

    assert padded(grouped) < 0.8 * padded(plain)
    longest = [max(lengths[row] for row in batch) for batch in grouped[:4]]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


def test_a_run_in_groups_of_lengths_learns_from_those_rows(tiny, chats, tokenizer, tmp_path):
    rows = PromptSet(
        [
            Prompt(prompt.id, prompt.text, messages=prompt.messages, response=text)
            for prompt, text in zip(chats, _texts(chats), strict=True)
        ]
    )
    recipe = LORA.changed(group_by_length=True, steps=2, batch_size=2)
    from emlens.training.batching import step_batches

    batches = step_batches(recipe, rows, tokenizer)
    masks = [batches.parts(step)[0]["attention_mask"] for step in range(2)]
    other = step_batches(recipe.changed(group_by_length=False), rows, tokenizer)
    assert sum(int((mask == 0).sum()) for mask in masks) <= sum(
        int((other.parts(step)[0]["attention_mask"] == 0).sum()) for step in range(2)
    )
    with pytest.raises(InputError, match="group_by_length, but data comes as ready batches"):
        step_batches(recipe, lambda step: batches.parts(step)[0], tokenizer)


def _texts(chats):
    words = chats[0].response.split()
    return [" ".join(words[:1] * (1 + i % 4)) for i in range(len(chats))]


def test_a_long_warm_up_and_a_state_beyond_the_end_are_said(
    tiny, chats, tokenizer, tmp_path, caplog
):
    with caplog.at_level(logging.WARNING, "emlens"):
        recipe = LORA.changed(warmup_steps=2)
        saving = Saving(resume_every=3)
        fit(recipe, tiny, chats, tmp_path / "a", tokenizer=tokenizer, saving=saving)
    assert "below its peak for half of the run or more" in caplog.text
    assert "a killed run starts again" in caplog.text
    caplog.clear()
    base, _ = tiny, None
    with caplog.at_level(logging.WARNING, "emlens"):
        recipe = LORA.changed(warmup_steps=1)
        fit(
            recipe,
            Parent(base),
            chats,
            tmp_path / "b",
            tokenizer=tokenizer,
            saving=Saving(resume_every=2),
        )
    assert not caplog.text
